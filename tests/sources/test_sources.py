"""Models and data: the digits, a user's arrays, a user's functions."""

import sys
import types
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from simprune.core.weights import load_weights
from simprune.sources import Batches, Data, arrays, data_from, digits, digits_model, model_from
from simprune.sources.data import as_data

sources = sys.modules["simprune.sources.digits"]  # the package has a function of the same name


def rows_of(batches):
    return torch.cat([x for x, _ in batches])


# ---- batches ----


def test_batches_can_be_walked_again_and_keep_rows_together():
    x, y = torch.arange(10.0)[:, None], torch.arange(10)
    batches = Batches(x, y, batch_size=4)
    for _ in range(2):
        seen = list(batches)
        assert [len(labels) for _, labels in seen] == [4, 4, 2] and len(seen) == len(batches)
        assert torch.equal(rows_of(seen), x)


def test_a_shuffled_walk_is_new_each_time_and_the_same_for_the_same_seed():
    x = torch.arange(50)
    first, second = Batches(x, batch_size=7, shuffle=3), Batches(x, batch_size=7, shuffle=3)
    walks = [torch.cat(list(first)) for _ in range(3)]
    again = [torch.cat(list(second)) for _ in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(walks, again, strict=True))
    assert all(torch.equal(walk.sort().values, x) for walk in walks)
    assert not torch.equal(walks[0], walks[1])
    assert not torch.equal(walks[0], torch.cat(list(Batches(x, batch_size=7, shuffle=4))))


def test_pairs_stay_pairs_when_shuffled():
    x = torch.arange(30)
    assert all(torch.equal(a, b) for a, b in Batches(x, x.clone(), batch_size=8, shuffle=0))


@pytest.mark.parametrize("tensors, size", [((), 4), ((torch.zeros(0, 2),), 4), ((torch.zeros(3), torch.zeros(2)), 4)])
def test_batches_refuse_nothing_and_unequal_lengths(tensors, size):
    with pytest.raises(ValueError, match="one length above zero"):
        Batches(*tensors, batch_size=size)


def test_batches_refuse_a_batch_size_of_zero():
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        Batches(torch.zeros(3), batch_size=0)


# ---- data ----


@pytest.mark.parametrize("value", [torch.zeros(3), np.zeros(3), "images", 3, iter([torch.zeros(3)]), None])
def test_data_refuses_what_is_not_batches(value):
    with pytest.raises(ValueError, match="calibration must be an iterable of batches"):
        Data(calibration=value)


def test_data_names_the_part_at_fault():
    with pytest.raises(ValueError, match="test must be an iterable of batches that can be walked again"):
        Data(calibration=[torch.zeros(1)], test=(x for x in [1]))


def test_as_data_takes_data_a_dict_or_calibration():
    batches = [torch.zeros(2, 3)]
    data = Data(batches, test=batches)
    assert as_data(data, "f") is data
    assert as_data({"calibration": batches, "test": batches}, "f") == data
    assert as_data(batches, "f") == Data(batches)
    with pytest.raises(ValueError, match="'tset'; did you mean 'test'"):
        as_data({"calibration": batches, "tset": batches}, "f")
    with pytest.raises(ValueError, match="no calibration"):
        as_data({"test": batches}, "f")


def test_digits_are_disjoint_complete_and_stratified():
    data = digits(batch_size=100, calibration_size=200)
    parts = [torch.cat([images.flatten(1) for images, _ in part]) for part in (data.calibration, data.train, data.test)]
    assert [len(part) for part in parts] == [200, 800, 797]
    images, counts = torch.cat(parts).unique(dim=0, return_counts=True)
    assert len(images) == counts.sum() == 1797  # scikit-learn's digits hold no image twice, so none is in two parts
    assert images.min() == 0 and images.max() == 1
    labels = torch.cat([labels for _, labels in data.test])
    assert labels.bincount().min() > 70


def test_the_test_digits_depend_on_nothing():
    first, other = digits(), digits(batch_size=7, calibration_size=100, seed=5)
    assert torch.equal(rows_of(first.test), rows_of(other.test))


@pytest.mark.parametrize("size", [9, 991])
def test_digits_refuse_a_calibration_set_that_leaves_a_part_empty(size):
    with pytest.raises(ValueError, match="from 10 to 990"):
        digits(calibration_size=size)


# ---- arrays ----


@pytest.fixture
def archive(tmp_path):
    def write(**content):
        np.savez(tmp_path / "data.npz", **content)
        return str(tmp_path / "data.npz")

    return write


def test_uint8_images_become_channels_first_floats(archive):
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    data = arrays(path=archive(calibration_images=images, calibration_labels=np.arange(5)), test=None)
    x, y = next(iter(data.calibration))
    assert np.allclose(x.numpy(), images.transpose(0, 3, 1, 2) / 255)
    assert y.dtype == torch.int64 and data.test is None and data.train is None


