"""Plans by their number of blocks, tried on the network: the one that costs least wins, and the file tells of all."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import simprune as sp
from simprune.core.holdout import held_out
from simprune.core.plan import Plan
from simprune.core.registry import parts
from simprune.core.structures import Block
from simprune.trace.answers import answer, relative_error
from simprune.tune.finalists import try_plans
from simprune.zoo.residual import ResidualCNN
from tests.edit import families
from tests.planners.synthetic import chain

LAST = ("self_attn.o_proj", "mlp.down_proj")  # of the halves of a layer


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    model = ResidualCNN(in_channels=3, widths=(8, 16), depths=(3, 2), shortcut="A").eval()
    batches = list(torch.randn(96, 3, 8, 8).split(12))
    return model, batches, sp.analyze(model, batches)


def outcome(plan, case):
    """As a user would measure it: a quarter of the inputs held out of the repair."""
    model, batches, _ = case
    inputs, held = torch.cat(batches), held_out(0, 96)
    small = sp.apply(plan, model)
    sp.reconstruct(small, plan, model, [inputs[~held]])
    return relative_error(answer(small, [inputs[held]]).logits, answer(model, [inputs[held]]).logits)


@pytest.mark.parametrize("wanted", range(5))
def test_the_finalist_with_the_least_error_wins(wanted):
    redundancy = chain(6, 10, blocks=True, seed=2)

    def make(part, blocks):
        return sp.plan(part, {"macs": 0.4}, blocks=blocks)

    made = try_plans(redundancy, make, lambda plan: torch.full((8,), 0.1 + abs(len(plan.blocks) - wanted)), 9)
    tried = {row["blocks"]: row["measured"] for row in made.planner["finalists"]}
    assert list(tried) == sorted(tried)
    assert set(tried) >= {0, len(make(redundancy, None).blocks), wanted}
    assert tried[len(made.blocks)] == min(tried.values()) == 0.1
    assert made.expected["damage"] == make(redundancy, len(made.blocks)).expected["damage"]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_no_more_are_tried_than_asked_for_and_what_damages_choose_is_among_them(count):
    redundancy, tried = chain(8, 10, blocks=True, seed=4), []

    def errors(plan):
        tried.append(plan)
        return torch.full((8,), float(len(tried)))

    made = try_plans(redundancy, lambda part, blocks: sp.plan(part, {"macs": 0.5}, blocks=blocks), errors, count)
    assert tried[0] == sp.plan(redundancy, {"macs": 0.5})
    assert len(tried) == len(made.planner["finalists"]) <= count


def test_what_cannot_be_told_apart_is_left_to_the_damages():
    redundancy = chain(8, 10, blocks=True, seed=4)
    free = sp.plan(redundancy, {"macs": 0.5})
    noise = torch.randn(100, generator=torch.Generator().manual_seed(0))
    noise -= noise.mean()

    def chosen(better):
        """By how much, in standard errors of the difference, another plan is better than the one of least damage."""

        def errors(plan):
            return torch.full((100,), 10.0) + (plan.edits != free.edits) * (
                noise - better * noise.std(correction=0) / 10
            )

        return try_plans(redundancy, lambda part, blocks: sp.plan(part, {"macs": 0.5}, blocks=blocks), errors, 2)

    assert chosen(0.9).edits == free.edits
    assert chosen(1.1).edits != free.edits
    assert [row["blocks"] for row in chosen(1.1).planner["finalists"] if row.get("chosen")] == [len(chosen(1.1).blocks)]


def test_finalists_are_measured_as_a_user_would(case):
    model, batches, found = case
    made = sp.plan(found, {"macs": 0.6}, model=model, calibration=batches, finalists=6)
    tried = {row["blocks"]: row for row in made.planner["finalists"]}
    assert tried[len(made.blocks)]["measured"] == pytest.approx(outcome(made, case), rel=1e-3)
    assert tried[len(made.blocks)]["expected"] == made.expected["damage"]
    for blocks in (0, len(sp.plan(found, {"macs": 0.6}).blocks)):
        other = outcome(sp.plan(found, {"macs": 0.6}, blocks=blocks), case)
        assert tried[blocks]["measured"] == pytest.approx(other, rel=1e-3)
    assert tried[len(made.blocks)]["chosen"]
    assert Plan.from_yaml(made.to_yaml()) == made


@pytest.mark.parametrize("name", sorted(set(parts("planner")) - {"uniform"}))
def test_exactly_so_many_blocks_go(name):
    redundancy = chain(6, 10, blocks=True, seed=1)
    free = len(sp.plan(redundancy, {"macs": 0.5}, name).blocks)
    made = sp.plan(redundancy, {"macs": 0.5}, name, blocks=free)
    assert (len(made.blocks), made.planner["blocks"]) == (free, free)
    assert made.expected["macs"] <= 0.5 * made.original["macs"]


@pytest.mark.parametrize("name", ["greedy", "optimal"])
def test_any_number_of_blocks_leaves_the_rest_to_the_channels(name):
    redundancy = chain(6, 10, blocks=True, seed=1)
    free = sp.plan(redundancy, {"macs": 0.5}, name)
    for blocks in range(3):
        made = sp.plan(redundancy, {"macs": 0.5}, name, blocks=blocks)
        assert len(made.blocks) == blocks
        assert 0.4 < made.expected["macs"] / made.original["macs"] <= 0.5
        assert made.expected["damage"] >= free.expected["damage"] * (1 - 1e-3)


@pytest.mark.parametrize("interacting", [False, True])
def test_optimal_is_no_worse_than_greedy_for_any_number_of_blocks(interacting):
    better = 0
    for seed in range(4):
        redundancy = chain(6, 10, blocks=True, interacting=interacting, seed=seed)
        for blocks in range(4):
            greedy, best = (
                sp.plan(redundancy, {"macs": 0.5}, name, blocks=blocks).expected["damage"]
                for name in ("greedy", "optimal")
            )
            assert best <= greedy * (1 + 1e-3)
            better += best < greedy * (1 - 1e-3)
    assert better


def test_where_nothing_competes_nothing_is_tried(case):
    model, batches, _ = case
    for structures, keep in ((("channels",), 0.6), (("blocks",), 1.0), (("channels", "blocks"), 1.0)):
        found = sp.analyze(model, batches, structures=structures)
        made = sp.plan(found, {"macs": keep}, model=model, calibration=batches, finalists=4)
        assert made == sp.plan(found, {"macs": keep})


@pytest.mark.parametrize(
    "options, said",
    [
        ({"finalists": 1}, "planner.finalists: expected 0, or a whole number of at least 2; got 1"),
        ({"finalists": 2.5}, "planner.finalists: expected a whole number"),
        ({"blocks": -1}, "planner.blocks: expected a whole number of at least 0 or null; got -1"),
        ({"blocks": True}, "planner.blocks: expected a whole number"),
        ({"blocks": 2, "finalists": 3}, "give either finalists or blocks"),
        ({"finalists": 3}, "give model=... and calibration=..."),
        ({"blocks": 5}, "greedy found no plan that removes 5 blocks and meets the budget"),
        ({"blocks": 1, "planner": "uniform"}, "uniform found no plan that removes 1 blocks"),
    ],
)
def test_what_cannot_be_is_said(case, options, said):
    with pytest.raises(ValueError, match=said):
        sp.plan(case[2], {"macs": 0.7}, **options)


def test_one_input_cannot_be_held_out(case):
    model, batches, found = case
    with pytest.raises(ValueError, match="give two or more; got 1"):
        sp.plan(found, {"macs": 0.7}, model=model, calibration=[batches[0][:1]], finalists=3)


def depth(block: str = "identity"):
    """Ten blocks alone, in chains of four and six; one of either costs least."""
    found, damages = chain(10, 4, blocks=True, seed=3), (1, 0.1, 3, 4, 5, 6, 0.2, 7, 8, 9)
    blocks = [
        replace(entry, damage=float(damage), block=Block(entry.name, block, chain=int(number >= 4)))
        for number, (entry, damage) in enumerate(zip(found.blocks, damages, strict=True))
    ]
    return replace(found, channels=(), blocks=tuple(blocks))


def test_runs_of_blocks_are_tried_beside_those_of_least_damage_and_the_best_wins():
    redundancy, tried = depth(), []

    def make(part, blocks):
        return sp.plan(part, {"macs": 1.0}, blocks=3 if blocks is None else blocks)

    def errors(plan):
        tried.append(plan.blocks)
        return torch.full((4,), float(len(tried) != wanted))

    names, outcomes = [f"block{number}" for number in range(10)], []
    for wanted in (1, 2, 3, 4):
        tried.clear()
        outcomes.append(try_plans(redundancy, make, errors, 4))
        assert tried[0] == make(redundancy, None).blocks
        assert tried[1:] == [tuple(names[at : at + 3]) for at in (0, 1, 4)]  # 2 and 3 would join two chains
        assert outcomes[-1].blocks == tried[wanted - 1]
        rows = outcomes[-1].planner["finalists"]
        assert [row["measured"] for row in rows if row.get("chosen")] == [0.0]
        assert [row.get("run") for row in rows] == [None, *([run[0], run[-1]] for run in tried[1:])]
    assert make(depth("zero"), None) == try_plans(depth("zero"), make, errors, 4)  # halves


def test_what_stays_is_in_no_run():
    redundancy, tried = depth(), []

    def make(part, blocks):
        return sp.plan(part, {"macs": 1.0}, blocks=2 if blocks is None else blocks, protect=["block5", "block1.*"])

    def errors(plan):
        return torch.full((4,), float(tried.append(plan.blocks) is None))

    try_plans(redundancy, make, errors, 20)
    assert len(tried) == 5 and not {"block1", "block5"} & {name for names in tried for name in names}


def test_a_language_model_answers_no_worse_than_by_any_other_choice():
    """By the divergence of the repaired answers on windows that no repair has seen; damages name the wrong layers."""
    model = families.make("llama", num_hidden_layers=5)
    for number, size in enumerate((3.0, 0.5, 2.0, 0.5, 1.0)):
        for part in LAST:
            model.get_parameter(f"model.layers.{number}.{part}.weight").data *= size
    ids, held = torch.randint(3, families.WORDS, (24, 16), generator=torch.Generator().manual_seed(1)), held_out(0, 24)
    batches = [{"input_ids": ids}]
    found = sp.analyze(model, batches, structures=["blocks"], block_score="block_influence", damage=False)
    damages = zip(found.blocks, (0.01, 0.5, 0.02, 0.03, 0.04), strict=True)
    found = replace(found, blocks=tuple(replace(entry, damage=damage) for entry, damage in damages))
    made = sp.plan(found, {"params": 0.7}, model=model, calibration=batches, finalists=3)
    small = sp.apply(made, model)
    sp.reconstruct(small, made, model, [{"input_ids": ids[~held]}])
    with torch.no_grad():
        wanted, answers = (F.log_softmax(net(ids[held]).logits, -1) for net in (model, small))
    measured = {tuple(row.get("run", ())): row["measured"] for row in made.planner["finalists"]}
    assert made.blocks == ("model.layers.3", "model.layers.4") == min(measured, key=measured.__getitem__)
    assert [*measured] == [(), ("model.layers.2", "model.layers.3"), made.blocks]
    assert measured[made.blocks] == pytest.approx(float((wanted.exp() * (wanted - answers)).sum(-1).mean()), rel=1e-3)
