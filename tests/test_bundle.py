"""A bundle is whole, unchanged and bit-identical, or it is refused."""

import copy
import json
import math
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from simprune import bundle
from simprune.api import apply
from simprune.core import store
from simprune.core.plan import Edit, Plan, fingerprint
from simprune.core.weights import load_weights

MODULE = """
import torch
from torch import nn

class Tied(nn.Module):
    "The two dense layers share one weight."
    def __init__(self, width=6):
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.mix = nn.Conv2d(width, 4, 3)
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight

    def forward(self, x):
        x = self.mix(torch.relu(self.norm(self.conv(x)))).mean((2, 3))
        return self.b(torch.relu(self.a(x)))
"""
names: dict = {}
exec(MODULE, names)
Tied = names["Tied"]


@pytest.fixture
def result():
    torch.manual_seed(0)
    model = Tied()
    inputs = {"args": [{"shape": [2, 1, 8, 8], "dtype": "float32"}], "kwargs": {}}
    plan = Plan((Edit("channels", "conv", (1, 4), 6, "alike"),), fingerprint(model), inputs)
    small = apply(plan, model)
    with torch.no_grad():
        small.train()(torch.randn(16, 1, 8, 8))  # moves the BatchNorm statistics
        for parameter in small.parameters():
            parameter.add_(torch.randn_like(parameter))
    report = {"simprune": "0.1.0", "stages": [{"name": "original", "accuracy": math.nan}], "notes": ["<b>é"]}
    return SimpleNamespace(model=small.eval(), plan=plan, report=report)


@pytest.fixture
def folder(result, tmp_path):
    return bundle.save(tmp_path / "kept", result, {"seed": 0, "budget": {"macs": 0.5}})


def rewrite(folder: Path, name: str, content: bytes) -> None:
    """Change a file and the hashes with it, as somebody who wants to deceive would."""
    (folder / name).write_bytes(content)
    report = json.loads((folder / "report.json").read_bytes())
    report["files"][name] = bundle._sha256(folder / name)
    (folder / "report.json").write_bytes(bundle._json(report))


