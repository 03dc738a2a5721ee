"""Where the built-in recipes and configurations lie; imports no torch."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def builtin(folder: str) -> Path:
    """`conf` or `recipes`: beside the package in a checkout, inside it in a wheel."""
    checkout = (PACKAGE.parent / "pyproject.toml").is_file()
    return (PACKAGE.parent if checkout else PACKAGE) / folder


def options(folder: Path) -> dict[str, str]:
    """Names of the YAML files in a folder, each with its first comment line."""
    first = {path.stem: path.read_text(encoding="utf-8").partition("\n")[0] for path in sorted(folder.glob("*.yaml"))}
    return {name: line.removeprefix("#").strip() if line.startswith("#") else "" for name, line in first.items()}
