"""Constraints hold whatever chooses."""

import pytest

import simprune as sp
from simprune import measures
from simprune.core.registry import parts
from simprune.planners.constraints import is_stream
from simprune.tune.plan import plan
from tests.networks import NAMES, build, estimated
from tests.planners.synthetic import chain


@pytest.fixture(scope="module")
def residual():
    model, x = build("Residual")
    return estimated(model, [x], measures.get("cka_debiased"))


def widths(made):
    """Channels that every edited layer keeps."""
    return {edit.name: edit.of - len(edit.indices) for edit in made.edits if edit.remove == "channels"}


@pytest.mark.parametrize("name", parts("planner"))
def test_rounded_widths_are_multiples_and_the_budget_is_met_from_below(name):
    redundancy = chain(4, 24, blocks=name != "uniform", seed=2)
    made = plan(redundancy, {"macs": 0.8}, name, round_to=8)
    assert made.edits
    assert set(widths(made).values()) <= {8, 16}
    assert made.expected["macs"] <= 0.8 * made.original["macs"]


@pytest.mark.parametrize("name", parts("planner"))
def test_a_width_that_is_no_multiple_stays_or_becomes_one(name):
    assert set(widths(plan(chain(4, 13, seed=2), {"macs": 0.8}, name, round_to=4)).values()) <= {4, 8, 12}


@pytest.mark.parametrize("name", parts("planner"))
def test_minimum_width_and_largest_share(name):
    redundancy = chain(6, 20, seed=4)
    assert min(widths(plan(redundancy, {"macs": 0.75}, name, min_width=12)).values()) >= 12
    assert min(widths(plan(redundancy, {"macs": 0.75}, name, max_share=0.4)).values()) >= 12


@pytest.mark.parametrize("name", parts("planner"))
@pytest.mark.parametrize("protect", [["blocks.1"], ["blocks.1.*"], ["stem", "blocks.0.conv1"], ["residual"]], ids=str)
def test_what_is_protected_stays(residual, name, protect):
    made = plan(residual, {"macs": 0.95}, name, protect=protect)
    touched = {edit.name for edit in made.edits}
    assert touched
    if protect == ["residual"]:
        assert "stem.0" not in touched
    elif protect[0].startswith("blocks.1"):
        assert not any(name.startswith("blocks.1") for name in touched)
        assert "stem.0" not in touched  # the stream is made in the protected block as well
    else:
        assert touched <= {"blocks.1", "blocks.1.conv1"}


@pytest.mark.parametrize(
    "network, streams", [("Residual", {"stem.0"}), ("Flat", set()), ("Concat", set()), ("Tokens", {"embed"})]
)
def test_a_residual_stream_is_what_is_added_to_after_it_was_read(network, streams):
    assert network in NAMES
    model, x = build(network)
    found = estimated(model, [x], measures.get("cka_debiased"), ("channels",), "magnitude")
    assert {entry.name for entry in found.channels if is_stream(entry.group, found.costs)} == streams


@pytest.mark.parametrize(
    "options, message",
    [
        ({"protect": ["blokcs.1"]}, "did you mean 'blocks.1'"),
        ({"protect": "stem"}, "planner.protect: expected a list"),
        ({"round_to": 0}, "planner.round_to: expected a whole number of at least 1; got 0"),
        ({"min_width": 2.5}, "planner.min_width: expected a whole number"),
        ({"max_share": 0}, r"planner.max_share: expected a number in \(0, 1\]"),
        ({"max_shar": 0.5}, "takes no option 'max_shar'"),
        ({"round_to": 64}, "cannot be reached"),
    ],
)
def test_wrong_options_are_one_clear_line(residual, options, message):
    with pytest.raises(ValueError, match=message):
        plan(residual, {"macs": 0.05}, **options)


def test_the_options_stand_in_the_plan_and_defaults_do_not(residual):
    made = plan(residual, {"macs": 0.6}, protect=["blocks.1"], round_to=2)
    assert dict(made.planner)["protect"] == ["blocks.1"]
    assert dict(made.planner)["round_to"] == 2
    assert "min_width" not in made.planner


def test_units_that_the_planner_protects_are_not_scored():
    model, x = build("Residual")
    data = [x]
    budget, planner = {"macs": 0.8}, {"name": "greedy", "protect": ["residual"]}
    whole = sp.analyze(model, data, structures=("channels",))
    result = sp.compress(
        model, calibration=data, budget=budget, planner=planner, structures=("channels",), reconstruct="none"
    )
    assert result.redundancy is not None
    streams = {entry.name for entry in whole.channels} - {entry.name for entry in result.redundancy.channels}
    assert streams and {(name, "it is protected") for name in streams} <= {*result.redundancy.unprunable}
    alone = sp.analyze(model, data, structures=("channels",), planner={"protect": ["residual"]})
    assert [entry.name for entry in alone.channels] == [entry.name for entry in result.redundancy.channels]
    assert alone.unprunable == result.redundancy.unprunable
    assert result.plan.edits == sp.plan(whole, budget, planner).edits
