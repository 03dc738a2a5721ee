"""Options to which other options, or the command, leave nothing to do.

Where somebody asks for one, it is refused in one line, since a result would not tell that it was passed over. A recipe,
which serves several commands, may hold them.
"""

from dataclasses import replace
from typing import Any, TypeVar

from simprune.arguments import SMALLEST
from simprune.core.options import listed
from simprune.core.registry import find
from simprune.settings import SCORED, Constraints, Planner, Settings
from simprune.structures import UnitStructure

S = TypeVar("S", bound=Settings)
OF_PLANNER = {"name", "options", *(entry.name for entry in listed(Planner))}
SCORES = {"protect"}  # options of a planner that the analysis reads: what is protected is not scored
CONTROLS = {entry.name for entry in listed(Constraints)}  # that random controls beside a given plan keep to


def idle(settings: Settings, function: str, plan: bool = False, damage: bool = True) -> dict[str, str]:
    """Options without an effect, by name, those of the planner as planner.NAME; and why they have none.

    Args:
        settings: of a call.
        function: of `simprune.api`.
        plan: whether `compress` is given one.
        damage: whether an analysis measures damages.

    >>> idle(Settings(rounds=3), "compress")
    {'search': 'nothing is searched; add budget smallest'}
    """
    reasons: dict[str, str] = {}

    def because(reason: str, *names: str) -> None:
        reasons.update(dict.fromkeys(names, reason))

    if function in SCORED:
        makers: list[Any] = [find("structure", name).make for name in settings.structures]
        units = [isinstance(maker, type) and issubclass(maker, UnitStructure) for maker in makers]
        if all(units):
            because("structures names no blocks; add blocks", "measure", "block_score", "replace")
        if not any(units):
            because("structures names blocks alone; add channels", "score")
    if function == "analyze":
        names = sorted(OF_PLANNER - SCORES)
        because("analyze chooses nothing; give it to plan", *(f"planner.{name}" for name in names))
        if not damage:
            because("no damage is measured; leave damage out", "trials", "outputs")
        if not damage or not settings.trials:
            because("nothing is repaired; add trials", "reconstruct")
    if function == "plan" and not settings.planner.finalists:
        because("nothing is repaired; add planner.finalists", "reconstruct")
    if plan and function == "compress":
        names = sorted(OF_PLANNER - (CONTROLS if settings.control else SCORES))
        because("the plan says what goes; leave out one of them", "budget", *(f"planner.{name}" for name in names))
    if function == "compress" and settings.budget != SMALLEST:
        because("nothing is searched; add budget smallest", "search")
    if function == "compress" and settings.rounds == 1:
        because("there is one round; add rounds", "schedule")
    return reasons


def refuse_idle(settings: Settings, function: str, plan: bool = False, damage: bool = True) -> None:
    """Raise ValueError for an option that is not its default and has no effect."""
    usual = Settings()
    for name, reason in idle(settings, function, plan, damage).items():
        value = _value(settings, name)
        if value != _value(usual, name):
            shown = f"planner.{next(iter(value))}" if name == "planner.options" else name
            raise ValueError(f"{shown} has no effect: {reason}")


def effective(settings: S, function: str, plan: bool = False) -> S:
    """The same settings with the defaults of options that have no effect, as functions of `simprune.api` take them."""
    usual, names = Settings(), idle(settings, function, plan)
    inner = [name.removeprefix("planner.") for name in names if name.startswith("planner.")]
    changes = {name: getattr(usual, name) for name in names if "." not in name}
    changes["planner"] = replace(settings.planner, **{name: getattr(usual.planner, name) for name in inner})
    return replace(settings, **changes)


def _value(settings: Settings, name: str) -> Any:
    table, _, inner = name.rpartition(".")
    return getattr(settings.planner if table else settings, inner)
