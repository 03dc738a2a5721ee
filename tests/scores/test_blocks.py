"""Planted redundancy goes first for every score, in every kind of network; formulas against independent ones."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from simprune import measures
from simprune.api import analyze, apply
from simprune.core.batches import call
from simprune.core.example import describe, example_of
from simprune.core.plan import Edit, Plan, fingerprint
from simprune.core.registry import bound, parts, read
from simprune.measures import SimilarityMatrix
from simprune.scores.blocks import BlockContext, observe, stream
from simprune.scores.blocks.segments import fisher_partition, within
from simprune.structures import find_blocks, structure
from simprune.trace.network import Network
from tests.structures.architectures import BLOCKS, build

SCORES = list(parts("block_score"))


def silence(module: nn.Module) -> None:
    """Make a block inert: no weights, normalisations that only normalise."""
    for part in module.modules():
        norm = "norm" in type(part).__name__.lower() and not isinstance(part, nn.BatchNorm2d)
        for own, parameter in part.named_parameters(recurse=False):
            nn.init.constant_(parameter, 1.0 if norm and own == "weight" else 0.0)


def context_of(model, *batches):
    network = Network.trace(model, batches[0])
    stream = observe(network, batches, find_blocks(network))
    return BlockContext(network, batches, stream, measures.get("cka"))


def view_of(model, batch, sub=False):
    network = Network(model, example_of(batch))
    blocks, _ = structure("sub_blocks" if sub else "blocks").find(network)
    labels = torch.arange(6) % 2
    batches = [{**batch, "labels": labels}] if isinstance(batch, dict) else [(batch, labels)]
    return BlockContext(network, batches, observe(network, batches, blocks), measures.get("cka"))


@pytest.mark.parametrize("name", BLOCKS)
def test_an_inert_block_goes_first_for_every_score_and_is_missed_by_nobody(name):
    model, batch = build(name)
    planted = BLOCKS[name][2]
    silence(model.get_submodule(planted))
    view = view_of(model, batch)
    for score in SCORES:
        found = bound("block_score", {"name": score, "statistic": "magnitude"} if score == "trend" else score)(view)
        assert list(found) == BLOCKS[name]
        assert all(0 <= value <= 1 for value in found.values()), (score, found)
        assert max(found, key=found.get) == planted, (score, found)
        others = [value for other, value in found.items() if other != planted]
        assert max(others) < found[planted], (score, found)
    for statistic in ("graph_modularity", "gbs_motif"):  # they see so few inputs coarsely: others may be level with it
        assert bound("block_score", {"name": "trend", "statistic": statistic})(view)[planted] == pytest.approx(1)
    plan = Plan((Edit("block", planted),), fingerprint(model), describe(example_of(batch)))
    with torch.no_grad():
        torch.testing.assert_close(call(apply(plan, model), batch), call(model, batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["vit", "llama"])
def test_an_inert_half_goes_first(name):
    model, batch = build(name)
    half = structure("sub_blocks").find(Network(model, example_of(batch)))[0][3]
    silence(model.get_submodule(half.name))
    view = view_of(model, batch, sub=True)
    for score in ("similarity", "block_influence", "windows", "leave_one_out", "segments"):
        found = bound("block_score", score)(view)
        assert max(found, key=found.get) == half.name, (score, found)


class Projections(nn.Module):
    """Blocks x - P x with orthogonal projectors P: applied twice in a row, the second time changes nothing."""

    def __init__(self, duplicate: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Projection() for _ in range(4)])
        self.blocks[duplicate + 1].load_state_dict(self.blocks[duplicate].state_dict())
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Projection(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(12, 12, bias=False)
        basis = torch.linalg.qr(torch.randn(12, 12))[0][:2]
        with torch.no_grad():
            self.down.weight.copy_(basis.T @ basis)

    def forward(self, x):
        return x - self.down(x)


@pytest.mark.parametrize("score", [name for name in SCORES if name != "trend"])
@pytest.mark.parametrize("duplicate", [0, 2])
def test_a_duplicated_block_goes_first(score, duplicate):
    torch.manual_seed(0)
    model = Projections(duplicate).eval()
    batch = torch.randn(40, 12)
    view = context_of(model, batch)
    found = bound("block_score", score)(view)
    assert max(found, key=found.get) in (f"blocks.{duplicate}", f"blocks.{duplicate + 1}")


def test_greedy_sees_that_the_second_of_two_duplicates_is_needed_where_nothing_is_refitted():
    torch.manual_seed(0)
    model = Projections(1)
    batch = torch.randn(120, 12)
    view = context_of(model, batch)
    alone = bound("block_score", "leave_one_out")(view)
    assert alone["blocks.1"] == pytest.approx(1)
    assert alone["blocks.2"] == pytest.approx(1)
    found = bound("block_score", {"name": "greedy_leave_one_out", "repair": False, "images": 60})(view)
    repaired = bound("block_score", {"name": "greedy_leave_one_out", "images": 60})(view)
    assert all(value > 0.999 for value in [*repaired.values()][:3])  # all is linear: the last block takes over
    first, second = sorted(("blocks.1", "blocks.2"), key=lambda name: -found[name])
    assert found[first] == pytest.approx(1)
    assert found[second] < 0.99


def squares(wanted, current):
    rows = wanted.flatten(0, -2)
    return float((current - wanted).square().sum() / (rows - rows.mean(0)).square().sum())


def divergence(wanted, current):
    before, after = (F.log_softmax(z.flatten(0, -2), -1) for z in (wanted, current))
    return float(F.kl_div(after, before, reduction="batchmean", log_target=True))


@pytest.mark.parametrize("error", [squares, divergence])
def test_greedy_without_repair_is_the_error_of_the_network_without_the_block(error):
    model, x = build("pre-norm")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    blocks, _ = structure("blocks").find(Network(model, example_of(x)))
    view = context_of(model, x)
    score = {"name": "greedy_leave_one_out", "repair": False, "steps": 1, "error": error.__name__}
    found = bound("block_score", score)(view)
    held = x[1::2]
    with torch.no_grad():
        wanted = call(model, held)
        for block in blocks:
            plan = Plan((Edit("block", block.name),), fingerprint(model), describe(example_of(x)))
            lost = error(wanted, call(apply(plan, model), held))
            assert found[block.name] == pytest.approx(1 / (1 + lost), rel=1e-3)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("repair", [False, True])
def test_greedy_takes_inputs_in_batches_of_any_size(repair):
    torch.manual_seed(0)
    model, batch = Projections(1), torch.randn(24, 12)
    score = bound("block_score", {"name": "greedy_leave_one_out", "repair": repair, "images": 10})
    whole, single, uneven = (score(context_of(model, *batch.split(size))) for size in (24, 1, 7))
    assert single == pytest.approx(whole, rel=1e-5)
    assert uneven == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("repair", [False, True])
def test_greedy_takes_blocks_and_their_halves_together(repair):
    model, x = build("pre-norm")
    silence(model.get_submodule(find_halves(model, x)[1]))
    score = {"name": "greedy_leave_one_out", "repair": repair}
    redundancy = analyze(model, [x], structures=("blocks", "sub_blocks"), block_score=score, damage=False)
    values = {entry.block.name: entry.redundancy for entry in redundancy.blocks}
    assert values[find_halves(model, x)[1]] == max(values.values())


def find_halves(model, x):
    return [block.name for block in structure("sub_blocks").find(Network(model, example_of(x)))[0]]


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_padding_changes_no_score(name):
    model, batch = build(name)
    ids = batch["input_ids"]
    padded = {
        "input_ids": torch.cat([ids, torch.ones_like(ids[:, :2])], 1),
        "attention_mask": torch.cat([torch.ones_like(ids), torch.zeros_like(ids[:, :2])], 1),
    }
    views = [context_of(model, given) for given in (batch, padded)]
    for score in ("similarity", "block_influence", "leave_one_out", "greedy_leave_one_out"):
        plain, other = (bound("block_score", score)(view) for view in views)
        assert other == pytest.approx(plain, abs=1e-4), score


def test_influence_and_angles_equal_the_formulas_over_all_positions_and_batches():
    model, x = build("pre-norm")
    batches = [x[:4], x[4:]]
    view = context_of(model, *batches)
    stream = view.stream
    with torch.no_grad():
        points = [model.embed(x)]
        for layer in model.encoder.layers:
            points.append(layer(points[-1]))
    rows = [point.flatten(0, 1).double() for point in points]
    for i, j in itertools.combinations(range(5), 2):
        cosine = torch.cosine_similarity(rows[i], rows[j])
        assert stream.chains[0].cosine[i, j] == pytest.approx(float(cosine.mean()), abs=1e-5)
        assert stream.chains[0].angle[i, j] == pytest.approx(float((cosine.arccos() / np.pi).mean()), abs=1e-5)
    found = bound("block_score", "block_influence")(view)
    assert found["encoder.layers.1"] == pytest.approx(stream.chains[0].cosine[1, 2])
    single = bound("block_score", {"name": "windows", "n": 1})(view)
    assert single["encoder.layers.1"] == pytest.approx(1 - stream.chains[0].angle[1, 2])


def test_the_partition_is_optimal():
    values = np.random.default_rng(0).normal(size=(8, 8)).cumsum(0)
    for count in (1, 3, 5, 8):
        every = [[*ends, 8] for ends in itertools.combinations(range(1, 8), count - 1)]
        assert within(values, fisher_partition(values, count)) == pytest.approx(min(within(values, e) for e in every))


def test_clusters_are_alike_to_their_first_and_thinned_out_by_the_granularity():
    points = ["in", *"abcdefg"]
    place = np.array([0.0, 1, 2, 3, 7, 8, 9, 20])  # similarity falls with the distance: runs in-c, d-f, g
    whole = SimilarityMatrix(tuple(points), 1 - np.abs(place[:, None] - place) / 20, "cka")
    ends = {name: (points[number], name) for number, name in enumerate("abcdefg")}
    view = SimpleNamespace(
        similarities=lambda: whole.values, stream=SimpleNamespace(rows=dict.fromkeys(points), ends=ends)
    )
    going = {1: "abcef", 2: "ace", 3: "ae", 9: "ae"}
    for granularity, names in going.items():
        found = bound("block_score", {"name": "clusters", "threshold": 0.849, "granularity": granularity})(view)
        assert "".join(name for name, value in found.items() if value > 0.5) == names
    drifting = bound("block_score", {"name": "clusters", "threshold": 0.949})(view)  # b is like a, not like the input
    assert "".join(name for name, value in drifting.items() if value > 0.5) == "ace"


@pytest.mark.parametrize(
    "score, message",
    [
        ("influence", "did you mean 'block_influence'"),
        ({"name": "windows", "m": 2}, "takes no option 'm'"),
        ({"name": "windows", "n": 0}, "from 1; got 0"),
        ({"name": "clusters", "threshold": 2}, "threshold must be in"),
        ({"name": "clusters", "granularity": 0}, "granularity must be"),
        ({"name": "segments", "segments": 99}, "from 1 to 5"),
        ({"name": "consensus", "scores": ["consensus"]}, "at least one other"),
        ({"name": "greedy_leave_one_out", "images": 0}, "images must be a whole number from 1"),
        ({"name": "greedy_leave_one_out", "error": "kl"}, "error must be 'squares' or 'divergence'"),
        ({"name": "trend", "statistic": "graph_modularity"}, "needs labels"),
    ],
)
def test_wrong_scores_and_options_are_refused(score, message):
    model, x = build("pre-norm")
    context = context_of(model, x)
    with pytest.raises((KeyError, ValueError), match=message):
        bound("block_score", score)(context)


def test_a_name_without_options_is_a_score():
    part, options = read("block_score", "similarity")
    assert (part.name, options) == ("similarity", {})


class Adding(nn.Module):
    """A block that adds to its input."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return x + self.layer(x)


