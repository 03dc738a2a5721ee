"""A user's folder as the working folder, and one whole compression in such a folder."""

import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from simprune.cli import commands
from simprune.cli.main import main
from tests.cli.users import LOOSE, OWN, Compressed, furnish


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Iterator[Path]:
    """A user's folder, which is the working folder: a recipe and the module that it names, in a subfolder."""
    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("users_parts", None)


@pytest.fixture(scope="session")
def compressed(tmp_path_factory) -> Compressed:
    """One whole compression, for all tests that only look."""
    folder = tmp_path_factory.mktemp("compressed")
    furnish(folder)
    jobs = []
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as shown:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        patch.setitem(commands.COMMANDS, "compress", lambda job: jobs.append(job) or commands.compress(job))
        code = main(["compress", OWN, LOOSE, "finetune=default", "finetune.epochs=1", "control=1"])
    sys.modules.pop("users_parts", None)
    return Compressed(code, shown.getvalue(), jobs[0], folder)


@pytest.fixture
def bundle(compressed) -> Path:
    return compressed.bundle
