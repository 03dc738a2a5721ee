import json

import numpy as np
import pytest
import torch
from torch import nn

from simprune import measures
from simprune.core import registry
from simprune.scores.blocks import as_redundancy
from simprune.structures import structure
from simprune.trace.network import Network
from simprune.zoo.residual import ResidualCNN
from tests.networks import NAMES, build, estimated

CKA = measures.get("cka_debiased")


@pytest.mark.parametrize("network", NAMES)
def test_scores_are_shares_and_the_result_is_data(network):
    model, x = build(network)
    found = estimated(model, [x], CKA)
    assert found.entries
    for entry in found.entries:
        scores = np.atleast_1d(entry.redundancy)
        assert ((scores >= 0) & (scores <= 1)).all()
        assert 0 < entry.share < 1
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["entries"]
    assert all(entry.name in found.table() for entry in found.entries)


@pytest.mark.parametrize("network", ["Residual", "Flat", "Concat"])
def test_a_planted_duplicate_is_found(network):
    model, x = build(network)
    group = structure("channels").find(Network(model, ((x[:2],), {})))[0][-1]
    for part in group.slices:
        if part.side == "out" and part.indices[0] == (0,):
            tensor = dict(model.state_dict())[part.tensor]
            tensor.select(part.dim, 1).copy_(tensor.select(part.dim, 0))
    (entry,) = [
        entry for entry in estimated(model, [x], CKA, score="predictability").channels if entry.name == group.name
    ]
    assert {0, 1} & {entry.order[0], entry.order[1]}
    assert max(entry.redundancy[0], entry.redundancy[1]) > 0.999
    assert (entry.nearest[0], entry.nearest[1]) == (1, 0)


def test_an_inert_block_is_the_most_redundant():
    model, x = build("Residual")
    torch.nn.init.zeros_(model.blocks[1].bn2.weight)
    torch.nn.init.zeros_(model.blocks[1].bn2.bias)
    first, second = estimated(model, [x], CKA).blocks
    assert second.redundancy == pytest.approx(1)
    assert first.redundancy < 1


@pytest.mark.parametrize("score", ["block_influence", "leave_one_out", {"name": "windows", "n": 2}])
def test_blocks_by_any_score_are_weighed_in_changes_of_the_output(score):
    """The score says in which order, the changes of the output how much: so blocks and channels can be compared."""
    torch.manual_seed(0)
    model = ResidualCNN(in_channels=3, widths=(8, 16), depths=(3, 2), shortcut="A").eval()
    batches = list(torch.randn(48, 3, 8, 8).split(12))
    own, other = estimated(model, batches, CKA), estimated(model, batches, CKA, block_score=score)
    assert sorted(entry.damage for entry in other.blocks) == sorted(entry.damage for entry in own.blocks)
    by_score = sorted(other.blocks, key=lambda entry: -entry.redundancy)
    assert [entry.damage for entry in by_score] == sorted(entry.damage for entry in other.blocks)
    assert other.interactions is not None
    assert {kind for kind, _ in other.interactions.rows} == {"channels"}
    assert other.channels == own.channels


@pytest.mark.parametrize("measured", [True, False])
def test_a_block_score_says_by_a_fact_that_measured_damages_are_its_own(measured, monkeypatch):
    facts = {"measured_damage": True} if measured else {}
    part = registry.Part("block_score", "own", registry.find("block_score", "similarity").make, facts=facts)
    monkeypatch.setitem(registry._parts["block_score"], "own", part)
    model, x = build("Residual")
    similarity, own = (estimated(model, [x], CKA, block_score=score) for score in ("similarity", "own"))
    assert own.interactions is not None
    assert ({"block"} <= {kind for kind, _ in own.interactions.rows}) == measured
    if measured:
        assert [entry.damage for entry in own.blocks] == [entry.damage for entry in similarity.blocks]


def test_distances_become_redundancy_in_the_same_direction():
    similar, distance = measures.get("cka"), measures.get("cka_angular")
    assert as_redundancy(similar, 0.7) == 0.7
    assert as_redundancy(distance, 0.0) == 1.0
    assert as_redundancy(distance, distance.range[1]) == 0.0
    assert as_redundancy(similar, float("nan")) == 0.0


@pytest.mark.parametrize(
    "structures, message",
    [
        ((), "structures is empty; name some of: blocks, channels"),
        (("channel",), "unknown 'channel'; did you mean 'channels'"),
    ],
)
def test_unknown_structures_are_refused(structures, message):
    model, x = build("Flat")
    with pytest.raises(ValueError, match=message):
        estimated(model, [x], CKA, structures)


def test_no_calibration_is_an_error():
    with pytest.raises(ValueError, match="no batches"):
        estimated(build("Flat")[0], [], CKA)


def test_whole_blocks_are_replaced_as_asked_and_halves_are_not():
    model, x = build("Residual")
    found = estimated(model, [x], CKA, ("blocks",))
    assert {entry.block.replace for entry in found.replacing("linear").blocks} == {"linear"}
    assert found.replacing("linear").replacing("identity") == found
    with pytest.raises(ValueError, match="replace must be one of identity, linear, mean; got 'zero'"):
        found.replacing("zero")


@pytest.mark.parametrize("score, words", [("predictability", "the others predict"), ("magnitude", "by magnitude")])
def test_reasons_are_in_the_words_that_a_score_registers(score, words):
    model, x = build("Residual")
    entry = estimated(model, [x], CKA, score=score, damage=False).channels[0]
    reason, least = entry.why(entry.order[:2]), min(entry.redundancy[unit] for unit in entry.order[:2])
    assert words in reason
    assert f"{least:.1%}" in reason or f"{least:.3f}" in reason


def test_reasons_of_blocks_are_in_the_words_that_a_score_registers():
    model, x = build("Residual")
    by_similarity = estimated(model, [x], CKA, ("blocks",), damage=False).blocks[0]
    by_influence = estimated(model, [x], CKA, ("blocks",), block_score="block_influence", damage=False).blocks[0]
    assert by_similarity.why("cka") == f"its output is {by_similarity.redundancy:.3f} similar to its input (cka)"
    assert by_influence.why("cka") == f"redundancy {by_influence.redundancy:.3f} by block_influence"


@pytest.mark.parametrize("kind, reason", [("heads", "no module is attention"), ("blocks", "none can be passed by")])
def test_a_kind_of_which_a_network_has_nothing_has_a_reason(kind, reason):
    model, x = build("Flat")
    redundancy = estimated(model, [x], CKA, (kind,))
    assert redundancy.entries == ()
    assert [(name, reason in why) for name, why in redundancy.unprunable] == [(kind, True)]
    assert kind in redundancy.table()


def test_groups_that_a_score_leaves_out_say_by_which_score_they_are_ordered():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 4, 1))
    redundancy = estimated(model, [torch.randn(16, 3, 8, 8)], CKA, ("channels",))
    scores = {entry.name: (entry.score, entry.why(entry.order[:1])) for entry in redundancy.channels}
    assert scores["0"][0] == "predictability"  # grouped convolutions cannot be refitted
    assert "predict" in scores["0"][1]
    assert scores["2"][0] == "second_order"
