"""The proof that units can be removed: on a copy, a network without a unit equals one whose readers ignore it."""

from collections import Counter
from collections.abc import Mapping, Sequence

from torch import Tensor

from simprune.core.copies import release, sharing
from simprune.core.structures import NotPrunable, UnitGroup
from simprune.structures import UnitStructure
from simprune.structures.comparison import Comparison
from simprune.structures.computed_weights import computing
from simprune.structures.failures import failure
from simprune.trace.cost import measure_cost
from simprune.trace.network import Network
from simprune.trace.training_mode import training_error

NUMBERS = 8  # of units that groups of one size lose in a proof, at most: every other number is a cut to be tried


def prove(
    network: Network, groups: Sequence[UnitGroup], structure: UnitStructure
) -> tuple[list[UnitGroup], list[tuple[str, str]]]:
    """Groups of which units in the middle can be removed, and the names of the others with the reason.

    The network without the units has to run, also in training mode if the original does, to return an output of the
    same shape, to cost what is predicted, and to equal a network whose readers ignore the units (see
    `simprune.structures.comparison`). All groups are tried at once; those of one size lose different numbers of units
    in turn, because two that have to stay equally wide would otherwise prove each other. When that fails, those that
    many layers make are tried apart from the others, because the width of a stream is what mostly cannot go; then
    halves, and so on, until the groups that fail remain.

    Args:
        network: the original.
        groups: of units of one kind.
        structure: the kind.
    """
    return _prove(Comparison(network), network, groups, structure)


def _prove(
    comparison: Comparison, network: Network, groups: Sequence[UnitGroup], structure: UnitStructure
) -> tuple[list[UnitGroup], list[tuple[str, str]]]:
    if not groups:
        return [], []
    reason = _failure(comparison, network, groups, structure)
    if reason is None:
        return list(groups), []
    if len(groups) == 1:
        return [], [(groups[0].name, computing(network, groups[0]) or reason)]
    by_producers = sorted(groups, key=lambda group: len(group.producers))
    most = len(by_producers[-1].producers)
    wide = sum(len(group.producers) * 2 > most for group in groups)
    split = len(groups) - wide if wide < len(groups) else len(groups) // 2
    parts = [_prove(comparison, network, part, structure) for part in (by_producers[:split], by_producers[split:])]
    rank = {group.name: number for number, group in enumerate(groups)}
    proven = sorted((group for part, _ in parts for group in part), key=lambda group: rank[group.name])
    return proven, sorted((item for _, part in parts for item in part), key=lambda item: rank[item[0]])


def _failure(
    comparison: Comparison, network: Network, groups: Sequence[UnitGroup], structure: UnitStructure
) -> str | None:
    """Why these groups cannot lose units together, one or more of each; None when they can."""
    before = network.outputs
    lost: Counter[tuple[str, int]] = Counter()
    gone = _numbers(groups)
    actual, same = None, False
    try:
        edits = []
        for group, units in zip(groups, gone, strict=True):
            edits.append(((group.name,), group.expand(units)))
            lost.update(group.cut(units))
        for height in comparison.heights():
            cut = sharing(network.model)
            structure.remove_from_copy(network, cut, edits)
            without = comparison.outputs(cut, height)
            if height is None:
                if not before or not same_shapes(before, without):
                    return "its output is the network's output"
                actual = measure_cost(cut, network.example)
                if network.trains and (error := training_error(cut, network.example)) is not None:
                    return f"in training mode, {failure(error, network.model, groups[0])}"
            release(cut)  # one edited copy at a time
            masked = sharing(network.model)
            for group, units in zip(groups, gone, strict=True):
                for unit in units:
                    structure.ignore(masked, group, unit)
            same = comparison.same(without, comparison.outputs(masked, height), height)
            release(masked)
            if same:
                break
    except NotPrunable as reason:
        return str(reason)
    except Exception as error:  # any failure of a foreign forward pass means the same: not safe to remove
        return failure(error, network.model, groups[0])
    if not same:
        return "removing a part of it differs from ignoring that part: more depends on it than the trace shows"
    if network.costs.after(lost) != actual:
        return "what the network costs without a part of it cannot be predicted"
    return None


def _numbers(groups: Sequence[UnitGroup]) -> list[range]:
    """The units that every group loses: from its middle on, of each group of one size another number where it can.

    >>> _numbers([UnitGroup("a", 8, ()), UnitGroup("b", 8, ()), UnitGroup("c", 2, ()), UnitGroup("d", 2, ())])
    [range(4, 5), range(4, 6), range(1, 2), range(1, 2)]
    """
    before: Counter[int] = Counter()
    numbers = []
    for group in groups:
        most = max(1, min(NUMBERS, group.size // 2, group.size - group.least))
        numbers.append(range(group.size // 2, group.size // 2 + 1 + before[group.size] % most))
        before[group.size] += 1
    return numbers


def same_shapes(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> bool:
    """Whether outputs have the same names and shapes."""
    return {name: value.shape for name, value in before.items()} == {name: value.shape for name, value in after.items()}