def speaker(words=12, width=16):
    """A network that scores the tokens which it takes; its first block is linear, and changes the answers most."""
    torch.manual_seed(0)
    curved = [nn.Sequential(nn.Linear(width, 24), nn.GELU(), nn.Linear(24, width)) for _ in range(4)]
    blocks = [Adding(layer) for layer in (nn.Linear(width, width), *curved)]
    blocks[0].layer.weight.data *= 4
    return nn.Sequential(nn.Embedding(words, width), *blocks, nn.Linear(width, words)).eval()


@torch.no_grad()
def test_a_block_that_a_language_models_answers_need_is_not_the_first_to_go():
    model, ids = speaker(), torch.randint(12, (40, 8), generator=torch.Generator().manual_seed(1))
    with torch.enable_grad():
        found = analyze(model, [ids], structures=("blocks",)).blocks
    order = [entry.block.name for entry in sorted(found, key=lambda entry: entry.damage)]
    moved = {}
    for name in order:
        rest = nn.Sequential(*(part for key, part in model.named_children() if key != name))
        moved[name] = divergence(model(ids[:2]), rest(ids[:2]))
    assert order[-1] == max(moved, key=moved.get) == "1"
    damages = {entry.block.name: entry.damage for entry in found}
    ratios = {name: damages[name] / moved[name] for name in order}
    assert 0 < ratios["1"] <= min(ratios.values()) * (1 + 1e-3)  # in units in which answers move


def test_points_are_compared_in_parts_that_do_not_grow_with_depth(monkeypatch):
    unit = F.normalize(torch.randn(50, 7, 5, dtype=torch.float64), dim=2)
    cosine = torch.einsum("pad,pbd->pab", unit, unit).clamp(-1, 1)
    angle = torch.arccos(cosine) / torch.pi * (1 - torch.eye(7))
    largest = []

    class Seen(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            largest.append(out.numel() if isinstance(out, torch.Tensor) else 0)
            return out

    monkeypatch.setattr(stream, "ENTRIES", 3 * 7**2)
    with Seen():
        sums = stream._between(unit)
    assert max(largest) <= max(3 * 7**2, unit.numel())
    torch.testing.assert_close(sums, torch.stack([cosine.sum(0), angle.sum(0)]))
