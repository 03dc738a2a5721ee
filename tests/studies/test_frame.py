"""The frame of studies: steps are computed once, a run goes on, networks are shared, results are plain data."""

import json
import math
from importlib.util import module_from_spec, spec_from_file_location

import numpy as np
import pytest
import torch

import simprune as sp
from simprune import studies
from simprune.cli.main import main
from simprune.core import registry
from simprune.core.registry import Part
from simprune.studies import code
from simprune.studies.frame import Figure, Findings, Run, Table
from simprune.studies.images import read_images
from simprune.studies.networks import ARCHITECTURES, answers, build, damage
from simprune.studies.statistics import bootstrap, kendall, spearman
from simprune.testing import check


class Interrupted(Exception):
    """What a kill looks like from inside."""


def counting(run: Run, *, jobs: int = 4, stop: int = -1, drawn: bool = False) -> Findings:
    """How often is a job done?

    Protocol: every job is a step.

    Cost: none.

    Args:
        jobs: how many there are.
        stop: the job at which the run is cut off; -1: none.
        drawn: whether there are figures.
    """

    def job(number: int) -> dict:
        if number == stop:
            raise Interrupted
        DONE.append(number)
        return {"value": (number, math.nan)}

    values = [run.step(["job", number], lambda number=number: job(number))["value"] for number in range(jobs)]
    dots = {"rows": ["a"], "series": {"s": [[0.5, 0.4, 0.6]]}, "label": "share", "chance": 0.5}
    curve = {"x": [1, 2], "y": [0.5, None], "low": [0.4, None], "high": [0.6, None]}
    return Findings(
        conclusions=["<b>no markup</b>"],
        tables=[Table("jobs", "Jobs", ("job", "value"), [[v[0], [0.5, v[1], None]] for v in values])],
        figures=[
            Figure("dots", "dots", dots, "Dots."),
            Figure("lines", "lines", {"x": "n", "y": "rate", "series": {"c": curve}}, "Lines."),
            Figure("scatter", "scatter", {"x": "a", "y": "b", "series": {"p": curve}, "diagonal": True}, "Points."),
        ][: 3 * drawn],
    )


DONE: list[int] = []


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    registry.parts("study")  # before one is added
    part = Part("study", "counting", counting, facts={"quick": {"jobs": 2}})
    monkeypatch.setitem(registry._parts["study"], "counting", part)
    DONE.clear()


def test_studies_are_attributes_too(tmp_path):
    named = sp.study.counting(jobs=1, folder=tmp_path)
    assert named.to_dict()["tables"] == sp.study("counting", jobs=1, folder=tmp_path).to_dict()["tables"]
    assert {"counting", "grounding"} <= {*dir(sp.study)}
    with pytest.raises(AttributeError, match=r"no study named 'groundin'; did you mean 'grounding'"):
        sp.study.groundin  # noqa: B018


def test_steps_are_computed_once_and_a_run_that_was_cut_off_goes_on(tmp_path):
    with pytest.raises(Interrupted):
        sp.study("counting", folder=tmp_path, stop=2)
    assert DONE == [0, 1]
    resumed = sp.study("counting", folder=tmp_path)
    assert DONE == [0, 1, 2, 3]
    again = sp.study("counting", folder=tmp_path)
    assert DONE == [0, 1, 2, 3]
    fresh = sp.study("counting", folder=tmp_path / "fresh")
    assert resumed.tables == again.tables == fresh.tables


def test_steps_of_other_code_are_computed_again(tmp_path, monkeypatch, capsys):
    options = ["study", "recipe=counting", "jobs=1", f"folder={tmp_path}"]
    assert main(options) == main(options) == 0 and DONE == [0]
    assert "other code" not in capsys.readouterr().err
    monkeypatch.setattr(studies, "code_of_study", lambda study: "0")
    assert main(options) == 0 and DONE == [0, 0]
    assert "of other code" in capsys.readouterr().err


