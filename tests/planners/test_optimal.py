"""`optimal` against brute force, and against every other planner."""

import itertools

import numpy as np
import pytest

from simprune.planners.constraints import Constraints
from simprune.planners.optimal import pareto_selections
from simprune.planners.search import Search, savings
from simprune.planners.space import Selection, Space
from simprune.tune.plan import plan
from tests.planners.synthetic import chain

KEEPS = (0.95, 0.8, 0.6, 0.45, 0.3)


def optimal_and_least(redundancy):
    """For every budget the damage of the plan, and the least over every selection, by the cost model itself."""
    space = Space.of(redundancy, Constraints())
    original = redundancy.costs.total()
    shares, damages = [], []
    for levels in itertools.product(*(range(len(menu.counts)) for menu in space.menus)):
        for blocks in itertools.product((False, True), repeat=len(space.blocks)):
            selection = Selection(np.array(levels, np.intp), np.array(blocks, bool))
            shares.append(space.exact(selection).share_of(original)["macs"])
            damages.append(float(space.damage(selection.levels[None], selection.blocks[None])[0]))
    for keep in KEEPS:
        least = min(damage for share, damage in zip(shares, damages, strict=True) if share <= keep)
        yield plan(redundancy, {"macs": keep}, "optimal").expected["damage"], least


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_where_savings_add_up_it_is_the_optimum(blocks, seed):
    redundancy = chain(3, 5, coupled=False, blocks=blocks, seed=seed, scale=6)
    for damage, least in optimal_and_least(redundancy):
        assert damage == pytest.approx(least, rel=1e-3, abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_where_weights_lie_between_groups_it_is_near_the_optimum(seed):
    for damage, least in optimal_and_least(chain(3, 6, seed=seed)):
        assert damage <= 1.15 * least + 1e-12


@pytest.mark.parametrize("seed", range(4))
def test_where_damages_interact_it_is_near_the_optimum(seed):
    redundancy = chain(3, 5, coupled=False, blocks=True, interacting=True, seed=seed, scale=6)
    for damage, least in optimal_and_least(redundancy):
        assert damage <= 1.1 * least + 1e-12


@pytest.mark.parametrize("kwargs", [{}, {"coupled": False}, {"blocks": True}, {"blocks": True, "interacting": True}])
@pytest.mark.parametrize("budget", [{"macs": 0.7}, {"params": 0.5}, {"macs": 0.5, "bytes": 0.6}], ids=str)
def test_it_is_never_worse_than_another_chooser(kwargs, budget):
    for seed in range(3):
        redundancy = chain(6, 12, seed=seed, **kwargs)
        found = plan(redundancy, budget, "optimal").expected["damage"]
        for other, draw in [("greedy", 0), ("uniform", 0), ("threshold", 0), *(("random", draw) for draw in range(3))]:
            assert found <= plan(redundancy, budget, other, draw).expected["damage"] * (1 + 1e-9)


@pytest.mark.parametrize("blocks", [False, True])
def test_the_table_knows_the_damage_of_what_it_returns_and_holds_no_dominated_choice(blocks):
    redundancy = chain(4, 8, coupled=False, blocks=blocks, seed=1, scale=5)
    space = Space.of(redundancy, Constraints())
    search = Search(space, {"macs": 1.0})
    alone = [Selection(space.nothing.levels, blocks > -1) for blocks in np.eye(len(space.blocks), dtype=int) - 1]
    whole = search.scalar(space.cost(space.nothing)[None])[0]
    gone = [np.array([0, whole - search.scalar(space.cost(selection)[None])[0]]) for selection in alone]
    levels, kept = pareto_selections(space, [*savings(search, space.nothing), *gone])
    cost, damage = space.costs(levels, kept)[:, 0], space.damage(levels, kept)
    assert (np.diff(cost) < 0).all()
    assert (np.diff(damage) >= 0).all()
    assert len(damage) > 20
