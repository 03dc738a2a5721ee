"""Trying plans on the network: measured budgets, trials, finalists, frontiers, the smallest model that passes."""
