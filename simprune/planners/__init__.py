"""Redundancy and a budget become a plan: the artefact, budgets, choosers."""
