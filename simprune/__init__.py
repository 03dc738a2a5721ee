"""simprune: find what is redundant in a trained network, remove it, and be sure the rest behaves like the original."""

import importlib
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simprune import functional, measures
    from simprune.api import analyze, apply, compress, frontier, plan, reconstruct, validate
    from simprune.bundle import Result, load, save
    from simprune.checks import Gate, Verdict
    from simprune.core.plan import Edit, Plan
    from simprune.core.redundancy import Redundancy
    from simprune.edit.configuration import reopens
    from simprune.formats import Export, export
    from simprune.repair.batchnorm import reestimate_batchnorm
    from simprune.repair.training import finetune
    from simprune.studies import study
    from simprune.tune.frontier import Frontier

__version__ = _version("simprune")
__all__ = [
    "Edit",
    "Export",
    "Frontier",
    "Gate",
    "Plan",
    "Redundancy",
    "Result",
    "Verdict",
    "analyze",
    "apply",
    "compress",
    "export",
    "finetune",
    "frontier",
    "functional",
    "load",
    "measures",
    "plan",
    "reconstruct",
    "reestimate_batchnorm",
    "reopens",
    "save",
    "study",
    "validate",
]

# Where the public names are; they are imported when first used, so that `simprune --help` needs no torch.
HOMES = {
    "api": ("analyze", "apply", "compress", "frontier", "plan", "reconstruct", "validate"),
    "bundle": ("Result", "load", "save"),
    "checks": ("Gate", "Verdict"),
    "core.plan": ("Edit", "Plan"),
    "core.redundancy": ("Redundancy",),
    "edit.configuration": ("reopens",),
    "formats": ("Export", "export"),
    "repair.batchnorm": ("reestimate_batchnorm",),
    "repair.training": ("finetune",),
    "studies": ("study",),
    "tune.frontier": ("Frontier",),
}


def __getattr__(name: str) -> Any:
    if name in ("functional", "measures"):
        return importlib.import_module(f"simprune.{name}")
    for home, names in HOMES.items():
        if name in names:
            value = getattr(importlib.import_module(f"simprune.{home}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'simprune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
