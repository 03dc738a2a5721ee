"""Wrong options and images are said in one line, before a network is trained."""

import numpy as np
import pytest

import simprune as sp
from simprune.cli.main import main


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("layer_matching", {"architectures": ["resnet"]}, "no 'resnet'; known"),
        ("layer_matching", {"architectures": []}, "expected some of residual"),
        ("layer_matching", {"architectures": "residual"}, "must be a list of str"),
        ("across_data_sets", {"architecture": "vg"}, "no 'vg'; did you mean 'vgg'"),
        ("across_data_sets", {"inputs": [40]}, "inputs: expected two numbers"),
        ("across_data_sets", {"sketch": 0}, "sketch must be at least 1; got 0"),
        ("graph_views", {"seeds": 0}, "seeds must be at least 1"),
        ("graph_views", {"degrees": []}, "degrees must be at least 1"),
        ("stitching", {"pairs": 0}, "pairs must be at least 1"),
        ("transferability", {"sources": []}, "sources: expected some of same classes"),
        ("transferability", {"target_images": 0}, "target_images must be at least 1"),
        ("grounding", {"measures": ["ckaa"]}, "measure: no 'ckaa'; did you mean 'cka'"),
        ("grounding", {"inputs": 100_000}, "inputs: expected at most"),
        ("similarity_vs_function", {"functional": []}, "functional: expected some measures"),
        ("similarity_vs_function", {"seeds": 1}, "seeds must be at least 2"),
        ("calibration", {"numbers": [0]}, "numbers must be at least 1"),
        ("calibration", {"share": 0.0}, "share: expected more than 0"),
        ("prediction", {"shares": [2.0]}, "shares: expected some above 0 and at most 1"),
    ],
)
def test_wrong_options_are_said_before_any_training(tmp_path, images_file, name, options, words):
    with pytest.raises(ValueError, match=words):
        sp.study(name, folder=tmp_path, data=images_file, quick=True, **options)
    assert not [*tmp_path.rglob("*.safetensors")]


GOOD = {
    "train_images": np.zeros((6, 1, 8, 8), np.float32), "train_labels": np.arange(6) % 3,
    "test_images": np.zeros((3, 1, 8, 8), np.float32), "test_labels": np.arange(3),
}  # fmt: skip


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"test_labels": None}, "lacks test_labels"),
        ({"train_labels": np.zeros(6, int)}, "at least two classes"),
        ({"train_labels": np.arange(6) - 1}, "numbers of classes, from 0"),
        ({"train_labels": np.eye(6)}, "numbers of classes, from 0"),
        ({"train_labels": np.arange(6) / 2}, "numbers of classes, from 0"),
        ({"train_labels": np.arange(5)}, "numbers of classes, from 0"),
        ({"train_images": np.zeros((6, 1, 8, 8))}, "of float32; got float64"),
        ({"train_images": np.full((6, 1, 8, 8), np.nan, np.float32)}, "not finite"),
        ({"train_images": np.zeros((0, 1, 8, 8), np.float32), "train_labels": np.arange(0)}, "at least one"),
        ({"test_images": np.zeros((3, 8, 8, 1), np.uint8)}, "images of one type"),
        ({"test_images": np.zeros((3, 1, 10, 10), np.float32)}, "squares of one size"),
        ({"train_images": np.array([None] * 6)}, "no numbers"),
        ({name: GOOD[name][..., :4, :4] for name in ("train_images", "test_images")}, "4: add size=8"),
    ],
)
def test_wrong_images_are_one_line_of_the_command_line(tmp_path, capsys, changes, words):
    arrays = {name: values for name, values in (GOOD | changes).items() if values is not None}
    np.savez(tmp_path / "images.npz", **arrays)
    assert main(["study", "recipe=graph_views", f"data={tmp_path}", f"folder={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("simprune: error: data: ") and words in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
