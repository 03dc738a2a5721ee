"""Who may import whom."""

import ast
import sys
from pathlib import Path

import pytest

import simprune

PACKAGE = Path(simprune.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
TOP = (
    "simprune.__main__",
    "simprune.cli",
    "simprune.commands",
    "simprune.listing",
    "simprune.console",
    "simprune.recipe",
)


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
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def test_the_reader_of_imports_sees_them():
    assert "simprune.recovery" in imports("simprune.recipe.schema")
    assert "torch" in imports("simprune.sources")
    assert "sklearn.datasets" in imports("simprune.sources")
    assert "sklearn.datasets" not in imports("simprune.sources", top_level_only=True)


@pytest.mark.parametrize("package", ["simprune.measures", "simprune.functional"])
def test_measures_import_only_torch_numpy_scipy(package):
    for name in filter(lambda name: within(name, package), MODULES):
        for used in imports(name):
            outside = used.partition(".")[0]
            assert (
                within(used, package) or outside in ("torch", "numpy", "scipy") or outside in sys.stdlib_module_names
            ), f"{name} imports {used}"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_nothing_below_imports_the_pipeline_or_the_command_line(name):
    if name == "simprune" or within(name, *TOP, "simprune.pipeline"):
        return
    for used in imports(name):
        assert not within(used, "simprune.pipeline", *TOP), f"{name} imports {used}"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_hydra_is_known_to_the_command_line_and_recipes_alone(name):
    if not within(name, "simprune.cli", "simprune.recipe"):
        assert not [used for used in imports(name) if within(used, "hydra", "omegaconf")]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_torch_pruning_is_known_to_surgery_alone(name):
    if not within(name, "simprune.surgery"):
        assert not [used for used in imports(name) if within(used, "torch_pruning")]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_optional_packages_are_imported_where_they_are_used(name):
    assert not [used for used in imports(name, top_level_only=True) if within(used, "transformers", "sklearn")]
