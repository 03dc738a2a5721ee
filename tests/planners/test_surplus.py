"""No plan removes more than its budget asks for: nothing of it can be given back."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from simprune import measures
from simprune.core.cost import Cost
from simprune.core.plan import Edit, Plan
from simprune.core.redundancy import ChannelRedundancy, Redundancy
from simprune.core.registry import parts
from simprune.core.structures import Slice, UnitGroup
from simprune.planners.budget import Budget
from simprune.planners.constraints import Constraints
from simprune.planners.search import Search, best, greedy_selections
from simprune.planners.space import Space
from simprune.planners.surplus import giving_back
from simprune.tune.plan import plan
from tests.networks import build, estimated
from tests.planners.synthetic import chain

CHAINS = {
    "chain": {},
    "blocks": {"blocks": True},
    "apart": {"coupled": False},
    "interacting": {"blocks": True, "interacting": True},
}


def uneven(redundancy: Redundancy, seed: int) -> Redundancy:
    """The same groups, but their readers hold one to five entries per unit."""
    generator = np.random.default_rng(seed)
    tensors = dict(redundancy.costs.tensors)
    channels = []
    for entry in redundancy.channels:
        sizes = generator.integers(1, 6, entry.group.size)
        ends = np.cumsum([0, *sizes])
        indices = tuple(tuple(range(a, b)) for a, b in pairwise(ends))
        slices = [part for part in entry.group.slices if part.side == "out"]
        for part in entry.group.slices:
            if part.side == "in":
                old = tensors[part.tensor]
                shape = (old.shape[0], int(ends[-1]), *old.shape[2:])
                tensors[part.tensor] = replace(old, shape=shape)
                slices.append(Slice(part.tensor, part.dim, indices, "in"))
        channels.append(replace(entry, group=UnitGroup(entry.group.name, entry.group.size, tuple(slices))))
    costs = replace(redundancy.costs, tensors=tensors)
    return replace(redundancy, channels=tuple(channels), costs=costs)


def units(entry: ChannelRedundancy, edit: Edit) -> tuple[int, ...]:
    """The units that an edit removes."""
    return tuple(unit for unit, numbers in enumerate(entry.group.units) if set(numbers) <= set(edit.indices))


def cost(redundancy: Redundancy, edits: list[tuple[Edit, tuple[int, ...]]]) -> Cost:
    """The cost of the edits, whose units are listed beside them, by the cost model itself."""
    entries = {(entry.group.kind, entry.name): entry for entry in redundancy.channels}
    blocks = {edit.name: edit.replace for edit, _ in edits if edit.remove == "block"}
    cut: Counter = Counter()
    for edit, gone in edits:
        if edit.remove != "block":
            cut.update(entries[edit.remove, edit.name].group.cut(gone))
    return redundancy.costs.after(cut, list(blocks), blocks)


def lighter(redundancy: Redundancy, made: Plan, constraints: Constraints) -> Iterator[tuple[str, Cost]]:
    """The costs of the plan without one edit, and with as few units of one edit given back as is allowed."""
    entries = {(entry.group.kind, entry.name): entry for entry in redundancy.channels}
    whole = [
        (edit, () if edit.remove == "block" else units(entries[edit.remove, edit.name], edit)) for edit in made.edits
    ]
    for number, (edit, gone) in enumerate(whole):
        rest = whole[:number] + whole[number + 1 :]
        yield f"without {edit.remove} {edit.name}", cost(redundancy, rest)
        if edit.remove == "block":
            continue
        entry = entries[edit.remove, edit.name]
        order = [unit for unit in entry.order if unit in gone]
        kept = [unit for unit in entry.order if unit not in gone]
        for unit in gone:
            others = [other for other in order if other != unit]
            allowed = constraints.counts(entry.group, [*others, unit, *kept])
            fewer = max(count for count in allowed if count < len(gone))
            yield f"with {unit} of {edit.name}", cost(redundancy, [*rest, (edit, tuple(others[:fewer]))])


def assert_nothing_is_left_over(redundancy: Redundancy, budget: dict, name: str, **options) -> Plan:
    made = plan(redundancy, budget, name, **options)
    constraints = Constraints(**{key: value for key, value in options.items() if key != "blocks"})
    limits, original = Budget.of(budget), redundancy.costs.total()
    assert made.edits
    for what, costs in lighter(redundancy, made, constraints):
        if not (what.startswith("without block") and "blocks" in options):
            assert not limits.met(costs, original), f"{name}, {budget}: {what} the budget is met"
    return made


@pytest.mark.parametrize("name", parts("planner"))
@pytest.mark.parametrize("kwargs", CHAINS.values(), ids=CHAINS)
@pytest.mark.parametrize("sizes", ["even", "uneven"])
def test_nothing_of_a_plan_can_be_given_back(name, kwargs, sizes):
    generator = np.random.default_rng(7)
    for seed in range(2):
        redundancy = chain(5, 9, seed=seed, **kwargs)
        if sizes == "uneven":
            redundancy = uneven(redundancy, seed)
        for _ in range(2):
            macs, params = generator.uniform(0.55, 0.95, 2)
            assert_nothing_is_left_over(redundancy, {"macs": float(macs)}, name)
            assert_nothing_is_left_over(redundancy, {"macs": float(macs), "params": float(params)}, name)


@pytest.mark.parametrize("name", parts("planner"))
@pytest.mark.parametrize("options", [{"round_to": 3}, {"max_share": 0.6, "min_width": 4}], ids=str)
def test_constraints_say_what_the_smallest_step_is(name, options):
    redundancy = chain(6, 12, blocks=True, seed=3)
    for keep in (0.85, 0.7):
        assert_nothing_is_left_over(redundancy, {"macs": keep}, name, **options)


@pytest.mark.parametrize("name", ["greedy", "optimal"])
def test_blocks_whose_number_is_prescribed_stay_removed(name):
    redundancy = chain(6, 12, blocks=True, seed=3)
    made = assert_nothing_is_left_over(redundancy, {"macs": 0.6}, name, blocks=2)
    assert len(made.blocks) == 2


@pytest.mark.parametrize("name", parts("planner"))
def test_nothing_of_a_real_networks_plan_can_be_given_back(name):
    for network, kinds in {"Residual": ("channels", "blocks"), "Tokens": ("channels", "blocks", "heads")}.items():
        model, x = build(network)
        redundancy = estimated(model, [x], measures.get("cka_debiased"), kinds)
        for budget in ({"macs": 0.8}, {"params": 0.66}):
            assert_nothing_is_left_over(redundancy, budget, name)


def test_after_a_coarse_last_step_the_earlier_ones_are_given_back():
    """The cheap channels do not suffice; the expensive group saves enough by itself, all of its levels at once."""
    redundancy = chain(2, 10, coupled=False, seed=1)
    cheap, coarse = redundancy.channels
    channels = (replace(cheap, damage=(1e-3,) * 10), replace(coarse, damage=(1e-2,) * 10))
    space = Space.of(replace(redundancy, channels=channels), Constraints())
    space = space.only([range(10), [0, 9]])
    table = space.costs(np.array([[9, 0], [0, 1]]), np.zeros((2, 0), bool))[:, 0]
    limit = float(max(table)) - 1 if table[0] > table[1] else float(table[1])
    search = Search(space, {"macs": limit})
    walked = best(search, *greedy_selections(search))
    assert walked.levels[0] > 0
    assert walked.levels[1] == 1
    assert giving_back(search, walked).levels.tolist() == [0, 1]


def test_giving_back_never_damages_more_and_leaves_what_breaks_the_budget():
    for seed in range(5):
        space = Space.of(chain(5, 9, blocks=True, interacting=True, seed=seed), Constraints())
        generator = np.random.default_rng(seed)
        levels = np.array([[generator.integers(len(menu.counts)) for menu in space.menus] for _ in range(20)])
        blocks = generator.random((20, len(space.blocks))) < 0.3
        search = Search(space, {"macs": 0.6 * space.cost(space.nothing)[0]})
        before = space.damage(levels, blocks)
        for row, met in enumerate(search.met(space.costs(levels, blocks))):
            selection = replace(space.nothing, levels=levels[row], blocks=blocks[row])
            after = giving_back(search, selection)
            assert search.met(space.cost(after)[None])[0] == met
            assert space.damage(after.levels[None], after.blocks[None])[0] <= before[row] + 1e-12
            if not met:
                assert after is selection
