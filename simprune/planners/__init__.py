"""Planners choose what to remove for a budget: one planner per file. They see a `Redundancy`, and never a network.

A planner is a registered function (search, *, options) -> (space, selection). A planner that cannot meet the budget
returns the cheapest selection that it can reach. All planners but `optimal` walk along a fixed sequence of steps and
stop where the budget is met, so that a plan for a larger budget never damages more.

Read `space` (what may be selected, and what a selection costs) first, then `search` (what planners share), then any
planner.
"""
