"""The command line: each command is a Hydra application whose primary config is the recipe."""

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import hydra
from hydra.core.hydra_config import HydraConfig

from simprune.cli import recipe as recipes
from simprune.cli.commands import COMMANDS, UNFINISHED, Job
from simprune.cli.console import show_sweep
from simprune.cli.listing import show
from simprune.cli.recipe import sweep
from simprune.core.checkpoint import SETTINGS
from simprune.core.names import did_you_mean, importable
from simprune.tune.frontier import BUDGETS

HELP = """\
usage: simprune COMMAND recipe=NAME|FILE.yaml [group=option] [key=value] [-m]

Find what is redundant in a trained network, remove it, and check that the rest behaves like the original.

commands:
  analyze   how redundant each block and channel group is
  plan      what to remove for a budget, as a file you can edit
  compress  the whole path: plan, edit, repair, fine-tune, check; leaves a bundle and a report
  validate  check a bundle against the original again
  list      measures, functional, recipes, models, data, scores, planners, finetunes, checks

examples:
  simprune compress recipe=digits
  simprune compress recipe=digits budget.macs=0.3 measure=cka finetune=none
  simprune compress recipe=digits budget=smallest                 the smallest model that passes the checks
  simprune compress recipe=digits budget.macs=0.3,0.5,0.7 -m      one run each, a table and sweep.json at the end
  simprune plan recipe=my/recipe.yaml
  simprune validate bundle=outputs/compress/digits/.../bundle

simprune COMMAND --help tells more. --cfg job shows the composed recipe and runs nothing.
exit codes: 0 done, every check passed; 1 a check failed; 2 wrong input or recipe; 3 too little data to decide;
70 an error inside simprune; 130 interrupted. SIMPRUNE_TRACEBACK=1 shows where an error came from."""

DETAILS = {
    "analyze": """\
usage: simprune analyze recipe=NAME|FILE.yaml [measure=ID] [structures=[blocks]] [other=RECIPE|BUNDLE] [key=value] [-m]

Scores every removable block and channel group, and compares all layers. Writes analysis.html (to look at), .json and
.csv, redundancy.json, and figures for papers.
  simprune analyze recipe=digits measure=cka_rbf measure.threshold=0.5
  simprune analyze recipe=digits analysis.measures=[gbs,svcca] block_score=leave_one_out
  simprune analyze recipe=digits other=outputs/compress/digits/.../bundle      layer by layer with another network""",
    "plan": """\
usage: simprune plan recipe=NAME|FILE.yaml [budget.macs=0.5] [planner=NAME] [key=value] [-m]

Chooses what to remove for the budget. Writes plan.yaml; edit it, then: simprune compress recipe=... plan=plan.yaml
Budgets: macs, params, bytes, memory (peak activations of one input), latency; shares (0.5, 50%) or amounts (60M, 2MB,
8MiB, 3ms), several at once. Planners: simprune list planners. All of them keep to planner.protect (names, patterns, or
residual), .round_to, .min_width, .max_share; planner.batch_size is what latency is measured with. planner.finalists=5
tries five plans, from no blocks to blocks alone, on held-out inputs, for the best; planner.blocks says how many go.
  simprune plan recipe=digits budget.macs=0.4 planner=optimal planner.round_to=8
  simprune plan recipe=digits budget.latency=0.7 'planner.protect=[conv1,layer3.*]'

A list of budgets, or --frontier (short for [0.9,0.7,0.5,0.3]), gives the whole curve of accuracy and agreement against
macs and latency, with depth alone, width alone and random plans beside it: frontier.html, .json, .csv, figures, plans.
  simprune plan recipe=digits --frontier
  simprune plan recipe=digits budget=[0.8,0.6,0.4] finetune=none
  simprune plan recipe=digits 'budget={params:[0.8,0.6]}'          shares of params, bytes or latency""",
    "compress": """\
usage: simprune compress recipe=NAME|FILE.yaml [budget.macs=0.5] [plan=FILE] [key=value] [-m]

Plans (or takes your plan), edits, repairs, fine-tunes, checks. Writes a bundle: plan.yaml, model.safetensors,
recipe.yaml, report.json, report.html. The exit code is the verdict's.
  simprune compress recipe=digits reconstruct=bn finetune.epochs=10 control=3

budget=smallest finds the smallest model that passes the checks, by bisection over the share of macs; see search in
conf/base.yaml. Every step is kept: after an interruption add resume=FOLDER to the same command. If nothing passes there
is no bundle, and the exit code is 1, or 3 for too little data.
  simprune compress recipe=digits budget=smallest check=strict""",
    "validate": """\
usage: simprune validate bundle=FOLDER [recipe=NAME|FILE.yaml] [check=NAME] [junit=FILE.xml] [key=value] [-m]

Rebuilds the bundle's model and checks it against the original on the test data. Without recipe= the one inside the
bundle is used, if it only names simprune's own models and data. Instead of a bundle: the function that builds the
pruned model, and its weights. Writes verdict.json, verdict.html and, by option, JUnit XML. The exit code is the
verdict's: 0 pass, 1 fail, 3 too little data. Check sets: default, strict, robustness, representation, embedding, ...
  simprune validate bundle=outputs/compress/digits/.../bundle check=strict junit=gates.xml
  simprune validate recipe=my.yaml pruned.function=my_model:small pruned.weights=small.safetensors""",
    "list": """\
usage: simprune list [measures|functional|recipes|models|data|scores|planners|finetunes|checks]""",
}