def test_code_is_that_of_simprune_and_of_the_study(tmp_path, monkeypatch):
    def study_of(text):
        (tmp_path / "mine.py").write_text(text)
        spec = spec_from_file_location("mine", tmp_path / "mine.py")
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        return code.code_of_study(module.mine)

    first = study_of("def mine(run): return 1")
    assert first != study_of("def mine(run): return 2") and first == study_of("def mine(run): return 1")
    (tmp_path / "beside.py").write_text("")
    assert first != study_of("def mine(run): return 1")
    own, *typed = (
        code.code_of_study.__wrapped__(*study) for study in ((), (eval("lambda run: 1"),), (eval("lambda: 1"),))
    )
    assert len({own, *typed}) == 3, "a study without a file is told apart by its compiled function"
    other = tmp_path / "other"
    (other / "measures").mkdir(parents=True)
    (other / "measures" / "cka.py").write_text("1")
    monkeypatch.setattr(code, "SIMPRUNE", other)
    before = code.code_of_study.__wrapped__()
    (other / "measures" / "cka.py").write_text("2")
    assert len({own, before, code.code_of_study.__wrapped__()}) == 3


def test_steps_depend_on_seed_and_images(tmp_path, images_file):
    for options in ({}, {"seed": 1}, {"data": images_file}, {"size": 12}):
        sp.study("counting", folder=tmp_path, jobs=1, **options)
    assert DONE == [0, 0, 0, 0]


def test_quick_takes_other_defaults_and_the_user_has_the_last_word(tmp_path):
    assert len(sp.study("counting", folder=tmp_path, quick=True).table("jobs").rows) == 2
    assert len(sp.study("counting", folder=tmp_path, quick=True, jobs=3).table("jobs").rows) == 3


def test_a_study_writes_findings_a_page_and_figures_that_are_functions_of_them(tmp_path):
    findings = sp.study("counting", folder=tmp_path, jobs=1, drawn=True)
    folder = tmp_path / "counting"
    stored = json.loads((folder / "findings.json").read_text())
    assert stored["tables"][0]["rows"] == [[0, [0.5, None, None]]]
    assert stored["about"]["question"] == "How often is a job done?" == findings.about["question"]
    assert stored["about"]["command"] == "simprune study recipe=counting jobs=1 drawn=true"
    page = (folder / "page.html").read_text()
    assert "&lt;b&gt;no markup" in page and page.count("<svg") == 3 and "<script" not in page
    text = (folder / "page.md").read_text()
    assert "| job | value |" in text and "figures/dots.png" in text
    assert sorted(path.name for path in (folder / "figures").iterdir()) == [
        f"{name}.{ending}" for name in ("dots", "lines", "scatter") for ending in ("png", "svg")
    ]


def test_links_in_the_folder_of_a_study_are_read_or_replaced_and_what_they_name_stays(tmp_path):
    sp.study("counting", folder=tmp_path, jobs=2)
    one, two = sorted((tmp_path / "counting" / "steps").rglob("*.json"))
    outside, page = tmp_path / "outside", tmp_path / "counting" / "page.md"
    one.rename(outside)
    content, written = outside.read_bytes(), page.read_bytes()
    one.symlink_to(outside)
    two.unlink()
    two.symlink_to(tmp_path / "nowhere")
    page.unlink()
    page.symlink_to(outside)
    DONE.clear()
    sp.study("counting", folder=tmp_path, jobs=2)
    assert len(DONE) == 1 and outside.read_bytes() == content and not (tmp_path / "nowhere").exists()
    assert not two.is_symlink() and not page.is_symlink() and len(page.read_bytes()) == len(written)


def test_a_damaged_step_is_one_line(tmp_path):
    sp.study("counting", folder=tmp_path, jobs=1)
    (path,) = (tmp_path / "counting" / "steps").rglob("*.json")
    path.write_text('{"key"')
    with pytest.raises(ValueError, match="delete it"):
        sp.study("counting", folder=tmp_path, jobs=1)


@pytest.mark.parametrize(
    "name, options, error, words",
    [
        ("countin", {}, KeyError, "did you mean 'counting'"),
        ("counting", {"job": 1}, ValueError, "did you mean 'jobs'"),
        ("counting", {"jobs": "1"}, ValueError, "jobs must be"),
        ("counting", {"quick": 1}, ValueError, "quick: expected true or false"),
        ("counting", {"data": "nowhere.npz"}, FileNotFoundError, "nowhere.npz"),
        ("counting", {"models": ["nowhere:model"]}, ValueError, "nowhere"),
        ("counting", {"models": [lambda: torch.nn.Linear(8, 3)]}, ValueError, "must give 10 scores|does not take"),
    ],
)
def test_wrong_input_is_said_before_any_step(tmp_path, name, options, error, words):
    with pytest.raises(error, match=words):
        sp.study(name, folder=tmp_path, **options)
    assert DONE == []