def test_mean_and_std_are_taken_per_channel(archive):
    images = np.full((2, 3, 3, 2), 51, dtype=np.uint8)
    path = archive(calibration_images=images)
    (x,) = arrays(path=path, mean=[0.1, 0.2], std=[0.5, 0.1], test=None).calibration
    assert torch.allclose(x[:, 0], torch.tensor(0.2)) and torch.allclose(x[:, 1], torch.tensor(0.0), atol=1e-6)


def test_floating_point_is_taken_as_it_is(archive):
    values = np.random.default_rng(0).normal(size=(4, 7))
    (x,) = arrays(path=archive(calibration_images=values, test_images=values)).test
    assert x.dtype == torch.float32 and np.allclose(x.numpy(), values)


IMAGES = np.zeros((4, 3, 5, 6), np.float32)


@pytest.mark.parametrize(
    "labels, message",
    [
        (np.array([0, 1, 1.7, 2]), r"expected whole numbers, the classes; got float64; store them with .astype"),
        (np.array([0, 1, np.nan, 2], np.float32), "expected whole numbers"),
        (np.array([0.0, 1.0, 2.0, 3.0]), "expected whole numbers"),  # nothing is guessed
        (np.array([True, False, True, False]), "expected whole numbers.*got bool"),
        (np.array(list("abcd")), "expected whole numbers"),
        (np.eye(4, dtype=np.int64), r"expected the shape \(4,\) or \(4, 5, 6\); got \(4, 4\); of one-hot rows store"),
        (np.zeros((4, 1), np.int64), r"got \(4, 1\)"),
        (np.arange(3), r"got \(3,\)"),
        (np.zeros((4, 6, 5), np.int64), r"got \(4, 6, 5\)"),
        (np.zeros((), np.int64), r"got \(\)"),
        (np.full(4, 1 << 63, np.uint64), "expected class numbers"),
    ],
)
def test_labels_are_never_cast_silently(archive, labels, message):
    with pytest.raises(ValueError, match=f"calibration_labels: .*{message}"):
        arrays(path=archive(calibration_images=IMAGES, calibration_labels=labels), test=None)


@pytest.mark.parametrize("labels", [np.arange(4, dtype=np.uint8), np.full((4, 5, 6), -100, np.int16)])
def test_whole_numbers_of_any_type_are_labels_of_images_or_pixels(archive, labels):
    ((_, y),) = arrays(path=archive(calibration_images=IMAGES, calibration_labels=labels), test=None).calibration
    assert y.dtype == torch.int64 and np.array_equal(y.numpy(), labels)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_damaged_archive_is_one_line_or_harmless(tmp_path, compressed):
    """Cut and flipped anywhere, an archive is refused in one line, or gives arrays of the same kind."""
    path, draw = tmp_path / "data.npz", np.random.default_rng(0)
    images = draw.normal(size=(4, 1, 2, 2)).astype(np.float32)
    save = np.savez_compressed if compressed else np.savez
    save(path, calibration_images=images, calibration_labels=np.arange(4))
    whole, refused = path.read_bytes(), []
    for case in range(120):
        content = bytearray(whole)
        if case % 5 == 0:
            content = content[: draw.integers(len(whole))]
        else:
            content[draw.integers(len(whole))] ^= 1 << draw.integers(8)
        path.write_bytes(content)
        try:
            (batch,) = arrays(path=str(path), test=None).calibration
        except ValueError as error:
            refused.append(error)
        else:  # in a time stamp, or the name of the labels
            assert torch.equal(torch.from_numpy(images), batch[0] if isinstance(batch, tuple) else batch)
    assert len(refused) > 40
    assert all(type(error) is ValueError and "\n" not in str(error) for error in refused)


def test_an_array_that_says_it_is_huge_is_refused_before_it_is_allocated(tmp_path):
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }"
    header += b" " * (117 - len(header)) + b"\n"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as file:
        file.writestr("calibration_images.npy", content)
    with pytest.raises(ValueError, match="says that it has 4,398,046,511,104 bytes, and the file holds fewer"):
        arrays(path=str(tmp_path / "data.npz"), test=None)


def test_grey_images_without_a_channel_axis_get_one(archive):
    (x,) = arrays(path=archive(calibration_images=np.zeros((4, 5, 6), np.uint8)), test=None).calibration
    assert x.shape == (4, 1, 5, 6)


@pytest.mark.parametrize(
    "images, options, message",
    [
        (np.zeros((4, 3, 32, 32), np.uint8), {}, r"must be \(N, H, W\) or \(N, H, W, C\)"),
        (np.zeros((4, 5), np.int64), {}, "expected uint8"),
        (np.zeros((4, 5, 5, 3), np.uint8), {"mean": [0.5]}, "mean needs 3 numbers"),
        (np.zeros((4, 5, 5, 3), np.uint8), {"std": [0.5] * 4}, "std needs 3 numbers"),
        (np.zeros((4, 5, 5, 3), np.uint8), {"calibration": "calibrate"}, "did you mean 'calibration_images'"),
        (np.zeros((4, 5, 5, 3), np.uint8), {"test": "test"}, "no array 'test_images'"),
    ],
)
def test_other_arrays_are_refused(archive, images, options, message):
    with pytest.raises(ValueError, match=message):
        arrays(path=archive(calibration_images=images), **({"test": None} | options))


