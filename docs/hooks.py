"""What MkDocs builds from the code, and from files at the top of the repository, so that nothing is kept twice."""

import inspect
import pydoc
import textwrap
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from simprune.cli.reference import pages

TOP = Path(__file__).parent.parent
COPIED = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md", "benchmarks.md": "benchmarks/README.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the reference, and copies."""
    texts = pages() | {name: (TOP / path).read_text(encoding="utf-8") for name, path in COPIED.items()}
    for name, text in texts.items():
        files.append(File.generated(config, name, content=text))
    return files


class Docstrings(griffe.Extension):
    """Docstrings as they are at run time, with every option, and with their examples as a section."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is None:
            return
        text = obj.docstring.value
        if "{options}" in text:
            text = inspect.cleandoc(pydoc.locate(obj.path).__doc__ or "")
        prose, start, example = text.partition("\n>>> ")
        if start:
            text = f"{prose}\n\nExamples:\n{textwrap.indent(start.strip() + ' ' + example, '    ')}"
        obj.docstring.value = text
