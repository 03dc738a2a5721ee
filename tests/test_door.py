"""What is light: help, version and completion need no torch; `import simprune` costs little more than torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import simprune

HEAVY = {"torch", "scipy", "hydra", "transformers", "matplotlib", "jinja2", "sklearn"}
DOOR = """
import sys, time
from simprune.cli.main import main
code = main({args!r})
print("|", code, time.process_time(), *sorted(set(sys.modules) & {heavy!r}))
"""


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["--version"],
        ["compress", "--help"],
        ["analyze", "-h"],
        ["list", "--help"],
        ["--shell-completion", "install=bash"],
        ["--shell-completion", "query=simprune compress planner="],
    ],
)
def test_the_door_needs_no_torch(args):
    code, seconds, *imported = run(DOOR.format(args=args, heavy=HEAVY)).rpartition("|")[2].split()
    assert code == "0" and not imported
    assert float(seconds) < 0.5


def test_importing_simprune_costs_little_beyond_torch():
    """Also with the public functions, which are imported when they are first used."""
    script = f"""
import sys, time, torch
start = time.process_time()
import simprune
seconds = time.process_time() - start
print(seconds, *sorted(set(sys.modules) & {HEAVY - {"torch", "scipy"}!r}))
"""
    seconds, *imported = run(script).split()
    assert float(seconds) < 0.5 and not imported


def test_public_names_are_there():
    for name in simprune.__all__:
        assert getattr(simprune, name) is not None
    assert simprune.__version__[0].isdigit() and set(simprune.__all__) <= set(dir(simprune))
    with pytest.raises(AttributeError, match="no attribute 'compres'"):
        simprune.compres  # noqa: B018
    assert (Path(simprune.__file__).parent / "py.typed").is_file()


def test_the_completion_is_a_script_that_bash_takes(tmp_path):
    """What `eval "$(simprune --shell-completion install=bash)"` does, and a tab after it."""
    (tmp_path / "simprune").write_text(f'#!/bin/sh\nexec {sys.executable} -m simprune "$@"\n')
    (tmp_path / "simprune").chmod(0o755)
    script = """
eval "$(simprune --shell-completion install=bash)"
complete -p simprune
for line in 'simprune comp' 'simprune compress search.k' 'simprune compress search.kind=l' \\
  'simprune plan recipe=digits_'
do
  COMP_LINE=$line COMP_POINT=${#line} _simprune
  echo "${COMPREPLY[@]}"
done
"""
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True, env=os.environ | {"PATH": path}
    )
    installed, command, key, value, recipe = done.stdout.splitlines()
    assert installed.endswith("-F _simprune simprune")
    assert (command, key, value, recipe) == ("compress", "search.kind=", "latency", "digits_layers")
