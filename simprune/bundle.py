"""A bundle: the folder that rebuilds a pruned model on a fresh original. Data only, no pickle.

- plan.yaml: what was removed
- model.safetensors: the weights of the pruned model
- recipe.yaml: the resolved recipe, or an empty mapping when there was none
- report.json: every number, and the SHA-256 of the other files
- report.html: the same, to look at
"""

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from safetensors.torch import save_model
from torch import nn

from simprune.checks import Verdict
from simprune.core import processes
from simprune.core.alone import one_at_a_time
from simprune.core.plain import finite
from simprune.core.plan import PlainDumper, Plan
from simprune.core.redundancy import Redundancy
from simprune.core.store import refuse_overwriting, whole_folder
from simprune.core.weights import AGAIN, load_weights, refuse_infinite
from simprune.edit.apply import apply
from simprune.repair.absorb import absorbed, empty
from simprune.report import render
from simprune.trace.network import Network

HASHED = ("plan.yaml", "model.safetensors", "recipe.yaml", "report.html")
FILES = (*HASHED, "report.json")
REPORT_BYTES, REPORT_VALUES = 1 << 28, 1 << 23  # so many values take up to 1 GiB
TRIES = 10  # readings of a bundle that other processes replace meanwhile
T = TypeVar("T")


@dataclass(frozen=True)
class Result:
    """What `compress` made: the smaller model, the plan behind it, the verdict, and the report as data."""

    model: nn.Module
    plan: Plan
    verdict: Verdict | None
    report: dict[str, Any]
    redundancy: Redundancy | None = None


@one_at_a_time
def save(
    folder: str | os.PathLike[str], result: Result, recipe: dict | None = None, *, overwrite: bool = False
) -> Path:
    """Write a bundle and return its folder; it appears whole or not at all.

    The files are written to a hidden sibling `.NAME.partial-*`, which is renamed when complete. Of several processes
    that work together the first one writes.

    Args:
        folder: of the bundle, new or empty.
        result: what `simprune.compress` returned.
        recipe: how it was made, for a person to read and repeat.
        overwrite: whether a bundle that is already there is replaced.

    Raises:
        FileExistsError: for a folder with a bundle in it, unless `overwrite`, and for a file.
        ValueError: for a folder with anything else in it, and for what is no result, such as a model.
    """
    if not isinstance(folder, str | os.PathLike):
        got = type(folder).__name__
        raise ValueError(f"folder: expected a path; got {got}; call simprune.save(folder, result)")
    if isinstance(result, nn.Module) or not all(hasattr(result, name) for name in ("model", "plan", "report")):
        raise ValueError(
            f"result: expected what simprune.compress returned, with the model, its plan and the report; got "
            f"{type(result).__name__}; of a model alone save the state_dict"
        )
    folder = Path(folder).resolve()
    if not processes.first():
        return folder
    _refuse_foreign(folder)
    if not overwrite:
        refuse_overwriting(folder, "a bundle", "give another folder, or overwrite=True to replace it")
    with whole_folder(folder, replace=overwrite) as partial:
        _write(partial, result, recipe)
    return folder


