"""Damaged and hostile files, thousands of them, drawn from a seed: plans, recipes, bundles, weights, data, states.

Every case is a valid file that was cut, flipped, or changed by words that have done harm elsewhere. What is read of it:

- refused: one clear line;
- same: what the whole file says;
- said: something else, and the plan says of itself that it is not as it was written;
- as written: something else, in a file that nothing binds to its values, and a second reader reads the same there.

Whatever else happens is a fault, as are more than 1 GiB of memory, and code, processes, or connections that are begun.
Faults are printed and end the run with exit code 1.

    python -m benchmarks.fuzz --cases 100 --seed 0 --seconds 600
"""

import argparse
import hashlib
import io
import json
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn

import simprune as sp
from simprune import bundle as bundles
from simprune.cli.errors import one_line
from simprune.cli.recipe.bundled import READ
from simprune.cli.recipe.compose import load_recipe, register_bundle_recipe, resolved
from simprune.core.checkpoint import Checkpoint
from simprune.core.records import records
from simprune.core.weights import digest_of, load_weights
from simprune.sources.arrays import arrays
from simprune.trace.network import Network
from simprune.tune.smallest import Record

MEMORY = 1 << 30
WORDS = [
    b"&a [*a]", b"[" * 3000, b"{a: " * 3000, b"!!python/object/apply:os.system [ls]", b"${oc.env:HOME}", b"_args_: [1]",
    b"\xff\xfe", b"\x00", b"99999999999999999999", b"-1", b".nan", b"null", b"true", b"'", b"\n", b": ", b"- ", b"\t",
    b"1e999", b"1000000000000", b"\xe2\x80\xa8", b"{\"\": 1}", b"_target_: os.system", b"0", b"9", b"../", b"<<: *a",
]  # fmt: skip
# what Python says before code, a process or a connection begins, or before pickle looks a name up
EVENTS = (
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "subprocess.Popen",
    "socket.connect",
    "pickle.find_class",
)


@dataclass(frozen=True)
class Target:
    """A file that is damaged, and what is read of it.

    `truth`: what a second reader makes of damaged bytes; None where a hash binds the file to its values.
    `after`: runs between the damage and the reading, as the author of a hostile bundle would make new hashes.
    """

    path: Path
    read: Callable[[], Any]
    truth: Callable[[bytes], Any] | None = None
    after: Callable[[], None] = lambda: None


