"""What `compress` hands over, and what a bundle keeps."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from simprune.checks import Verdict
from simprune.planning.plan import Plan
from simprune.redundancy import Redundancy


@dataclass(frozen=True)
class Result:
    """What `compress` made: the smaller model, the plan behind it, the verdict, and the report as data."""

    model: nn.Module
    plan: Plan
    verdict: Verdict | None
    report: dict[str, Any]
    redundancy: Redundancy | None = None
