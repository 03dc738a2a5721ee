"""Pages of the documentation: their Python runs as it stands, their recipes and options exist."""

import re
from pathlib import Path

import pytest

from simprune.cli.folders import recipes
from simprune.cli.help import DETAILS

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted((DOCS / "cookbook").glob("*.md"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(page.read_text(encoding="utf-8")) if kind == language]


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_the_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    code = "\n".join(blocks(page, "python"))
    assert code, "a page of the cookbook has a script"
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(page), "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_commands_and_recipes_of_a_page_exist(page):
    commands = [line for text in blocks(page, "") for line in text.splitlines() if line.startswith("simprune ")]
    assert commands, "a page of the cookbook has a command"
    for line in commands:
        words = line.split()
        assert words[1] in DETAILS
        named = [word.partition("=")[2] for word in words if word.startswith("recipe=")]
        assert set(named) <= set(recipes())


def test_a_broken_script_is_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("text\n```python\nx = 1\n```\nmore\n```python\nassert x == 2\n```\n")
    assert len(blocks(page, "python")) == 2
    with pytest.raises(AssertionError):
        exec("\n".join(blocks(page, "python")), {})