def build() -> nn.Module:
    """The original of all bundles and plans."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def damaged(content: bytes, draw: np.random.Generator) -> bytes:
    """A file cut short, with bits flipped, with a line twice or missing, with a harmful word, or a digit exchanged."""
    place, kind = int(draw.integers(len(content))), draw.integers(6)
    if kind == 0:
        return content[:place]
    if kind == 1:
        changed = bytearray(content)
        for _ in range(draw.integers(1, 4)):
            changed[draw.integers(len(content))] ^= 1 << int(draw.integers(8))
        return bytes(changed)
    if kind == 2:
        word = WORDS[draw.integers(len(WORDS))]
        return content[:place] + word + content[place + draw.integers(3) :]
    digits = [index for index, byte in enumerate(content) if 48 <= byte <= 57]
    if kind == 3 and digits:
        index = digits[draw.integers(len(digits))]
        return content[:index] + b"%d" % draw.integers(10) + content[index + 1 :]
    lines = content.split(b"\n")
    number = int(draw.integers(len(lines)))
    return b"\n".join(lines[:number] + ([lines[number]] * 2 if kind == 4 else []) + lines[number + 1 :])


@dataclass(frozen=True)
class Said:
    """Content that is known not to be as it was written."""

    content: Any


def tensors_in(content: bytes) -> dict[str, tuple[str, list[int], bytes]]:
    """Type, shape and bytes of every tensor of a safetensors file, by its specification."""
    length = int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    header.pop("__metadata__", None)
    return {
        name: (entry["dtype"], entry["shape"], body[slice(*entry["data_offsets"])]) for name, entry in header.items()
    }


def tensors_of(model: nn.Module) -> dict[str, tuple[str, list[int], bytes]]:
    """The same of a model in float32."""
    return {
        name: ("F32", list(value.shape), value.detach().numpy().tobytes()) for name, value in model.state_dict().items()
    }


def new_hashes(folder: Path) -> None:
    """Make the hashes of a bundle fit its files, as far as the report can be read."""
    path = folder / "report.json"
    try:
        report = json.loads(path.read_bytes())
        report.pop("files", None)
        files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in bundles.HASHED}
        files["report.json"] = bundles._digest(report)
        path.write_bytes(bundles._json(report | {"files": files}))
    except (ValueError, AttributeError, RecursionError):
        return


def targets(folder: Path) -> dict[str, Target]:
    """By class, the files that are damaged."""
    model, batches = build(), [torch.randn(64, 4, generator=torch.Generator().manual_seed(0))]
    result = sp.compress(model, calibration=batches, test=batches, budget={"macs": 0.6}, replace="mean")
    recipe = {"model": {"name": "digits", "epochs": 1}, "data": {"name": "digits"}, "seed": 0}
    own, other = (sp.save(folder / name, result, recipe) for name in ("bundle", "hostile"))
    result.plan.save(folder / "plan.yaml")
    (folder / "own.yaml").write_text(
        "defaults: [digits, _self_]\nbudget: {macs: 0.5}\nseed: 3\nstructures: [channels, blocks]\n"
        "planner: {name: greedy, round_to: 4}\ntrials: [0.3, 0.7]\n"
    )
    save_file(model.state_dict(), folder / "weights.safetensors")
    images = np.random.default_rng(0).normal(size=(6, 1, 4, 4)).astype(np.float32)
    np.savez_compressed(folder / "data.npz", calibration_images=images, calibration_labels=np.arange(6))
    (folder / "texts.jsonl").write_text('{"text": "one"}\n{"text": "two \u00e9\u2028"}\n' * 4, encoding="utf-8")
    (folder / "texts.txt").write_text("one\n\ntwo \u00e9\nlines\n\n" * 4, encoding="utf-8")
    search = searched(folder / "search", model, batches)
    context = {"settings": {"measure": "cka", "seed": 1}, "model": digest_of(model.state_dict())}
    Checkpoint(folder / "analysis", context).save("scores", {"values": torch.arange(12.0), "done": torch.tensor(3)})

    def load(where: Path) -> Any:
        small = sp.load(where, model=model)
        return tensors_of(small)

    def plan() -> Any:
        read = sp.Plan.load(folder / "plan.yaml")
        return Said(read.to_dict()) if read.edited else read.to_dict()

    def bundled_recipe() -> Any:
        register_bundle_recipe(str(other))
        stored = ConfigStore.instance().load("bundle.yaml").node
        return {key: value for key, value in yaml.safe_load(yaml.dump(_plain(stored))).items() if key != "defaults"}

    def user_recipe() -> Any:
        return resolved(load_recipe(str(folder / "own.yaml")))

    def weights() -> Any:
        other = build()
        load_weights(other, folder / "weights.safetensors", strict=False)
        return tensors_of(other)

    def images_of() -> Any:
        batches = list(arrays(path=str(folder / "data.npz"), test=None).calibration)
        parts = zip(*(batch if isinstance(batch, tuple) else (batch,) for batch in batches), strict=True)
        return [torch.cat(part).numpy().tobytes() for part in parts]

    def images_in(content: bytes) -> Any:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            read = [archive["calibration_images"].astype(np.float32)]
            read += [archive["calibration_labels"].astype(np.int64)] if "calibration_labels" in archive else []
        return [value.tobytes() for value in read]

    def stages() -> Any:
        checkpoint = Checkpoint(folder / "analysis", context)
        names = sorted(path.stem for path in (folder / "analysis").glob("*.safetensors"))
        return {name: digest_of(checkpoint.load(name) or {}) for name in names}

    def texts(name: str) -> Callable[[], Any]:
        return lambda: [value for _, value in records(folder / name)]

    def json_lines(content: bytes) -> Any:
        return [json.loads(line) for line in content.decode().split("\n") if line.strip()]

    def documents(content: bytes) -> Any:
        lines = [line if line.strip() else "" for line in content.decode().replace("\r", "\n").split("\n")]
        return [part.strip("\n") for part in "\n".join(lines).split("\n\n") if part.strip()]

    names = sorted(path.name for path in own.iterdir())
    files = {f"bundle: {name}": Target(own / name, lambda: load(own)) for name in names}
    again = lambda: new_hashes(other)  # noqa: E731
    for name, truth in (("plan.yaml", None), ("model.safetensors", tensors_in), ("report.json", None)):
        files[f"bundle with new hashes: {name}"] = Target(other / name, lambda: load(other), truth, again)
    stage = next((folder / "analysis").glob("*.safetensors"))
    return files | {
        "recipe inside a bundle": Target(other / "recipe.yaml", bundled_recipe, _bundle_keys, again),
        "plan": Target(folder / "plan.yaml", plan),
        "recipe of the user": Target(folder / "own.yaml", user_recipe, _keys),
        "weights": Target(folder / "weights.safetensors", weights, tensors_in),
        "arrays": Target(folder / "data.npz", images_of, images_in),
        "texts: lines of JSON": Target(folder / "texts.jsonl", texts("texts.jsonl"), json_lines),
        "texts: plain": Target(folder / "texts.txt", texts("texts.txt"), documents),
        "search: state": Target(folder / "search" / "state.json", search),
        "search: weights": Target(next((folder / "search").glob("*.safetensors")), search),
        "analysis: settings": Target(folder / "analysis" / "settings.json", stages),
        "analysis: stage": Target(stage, stages),
    }


def searched(folder: Path, model: nn.Module, batches: list[torch.Tensor]) -> Callable[[], Any]:
    """Search in a folder; returns what reads its state and its weights again."""
    gates = [sp.Gate("disagreement", limit=0.9)]
    search = {"tolerance": 0.2}
    sp.compress(
        model, calibration=batches, test=batches, budget="smallest", gates=gates, search=search, folder=folder
    )  # fmt: skip
    record = Record(folder)
    settings = json.loads((folder / "state.json").read_text())["settings"]
    network = Network(model, ((batches[0][:2],), {}))

    def read() -> Any:
        attempts = record.load(settings)
        best = max(index for index, attempt in enumerate(attempts) if attempt.passed)
        plan = sp.Plan.from_dict(attempts[best].plan)
        return attempts, tensors_of(record.model(best, plan, network))

    return read


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=False)


def _keys(content: bytes) -> Any:
    return yaml.load(content, Loader=yaml.CSafeLoader)


def _bundle_keys(content: bytes) -> Any:
    """What a bundle's recipe says about the keys that are read."""
    return {key: value for key, value in (_keys(content) or {}).items() if key in READ}


