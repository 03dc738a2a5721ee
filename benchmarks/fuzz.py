"""Damaged and hostile files, thousands of them, drawn from a seed: plans, recipes, bundles, weights, arrays, texts.

Every case is a valid file that was cut, flipped, or changed by words that have done harm elsewhere. It must end in one
clear line (`refused`), or be accepted because what was read is what the whole file says (`harmless`). Whatever else
happens is printed and ends the run with exit code 1.

    python -m benchmarks.fuzz --cases 1000 --seed 0 --seconds 120
"""

import argparse
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

import simprune as sp
from simprune.cli.errors import one_line
from simprune.cli.recipe.compose import locate, register_bundle_recipe
from simprune.core.plan import Plan
from simprune.core.records import records
from simprune.core.weights import digest_of, load_weights
from simprune.sources.arrays import arrays

WORDS = [
    b"&a [*a]", b"[" * 3000, b"{a: " * 3000, b"!!python/object/apply:os.system [ls]", b"${oc.env:HOME}", b"_args_: [1]",
    b"\xff\xfe", b"\x00", b"99999999999999999999", b"-1", b".nan", b"null", b"true", b"'", b"\n", b": ", b"- ", b"\t",
]  # fmt: skip
Read = Callable[[Path], object]


def build() -> nn.Module:
    """The original of all bundles and plans."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def damaged(content: bytes, draw: np.random.Generator) -> bytes:
    """A file cut short, with a few bits flipped, with a line twice or missing, or with a harmful word in it."""
    place, kind = int(draw.integers(len(content))), draw.integers(5)
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
    lines = content.split(b"\n")
    number = int(draw.integers(len(lines)))
    return b"\n".join(lines[:number] + ([lines[number]] * 2 if kind == 3 else []) + lines[number + 1 :])


def plain_plan(plan: Plan) -> object:
    """What a plan does; the other fields are for the reader."""
    return [(edit.remove, edit.name, edit.indices, edit.replace) for edit in plan.edits], plan.inputs


def targets(folder: Path) -> dict[str, tuple[Path, Read, bool]]:
    """By class: the file that is damaged, what reads it, and whether what is read has to be that of the whole file."""
    model, batches = build(), [torch.randn(64, 4, generator=torch.Generator().manual_seed(0))]
    result = sp.compress(model, calibration=batches, budget={"macs": 0.6})
    result.plan.save(folder / "plan.yaml")
    recipe = {"model": {"name": "digits", "epochs": 1}, "data": {"name": "digits"}, "seed": 0}
    bundle = sp.save(folder / "bundle", result, recipe)
    (folder / "lone").mkdir()
    (folder / "lone" / "recipe.yaml").write_bytes((bundle / "recipe.yaml").read_bytes())
    (folder / "own.yaml").write_text("defaults: [digits, _self_]\nbudget: {macs: 0.5}\nseed: 3\n")
    save_file(model.state_dict(), folder / "weights.safetensors")
    images = np.random.default_rng(0).normal(size=(6, 1, 4, 4)).astype(np.float32)
    np.savez_compressed(folder / "data.npz", calibration_images=images, calibration_labels=np.arange(6))
    (folder / "texts.jsonl").write_text('{"text": "one"}\n{"text": "two \u00e9"}\n' * 4, encoding="utf-8")

    def opened(path: Path) -> object:
        small = sp.load(folder / "bundle", model=model)
        return digest_of(small.state_dict())

    def weights(path: Path) -> object:
        other = build()
        load_weights(other, path, strict=False)
        return all(bool(value.isfinite().all()) for value in other.state_dict().values())

    def images_of(path: Path) -> object:
        batches = arrays(path=str(path), test=None).calibration
        return [(batch[0] if isinstance(batch, tuple) else batch).sum().item() for batch in batches]

    files = {f"bundle: {name}": (bundle / name, opened, True) for name in sorted(p.name for p in bundle.iterdir())}
    return files | {
        "plan": (folder / "plan.yaml", lambda path: bool(plain_plan(Plan.load(path))), True),
        "recipe of a bundle": (folder / "lone" / "recipe.yaml", lambda p: register_bundle_recipe(str(p.parent)), True),
        "recipe": (folder / "own.yaml", lambda path: bool(locate(str(path))), True),
        "weights": (folder / "weights.safetensors", weights, True),
        "arrays": (folder / "data.npz", images_of, True),
        "texts": (folder / "texts.jsonl", lambda path: bool(list(records(path))), False),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000, help="of every class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=120, help="after which no further case begins")
    how = parser.parse_args()
    counts: Counter[tuple[str, str]] = Counter()
    faults: list[str] = []
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        prepared = targets(Path(name))
        wholes = {key: (path.read_bytes(), read(path)) for key, (path, read, _) in prepared.items()}
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for case in range(how.cases):
            for key, (path, read, same) in prepared.items():
                if time.monotonic() - start > how.seconds:
                    break
                whole, expected = wholes[key]
                content = damaged(whole, np.random.default_rng([how.seed, case, len(key), ord(key[-1])]))
                path.write_bytes(content)
                try:
                    value = read(path)
                    kind = "harmless" if value == expected or not same else "CHANGED"
                except Exception as error:  # every kind of error is counted
                    line = one_line(error)
                    kind = "refused" if line is not None and len(line) < 1000 else f"FAULT {type(error).__name__}"
                counts[key, kind] += 1
                if kind not in ("refused", "harmless"):
                    faults.append(f"{key}, case {case}: {kind}")
                path.write_bytes(whole)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    for key in prepared:
        print(f"{key:28}", ", ".join(f"{kind} {count}" for (of, kind), count in sorted(counts.items()) if of == key))
    print(f"{counts.total()} cases in {time.monotonic() - start:.0f} s, memory grew by {grown:.0f} MiB")
    print(*faults[:20], sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
