"""Layers of copies match perfectly; with shuffled inputs only what is common to all inputs is left."""

import pytest
import torch
from torch import nn

from simprune.studies import layers
from simprune.studies.images import read_images
from simprune.studies.networks import build


@pytest.fixture
def vgg(images_file):
    """Makes small networks by the number of their first weights."""
    images = read_images(str(images_file))
    return lambda seed: lambda: build("vgg", images, seed, width=0.5)


MEASURES = ["cka_debiased", {"name": "gbs", "center": True}]


def test_copies_match_perfectly_and_shuffled_inputs_do_not(compute, vgg) -> None:
    findings = compute("layer_matching", models=[vgg(0)] * 3, measures=MEASURES, inputs=60)
    accuracy = findings.table("accuracy")
    assert accuracy.column("accuracy") == [[1.0, 1.0, 1.0]] * 4
    assert set(findings.table("layers").column("accuracy")) == {1.0}
    rows = {(row[1], row[2]): row for row in accuracy.rows}
    count = len(findings.table("layers").rows) // 4
    for layout in ("flatten", "pool"):
        for measure in ("cka_debiased", "gbs center=True"):
            row = rows[layout, measure]
            assert row[5] == 1 / count
            assert row[4][0] < 0.6, "centred features of shuffled inputs have little in common"


def test_a_run_that_goes_on_reads_no_network_again(compute, vgg, monkeypatch) -> None:
    options = {"models": [vgg(0), vgg(1)], "measures": ["cka"], "inputs": 40, "layouts": ["pool"]}
    first = compute("layer_matching", **options)
    monkeypatch.setattr("simprune.studies.layer_matching.representations", None)
    assert compute("layer_matching", **options).tables == first.tables


def test_wrong_requests_are_refused_before_any_training(run_study, vgg) -> None:
    before = sorted(run_study.folder.rglob("*.safetensors"))
    with pytest.raises(KeyError, match="cka"):
        run_study("layer_matching", measures=["ckaa"])
    with pytest.raises(ValueError, match="several models"):
        run_study("layer_matching", models=[vgg(0)])
    with pytest.raises(ValueError, match="seeds must be at least 2"):
        run_study("layer_matching", seeds=1)
    with pytest.raises(ValueError, match='"flatten" or "pool"'):
        run_study("layer_matching", layouts=["positions"])
    with pytest.raises(ValueError, match="at least the number of classes"):
        run_study("layer_matching", models=[vgg(0), vgg(1)], inputs=2)
    with pytest.raises(ValueError, match="no module fits 'stem'"):
        run_study("layer_matching", models=[vgg(0), vgg(1)], layers=["stem"])
    assert sorted(run_study.folder.rglob("*.safetensors")) == before


@pytest.mark.parametrize("architecture", ["residual", "plain", "vgg", "vit", "mobilenet", "convnext"])
def test_layers_lie_along_the_depth_and_leave_out_the_logits(architecture: str, images_file) -> None:
    images = read_images(str(images_file))
    model = build(architecture, images)
    names = layers.layers_of(model)
    assert len(names) >= 3
    order: list[str] = []
    hooks = [model.get_submodule(name).register_forward_hook(lambda *_, n=name: order.append(n)) for name in names]
    rows = layers.representations(model, images.test[:4], names, "pool")
    for hook in hooks:
        hook.remove()
    assert order[-len(names) :] == names, "every one runs once, in this order"
    assert list(rows) == names
    last = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
    assert last not in names
    assert not any(name.startswith(f"{other}.") for name in names for other in names)


def test_a_balanced_draw_has_as_many_of_every_class(images_file) -> None:
    images = read_images(str(images_file))
    inputs, labels = layers.balanced(images, 41, seed=0)
    assert labels.bincount().tolist() == [10] * 4
    assert len(inputs) == 40
    same = (images.test[:, None] == inputs[None]).flatten(2).all(2)
    assert bool((same.sum(0) >= 1).all())
    assert torch.equal(images.test_labels[same.int().argmax(0)], labels)
