"""The documentation: its site builds without a warning, and every block of code on its pages and in the README runs.

Python runs as it stands, from the top of a page to its end. Recipes and commands are composed and checked whole; those
of the first page, for a user's own model, run. A block of which nothing here knows how to test it is an error.
"""

import dataclasses
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from simprune.cli.flags import split
from simprune.cli.folders import recipes
from simprune.cli.help import DETAILS, LISTED
from simprune.cli.main import main
from simprune.cli.recipe.compose import load_recipe
from simprune.cli.recipe.schema import settings
from simprune.cli.recipe.unread import refuse_unread
from simprune.cli.reference import pages
from simprune.cli.study import choice
from simprune.core.plan import Plan
from simprune.core.registry import check_options, find
from simprune.settings import REBUILT, Study

TOP = Path(__file__).parent.parent
DOCS = TOP / "docs"
PAGES = [TOP / "README.md", *sorted(DOCS.rglob("*.md"))]
NAMES = [str(page.relative_to(TOP)) for page in PAGES]
BLOCK = re.compile(r"^```([\w ]*)\n(.*?)^```$", re.M | re.S)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
RUN = DOCS / "start.md"  # the page whose commands run
each_page = pytest.mark.parametrize("page", PAGES, ids=NAMES)


def blocks(text: str, language: str) -> list[str]:
    return [block for kind, block in BLOCK.findall(text) if kind == language]


def write_files(text: str, folder: Path) -> None:
    """Blocks that begin with a comment that is a file's name are that file."""
    for _, block in BLOCK.findall(text):
        if named := re.match(r"# (\w+\.(?:py|yaml))\n", block):
            (folder / named[1]).write_text(block, encoding="utf-8")


def commands(text: str) -> list[list[str]]:
    """Lines of shell blocks as words; a backslash goes on with the next line."""
    lines = "".join(blocks(text, "")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@each_page
def test_the_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    text = page.read_text(encoding="utf-8")
    if "import transformers" in text or "sources.transformers" in text:
        pytest.importorskip("transformers")
    write_files(text, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    exec(compile("\n".join(blocks(text, "python")), str(page), "exec"), {"__name__": "__main__"})


def test_the_python_of_generated_pages_runs():
    for name, text in pages().items():
        exec(compile("\n".join(blocks(text, "python")), name, "exec"), {})


@each_page
def test_commands_and_recipes_of_a_page_are_right(page, tmp_path, monkeypatch):
    text = page.read_text(encoding="utf-8")
    assert {kind for kind, _ in BLOCK.findall(text)} <= {"", "python", "yaml", "text"}, "a block that no test knows"
    write_files(text, tmp_path)
    monkeypatch.chdir(tmp_path)
    for block in blocks(text, "yaml"):
        if block.startswith("simprune_plan"):
            Plan.from_yaml(block)
        else:
            assert re.match(r"# \w+\.yaml\n", block), "the first line of a recipe is its file's name"
            load_recipe(re.findall(r"\w+\.yaml", block)[0])
    for words in commands(text):
        check_command(words)


def check_command(words: list[str]) -> None:
    """A command that the documentation shows is one that works: known, with known arguments."""
    if words[0] == "simprune":
        assert words[1] in DETAILS
        check_arguments(words[1], words[2:])
    elif words[0] == "torchrun":
        check_command(words[words.index("-m") + 1 :])
    elif words[:2] == ["python", "-m"] or words[0] == "python":
        script = TOP / (f"{words[2].replace('.', '/')}.py" if words[1] == "-m" else words[1])
        source = script.read_text(encoding="utf-8")
        assert all(f'"{word}"' in source for word in words if word.startswith("--"))
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (TOP / "Makefile").read_text(encoding="utf-8"), re.M)
    elif words[:2] == ["pip", "install"]:
        extras = re.findall(r"\[(\w+)\]", " ".join(words))
        assert all(f"\n{extra} = [" in (TOP / "pyproject.toml").read_text(encoding="utf-8") for extra in extras)
    else:
        assert words[0] in ("git", "cd"), f"no test knows the command {words}"


def check_arguments(command: str, words: list[str]) -> None:
    if command == "list":
        assert set(words) <= {*LISTED}
        return
    if command == "study":
        study, options = choice(words)
        common = {field.name for field in dataclasses.fields(Study)}
        check_options(find("study", study), {key: options[key] for key in options if key not in common})
        return
    overrides, flags, name = split(words)
    if name is None:  # the recipe is inside the bundle
        assert command in REBUILT and any(word.startswith("bundle=") for word in overrides)
        name = "digits"
    once = [override for override in overrides if not override.startswith("hydra.")]
    for key, _, path in (override.partition("=") for override in overrides):
        if key == "bundle":
            Path(path).mkdir(parents=True, exist_ok=True)  # settings ask whether they are there
        elif key == "plan":
            Path(path).touch()
    if "-m" in flags:
        once = [re.sub(r"=([^,\[]+),.*", r"=\1", override) for override in once]
    config = load_recipe(name, once)
    if "--frontier" in flags:
        config.budget = [0.5]
    refuse_unread(settings(config, command), command, once)


def test_the_commands_of_the_first_page_compress_and_check_your_own_model(tmp_path, monkeypatch, capfd):
    text = RUN.read_text(encoding="utf-8")
    write_files(text, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    own = [words[1:] for words in commands(text) if "recipe=mine.yaml" in words]
    assert [words[0] for words in own] == ["compress", "validate"]
    assert [main(words) for words in own] == [0, 0]
    assert (tmp_path / "smaller" / "bundle" / "report.html").is_file()


@each_page
def test_links_of_a_page_lead_to_files(page):
    generated = {*pages(), "contributing.md", "changelog.md", "benchmarks.md"}
    for target in LINK.findall(BLOCK.sub("", page.read_text(encoding="utf-8"))):
        path = (page.parent / target).resolve()
        assert path.exists() or str(path.relative_to(DOCS)) in generated, target


def test_every_recipe_is_on_a_page():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [name for name in recipes() if name not in text] == []


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs simprune[docs]")
def test_the_site_builds_without_a_warning_and_loads_nothing_from_other_hosts(tmp_path):
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    config = load_config(str(TOP / "mkdocs.yml"), site_dir=str(tmp_path), strict=True)
    build(config)
    built = {str(path.relative_to(tmp_path)): path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")}
    assert "Raises" in built["reference/python.html"]
    assert "cka_debiased" in built["reference/python.html"], "options have their defaults"
    loaded = re.compile(r"""<(?:script|img|iframe|link[^>]*rel="stylesheet")[^>]*(?:src|href)=["']?(https?:)?//""")
    assert [name for name, html in built.items() if loaded.search(html)] == []


def test_a_broken_block_is_noticed(tmp_path, monkeypatch):
    text = "text\n```python\nx = 1\n```\nmore\n```python\nassert x == 2\n```\n"
    with pytest.raises(AssertionError):
        exec("\n".join(blocks(text, "python")), {})
    with pytest.raises(ValueError, match="no recipe"):
        check_command(shlex.split("simprune compress recipe=digitz"))
    with pytest.raises((ValueError, AssertionError)):
        check_command(shlex.split("python -m benchmarks.vision_speed --no-such-option"))
    with pytest.raises(AssertionError):
        check_command(["frobnicate"])
