"""Applying a plan: torch-pruning makes the edits on a copy, which is checked against the prediction."""
