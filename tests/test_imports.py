"""Who may import whom: the rooms of the house, from the top down."""

import ast
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import simprune

PACKAGE = Path(simprune.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
# Each room imports what stands lower in this list, and itself; rooms of one line may import each other.
ROOMS = (
    ("__main__",),
    ("cli",),
    ("studies",),
    ("api", "arguments", "idle", "stages", "bundle", "report", "formats"),
    ("tune",),
    ("checks",),
    ("repair",),
    ("edit",),
    ("planners",),
    ("scores",),
    ("structures",),
    ("functional",),
    ("trace",),
    ("measures",),
    ("core",),
)
# Rooms that stand beside the list, with all that they import.
ASIDE = {
    "sources": ("core", "zoo"),
    "zoo": (),
    "settings": ("core",),
    "testing": ("settings", "zoo", *(r for row in ROOMS[3:] for r in row)),
}


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else "__init__"


def allowed(place: str) -> set[str]:
    """Rooms that a room may import from."""
    if place in ASIDE:
        return {place, *ASIDE[place]}
    level = next(number for number, row in enumerate(ROOMS) if place in row)
    found = {each for row in ROOMS[level:] for each in row}
    if level <= 3:
        found |= {"sources", "zoo"}
    if place == "studies":
        # public functions alone, and what reads representations
        return {place, "__init__", "report", "core", "sources", "zoo", "settings", "trace", "measures"}
    if place == "cli":
        found.add("__init__")  # the reference lists the public names
    if place in ("measures", "core"):
        return {place, "core"}
    found.add("settings")
    if place == "functional":
        return {place, "core", "trace"}
    return found


@cache
def imports(name: str, top_level_only: bool = False) -> set[str]:
    """Absolute names of what a module imports, except for type checkers alone."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if top_level_only and isinstance(node, ast.FunctionDef):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package.split(".")[: len(package.split(".")) + 1 - node.level], *base.split(".")])
            base = base.strip(".")
            found.update(f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names)
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.expr):  # which holds no statement
                visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def test_the_reader_of_imports_sees_them():
    assert "simprune.core.batches" in imports("simprune.trace.capture")
    assert "torch" in imports("simprune.sources.digits")
    assert "sklearn.datasets" in imports("simprune.sources.digits")
    assert "sklearn.datasets" not in imports("simprune.sources.digits", top_level_only=True)


def offenders(refused: Callable[[str, str], bool], *rooms: str, top_level_only: bool = False) -> list[str]:
    """What is imported though it is refused, a line for each module (of these rooms, or of all)."""
    names = [name for name in sorted(MODULES) if not rooms or room(name) in rooms]
    assert len(names) > len(rooms)
    return [
        f"{name}: {used}" for name in names for used in sorted(imports(name, top_level_only)) if refused(name, used)
    ]


def test_rooms_import_only_what_stands_lower():
    """Also within functions: a late import is still one."""
    known = {place: allowed(place) for place in {room(name) for name in MODULES} - {"__init__"}}
    assert not offenders(
        lambda name, used: name != "simprune" and within(used, "simprune") and room(used) not in known[room(name)]
    )


def test_functional_measures_use_the_context_of_trace_alone():
    assert not offenders(
        lambda _, used: within(used, "simprune.trace") and used != "simprune.trace.context", "functional"
    )


def test_measures_import_only_torch_numpy_scipy():
    known = {"simprune", "torch", "numpy", "scipy", *sys.stdlib_module_names}
    assert not offenders(lambda _, used: used.partition(".")[0] not in known, "measures", "functional")


def test_planners_never_see_a_network():
    assert not offenders(lambda _, used: within(used, "torch", "simprune.trace"), "planners")


def test_hydra_is_known_to_the_command_line_alone():
    assert not offenders(lambda name, used: not within(name, "simprune.cli") and within(used, "hydra", "omegaconf"))


def test_torch_pruning_is_known_to_trace_alone():
    assert not offenders(lambda name, used: not within(name, "simprune.trace") and within(used, "torch_pruning"))


def test_optional_packages_are_imported_where_they_are_used():
    assert not offenders(lambda _, used: within(used, "transformers", "sklearn"), top_level_only=True)
