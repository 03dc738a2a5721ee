"""The promise of CONTRIBUTING: one new part of any kind is one file, and nothing else has to be touched.

A package outside of simprune, with one file per kind and entry points, is used from the command line and listed.
"""

import json
import os
import subprocess
import sys

import pytest
import yaml

PARTS = {
    "my_measure": '''
        from dataclasses import dataclass
        from simprune.measures.cka import CKA

        @dataclass(frozen=True)
        class Mine(CKA):
            """My similarity of representations."""
            id = "my_measure"
        ''',
    "my_functional": '''
        from dataclasses import dataclass
        from simprune.functional.hard import Disagreement

        @dataclass(frozen=True)
        class Mine(Disagreement):
            """My similarity of outputs."""
            id = "my_functional"
        ''',
    "my_score": '''
        from simprune.core.registry import register
        from simprune.scores.channels import ChannelScore

        @register("score", "my_score")
        def mine(network, calibration, groups, *, step: float = 1.0):
            """My score of channels."""
            return {
                group.name: ChannelScore(
                    order=tuple(range(group.size)),
                    redundancy=(0.5,) * group.size,
                    damage=(step / group.size,) * group.size,
                )
                for group in groups
            }
        ''',
    "my_block_score": '''
        from simprune.core.registry import register

        @register("block_score", "my_block_score")
        def mine(context, *, level: float = 0.5):
            """My score of blocks."""
            return {block.name: level for block in context.stream.blocks}
        ''',
    "my_structure": '''
        from dataclasses import replace
        from simprune.core.registry import register
        from simprune.structures.channels import Channels

        @register("structure", "my_structure")
        class Mine(Channels):
            """My units inside layers."""
            kind = "my_structure"

            def find(self, network):
                groups, refused = super().find(network)
                return [replace(group, kind=self.kind) for group in groups], refused
        ''',
    "my_planner": '''
        from simprune.core.registry import register
        from simprune.planners.search import greedy_selection

        @register("planner", "my_planner")
        def mine(search, *, patience: int = 1):
            """My way of choosing."""
            return search.space, greedy_selection(search)
        ''',
    "my_repair": '''
        from simprune.core.registry import register

        @register("repair", "my_repair", title="mended")
        def mine(task, *, strength: float = 1.0):
            """My repair."""
            assert task.batches
            return []
        ''',
    "my_model": '''
        from simprune.core.registry import register
        from simprune.zoo import ResidualCNN

        @register("model", "my_model")
        def mine(*, widths: list = (4, 8)):
            """My network."""
            return ResidualCNN(in_channels=1, widths=widths, depths=(2, 2)).eval()
        ''',
    "my_data": '''
        import torch
        from simprune.core.registry import register

        @register("data", "my_data")
        def mine(*, rows: int = 64):
            """My images."""
            images = torch.rand(rows, 1, 8, 8, generator=torch.Generator().manual_seed(0))
            batches = [(images, torch.arange(rows) % 10)]
            return {"calibration": batches, "test": batches}
        ''',
    "my_corruption": '''
        from simprune.core.registry import register

        @register("corruption", "my_corruption")
        def mine(images, severity, generator):
            """My shift of images."""
            return 1 - images
        ''',
    "my_check": '''
        from simprune.checks import Gate
        from simprune.core.registry import register

        @register("check", "my_check")
        def mine():
            """My check set."""
            return [Gate("my_functional", limit=1.0), Gate("my_functional", limit=1.0, inputs="my_corruption_1")]
        ''',
    "my_format": '''
        from safetensors.torch import save_file
        from simprune.core.registry import register
        from simprune.formats import Written

        @register("format", "my_format")
        def mine(model, example, folder, *, title: str = "mine"):
            """My files."""
            save_file(model.state_dict(), folder / f"{title}.safetensors")
            return Written(lambda args, kwargs: [model(*args, **kwargs)], "open them")
        ''',
    "my_study": '''
        from simprune.core.registry import register
        from simprune.studies import Findings, Table

        @register("study", "my_study", quick={"rows": 1})
        def mine(run, *, rows: int = 3):
            """Is my study found?

            Protocol: rows are counted.

            Cost: none.

            Args:
                rows: how many.
            """
            counted = [[row, run.step(["row", row], lambda: "counted")] for row in range(rows)]
            return Findings(["My study is found."], [Table("rows", "My rows", ("row", "what"), counted)])
        ''',
}  # fmt: skip
KINDS = {
    "measures": "my_measure", "functional": "my_functional", "scores": "my_score", "block_scores": "my_block_score",
    "structures": "my_structure", "planners": "my_planner", "repairs": "my_repair", "models": "my_model",
    "data": "my_data", "corruptions": "my_corruption", "checks": "my_check",
    "formats": "my_format", "studies": "my_study",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs the command line where the package is installed."""
    folder = tmp_path_factory.mktemp("site")
    package, metadata = folder / "my_parts", folder / "my_parts-1.0.dist-info"
    package.mkdir()
    metadata.mkdir()
    (package / "__init__.py").write_text("")
    for name, text in PARTS.items():
        lines = text.strip("\n").split("\n")
        (package / f"{name}.py").write_text("\n".join(line.removeprefix(" " * 8) for line in lines) + "\n")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-parts\nVersion: 1.0\n")
    points = "\n".join(f"{name} = my_parts.{name}" for name in PARTS)
    (metadata / "entry_points.txt").write_text(f"[simprune]\n{points}\n")
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])

    def command(*args):
        return subprocess.run(
            [sys.executable, "-W", "error", "-m", "simprune", *args],
            capture_output=True, text=True, cwd=folder, env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    return command


def test_every_part_is_listed_with_its_sentence(run):
    done = run("list")
    assert (done.returncode, done.stderr) == (0, "")
    for name in KINDS.values():
        assert name in done.stdout
    for sentence in ("My score of channels", "My check set", "My network", "My units inside layers"):
        assert sentence in done.stdout


def test_every_part_works_in_one_run_of_the_command_line(run, tmp_path):
    recipe = {
        "defaults": ["base", "_self_"],
        "model": {"name": "my_model", "widths": [4, 8]},
        "data": "my_data",
        "measure": "my_measure",
        "structures": ["my_structure", "blocks"],
        "score": {"name": "my_score", "step": 2.0},
        "block_score": {"name": "my_block_score", "level": 0.25},
        "planner": {"name": "my_planner", "patience": 2},
        "reconstruct": {"name": "my_repair", "strength": 2.0},
        "check": "my_check",
        "budget": {"macs": 0.7},
        "format": {"name": "my_format", "title": "weights"},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    out = tmp_path / "out"
    done = run("compress", f"recipe={tmp_path / 'mine.yaml'}", f"hydra.run.dir={out}")
    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads((out / "bundle" / "report.json").read_text())
    assert report["plan"]["planner"]["name"] == "my_planner"
    assert {edit["remove"] for edit in report["plan"]["edits"]} <= {"my_structure", "block"}
    assert [stage["name"] for stage in report["stages"]][1:3] == ["pruned", "mended"]
    assert [gate["inputs"] for gate in report["verdict"]["gates"]] == ["clean", "my_corruption_1"]
    assert all(gate["measure"] == "my_functional" for gate in report["verdict"]["gates"])
    assert (out / "export" / "weights.safetensors").is_file()


def test_a_study_of_a_package_runs_from_the_command_line(run, tmp_path):
    done = run("study", "recipe=my_study", "quick=true", f"folder={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "My study is found." in done.stdout
    findings = json.loads((tmp_path / "my_study-quick" / "findings.json").read_text())
    assert findings["tables"][0]["rows"] == [[0, "counted"]]


def test_a_misspelt_option_of_a_new_part_is_one_line(run, tmp_path):
    recipe = {
        "defaults": ["base", "_self_"],
        "model": "my_model",
        "data": "my_data",
        "score": {"name": "my_score", "stp": 2.0},
        "budget": {"macs": 0.7},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    done = run("compress", f"recipe={tmp_path / 'mine.yaml'}", f"hydra.run.dir={tmp_path / 'out'}")
    assert done.returncode == 2
    assert done.stderr.strip() == "simprune: error: score my_score takes no option 'stp'; did you mean 'step'?"