# Hydra's flags that make sense here, and the values each takes: none, some, or (None) any
CFG = ("job", "hydra", "all")
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
FLAGS: dict[str, tuple[str, ...] | None] = {
    "--cfg": CFG, "-c": CFG, "--info": INFO, "-i": INFO,
    "--config-dir": None, "-cd": None, "--package": None, "-p": None,
    "--multirun": (), "-m": (), "--resolve": (), "--hydra-help": (), "--shell-completion": (), "-sc": (),
    "--frontier": (),
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(args)
    except KeyboardInterrupt:
        print("simprune: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        return _report(error)


def _report(error: Exception) -> int:
    """Print what went wrong: one line for wrong input, the traceback for a defect; returns the exit code."""
    line = _one_line(error)
    if line is None or os.environ.get("SIMPRUNE_TRACEBACK") == "1":
        traceback.print_exception(error)
    if line is None:
        return 70
    print(f"simprune: error: {line}", file=sys.stderr)
    return 2


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0 if args else 2
    if args[0] == "--version":
        print(f"simprune {version('simprune')}")
        return 0
    command, rest = args[0], args[1:]
    if command not in DETAILS:
        raise ValueError(f"no command {command!r}; {did_you_mean(command, DETAILS)}")
    if {"-h", "--help"} & set(rest):
        print(DETAILS[command])
        return 0
    if command == "list":
        show(rest)
        return 0
    return _run(command, rest)


def _run(command: str, args: list[str]) -> int:
    """Hand one command over to Hydra, which composes the recipe and calls `work` once, or once per job of a sweep."""
    overrides, flags, name = _split(args)
    given = {key: value for key, _, value in (override.partition("=") for override in overrides)}
    if name is not None:
        folder, config = recipes.locate(name)
    elif command == "validate" and "bundle" in given:
        folder, config = None, recipes.register_bundle_recipe(given["bundle"])
        # a resolved recipe has no groups to override: another check set is added, which replaces its gates
        overrides = [f"+{each}" if each.startswith("check=") else each for each in overrides]
    else:
        known = ", ".join(recipes.options(recipes.builtin("recipes")))
        raise ValueError(f"name a recipe: recipe=NAME or recipe=FILE.yaml; built-in: {known}")
    if "resume" in given:
        quoted = _resumed(given["resume"], command, flags)
        overrides = [each for each in overrides if not each.startswith("resume=")]
        overrides += [f"resume={quoted}", f"hydra.run.dir={quoted}"]
    many = "--frontier" in flags
    flags = [each for each in flags if each != "--frontier"]
    if many and command != "plan":
        raise ValueError(f"--frontier is for `simprune plan`; {command} does not take it")
    codes = []

    def work(config: Any) -> float | None:
        if folder is not None:
            importable(folder)  # functions that a recipe names may stand beside it
        out = Path(HydraConfig.get().runtime.output_dir)
        if many and recipes.several(config.budget) is None:
            config.budget = list(BUDGETS)
        figures, objective = {}, None
        try:
            settings = recipes.settings(config, command)
            sweep.check_objective(settings, command)
            built = recipes.objects(settings, trusted=folder is not None)
            code = COMMANDS[command](Job(settings, *built, recipes.resolved(config), out, figures))
            objective = sweep.value(settings, figures)
        except Exception as error:
            code, reason = _report(error), _one_line(error) or type(error).__name__
        else:
            reason = None
        finally:
            _remove_if_empty(out)
        sweep.leave(out, code, reason, figures, objective)
        codes.append(code)
        return objective

    own = [f"hydra.job.name={command}", "hydra/job_logging=none", sweep.CALLBACK]
    path = str(folder) if folder else None
    argv = [f"simprune {command}", *own, *recipes.rewritten(overrides), *flags]
    sweep.Summary.forget()
    # with HYDRA_FULL_ERROR Hydra passes errors on; otherwise it prints them itself and exits with 1
    with patch.object(sys, "argv", argv), patch.dict(os.environ, {"HYDRA_FULL_ERROR": "1"}):
        try:
            hydra.main(config_path=path, config_name=config, version_base=recipes.VERSION_BASE)(work)()
        except Exception:
            if not codes or not set(codes) <= {2, 70}:
                raise
            # every job has said what was wrong; a sweeper that optimises has nothing to choose from and gives up
    if sweep.Summary.found is not None:  # jobs may have run in other processes
        show_sweep(sweep.Summary.found)
        codes = [job["code"] for job in sweep.Summary.found["jobs"]]
    return next((code for code in (70, 2, 1, 3) if code in codes), 0)


RESUMABLE = {"compress": "search/state.json", "analyze": f"{UNFINISHED}/{SETTINGS}"}


def _resumed(folder: str, command: str, flags: list[str]) -> str:
    """The folder of an interrupted run, quoted for Hydra."""
    if command not in RESUMABLE or {"-m", "--multirun"} & set(flags):
        raise ValueError(
            "resume goes on with one `simprune compress budget=smallest` or `simprune analyze`; leave it out here"
        )
    if not (Path(folder) / RESUMABLE[command]).is_file():
        what = "search" if command == "compress" else "analysis"
        raise FileNotFoundError(f"no {what} to go on with in {folder}: it has no {RESUMABLE[command]}")
    escaped = folder.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _split(args: list[str]) -> tuple[list[str], list[str], str | None]:
    """(overrides, Hydra's flags, recipe): Hydra 1.3 wants all overrides on one side of its flags."""
    overrides, flags, recipe = [], [], None
    rest = iter(args)
    for arg in rest:
        if arg.startswith("-"):
            flags += _flag(arg, rest)
        elif arg.startswith("recipe="):
            recipe = arg.partition("=")[2]
        elif "=" in arg or arg.startswith("~"):
            overrides.append(arg)
        else:
            raise ValueError(f"cannot read {arg!r}: expected key=value, such as recipe={arg}")
    return overrides, flags, recipe


def _flag(arg: str, rest: Iterator[str]) -> list[str]:
    """A flag and its value, which may follow as an argument of its own."""
    flag, given, value = arg.partition("=")
    if flag not in FLAGS:
        raise ValueError(f"no flag {flag}; {did_you_mean(flag, FLAGS)}")
    allowed = FLAGS[flag]
    if allowed == ():
        return [arg]
    value = value if given else next(rest, "")
    if not value or (allowed is not None and value not in allowed):
        raise ValueError(f"{flag} expects {' or '.join(allowed or ('a value',))}; got {value or 'nothing'}")
    return [flag, value]


def _remove_if_empty(folder: Path) -> None:
    """Leave no trace of a run that wrote nothing: its folder and the folders made for it."""
    while folder != Path.cwd() and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def _one_line(error: BaseException) -> str | None:
    """The message if the input was at fault, else None.

    Ours to blame on the input: what Hydra says of a recipe, problems with files, and every ValueError or KeyError with
    a sentence that simprune itself raised (a bare KeyError, or one from inside a library, is a defect).
    """
    text = recipes.explain(error)
    if text is None and isinstance(error, OSError):
        text = str(error)
    if text is None and type(error) in (ValueError, KeyError):
        frames = list(traceback.walk_tb(error.__traceback__))
        text = str(error.args[0]) if error.args else ""
        if not frames[-1][0].f_globals.get("__name__", "").startswith("simprune") or " " not in text:
            return None
    return None if text is None else " ".join(text.split())
