"""simprune: find what is redundant in a trained network, remove it, and be sure the rest behaves like the original."""

from simprune import functional, measures
from simprune.bundle import load, save
from simprune.checks import Gate, Verdict, validate
from simprune.curves import Frontier, frontier
from simprune.pipeline import analyze, compress, plan
from simprune.planning.plan import Edit, Plan
from simprune.recovery import finetune, reestimate_batchnorm
from simprune.redundancy import Redundancy
from simprune.result import Result
from simprune.surgery import apply, reconstruct

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
