"""What MkDocs builds from the code, and from files at the top of the repository, so that nothing is kept twice."""

import inspect
import pydoc
import re
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
        if "{options}" in text and isinstance(obj, griffe.Function):
            function: Any = pydoc.locate(obj.path)
            text = inspect.cleandoc(function.__doc__)
            obj.parameters = griffe.Parameters(*map(_parameter, inspect.signature(function).parameters.values()))
        prose, start, example = text.partition("\n>>> ")
        if start:
            text = f"{prose}\n\nExamples:\n{textwrap.indent(start.strip() + ' ' + example, '    ')}"
        obj.docstring.value = text


def _parameter(parameter: inspect.Parameter) -> griffe.Parameter:
    """A parameter for the page of a function; options have one each, with its default."""
    annotation = re.sub(r"\b(?:[A-Za-z_]\w*\.)+", "", inspect.formatannotation(parameter.annotation))  # no modules
    default = parameter.default
    return griffe.Parameter(
        parameter.name,
        annotation=annotation,
        kind=griffe.ParameterKind(parameter.kind.description),
        default=None if default is parameter.empty else _shown(default),
    )


def _shown(default: Any) -> str:
    """A default in Python; of a table of options, that its own defaults hold."""
    return "{}" if hasattr(default, "__dataclass_fields__") else repr(default)