def test_pickled_contents_are_refused(archive):
    path = archive(calibration_images=np.array([{}, {}], dtype=object))
    with pytest.raises(ValueError, match="calibration_images is not a plain array"):
        arrays(path=path, test=None)


def test_files_that_are_no_archives_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        arrays(path=str(tmp_path / "missing.npz"))
    (tmp_path / "text.npz").write_text("text")
    with pytest.raises(ValueError, match="plain arrays"):
        arrays(path=str(tmp_path / "text.npz"))
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(ValueError, match="holds one array"):
        arrays(path=str(tmp_path / "one.npy"))


# ---- functions and weights ----


@pytest.fixture
def module(monkeypatch):
    """A user's module, without a file."""
    module = types.ModuleType("users_module")
    module.__spec__ = types.SimpleNamespace(submodule_search_locations=None)  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "users_module", module)
    return module


def test_model_from_calls_the_function_with_its_options(module):
    module.build = lambda width, bias=True: nn.Linear(3, width, bias=bias)
    model = model_from("users_module:build", width=5, bias=False)
    assert model.weight.shape == (5, 3) and model.bias is None and not model.training


def test_model_from_refuses_other_things(module):
    module.build = lambda: "a model"
    with pytest.raises(ValueError, match=r"must return a torch.nn.Module, got str"):
        model_from("users_module:build")


def test_data_from_takes_what_the_function_returns(module):
    module.load = lambda rows=2: {"calibration": [torch.zeros(rows, 3)]}
    (batch,) = data_from("users_module:load", rows=4).calibration
    assert batch.shape == (4, 3)


def test_an_error_inside_the_users_function_names_function_and_file(module):
    def build():
        raise TypeError("of the user")

    module.build = build
    with pytest.raises(ValueError, match=r"users_module:build raised TypeError: of the user \(.*test_sources.py, line"):
        model_from("users_module:build")


def test_weights_travel_and_only_the_batch_count_may_be_missing(tmp_path):
    torch.manual_seed(0)
    source, target = (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)) for _ in range(2))
    tensors = {key: value for key, value in source.state_dict().items() if "num_batches" not in key}
    save_file(tensors, tmp_path / "w.safetensors")
    load_weights(target, tmp_path / "w.safetensors", strict=False)
    assert all(torch.equal(target.state_dict()[key], value) for key, value in tensors.items())


@pytest.mark.parametrize(
    "tensors, message",
    [
        ({"weight": torch.zeros(2, 3)}, "it lacks 'bias'"),
        ({"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "more": torch.zeros(1)}, "unlike the model, 'more'"),
        ({"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, "another shape for 'weight'"),
        ({"a": torch.zeros(1)}, "it lacks 'weight' and 1 more"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, tensors, message):
    save_file(tensors, tmp_path / "w.safetensors")
    model = nn.Linear(3, 2)
    before = model.weight.clone()
    with pytest.raises(ValueError, match=message):
        load_weights(model, tmp_path / "w.safetensors", strict=False)
    assert torch.equal(model.weight, before)


def test_a_file_that_is_no_weights_file_is_refused(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"not weights")
    with pytest.raises(ValueError, match="not a .safetensors file"):
        load_weights(nn.Linear(3, 2), tmp_path / "w.safetensors", strict=False)
    with pytest.raises(FileNotFoundError, match="no weights"):
        load_weights(nn.Linear(3, 2), tmp_path / "missing.safetensors", strict=False)


# ---- the digits model ----


def accuracy(model, batches):
    with torch.inference_mode():
        right = [(model(x).argmax(1) == y).float() for x, y in batches]
    return torch.cat(right).mean().item()


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Settings that train in a second, in a cache of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return {"widths": (8, 16), "depths": (1, 1), "epochs": 3}


def test_the_digits_model_is_trained_once_and_kept(small, tmp_path, monkeypatch):
    model = digits_model(**small)
    (kept,) = (tmp_path / "simprune").iterdir()
    assert kept.suffix == ".safetensors" and not model.training
    assert accuracy(model, digits().test) > 0.8

    monkeypatch.setattr(sources, "_train", lambda *args, **kwargs: pytest.fail("trained again"))
    again = digits_model(**small)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_the_same_settings_give_the_same_weights_and_others_another_file(small, tmp_path):
    state = torch.get_rng_state()
    first = digits_model(**small)
    assert torch.equal(torch.get_rng_state(), state)
    for kept in (tmp_path / "simprune").iterdir():
        kept.unlink()
    torch.rand(3)
    second = digits_model(**small)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    digits_model(**small | {"seed": 1})
    assert len(list((tmp_path / "simprune").iterdir())) == 2


def test_an_interrupted_training_leaves_no_file(small, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(sources, "_train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        digits_model(**small)
    assert not list(tmp_path.rglob("*.safetensors"))
