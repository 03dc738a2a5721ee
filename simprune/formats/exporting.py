"""Exporting: a format writes its files aside, they are read back and compared, and only then appear."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from simprune import bundle
from simprune.bundle import Result
from simprune.core.alone import one_at_a_time
from simprune.core.batches import device_of, inputs_of, move
from simprune.core.cost import Example
from simprune.core.example import describe, example_of, from_description
from simprune.core.plain import finite
from simprune.core.plan import Plan
from simprune.core.registry import Choice, bound, read
from simprune.core.store import UNNAMED, naming, whole_folder
from simprune.edit.reopening import ROUNDING
from simprune.formats.card import card
from simprune.formats.written import Written, outputs, tensors_of

MANIFEST = "export.json"
TOLERANCE = 1e-4  # of the largest entry of an output; engines add in another order
# Sizes with which files are run beside those of the example, which has two inputs: numbers of inputs, shares of tokens.
SIZES = ((1, 1.0), (3, 1.0), (2, 0.5))


class Mismatch(ValueError):
    """Exported files compute something else than the model."""


@dataclass(frozen=True)
class Export:
    """Exported files.

    Args:
        folder: that holds them.
        format: its name.
        difference: the largest difference of an output from the model's.
        share: the same as a share of the largest entry of that output.
        notes: what a user of the files has to know.
    """

    folder: Path
    format: str
    difference: float
    share: float
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        compared = f"largest difference of an output {self.difference:.2g}, {self.share:.2g} of its largest entry"
        return f"exported as {self.format}, read back and compared: {compared}"


@one_at_a_time
def export(
    source: Result | nn.Module | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    format: Choice = "transformers",
    *,
    model: nn.Module | Callable[[], nn.Module] | None = None,
    inputs: Any = None,
    tolerance: float | None = None,
) -> Export:
    """Write a model for use without simprune, read it back and compare both.

    The folder appears whole or not at all; that of an earlier export is replaced. Beside the files it holds a page
    about the model, README.md, and where there is one the plan.

    Args:
        source: what `compress` returned, the folder of a bundle, or a model.
        folder: where to write.
        format: a name (`simprune list formats`), or a mapping with `name` and options.
        model: for a bundle, the original or a function that builds it.
        inputs: a batch on which both are compared; None: seeded noise and first tokens, of the shapes of the plan.
        tolerance: the largest difference as a share of the largest entry of an output; None: 1e-4, and more for
            outputs of half precision.

    Returns:
        The folder, and the largest difference of an output.

    Raises:
        ValueError: for wrong arguments, a folder that holds something else, and a model that the format cannot express.
        simprune.formats.Mismatch: where the files compute something else; nothing is written then.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     written = export(nn.Linear(4, 2), f"{parent}/small", format="torch", inputs=torch.randn(8, 4))
    ...     written.share < 1e-6, sorted(path.name for path in written.folder.iterdir())
    (True, ['README.md', 'export.json', 'model.pt2'])
    """
    part, _ = read("format", format)
    path = Path(folder).expanduser().resolve()
    _refuse_foreign(path)
    small, plan, report = _parts(source, model)
    if inputs is None and plan is None:
        raise ValueError("inputs: a model alone does not say what it takes; give a batch, inputs=...")
    device = device_of(small)
    if inputs is None:
        assert plan is not None
        example = from_description(plan.inputs, device)
        batch: Example = example
    else:
        batch = move(inputs_of(inputs), device)
        example = move(example_of(inputs), device)
    with whole_folder(path) as partial:
        written = _write(part.name, path, lambda: bound("format", format)(small, example, partial))
        difference, share, sizes = _compare(part.name, small, written, example, batch, tolerance)
        notes = [note for note in (*written.notes, sizes) if note]
        base = getattr(small, "name_or_path", "") or ""
        title = f"{base.rpartition('/')[2] or type(small).__name__}{', pruned' if plan is not None else ''}"
        page = card(title, written.usage, part.name, base, report, notes)
        (partial / "README.md").write_text(page, encoding="utf-8")
        if plan is not None:
            (partial / "plan.yaml").write_text(plan.to_yaml(), encoding="utf-8")
        files = sorted(str(file.relative_to(partial)) for file in partial.rglob("*") if file.is_file())
        said = {"simprune": version("simprune"), "format": part.name, "difference": difference, "share": share}
        said |= {"inputs": describe(example), "notes": notes, "files": files}
        (partial / MANIFEST).write_text(json.dumps(finite(said), indent=1) + "\n", encoding="utf-8")
    return Export(path, part.name, difference, share, tuple(notes))


def _parts(source: Any, model: Any) -> tuple[nn.Module, Plan | None, Mapping[str, Any]]:
    """The model to write, and where they are known its plan and the report of its making."""
    if isinstance(source, Result):
        return source.model, source.plan, source.report
    if isinstance(source, nn.Module):
        return source, None, {}
    if not isinstance(source, str | os.PathLike):
        raise ValueError(f"expected what compress returned, a bundle's folder or a model; got {type(source).__name__}")
    if model is None:
        raise ValueError("model: a bundle is rebuilt on its original; give the original, or a function that builds it")
    folder = Path(source)

    def read() -> tuple[nn.Module, Plan, Mapping[str, Any]]:
        return bundle.load(folder, model), Plan.load(folder / "plan.yaml"), bundle.check_files(folder)

    return bundle.undisturbed(folder, read)


def _write(name: str, path: Path, write: Callable[[], Written]) -> Written:
    """The files of a format.

    Raises:
        OSError: with the path, where they cannot be written, whatever the exporter says then.
        ValueError: in one line, where the format cannot express the model.
    """
    try:
        with naming(path):
            return write()
    except (ValueError, OSError):
        raise
    except Exception as error:  # torch's exporters raise errors of many types
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, OSError) and cause.errno in UNNAMED:
                raise OSError(cause.errno, cause.strerror, str(path)) from error
            cause = cause.__cause__ or cause.__context__
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise ValueError(f"format {name} cannot express this model: {type(error).__name__}: {reason}") from error


def _compare(
    name: str, model: nn.Module, written: Written, example: Example, batch: Example, tolerance: float | None
) -> tuple[float, float, str]:
    """The largest difference and its share, on the example and on other numbers of inputs; and a note on these."""
    difference = share = 0.0
    refused = []
    for size in (None, *SIZES):
        arguments = example if size is None else _resized(batch, *size)
        if size is not None and _shapes(arguments) == _shapes(example):
            continue
        expected = outputs(model, *arguments)
        try:
            with torch.no_grad():
                actual = written.run(*arguments)
        except Exception as error:  # engines raise errors of many types
            if size is None:
                raise Mismatch(f"format {name}: the files do not run on the example: {error}") from error
            refused.append(" and ".join(str(list(shape)) for shape in dict.fromkeys(_shapes(arguments))))
            continue
        if [x.shape for x in actual] != [x.shape for x in expected.values()]:
            raise Mismatch(f"format {name}: the files give outputs of other shapes than the model; nothing was written")
        for (output, values), other in zip(expected.items(), actual, strict=True):
            absolute, relative = _distance(other, values)
            allowed = tolerance if tolerance is not None else max(TOLERANCE, ROUNDING * torch.finfo(values.dtype).eps)
            if not relative <= allowed:
                raise Mismatch(
                    f"format {name}: {output} of the files differs from the model's by {absolute:.2g}, {relative:.2g} "
                    f"of its largest entry; at most {allowed:.2g} is allowed, so nothing was written"
                )
            difference, share = max(difference, absolute), max(share, relative)
    return difference, share, f"the files do not take inputs of shape {', nor '.join(refused)}" if refused else ""


def _distance(actual: Tensor, expected: Tensor) -> tuple[float, float]:
    """The largest difference of two tensors, and the same as a share of the largest entry."""
    if not expected.numel():
        return 0.0, 0.0
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    absolute = (actual - expected).abs().max()
    return float(absolute), float(absolute / expected.abs().max().clamp(min=1e-30))


def _shapes(example: Example) -> list[torch.Size]:
    return [tensor.shape for tensor in tensors_of(*example)]


def _resized(example: Example, rows: int, share: float) -> Example:
    """An example with another number of inputs, repeated where there are too few, and a share of its tokens."""

    def resized(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.ndim == 0:
            return value
        times = -(-rows // len(value))
        value = value.repeat(times, *[1] * (value.ndim - 1))[:rows]
        tokens = value.ndim == 2 and not value.is_floating_point()
        return value[:, : max(1, round(share * value.shape[1]))] if tokens else value

    args, kwargs = example
    return tuple(map(resized, args)), {key: resized(value) for key, value in kwargs.items()}


def _refuse_foreign(folder: Path) -> None:
    """Only nothing, an empty folder or an earlier export may be replaced."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; give the export another folder")
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    manifest = folder / MANIFEST
    known = json.loads(manifest.read_text(encoding="utf-8")).get("files", []) if manifest.is_file() else []
    if odd := [file for file in files if file not in (*known, MANIFEST)]:
        raise ValueError(f"{folder} is no earlier export (it holds {odd[0]}); give the export another folder")
