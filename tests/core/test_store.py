"""An interrupted analysis goes on where it was, and ends as if nothing had happened."""

import errno
import json
import os

import pytest
import torch
from safetensors.torch import save_file

from simprune import api as pipeline
from simprune import measures
from simprune.core.checkpoint import Checkpoint
from simprune.core.peekable import Peekable
from simprune.core.progress import reporting, say
from simprune.core.spilled import Spilled
from simprune.core.store import append_whole, write_whole
from simprune.scores.estimate import estimate
from simprune.trace.network import Network
from tests.disk import files_of_at_most
from tests.networks import build

MEASURES = ("cka", "gbs")


class Interrupted(BaseException):
    pass


def analysis(model, batches, checkpoint=None):
    batches = Peekable(batches, "calibration")
    network = Network.trace(model, batches.first)
    options = {"structures": ("blocks",), "block_score": "leave_one_out", "damage": False, "checkpoint": checkpoint}
    found = estimate(network, batches, measures.get("cka"), **options)
    return pipeline.examine(batches, found, network, MEASURES, 3, 4, checkpoint=checkpoint)


class Batches:
    """Breaks off before a batch, the n-th time that it is walked."""

    def __init__(self, batches, walk, batch):
        self.batches, self.walk, self.batch, self.walks = batches, walk, batch, 0

    def __iter__(self):
        self.walks += 1
        for number, batch in enumerate(self.batches):
            if (self.walks, number) == (self.walk, self.batch):
                raise Interrupted
            yield batch


@pytest.mark.parametrize("walk", [1, 2])  # the first gives an example and reads, the second scores
def test_interrupted_and_resumed_is_the_same(walk, tmp_path):
    model, x = build("Residual")
    batches = [*x.split(4)]
    whole = analysis(model, batches)
    checkpoint = Checkpoint(tmp_path / "kept", {"a": 1}, seconds=0)
    with pytest.raises(Interrupted):
        analysis(model, Batches(batches, walk, 2), checkpoint)
    assert checkpoint.started
    calls = []
    handle = model.stem.register_forward_hook(lambda *_: calls.append(1))
    again = analysis(model, batches, Checkpoint(tmp_path / "kept", {"a": 1}, seconds=0))
    resumed = len(calls)
    calls.clear()
    analysis(model, batches)
    handle.remove()
    assert resumed < len(calls)  # something was not done again
    assert json.dumps(again) == json.dumps(whole)


def test_what_is_complete_is_only_read(tmp_path, monkeypatch):
    model, x = build("Residual")
    first = analysis(model, [x], Checkpoint(tmp_path / "kept", {}))
    monkeypatch.setattr("simprune.scores.blocks._context.measures.matrix", None)
    assert analysis(model, [x], Checkpoint(tmp_path / "kept", {})) == first
    checkpoint = Checkpoint(tmp_path / "kept", {})
    assert not [*checkpoint.folder.glob(".*")]
    checkpoint.clear()
    assert not checkpoint.folder.exists()


def test_other_settings_are_refused_and_named(tmp_path):
    Checkpoint(tmp_path, {"seed": 1, "model": {"depth": 2}}).save("a", {"x": torch.ones(1)})
    with pytest.raises(ValueError, match=r"made with other settings \(model.depth: 2 there, 3 now\)"):
        Checkpoint(tmp_path, {"seed": 1, "model": {"depth": 3}})
    with pytest.raises(ValueError, match="other settings") as caught:
        Checkpoint(tmp_path, {"seed": "x" * 5000, "model": {"depth": 2}})
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_file_is_written_whole_or_not_at_all(tmp_path, error):
    def fail(path):
        path.write_text("half")
        raise error

    path = tmp_path / "new" / "a.txt"
    for before in ([], [path]):
        with pytest.raises(type(error)):
            write_whole(path, fail)
        assert [*path.parent.iterdir()] == before
        write_whole(path, "whole")
    assert path.read_text() == "whole"


def test_what_a_full_disk_does_not_take_is_named_and_leaves_what_was_there(tmp_path):
    path, log = tmp_path / "new" / "a.txt", tmp_path / "log"
    writes = {
        path: lambda: append_whole(path, b"x" * 300),
        path.with_suffix(".yaml"): lambda: write_whole(path.with_suffix(".yaml"), "x" * 300),
        path.with_suffix(".weights"): lambda: write_whole(
            path.with_suffix(".weights"), lambda partial: save_file({"a": torch.ones(90)}, partial)
        ),
    }
    for name, write in writes.items():
        for before in ("", "a line\n"):
            write_whole(name, before)
            with files_of_at_most(200), pytest.raises(OSError, match=rf"too large: '{name}'") as caught:
                write()
            assert caught.value.errno == errno.EFBIG and name.read_text() == before
        write()
    assert not [*path.parent.glob(".*")] and path.read_text() == "a line\n" + "x" * 300
    with files_of_at_most(200), pytest.raises(OSError, match="TMPDIR"):
        Spilled(torch.zeros(5, 20))
    with reporting(log):
        say("one")
        with files_of_at_most(200), pytest.raises(OSError, match=str(log)):
            say("x" * 200)
    assert log.read_text().count("\n") == 1 and "x" not in log.read_text()


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights on Windows")
def test_a_link_is_replaced_by_a_file_and_never_added_to(tmp_path):
    link, outside = tmp_path / "link", tmp_path / "outside"
    outside.write_text("somebody's")
    link.symlink_to(outside)
    with pytest.raises(ValueError, match="link is a link"):
        append_whole(link, b"a line")
    write_whole(link, "ours")
    assert outside.read_text() == "somebody's" and link.read_text() == "ours" and not link.is_symlink()


def test_a_file_written_whole_has_the_rights_of_a_new_file_and_is_flushed(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr("simprune.core.store.flush", lambda path: flushed.append(path.name.startswith(".a.txt")))
    (tmp_path / "new").touch()
    write_whole(tmp_path / "a.txt", lambda path: (path.write_text("x"), path.chmod(0o600)))
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "new").stat().st_mode
    assert flushed == [True, False]  # what was written before the rename, the folder after it
