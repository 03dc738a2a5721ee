"""Progress of long work."""

import logging
import subprocess
import sys

import pytest

from simprune.core import progress as module
from simprune.core.progress import progress, reporting, step


def test_items_pass_and_rich_is_imported_only_for_a_bar():
    assert list(progress([1, 2], "counting")) == [1, 2]
    code = "import sys, simprune.core.progress; assert not any(name.startswith('rich') for name in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nothing_is_shown_unless_asked_for(capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # of runs from the command line in this process
    list(progress([1, 2], "counting"))
    with step("proving"):
        pass
    assert capsys.readouterr() == ("", "")


def test_one_line_a_step_and_every_line_in_the_file(capsys, tmp_path):
    with reporting(tmp_path / "run.log"):
        with step("outer"):
            list(progress([1, 2], "inner"))
        for number in progress(iter("abc"), "left"):
            if number == "b":
                break
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("outer: ") and err.count("\n") == 1
    told = (tmp_path / "run.log").read_text()
    assert all(text in told for text in ("INFO outer: ", "DEBUG inner: 2 in ", "DEBUG left: left after "))
    assert logging.getLogger("simprune").level == logging.NOTSET


def test_a_long_step_says_how_far_it_is_and_estimates_the_rest(capsys, monkeypatch):
    clock = iter(range(0, 10_000, 40))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(clock)))
    with reporting():
        list(progress([1, 2, 3, 4], "slow"))
    first = capsys.readouterr().err.splitlines()[0]
    assert first == "slow: 1 of 4 after 40.0 s, about 2 min 0 s left"


def test_an_error_inside_leaves_the_logger_as_it_was():
    logger = logging.getLogger("simprune")
    before = (logger.level, logger.propagate, list(logger.handlers))
    with pytest.raises(KeyError), reporting(), step("outer"):
        raise KeyError("a")
    assert (logger.level, logger.propagate, list(logger.handlers)) == before and module._depth == [0]
