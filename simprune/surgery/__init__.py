"""Where networks change: apply a plan, repair in closed form. torch-pruning is called in `coupling.py` only."""

from simprune.surgery.edit import apply
from simprune.surgery.reconstruct import reconstruct

__all__ = ["apply", "reconstruct"]
