"""A study whose process is killed goes on with the same command and ends with the same tables."""

import os
import signal

import pytest

from simprune.core.registry import find
from simprune.studies import frame

SMALL = {"architectures": ["vgg"], "seeds": 2, "inputs": 40, "counts": [], "degrees": [3], "edges": [5]}


def computed(folder, data):
    """The tables of a small study, without its pages, which take longer to draw."""
    part = find("study", "graph_views")
    run = frame.Run(folder / "study", folder / "networks", data=str(data), training=3)
    return part.make(run, **(part.options | SMALL)).to_dict()["tables"]


def killed(folder, data, after):
    """Runs the study in a process of its own, which is killed in the middle of a file, after so many whole ones."""
    child = os.fork()
    if not child:
        try:
            whole, written = frame.write_whole, []

            def dying(path, content):
                def half(partial):
                    partial.write_text("half of a file")
                    os.kill(os.getpid(), signal.SIGKILL)

                whole(path, content if len(written) < after else half)
                written.append(path)

            frame.write_whole = dying
            computed(folder, data)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    return sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked here")
def test_a_killed_study_goes_on_and_ends_as_one_that_was_not(tmp_path, images_file):
    whole = computed(tmp_path / "whole", images_file)
    assert len(killed(tmp_path / "killed", images_file, 1)) == 1
    stored = killed(tmp_path / "killed", images_file, 3)
    assert [path.suffix for path in stored].count(".safetensors") == 2, "the second network, and two steps"
    before = {path: path.stat().st_mtime_ns for path in stored}
    resumed = computed(tmp_path / "killed", images_file)
    assert {path: path.stat().st_mtime_ns for path in stored} == before, "what was stored is not computed again"
    assert resumed == whole
    assert not [*tmp_path.rglob("*.partial")]