@one_at_a_time
def load(folder: str | os.PathLike[str], model: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    """The pruned model of a bundle, in evaluation mode; its outputs are bit-identical to the saved model's.

    `model` is the original network, or a function that builds it; its weights do not matter and a given
    module is not changed. The bundle runs no code. Raises FileNotFoundError for a missing folder or file,
    ValueError for a changed file, another model, or weights that do not fit.
    """
    folder = Path(folder)
    original: nn.Module | None = None

    def read() -> nn.Module:
        nonlocal original
        report = check_files(folder)
        plan = Plan.load(folder / "plan.yaml")
        if original is None:
            original = _built(model)
        small = apply(plan, Network.of_plan(plan, original))
        empty(small, report.get("folded", {}))
        load_weights(small, folder / "model.safetensors")
        return small.eval()

    return undisturbed(folder, read)


def undisturbed(folder: Path, read: Callable[[], T]) -> T:
    """What `read` returns or raises, from files that no other process has replaced meanwhile.

    Args:
        folder: of a bundle.
        read: reads its files; called again where they were replaced.

    Raises:
        ValueError: when another process replaces the bundle again and again.
    """
    for _ in range(TRIES):
        before = _identity(folder)
        try:
            value = read()
        except (OSError, ValueError):
            if _identity(folder) == before:
                raise
            continue
        if _identity(folder) == before:
            return value
    raise ValueError(f"bundle {folder} is written by another process all the time; read it when that has ended")


def _identity(folder: Path) -> list[tuple[int, ...] | None]:
    """What changes when a file of a bundle is replaced."""
    states: list[tuple[int, ...] | None] = []
    for path in (folder, *(folder / name for name in FILES)):
        try:
            state = path.stat()
            states.append((state.st_ino, state.st_mtime_ns, state.st_size))
        except OSError:
            states.append(None)
    return states


def _built(model: Any) -> nn.Module:
    original = model() if callable(model) and not isinstance(model, nn.Module) else model
    if not isinstance(original, nn.Module):
        raise ValueError(
            f"model= must be a torch module or a function that builds one; got a {type(original).__name__}"
        )
    return original


def _write(folder: Path, result: Result, recipe: dict | None) -> None:
    for name, value in result.model.state_dict().items():
        if not isinstance(value, torch.Tensor):
            kind = type(value).__name__
            raise ValueError(f"a bundle keeps tensors only; {name} in the model's state is a {kind}")
    refuse_infinite(result.model, result.model.state_dict(), "the model of the bundle")
    report = finite({key: value for key, value in result.report.items() if key not in ("files", "folded")})
    if folded := absorbed(result.model):  # what the plan cannot tell: these stand-ins are empty
        report["folded"] = folded
    (folder / "plan.yaml").write_bytes(result.plan.to_yaml().encode())
    (folder / "recipe.yaml").write_bytes(_recipe_text(recipe).encode())
    (folder / "report.html").write_bytes(render(report, recipe, files=FILES).encode())
    save_model(result.model, str(folder / "model.safetensors"))
    shutil.copymode(folder / "plan.yaml", folder / "model.safetensors")  # safetensors makes it private
    files = {name: _sha256(folder / name) for name in HASHED} | {"report.json": _digest(report)}
    (folder / "report.json").write_bytes(_json(report | {"files": files}))


def _refuse_foreign(folder: Path) -> None:
    """Only nothing, an empty folder or a complete bundle may be replaced."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; give the bundle another folder")
    found = {path.name for path in folder.iterdir()}
    if found and found != set(FILES):
        odd = sorted(found - set(FILES)) or sorted(set(FILES) - found)
        word = "holds" if found - set(FILES) else "lacks"
        raise ValueError(f"{folder} is not a bundle ({word} {odd[0]}); give the new bundle another folder")


def check_files(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The report of a bundle in which every file is as it was written; only the fixed names are ever opened.

    The hashes find what was damaged or exchanged, not who made the bundle.

    Raises:
        FileNotFoundError: for a missing folder or file.
        ValueError: for a changed file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        aside = sorted(folder.parent.glob(f".{glob.escape(folder.name)}.partial-*-earlier"))
        hint = f"; a save was interrupted here: rename {aside[-1].name} to {folder.name}" if aside else ""
        raise FileNotFoundError(f"no bundle at {folder}{hint}")
    for name in FILES:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"bundle {folder}: {name} is missing; {AGAIN}")
    changed = f"has changed since the bundle was saved; {AGAIN}"
    size = (folder / "report.json").stat().st_size
    if size > REPORT_BYTES:
        raise ValueError(f"bundle {folder}: report.json has {size:,} bytes; expected at most {REPORT_BYTES:,}")
    content = (folder / "report.json").read_bytes()
    if sum(map(content.count, (b",", b"[", b"{"))) > REPORT_VALUES:
        raise ValueError(f"bundle {folder}: report.json has more than the {REPORT_VALUES:,} values that are expected")
    try:
        report = json.loads(content)
        files = report.pop("files")
        intact = files["report.json"] == _digest(report) and content == _json(report | {"files": files})
        recorded = [files[name] for name in HASHED]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        intact, recorded, report = False, [], {}
    if not intact:
        raise ValueError(f"bundle {folder}: report.json {changed}")
    for name, digest in zip(HASHED, recorded, strict=True):
        if _sha256(folder / name) != digest:
            raise ValueError(f"bundle {folder}: {name} {changed}")
    return report


def _recipe_text(recipe: dict | None) -> str:
    if recipe is None:
        return "# made without a recipe, from Python\n{}\n"
    try:
        return yaml.dump(recipe, Dumper=PlainDumper, sort_keys=False, allow_unicode=True)
    except yaml.representer.RepresenterError as error:
        odd = error.args[-1]
        raise ValueError(f"recipe: expected mappings, lists, numbers and texts; got {odd!r}") from None
    except RecursionError:
        raise ValueError("recipe: expected mappings and lists; got one that holds itself") from None


def _json(report: dict) -> bytes:
    return (json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _digest(report: dict) -> str:
    return hashlib.sha256(_json(report)).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