def test_a_fresh_process_gives_the_same_bits(folder, result, tmp_path):
    (tmp_path / "mynet.py").write_text(MODULE)
    x = torch.randn(5, 1, 8, 8)
    save_file({"x": x}, tmp_path / "x.safetensors")
    code = (
        "import torch, mynet; from safetensors.torch import load_file, save_file\n"
        "from simprune.bundle import load\n"
        "torch.manual_seed(99); model = load('kept', model=mynet.Tied); assert not model.training\n"
        "save_file({'y': model(load_file('x.safetensors')['x']).detach()}, 'y.safetensors')"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    assert torch.equal(load_file(tmp_path / "y.safetensors")["y"], result.model(x))


def test_a_module_serves_as_well_as_a_factory_and_is_not_changed(folder, result):
    original = Tied().train()
    before = {name: value.clone() for name, value in original.state_dict().items()}
    small = bundle.load(folder, model=original)
    assert original.training
    assert all(torch.equal(before[name], value) for name, value in original.state_dict().items())
    assert small.a.weight is small.b.weight
    for name, value in result.model.state_dict().items():
        assert torch.equal(small.state_dict()[name], value)


def test_the_files(folder, result):
    assert sorted(path.name for path in folder.iterdir()) == sorted(bundle.FILES)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert report["stages"][0]["accuracy"] is None
    assert report["notes"] == ["<b>é"]
    assert set(report["files"]) == set(bundle.FILES)
    assert yaml.safe_load((folder / "recipe.yaml").read_text()) == {"seed": 0, "budget": {"macs": 0.5}}
    assert Plan.load(folder / "plan.yaml") == result.plan
    assert "&lt;b&gt;é" in (folder / "report.html").read_text(encoding="utf-8")


def test_the_same_result_gives_the_same_bytes(folder, result, tmp_path):
    again = bundle.save(tmp_path / "again", result, {"seed": 0, "budget": {"macs": 0.5}})
    for name in bundle.FILES:
        assert (folder / name).read_bytes() == (again / name).read_bytes()


def test_every_file_has_the_rights_a_new_file_gets(folder, tmp_path):
    (tmp_path / "new").touch()
    assert {(folder / name).stat().st_mode for name in bundle.FILES} == {(tmp_path / "new").stat().st_mode}


def test_no_recipe_is_an_empty_mapping(result, tmp_path):
    assert yaml.safe_load((bundle.save(tmp_path / "kept", result) / "recipe.yaml").read_text()) == {}


@pytest.mark.parametrize("name", bundle.FILES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing"):
        bundle.load(folder, model=Tied)


@pytest.mark.parametrize("name", bundle.FILES)
@pytest.mark.parametrize(
    "change", [lambda b: b + b"\n", lambda b: b[: len(b) // 2], lambda b: b.replace(b"0", b"1", 1)]
)
def test_a_changed_file_is_named(folder, name, change):
    content = (folder / name).read_bytes()
    assert change(content) != content
    (folder / name).write_bytes(change(content))
    with pytest.raises(ValueError, match=f"{name} has changed"):
        bundle.load(folder, model=Tied)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"files": 3}', b"\xff", b"[" * 100_000])
def test_a_report_that_is_none_is_refused(folder, content):
    (folder / "report.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"report\.json has changed"):
        bundle.load(folder, model=Tied)


def damaged(change):
    def apply_to(content: bytes) -> bytes:
        from safetensors.torch import load, save

        return save(change(load(content)))

    return apply_to


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda content: content[:-40], "no readable safetensors file"),
        (lambda content: b"", "no readable safetensors file"),
        (damaged(lambda t: t | {"more": torch.zeros(1)}), "more is not in the model"),
        (damaged(lambda t: {k: v for k, v in t.items() if k != "conv.bias"}), r"conv\.bias is missing"),
        (damaged(lambda t: t | {"conv.bias": torch.zeros(6)}), r"conv\.bias is \[6\], the model needs \[4\]"),
        (damaged(lambda t: t | {"conv.bias": t["conv.bias"].double()}), r"conv\.bias is torch\.float64"),
    ],
)
def test_weights_that_do_not_fit_are_refused(folder, change, message):
    rewrite(folder, "model.safetensors", change((folder / "model.safetensors").read_bytes()))
    with pytest.raises(ValueError, match=message):
        bundle.load(folder, model=Tied)


def test_another_model_is_refused(folder):
    with pytest.raises(ValueError, match="channels"):
        bundle.load(folder, model=lambda: Tied(width=7))
    with pytest.raises(ValueError, match="conv"):
        bundle.load(folder, model=nn.Linear(2, 2))
    with pytest.raises(ValueError, match="a torch module or a function"):
        bundle.load(folder, model=lambda: "model")
    with pytest.raises(ValueError, match="a torch module or a function"):
        bundle.load(folder, model="my.model")  # type: ignore[arg-type]


def test_an_untied_model_does_not_take_tied_weights(folder):
    def untied():
        model = Tied()
        model.b.weight = nn.Parameter(model.b.weight.detach().clone())
        return model

    with pytest.raises(ValueError, match="another model"):
        bundle.load(folder, model=untied)


def test_other_paths_in_the_report_are_never_read(folder, tmp_path):
    report = json.loads((folder / "report.json").read_bytes())
    report["files"]["../../outside"] = "0" * 64
    (folder / "report.json").write_bytes(bundle._json(report))
    bundle.load(folder, model=Tied)


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights on Windows")
def test_a_link_to_something_else_is_refused(folder):
    (folder / "plan.yaml").unlink()
    (folder / "plan.yaml").symlink_to("/dev/zero")
    with pytest.raises(FileNotFoundError, match=r"plan\.yaml is missing"):
        bundle.load(folder, model=Tied)


def everything_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_complete_bundle_is_replaced_only_on_request(folder, result):
    before = everything_below(folder.parent)
    result.report["notes"] = ["second"]
    with pytest.raises(FileExistsError, match="holds a bundle already; give another folder, or overwrite=True"):
        bundle.save(folder, result)
    assert everything_below(folder.parent) == before
    bundle.save(folder, result, overwrite=True)
    assert "second" in (folder / "report.html").read_text()
    assert [path.name for path in folder.parent.iterdir()] == ["kept"]


def test_an_empty_folder_is_filled(result, tmp_path):
    (tmp_path / "kept").mkdir()
    bundle.load(bundle.save(tmp_path / "kept", result), model=Tied)


@pytest.mark.parametrize(
    "spoil", [lambda f: (f / "notes.txt").write_text("mine"), lambda f: (f / "plan.yaml").unlink()]
)
def test_a_folder_with_other_things_is_left_alone(folder, result, spoil):
    spoil(folder)
    before = everything_below(folder.parent)
    with pytest.raises(ValueError, match="is not a bundle"):
        bundle.save(folder, result)
    assert everything_below(folder.parent) == before


@pytest.mark.parametrize("arguments", [lambda f, r: (f, r.model), lambda f, r: (r, f), lambda f, r: (f, None)])
def test_what_is_no_result_is_refused_with_what_to_do(folder, result, arguments):
    with pytest.raises(ValueError, match=r"result: expected what simprune\.compress returned|call simprune\.save\(f"):
        bundle.save(*arguments(folder.with_name("new"), result))
    assert not folder.with_name("new").exists()


def test_a_file_is_not_replaced(result, tmp_path):
    (tmp_path / "kept").write_text("mine")
    with pytest.raises(FileExistsError, match="is a file"):
        bundle.save(tmp_path / "kept", result)


@pytest.mark.parametrize("step", ["render", "save_model", "flush"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_save_that_fails_changes_nothing(folder, result, monkeypatch, step, error):
    before = everything_below(folder.parent)

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(store if step == "flush" else bundle, step, fail)
    for target in (folder, folder.with_name("new")):
        with pytest.raises(type(error)):
            bundle.save(target, result, overwrite=True)
    assert everything_below(folder.parent) == before


@pytest.fixture
def without_exchange(monkeypatch):
    """As on a system that cannot exchange two names in one step."""
    monkeypatch.setattr(store, "_exchange", lambda one, other: False)


@pytest.mark.parametrize("fails", [1, 2, 3])
def test_a_failed_rename_leaves_the_earlier_bundle(folder, result, monkeypatch, without_exchange, fails):
    before, rename, calls = everything_below(folder.parent), os.rename, []

    def flaky(source, target):
        calls.append(target)
        if len(calls) == fails:
            raise OSError("no")
        rename(source, target)

    monkeypatch.setattr(os, "rename", flaky)
    result.report["notes"] = ["second"]
    with pytest.raises(OSError, match="no"):
        bundle.save(folder, result, overwrite=True)
    assert everything_below(folder.parent) == before


def killed_between_the_renames(folder, result, monkeypatch):
    """Killed at the worst moment: nothing runs any more, not even clean-up."""
    rename = os.rename

    def killed(source, target):
        if source != folder and not folder.exists():
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed)
        patch.setattr(store.shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            bundle.save(folder, result, overwrite=True)


def test_a_killed_save_leaves_recognisable_remains(folder, result, monkeypatch, without_exchange):
    killed_between_the_renames(folder, result, monkeypatch)
    remains = sorted(path.name for path in folder.parent.iterdir())
    assert all(name.startswith(".kept.partial-") for name in remains)
    with pytest.raises(FileNotFoundError, match=r"rename \.kept\.partial-.*-earlier to kept"):
        bundle.load(folder, model=Tied)
    (folder.parent / remains[-1]).rename(folder)
    bundle.load(folder, model=Tied)


def test_the_next_save_puts_back_what_was_moved_aside_and_removes_the_rest(
    folder, result, monkeypatch, without_exchange
):
    killed_between_the_renames(folder, result, monkeypatch)
    with pytest.raises(ValueError, match="model of the bundle"):  # the next save fails, and tidies up all the same
        bundle.save(folder, SimpleNamespace(**vars(result) | {"model": broken()}))
    assert [path.name for path in folder.parent.iterdir()] == ["kept"]
    bundle.load(folder, model=Tied)


def broken():
    model = Tied()
    model.a.weight.data.fill_(math.nan)
    return model


def test_a_save_leaves_alone_what_another_process_is_writing(folder, result):
    with store.whole_folder(folder) as partial:
        (partial / "plan.yaml").write_text("half")
        code = (
            "import sys; from pathlib import Path; from simprune.core.store import whole_folder\n"
            "with whole_folder(Path(sys.argv[1])) as partial: (partial / 'a').write_text('theirs')"
        )
        subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
        assert (partial / "plan.yaml").read_text() == "half"
        assert [path.name for path in folder.iterdir()] == ["a"]
    assert [path.name for path in folder.iterdir()] == ["plan.yaml"]
    assert [path.name for path in folder.parent.iterdir()] == ["kept"]


@pytest.mark.parametrize("exchange", [True, False])
def test_one_folder_saved_by_many_at_once_is_that_of_one_of_them(folder, result, monkeypatch, exchange):
    """Readers beside them see a whole bundle, or where the system cannot exchange names none; never a mixture."""
    if not exchange:
        monkeypatch.setattr(store, "_exchange", lambda one, other: False)
    notes = [[f"writer {number}"] for number in range(3)]

    def write(note):
        for _ in range(4):
            bundle.save(folder, SimpleNamespace(**vars(result) | {"report": result.report | {"notes": note}}),
                        overwrite=True)  # fmt: skip

    seen = []

    def read():
        try:
            bundle.load(folder, model=Tied)
            seen.append("whole")
        except FileNotFoundError as error:
            seen.append(str(error))

    threads = [threading.Thread(target=write, args=[note]) for note in notes]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        read()
    assert json.loads((folder / "report.json").read_text())["notes"] in notes
    assert [path.name for path in folder.parent.iterdir()] == ["kept"]
    bundle.load(folder, model=Tied)
    assert set(seen) == {"whole"} if exchange else all("has changed" not in said for said in seen)


def test_a_folder_that_appears_during_a_save_is_not_replaced(result, tmp_path, monkeypatch):
    render = bundle.render

    def meanwhile(*args, **options):
        (tmp_path / "kept").mkdir()
        (tmp_path / "kept" / "mine").write_text("mine")
        return render(*args, **options)

    monkeypatch.setattr(bundle, "render", meanwhile)
    with pytest.raises(FileExistsError, match="appeared meanwhile"):
        bundle.save(tmp_path / "kept", result)
    assert everything_below(tmp_path) == {"kept/mine": b"mine"}


def test_a_bundle_replaced_while_it_is_read_is_read_again(folder, result, monkeypatch):
    """Weights of another bundle, under a plan and hashes that were read before, would pass unseen."""
    real, calls = bundle.load_weights, []
    second = SimpleNamespace(**vars(result) | {"model": copy.deepcopy(result.model)})
    second.model.a.weight.data.zero_()

    def replaced(model, path):
        calls.append(path)
        if len(calls) == 1:
            bundle.save(folder, second, overwrite=True)
        real(model, path)

    monkeypatch.setattr(bundle, "load_weights", replaced)
    assert not bundle.load(folder, model=Tied).a.weight.any() and len(calls) == 2


def test_a_full_disk_is_said_and_changes_nothing(folder, result, monkeypatch):
    def full(model, path):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    before = everything_below(folder.parent)
    monkeypatch.setattr(bundle, "save_model", full)
    with pytest.raises(OSError, match=f"No space left on device: '{folder}'"):
        bundle.save(folder, result, overwrite=True)
    assert everything_below(folder.parent) == before


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights on Windows")
def test_links_to_files_are_followed_and_what_they_name_is_never_changed(folder, result, tmp_path):
    """As in a cache of downloads, whose files are links; a save in such a place replaces links, not what they name."""
    blobs = tmp_path / "blobs"
    folder.rename(blobs)
    before = everything_below(blobs)
    folder.mkdir()
    for name in bundle.FILES:
        (folder / name).symlink_to(blobs / name)
    bundle.load(folder, model=Tied)
    (folder / "recipe.yaml").unlink()
    (folder / "recipe.yaml").symlink_to(tmp_path / "secret")
    (tmp_path / "secret").write_text("a password")
    with pytest.raises(ValueError, match=r"recipe\.yaml has changed") as caught:
        bundle.load(folder, model=Tied)
    assert "password" not in str(caught.value)
    bundle.save(folder, result, overwrite=True)
    assert everything_below(blobs) == before and (tmp_path / "secret").read_text() == "a password"
    assert not any(path.is_symlink() for path in folder.iterdir())


def test_a_recipe_that_holds_itself_is_refused_and_one_with_shared_values_is_written_out(result, tmp_path):
    shared = {"path": [1, 2]}
    saved = bundle.save(tmp_path / "kept", result, {"a": shared, "b": shared})
    assert "&id" not in (saved / "recipe.yaml").read_text()
    shared["path"].append(shared)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="holds itself"):
        bundle.save(tmp_path / "other", result, {"a": shared})


def test_a_missing_bundle_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no bundle at"):
        bundle.load(tmp_path / "nowhere", model=Tied)


def test_a_state_that_is_no_tensor_is_refused(result, tmp_path):
    result.model.__class__ = type("Odd", (Tied,), {"get_extra_state": lambda self: "text"})
    with pytest.raises(ValueError, match="_extra_state in the model"):
        bundle.save(tmp_path / "kept", result)
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_of_objects_is_refused(result, tmp_path):
    with pytest.raises(ValueError, match="recipe: expected mappings"):
        bundle.save(tmp_path / "kept", result, {"model": object()})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_neither_saved_nor_opened(result, folder, value):
    weights = load_file(folder / "model.safetensors")
    weights["mix.bias"][0] = value
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"mix\.bias has"):
        load_weights(result.model, folder / "model.safetensors")
    result.model.mix.bias.data[0] = value
    with pytest.raises(ValueError, match=r"the model of the bundle: mix\.bias has"):
        bundle.save(folder.parent / "other", result)
    assert not (folder.parent / "other").exists()


HEADERS = [
    (1 << 60).to_bytes(8, "little") + b"{}",
    (2).to_bytes(8, "little") + b"{}" + b"surplus",
    *(
        len(text).to_bytes(8, "little") + text
        for text in (
            b'{"conv.weight":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}',
            b'{"conv.weight":{"dtype":"F32","shape":[99999999999999999999,9],"data_offsets":[0,0]}}',
            b'{"conv.weight":{"dtype":"F32","shape":[4],"data_offsets":[16,0]}}',
            b'{"conv.weight":{"dtype":"F999","shape":[0],"data_offsets":[0,0]}}',
            b"[" * 100_000,
        )
    ),
]


@pytest.mark.parametrize("content", HEADERS, ids=lambda content: content[:40].decode("latin-1"))
def test_weights_whose_sizes_are_wild_are_one_line_before_memory_is_taken(folder, content):
    rewrite(folder, "model.safetensors", content)
    with pytest.raises(ValueError, match="safetensors") as caught:
        bundle.load(folder, model=Tied)
    assert "\n" not in str(caught.value)


def test_a_report_of_many_values_or_bytes_is_refused_before_it_is_read(folder, monkeypatch):
    (folder / "report.json").write_bytes(b"[" + b"{}," * bundle.REPORT_VALUES + b"{}]")
    with pytest.raises(ValueError, match="more than the 8,388,608 values that are expected"):
        bundle.load(folder, model=Tied)
    with (folder / "report.json").open("wb") as file:
        file.truncate(1 << 30)  # a gigabyte that takes no space
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} is read"))
    with pytest.raises(ValueError, match=r"report\.json has 1,073,741,824 bytes; expected at most 268,435,456"):
        bundle.load(folder, model=Tied)
