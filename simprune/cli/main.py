"""The command line's door: help, version and completion without torch; other commands go to `cli.run`."""

import sys
from collections.abc import Sequence
from importlib.metadata import version

from simprune.cli.errors import report
from simprune.cli.help import DETAILS, HELP, details
from simprune.core.names import did_you_mean


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(args)
    except KeyboardInterrupt:
        print("simprune: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        return report(error)


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0 if args else 2
    if args[0] == "--version":
        print(f"simprune {version('simprune')}")
        return 0
    if args[0].startswith(("--shell-completion", "-sc")):
        from simprune.cli.completion import complete

        print(complete(" ".join([*args[0].partition("=")[2:], *args[1:]]).strip()))
        return 0
    command, rest = args[0], args[1:]
    if command not in DETAILS:
        known = [*DETAILS, "--help", "--version"] if command.startswith("-") else DETAILS
        raise ValueError(f"no command {command!r}; {did_you_mean(command, known)}")
    if {"-h", "--help"} & set(rest):
        print(details(command))
        return 0
    if command == "list":
        from simprune.cli.listing import show

        show(rest)
        return 0
    if command == "study":
        from simprune.cli.study import run as run_study

        return run_study(rest)
    from simprune.cli.run import run

    return run(command, rest)
