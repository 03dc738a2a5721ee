"""Representations of a network's layers, and their similarities with chance levels and intervals."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simprune import measures
from simprune.core.checkpoint import Checkpoint
from simprune.core.cost import CostModel
from simprune.measures import Interval, Measure, Null, SimilarityMatrix
from simprune.measures._resampling import Resampling
from simprune.scores.blocks.stream import Stream
from simprune.structures import find_blocks
from simprune.trace.capture import capture, run
from simprune.trace.network import Network
from simprune.trace.sites import Site


@dataclass(frozen=True)
class Layers:
    """Representations of one network.

    Args:
        rows: (inputs, width) by the name of the layer, or of the point before a block, in order of execution.
        stream: the representations around blocks; empty for a network without blocks.
        costs: exact costs of the network.
    """

    rows: dict[str, Tensor]
    stream: Stream
    costs: CostModel


def read_layers(network: Network, calibration: Iterable) -> Layers:
    """Outputs of the layers with weights, of a network without blocks.

    Rows are means over positions. One forward pass over the batches; memory O(layers x inputs x width).
    """
    model = network.model
    composite = {name.rpartition(".")[0] for name, _ in model.named_modules()}
    sites = [
        Site(name)
        for name, seen in network.visits.items()
        if name not in composite and seen.calls == 1 and seen.output is not None and seen.output.ndim > 1
        if any(parameter.ndim > 1 for parameter in model.get_submodule(name).parameters())
    ]
    return Layers(capture(model, calibration, sites, network.axes), Stream((), {}, None), network.costs)


def read_counterpart(network: Network, calibration: Iterable, like: Layers) -> Layers:
    """Representations of another network that correspond to those of `like`.

    They are read at every point of `like` where the other network has a module, and after its own blocks, in order of
    execution. So the modules that replace removed blocks can be compared with these blocks. One forward pass over the
    batches, and one more on the first batch.
    """
    model = network.model
    modules = dict(model.named_modules())
    parts = [point.partition(":") for point in like.rows]
    sites = [Site(name, side="input" if entry else "output") for name, _, entry in parts if name in modules]
    blocks = find_blocks(network)
    if not sites:  # nothing corresponds: the input of every chain's first block takes part
        first = {block.chain: block.name for block in reversed(blocks)}
        sites = [Site(name, side="input") for name in first.values()]
    sites += [Site(block.name) for block in blocks]
    if not sites:
        return read_layers(network, calibration)
    in_order: dict[str, Site] = {}  # the order of execution, which one batch shows

    def note(site: Site, _: Tensor) -> None:
        in_order.setdefault(site.name, replace(site, mask=None))

    run(model, [next(iter(calibration))], dict.fromkeys(sites), note, network.axes)
    return Layers(capture(model, calibration, in_order.values(), network.axes), Stream((), {}, None), network.costs)


def similarity(
    measure: Measure,
    layers: Layers,
    null: int = 20,
    bootstrap: int = 50,
    inputs: int = 384,
    seed: int = 0,
    known: SimilarityMatrix | None = None,
    checkpoint: Checkpoint | None = None,
) -> SimilarityMatrix:
    """Similarities of all pairs of layers by one measure.

    Args:
        measure: the measure.
        layers: L representations.
        null: repetitions with shuffled inputs, which show the similarity of unrelated representations; 0 for none.
        bootstrap: repetitions with redrawn inputs, which give intervals; 0 for none.
        inputs: how many of the rows the repetitions are drawn from.
        seed: of the repetitions.
        known: the (L, L) similarities without repetitions, where they have been computed.
        checkpoint: where the result is saved, and looked up.

    Raises:
        ValueError: when the measure needs labels that the batches do not have.
    """
    stage = f"similarity-{measure.id}"
    stored = None if checkpoint is None else checkpoint.load(stage)
    if stored is not None:
        return _from_tensors(stored, tuple(layers.rows), measure.id)
    labels = layers.stream.labels_for(measure)
    matrix = measures.matrix(measure, layers.rows, labels) if known is None else known
    if null or bootstrap:
        sample = Resampling(measure, layers.rows, labels, {}, seed, inputs)
        matrix = replace(
            matrix,
            null=sample.null("permuted", null, matrix.values) if null else None,
            interval=sample.interval(bootstrap, matrix.values) if bootstrap else None,
        )
    if checkpoint is not None:
        checkpoint.save(stage, _to_tensors(matrix))
    return matrix


def _to_tensors(matrix: SimilarityMatrix) -> dict[str, Tensor]:
    arrays: dict[str, Any] = {"values": matrix.values}
    if matrix.null is not None:
        arrays |= {"null/mean": matrix.null.mean, "null/p_value": matrix.null.p_value}
        arrays |= {f"null/quantile/{name}": value for name, value in matrix.null.quantiles.items()}
        arrays["null/counts"] = [matrix.null.repeats, matrix.null.inputs]
    if matrix.interval is not None:
        arrays |= {"interval/low": matrix.interval.low, "interval/high": matrix.interval.high}
        arrays["interval/counts"] = [matrix.interval.resamples, matrix.interval.inputs]
    return {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}


def _from_tensors(tensors: dict[str, Tensor], names: tuple[str, ...], measure: str) -> SimilarityMatrix:
    arrays = {name: value.numpy() for name, value in tensors.items()}
    null = interval = None
    if "null/mean" in arrays:
        head = "null/quantile/"
        quantiles = {name.removeprefix(head): value for name, value in arrays.items() if name.startswith(head)}
        null = Null(arrays["null/mean"], quantiles, arrays["null/p_value"], *tensors["null/counts"].tolist())
    if "interval/low" in arrays:
        interval = Interval(arrays["interval/low"], arrays["interval/high"], *tensors["interval/counts"].tolist())
    return SimilarityMatrix(names, arrays["values"], measure, null, interval)
