"""Progress of long work."""

import json
import logging
import os
import re
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
    with reporting(tmp_path / "new folder" / "run.log"):
        with step("outer"):
            list(progress([1, 2], "inner"))
        for number in progress(iter("abc"), "left"):
            if number == "b":
                break
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("outer: ") and err.count("\n") == 1
    told = (tmp_path / "new folder" / "run.log").read_text()
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


TERMINALS = """
import fcntl, json, os, pty, struct, sys, termios, time, traceback
from simprune.cli import console
from simprune.core.progress import progress, reporting

def show(variables):
    os.environ.update(variables)
    fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 90, 0, 0))
    with reporting():
        for _ in progress(range(3), "counting"):
            time.sleep(0.15)  # the bar is drawn ten times a second
    console.show(console.table("a title of several words", ["column"] * 4, [["some words in a cell"] * 4]))
    sys.stdout.flush()

def read(terminal):
    try:
        return os.read(terminal, 65536)
    except OSError:  # how a terminal says that nobody writes to it any more
        return b""

screens = []
for variables in json.loads(sys.argv[1]):
    child, terminal = pty.fork()
    if child == 0:
        try:
            show(variables)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    screens.append(b"".join(iter(lambda: read(terminal), b"")).decode())
    assert os.waitpid(child, 0)[1] == 0, screens[-1]
print(json.dumps(screens))
"""


def test_a_terminal_has_no_colours_with_no_color_and_the_width_of_columns():
    pytest.importorskip("pty")  # not on Windows
    cases = [{}, {"NO_COLOR": "1"}, {"COLUMNS": "40"}, {"COLUMNS": "40", "NO_COLOR": "1"}]
    environment = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS", "CI")}
    # One process imports, and becomes a new one for each terminal.
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TERMINALS, json.dumps(cases)],
        env=environment | {"TERM": "xterm-256color"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for variables, text in zip(cases, json.loads(done.stdout), strict=True):
        coloured = re.search(r"\x1b\[(\d+;)*(3[0-8]|4[0-8]|9[0-7])[;m]", text)
        assert (coloured is None) == ("NO_COLOR" in variables) and "counting" in text, variables
        widths = [len(line) for line in re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text).replace("\r", "\n").splitlines()]
        assert max(widths) <= (40 if "COLUMNS" in variables else 90), variables
        assert max(widths) > 40 or "COLUMNS" in variables, variables