def test_the_command_line_runs_a_study_and_a_file_of_its_options(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["study", "recipe=counting", "quick=true", "jobs=1"]) == 0
    assert "Jobs" in capsys.readouterr().out
    assert (tmp_path / "outputs/study/counting-quick/findings.json").is_file()
    (tmp_path / "mine.yaml").write_text("study: counting\njobs: 3\nfolder: there\n")
    assert main(["study", "recipe=mine.yaml", "jobs=2"]) == 0
    assert len(json.loads((tmp_path / "there/counting/findings.json").read_text())["tables"][0]["rows"]) == 2
    for words in ([], ["recipe=countin"], ["recipe=counting", "job=1"], ["recipe=counting", "-m"], ["recipe=no.yaml"]):
        assert main(["study", *words]) == 2
        assert capsys.readouterr().err.startswith("simprune: error: ")


def test_a_network_is_trained_once_and_the_same_for_the_same_seed(tmp_path, images_file):
    def run(folder, seed=0):
        return Run(tmp_path, folder, data=str(images_file), seed=seed)

    first = run(tmp_path / "a").network("vit", steps=3)
    (path,) = (tmp_path / "a").iterdir()
    written = path.stat().st_mtime_ns
    for other in (run(tmp_path / "a").network("vit", steps=3), run(tmp_path / "b").network("vit", steps=3)):
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    assert path.stat().st_mtime_ns == written and not first.training
    other = run(tmp_path / "a", seed=1).network("vit", steps=3)
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("side", [8, 16])
def test_networks_fit_the_images(architecture, side, images_file):
    images = read_images(str(images_file), side)
    assert answers(build(architecture, images), images.test[:3]).shape == (3, 4)


def test_images_are_read_as_they_are_or_normalised(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"calibration_images": rng.integers(0, 255, (20, 12, 12, 3), dtype=np.uint8)}
    arrays |= {"calibration_labels": np.arange(20) % 3, "test_labels": np.arange(5) % 3}
    np.savez(tmp_path / "one.npz", **arrays, test_images=arrays["calibration_images"][:5])
    images = read_images(str(tmp_path))
    torch.testing.assert_close(images.train.std((0, 2, 3)), torch.ones(3))
    assert (images.channels, images.side, images.classes) == (3, 12, 3)
    assert read_images(str(tmp_path), 8).side == 8
    np.savez(tmp_path / "two.npz", **arrays)
    with pytest.raises(ValueError, match="2; name the file"):
        read_images(str(tmp_path))
    with pytest.raises(ValueError, match="lacks test_images"):
        read_images(str(tmp_path / "two.npz"))


def test_the_digits_of_training_and_test_share_no_image():
    images = read_images()
    train = {image.numpy().tobytes() for image in images.train}
    assert sum(image.numpy().tobytes() in train for image in images.test) <= 2  # the data set has a few twins


def test_statistics():
    assert spearman([1, 2, 3, 4], [1, 4, 9, 16]) == 1 and math.isnan(spearman([1, 1, 1], [1, 2, 3]))
    assert kendall([1, 2, 3], [1, 3, 2]) == pytest.approx(1 / 3)
    value, low, high = bootstrap([0.0] * 50 + [1.0] * 50, lambda drawn: sum(drawn) / len(drawn))
    assert value == 0.5 and 0.36 < low < 0.45 and 0.55 < high < 0.64
    outputs = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    assert damage(outputs, outputs) == 0
    assert damage(outputs.mean(0).expand_as(outputs), outputs) == pytest.approx(1)


def test_a_table_refuses_rows_of_another_length():
    with pytest.raises(ValueError, match="rows of 2 cells"):
        Table("a", "A", ("x", "y"), [[1]])


def test_the_contract_of_studies_can_fail(monkeypatch):
    check("study", "counting")

    def silent(run, *, size: int = 3):
        """A sentence."""

    monkeypatch.setitem(registry._parts["study"], "silent", Part("study", "silent", silent, facts={"quick": {}}))
    with pytest.raises(AssertionError, match="no question"):
        check("study", "silent")
