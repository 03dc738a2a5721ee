"""The depth of a network in numbers: everything that `simprune analyze` shows, as data that JSON holds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simprune import measures
from simprune.core.checkpoint import Checkpoint
from simprune.core.cost import CostModel
from simprune.core.plain import finite
from simprune.core.structures import Block
from simprune.measures import Interval, Measure, Null, SimilarityMatrix
from simprune.measures._resampling import Resampling
from simprune.scores.blocks._context import as_redundancy
from simprune.scores.blocks.segments import fisher_partition, segment_count
from simprune.scores.blocks.stream import POSITIONS, Stream, observe
from simprune.scores.blocks.windows import distances
from simprune.structures import find_blocks
from simprune.trace.capture import capture, run
from simprune.trace.network import Network
from simprune.trace.sites import Site

READING = (
    "One row per input: the mean over its positions, padding left out. "
    f"Cosines and angles: position by position, at up to {POSITIONS} positions of every batch."
)


@dataclass(frozen=True)
class Layers:
    """Representations of one network, by layer in order of execution, and how its blocks stand in them."""

    rows: dict[str, Tensor]
    stream: Stream
    costs: CostModel


def read_layers(network: Network, calibration: Iterable, blocks: Sequence[Block] = ()) -> Layers:
    """The stream around the blocks; for a network without blocks, the outputs of its layers with weights.

    Rows are pooled over positions. One forward pass over the batches.
    """
    model, costs = network.model, network.costs
    if blocks:
        stream = observe(network, calibration, blocks)
        return Layers(stream.rows, stream, costs)
    composite = {name.rpartition(".")[0] for name, _ in model.named_modules()}
    names = [
        name
        for name, seen in network.visits.items()
        if name not in composite and seen.calls == 1 and seen.output is not None and seen.output.ndim > 1
    ]
    names = [name for name in names if any(p.ndim > 1 for p in model.get_submodule(name).parameters())]
    return Layers(capture(model, calibration, [Site(name) for name in names]), Stream((), {}, None), costs)


def read_counterpart(network: Network, calibration: Iterable, like: Layers) -> Layers:
    """Rows of another network: around its own blocks, and at every point of `like` that it has a module for.

    So what is left of removed blocks has its place beside the blocks themselves. In order of execution; one forward
    pass over the batches.
    """
    model = network.model
    modules = dict(model.named_modules())
    parts = [point.partition(":") for point in like.rows]
    sites = [Site(name, side="input" if entry else "output") for name, _, entry in parts if name in modules]
    alike, started = bool(sites), set[int]()
    for block in find_blocks(network):
        if block.chain not in started and not alike:
            sites.append(Site(block.name, side="input"))
        started.add(block.chain)
        sites.append(Site(block.name))
    seen: dict[str, Site] = {}
    if not sites:
        return read_layers(network, calibration)
    first_batch = [next(iter(calibration))]
    run(model, first_batch, dict.fromkeys(sites), lambda site, _: seen.setdefault(site.name, replace(site, mask=None)))
    return Layers(capture(model, calibration, seen.values()), Stream((), {}, None), network.costs)


def describe_depth(
    layers: Layers,
    scores: dict[str, float],
    compared: Sequence[Measure],
    matrices: Sequence[SimilarityMatrix],
) -> dict[str, Any]:
    """Similarities of all layers by every measure, with chance and interval; blocks, windows and segments.

    `matrices`: one for each of the measures `compared`, see `similarity`; segments follow the first. `scores`:
    redundancy by block, for the suggested order.
    """
    points, first = list(layers.rows), matrices[0]
    similar = np.vectorize(lambda value: as_redundancy(compared[0], value))(first.values)
    ends = fisher_partition(similar, segment_count(similar))
    segment = {point: int(np.searchsorted(ends, place, side="right")) for place, point in enumerate(points)}
    return finite(
        {
            "points": points,
            "rows": len(next(iter(layers.rows.values()))),
            "reading": READING,
            "similarity": [_matrix(matrix) for matrix in matrices],
            "segments": {"measure": first.measure, "of": [segment[point] for point in points]},
            "blocks": _blocks(layers, scores, matrices, segment),
            "windows": [
                {"blocks": [block.name for block in chain.blocks],
                 "distances": [distances(chain, n).tolist() for n in range(1, len(chain.blocks) + 1)]}
                for chain in layers.stream.chains
            ],
            "cost": layers.costs.total().to_dict(),
        }
    )  # fmt: skip


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
    """All layers by one measure; ValueError when it needs labels that the batches do not have.

    `null`, `bootstrap`: repetitions, 0 for none, drawn from `inputs` of the rows. `known`: the values, if they are.
    `checkpoint`: where the result is saved, and looked up.
    """
    stage = f"similarity-{measure.id}"
    there = None if checkpoint is None else checkpoint.load(stage)
    if there is not None:
        return _from_tensors(there, tuple(layers.rows), measure.id)
    labels = layers.stream.labels if measure.needs_labels else None
    if known is None:
        known = measures.matrix(measure, layers.rows, labels)
    if null or bootstrap:
        sample = Resampling(measure, layers.rows, labels, {}, seed, inputs)
        known = replace(
            known,
            null=sample.null("permuted", null, known.values) if null else None,
            interval=sample.interval(bootstrap, known.values) if bootstrap else None,
        )
    if checkpoint is not None:
        checkpoint.save(stage, _to_tensors(known))
    return known


def _to_tensors(matrix: SimilarityMatrix) -> dict[str, Tensor]:
    found: dict[str, Any] = {"values": matrix.values}
    if matrix.null is not None:
        found |= {"null/mean": matrix.null.mean, "null/p_value": matrix.null.p_value}
        found |= {f"null/quantile/{name}": value for name, value in matrix.null.quantiles.items()}
        found["null/counts"] = [matrix.null.repeats, matrix.null.inputs]
    if matrix.interval is not None:
        found |= {"interval/low": matrix.interval.low, "interval/high": matrix.interval.high}
        found["interval/counts"] = [matrix.interval.resamples, matrix.interval.inputs]
    return {name: torch.from_numpy(np.array(value)) for name, value in found.items()}


def _from_tensors(tensors: dict[str, Tensor], names: tuple[str, ...], measure: str) -> SimilarityMatrix:
    found = {name: value.numpy() for name, value in tensors.items()}
    null = interval = None
    if "null/mean" in found:
        head = "null/quantile/"
        quantiles = {name.removeprefix(head): value for name, value in found.items() if name.startswith(head)}
        null = Null(found["null/mean"], quantiles, found["null/p_value"], *tensors["null/counts"].tolist())
    if "interval/low" in found:
        interval = Interval(found["interval/low"], found["interval/high"], *tensors["interval/counts"].tolist())
    return SimilarityMatrix(names, found["values"], measure, null, interval)


def compare_models(first: Layers, second: Layers, compared: Sequence[Measure]) -> dict[str, Any]:
    """Every layer of one network with every layer of another, on the same inputs: (layers of a, layers of b) values."""
    found = []
    for measure in compared:
        labels = first.stream.labels if measure.needs_labels else None
        a, b = (measure.prepare_all(layers.rows, labels) for layers in (first, second))
        values = [[measure.compare(one, other) for other in b] for one in a]
        found.append({"measure": measure.id, "values": values})
    return finite({"points": list(second.rows), "similarity": found, "cost": second.costs.total().to_dict()})


def _matrix(matrix: SimilarityMatrix) -> dict[str, Any]:
    kind = measures.classes()[matrix.measure]
    found: dict[str, Any] = {
        "measure": matrix.measure,
        "larger_is_more_similar": kind.larger_is_more_similar,
        "values": _rounded(matrix.values),
    }
    resampled = matrix.null or matrix.interval
    if resampled is not None:
        found["resampled_inputs"] = resampled.inputs
    if matrix.null is not None:
        high = matrix.null.quantiles["97.5%" if kind.larger_is_more_similar else "2.5%"]
        found |= {"null_mean": _rounded(matrix.null.mean), "null_bound": _rounded(high)}
    if matrix.interval is not None:
        found |= {"low": _rounded(matrix.interval.low), "high": _rounded(matrix.interval.high)}
    return found


def _rounded(values: np.ndarray) -> list[list[float]]:
    return np.round(values, 6).tolist()


def _blocks(
    layers: Layers, scores: dict[str, float], matrices: Sequence[SimilarityMatrix], segment: dict[str, int]
) -> list[dict[str, Any]]:
    place = {point: index for index, point in enumerate(layers.rows)}
    total = layers.costs.total()
    found = []
    for chain in layers.stream.chains:
        for index, block in enumerate(chain.blocks):
            before, after = chain.points[index], chain.points[index + 1]
            a, b = place[before], place[after]
            left = layers.costs.after(dropped=[block.name])
            similar = {}
            for matrix in matrices:
                entry = {"value": float(matrix.values[a, b])}
                if matrix.interval is not None:
                    entry |= {"low": float(matrix.interval.low[a, b]), "high": float(matrix.interval.high[a, b])}
                if matrix.null is not None:
                    entry["null"] = float(matrix.null.mean[a, b])
                similar[matrix.measure] = entry
            found.append(
                {
                    "name": block.name,
                    "point": b,
                    "chain": block.chain,
                    "replace": block.replace,
                    "inside": block.inside,
                    "segment": segment[after],
                    "macs": total.macs - left.macs,
                    "params": total.params - left.params,
                    "share": 1 - left.macs / max(total.macs, 1),
                    "similarity": similar,
                    "influence": 1 - float(chain.cosine[index, index + 1]),
                    "angle": float(chain.angle[index, index + 1]),
                    "redundancy": scores.get(block.name),
                }
            )
    known = [entry for entry in found if entry["redundancy"] is not None]
    ranked = sorted(known, key=lambda entry: (1 - entry["redundancy"]) / max(entry["share"], 1e-12))
    for rank, entry in enumerate(ranked, 1):
        entry["order"] = rank
    return found
