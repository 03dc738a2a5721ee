"""Planners choose what to remove for a budget: one planner per file. They see a `Redundancy`, and never a network.

A planner is a registered function (search, *, options) -> (space, selection). A planner that cannot meet the budget
returns the cheapest selection that it can reach. All planners but `optimal` walk along a fixed sequence of steps until
the budget is met, and give back what is then not needed (`surplus`): no block and no unit of a plan can be given back
without breaking the budget. A larger budget never damages more along the walk; after giving back it can, where one
coarse step has replaced many small ones.

Read `space` (what may be selected, and what a selection costs) first, then `search` (what planners share), `surplus`,
and then any planner.
"""