def within(said: Any, read: Any) -> bool:
    """Whether what a second reader has read is in what was read; a recipe may say a choice by its name alone."""
    if isinstance(said, dict) and isinstance(read, dict):
        return all(key == "defaults" or (key in read and within(item, read[key])) for key, item in said.items())
    if isinstance(said, str) and isinstance(read, dict):
        return read.get("name") == said
    if isinstance(said, list) and isinstance(read, list):
        return len(said) == len(read) and all(map(within, said, read))
    return (type(said) is type(read) and repr(said) == repr(read)) or (isinstance(read, float) and read == said)


def outcome(target: Target, content: bytes, whole: Any) -> str:
    """What becomes of damaged bytes."""
    try:
        with watched() as events:
            value = target.read()
    except Exception as error:  # every kind of error is counted
        chain, memory = error, False
        while chain is not None:
            memory |= isinstance(chain, MemoryError) or "allocate memory" in str(chain)
            chain = chain.__context__
        line = one_line(error)
        if memory:
            return "FAULT: more than 1 GiB of memory is asked for"
        return "refused" if line is not None and len(line) < 1000 else f"FAULT: {type(error).__name__}: {error}"[:300]
    if events:
        return f"FAULT: {events[0]} happens"
    if isinstance(value, Said):
        return "said"
    if repr(value) == repr(whole):
        return "same"
    if target.truth is None:
        return "FAULT: changed content is accepted"
    try:
        said = target.truth(content)
    except Exception as error:
        return f"FAULT: accepted, and a second reader says {type(error).__name__}: {error}"[:300]
    return "as written" if within(said, value) else "FAULT: something else is read than stands there"


_EVENTS: list[str] | None = None


def _hear(event: str, arguments: tuple) -> None:
    if _EVENTS is not None and event in EVENTS:
        _EVENTS.append(f"{event}{arguments!r:.100}")


@contextmanager
def watched() -> Iterator[list[str]]:
    """Within the block, the events that begin code are collected, and memory has a limit."""
    global _EVENTS
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    earlier = resource.getrlimit(resource.RLIMIT_AS)
    _EVENTS = events = []
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, earlier[1]))
    try:
        yield events
    finally:
        resource.setrlimit(resource.RLIMIT_AS, earlier)
        _EVENTS = None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100, help="of every class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=600, help="after which no further case begins")
    parser.add_argument("--classes", default="", help="only those whose names begin so")
    how = parser.parse_args()
    sys.addaudithook(_hear)
    counts: Counter[tuple[str, str]] = Counter()
    faults: list[str] = []
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        numbered = {key: (number, each) for number, (key, each) in enumerate(targets(Path(name)).items())}
        chosen = {key: value for key, value in numbered.items() if key.startswith(how.classes)}
        wholes = {key: target.read() for key, (_, target) in chosen.items()}
        for case in range(how.cases):
            for key, (number, target) in chosen.items():
                if time.monotonic() - start > how.seconds:
                    break
                kept = {path: path.read_bytes() for path in target.path.parent.iterdir() if path.is_file()}
                content = damaged(kept[target.path], np.random.default_rng([how.seed, case, number]))
                if content == kept[target.path]:
                    continue
                target.path.write_bytes(content)
                target.after()
                kind = outcome(target, content, wholes[key])
                counts[key, kind.partition(":")[0]] += 1
                if kind.startswith("FAULT"):
                    faults.append(f"{key}, seed {how.seed}, case {case}: {kind}")
                for path, whole in kept.items():
                    path.write_bytes(whole)
    for key in chosen:
        print(f"{key:40}", ", ".join(f"{kind} {count}" for (of, kind), count in sorted(counts.items()) if of == key))
    total = {kind: sum(count for (_, other), count in counts.items() if other == kind) for _, kind in counts}
    print(f"{counts.total()} cases in {time.monotonic() - start:.0f} s:", total)
    print(*faults[:40], sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
