"""The folders of the built-in recipes and configurations; imports no torch."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def builtin(folder: str) -> Path:
    """`conf` or `recipes`: beside the package in a checkout, inside it in a wheel."""
    checkout = (PACKAGE.parent / "pyproject.toml").is_file()
    return (PACKAGE.parent if checkout else PACKAGE) / folder


def recipes() -> dict[str, str]:
    """Names of the built-in recipes, sorted, with the first line of a file where that is a comment."""
    first = {}
    for path in sorted(builtin("recipes").glob("*.yaml")):
        line = path.read_text(encoding="utf-8").partition("\n")[0]
        first[path.stem] = line.removeprefix("#").strip() if line.startswith("#") else ""
    return first
