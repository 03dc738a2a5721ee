"""Training from the command line: its folder, its curve, and how it goes on after a kill."""

import json
import os
import signal
import subprocess
import sys

from simprune.cli.main import main
from tests.cli.users import LOOSE, OWN

TRAINED = ["compress", OWN, LOOSE, "finetune.epochs=2", "finetune.until_passed=true", "data.batches=8"]
DYING = """
import os, signal, sys
from simprune.cli.main import main
from simprune.repair.training import state

save = state.State.save

def dying(self, place, *args, **kwargs):
    save(self, place, *args, **kwargs)
    if place.steps == 5:
        os.kill(os.getpid(), signal.SIGKILL)

state.SECONDS, state.State.save = 0.0, dying
main(sys.argv[1:])
"""
MORE = """

def trained(batches=4, split=False):
    parts = load()
    images, labels = torch.randn(16 * batches, 1, 8, 8), torch.arange(16 * batches) % 4
    parts["train"] = Batches(images, labels, batch_size=16, shuffle=0)
    return parts | ({"validation": Batches(images[:40] + 1, labels[:40])} if split else {})
"""


def users(folder):
    """The user's module trains on more images, always the same ones."""
    path = folder / "mine" / "users_parts.py"
    seeded = MORE.replace("    parts = load()", "    parts = load()\n    torch.manual_seed(5)")
    path.write_text(path.read_text() + seeded)
    recipe = folder / "mine" / "own.yaml"
    recipe.write_text(recipe.read_text().replace("users_parts:load", "users_parts:trained"))


def lines(folder):
    return [json.loads(line) for line in (folder / "training" / "training.jsonl").read_text().splitlines()]


def test_a_killed_run_is_gone_on_from_and_ends_as_one_that_was_not(folder, capsys):
    users(folder)
    assert main([*TRAINED, "hydra.run.dir=whole"]) == 0
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    dead = [sys.executable, "-W", "ignore", "-c", DYING, *TRAINED, "hydra.run.dir=part"]
    assert subprocess.run(dead, env=environment, check=False).returncode == -signal.SIGKILL
    assert not (folder / "part" / "bundle").exists() and (folder / "part" / "training" / "state").is_dir()
    assert main([*TRAINED, "finetune.momentum=0.5", "resume=part"]) == 2
    assert "options.momentum: 0.9 there, 0.5 now" in capsys.readouterr().err
    assert main([*TRAINED, "resume=part"]) == 0
    for name in ("bundle/plan.yaml", "bundle/model.safetensors", "training/training.jsonl"):
        assert (folder / "part" / name).read_bytes() == (folder / "whole" / name).read_bytes(), name
    assert not (folder / "part" / "training" / "state").exists()
    report = json.loads((folder / "whole" / "bundle" / "report.json").read_text())
    assert (
        report["finetuning"][-1]["kept"]
        and len(report["finetuning"]) == 1
        and report["finetuning"][0]["judged_on"] == "held out"
    )


def test_a_recipe_trains_with_tensorboard_and_a_validation_split(folder):
    users(folder)
    out = ["hydra.run.dir=out", "finetune.tensorboard=true", "data.split=true", "finetune.patience=1"]
    assert main([*TRAINED[:3], "data.batches=4", "finetune.epochs=1", *out]) == 0
    assert list((folder / "out" / "training").glob("events.out.*"))
    report = json.loads((folder / "out" / "bundle" / "report.json").read_text())
    assert report["finetuning"][0]["judged_on"] == "validation"
    assert {"loss", "held_out", "accuracy", "agreement"} <= {*lines(folder / "out")[-1]}
    page = (folder / "out" / "bundle" / "report.html").read_text()
    assert "Training over 1 epochs" in page and "validation inputs" in page


def test_every_training_of_a_search_has_a_log_and_no_state_stays(folder):
    users(folder)
    gate = "check.gates=[{measure: disagreement, limit: 0.6}]"
    more = ["budget=smallest", "search.tolerance=0.3", "finetune.epochs=1", "hydra.run.dir=out", gate]
    assert main(["compress", OWN, *more]) == 0
    logs = sorted(path.parent.name for path in (folder / "out" / "search").glob("step-*/training.jsonl"))
    assert "step-1" in logs and not list((folder / "out").rglob("state"))
