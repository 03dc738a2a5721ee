"""What goes for a budget: one planner per file. Planners see a `Redundancy`, and never a network.

A planner is a registered function (search, *, options) -> (space, selection). One that cannot meet the budget returns the
furthest it can go. All but `optimal` walk along a fixed sequence of steps and stop where the budget is met, so that a
larger budget never costs more.
"""
