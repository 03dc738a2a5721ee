"""simprune: find what is redundant in a trained network, remove it, and be sure the rest behaves like the original."""

from simprune.api import analyze, apply, compress, plan, reconstruct
from simprune.bundle import Result, load, save
from simprune.checks import Gate, Verdict, validate
from simprune.core.plan import Edit, Plan
from simprune.core.redundancy import Redundancy
from simprune.repair.batchnorm import reestimate_batchnorm
from simprune.repair.training import finetune
from simprune.tune.frontier import Frontier, frontier

__all__ = [
    "Edit",
    "Frontier",
    "Gate",
    "Plan",
    "Redundancy",
    "Result",
    "Verdict",
    "analyze",
    "apply",
    "compress",
    "finetune",
    "frontier",
    "functional",
    "load",
    "measures",
    "plan",
    "reconstruct",
    "reestimate_batchnorm",
    "save",
    "validate",
]
