"""What a run on several processes costs, by stage: memory, traffic and work, from a formula and as measured.

    python -m benchmarks.scale                                          # the formula, for 7B and 70B parameters
    python -m benchmarks.scale --measure 134m --layers 6 --processes 1 2  # measured here beside the formula
    python -m benchmarks.scale --measure 134m --model FOLDER --gguf FILE  # a trained model of that shape

A run takes every stage, for whole layers or for hidden units, on random weights in a Llama shape or on trained ones.
Every process is a new one, with one thread. Traffic is what the kernel counts as sent at a process's connections, the
gradients of a training among it. Time is in CPU seconds of the busiest process, so that other work on the machine does
not count.
"""

import argparse
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks._language import load_language_model
from benchmarks.language_memory import PLANS, SHAPES, forget_peak, resident
from benchmarks.language_memory import build as build_model

TOKENS = 128  # of a window, when measuring
HELD, HELD_ROWS = 0.25, 16  # share of inputs that are held out, and the rows of such that scores look at
LEVELS = 6  # numbers of removed units for which a score says what is lost
CHECKED = 86_000  # bytes of the sums of the gates "language_model" over a batch
TCP_BYTES_SENT = 200  # where tcpi_bytes_sent stands in Linux's struct tcp_info
STAGES = ("analyze", "plan", "edit", "reconstruct", "train", "validate")
NOTHING = {"plan": 0.0, "edit": 0.0}  # to send, and to hold beyond the model


@dataclass(frozen=True)
class Llama:
    """Sizes of a model of Llama's form: width, hidden units, layers, tokens of vocabulary, key-value width.

    `tied`: whether the head is the table of tokens.
    """

    width: int
    hidden: int
    layers: int
    vocabulary: int
    keys: int
    tied: bool = False

    @property
    def layer(self) -> int:
        """Parameters of one layer."""
        return 2 * self.width**2 + 2 * self.width * self.keys + 3 * self.width * self.hidden

    @property
    def parameters(self) -> int:
        return self.layers * self.layer + (2 - self.tied) * self.vocabulary * self.width


MODELS = {
    "134m": Llama(576, 1536, 30, 49_152, 192, tied=True),
    "1.1b": Llama(2048, 5632, 22, 32_000, 256),
    "7B": Llama(4096, 11_008, 32, 32_000, 4096),
    "70B": Llama(8192, 28_672, 80, 32_000, 1024),
}


@dataclass(frozen=True)
class Data:
    """Calibration inputs: windows, tokens of a window, batches as they are run; steps of a training, a batch each."""

    windows: int
    tokens: int
    batches: int
    steps: int


def size(width: int) -> int:
    """Bytes of an entry of a sum of products (`simprune.core.moments`)."""
    return 4 if width >= 1024 else 8


def halved(entries: int) -> int:
    """Bytes of an entry of what a removal of units loses (`simprune.scores.output_changes`)."""
    return 2 if entries >= 2**19 else 4


def traffic(model: Llama, data: Data, kind: str, processes: int) -> dict[str, float]:
    """Bytes that one process sends, by stage, beside headers; with several processes the one that sends most."""
    others = processes - 1
    elsewhere = others / processes  # the share of layers that belong to others
    turns, inputs = data.batches / processes, data.windows / processes
    d, f = model.width, model.hidden
    analysis = turns * others * 8 * model.vocabulary  # means of the output, to all
    if kind == "depth":
        analysis += turns * elsewhere * model.layers * 2 * d * d * size(d)  # moments of what layers add
        analysis += inputs * others * (model.layers + 1) * d * 4  # the stream, averaged over positions, to all
        analysis += elsewhere * model.layers * d * d * 4  # losses, to all
    else:
        rows = inputs * ((1 - HELD) * data.tokens + HELD * HELD_ROWS)
        analysis += rows * elsewhere * model.layers * f * 4  # hidden units
        analysis += turns * elsewhere * model.layers * d * d * 4  # products of gradients
        analysis += elsewhere * model.layers * LEVELS * f * d * halved(f * d)  # losses, to all
    fitted = [(d, d), (f, d)]  # the last layers of the halves, which add to the stream; as if no unit went
    repair = 0.0
    for share in (1 - HELD, HELD):  # what is fitted to and what it is judged on have sums of their own
        rows = share * data.windows * data.tokens
        for i, o in fitted:
            if rows >= i:  # a ring passes every sum on twice
                repair += model.layers * 2 * elsewhere * 8 * (i * i + i * o + i + o)
            else:
                repair += model.layers * others * rows / processes * 4 * (i + o)
    steps = 2 * elsewhere * 4 * model.parameters * data.steps + others * 4 * model.parameters  # the latter at the start
    checks = data.steps / processes * others * CHECKED
    return NOTHING | {"analyze": analysis, "reconstruct": repair, "train": steps, "validate": checks}


def memory(model: Llama, data: Data, kind: str, processes: int) -> dict[str, float]:
    """Bytes beyond the model that one process holds for sums and losses."""
    d, f = model.width, model.hidden
    if kind == "depth":
        sums = model.layers * 2 * d * d * size(d) / processes
        losses = model.layers * d * d * 4
        fit = 4 * (max(d, f) ** 2 + max(d, f) * d) * 8
    else:
        sums = model.layers * (2 * f * f * size(f) + d * d * 8) / processes
        losses = model.layers * LEVELS * f * d * halved(f * d)
        fit = 4 * (f * f + f * d) * 8
    # of a training: the gradient, the momentum, the best weights; with several processes the gradients that are sent
    training = (12 + 4 * (processes > 1)) * model.parameters
    return NOTHING | {"analyze": sums + losses, "reconstruct": fit, "train": training, "validate": 0.0}


def work(model: Llama, data: Data, kind: str, processes: int) -> dict[str, tuple[float, float]]:
    """Multiply-adds by stage: those that are shared out, per process, and those that every process does."""
    rows, d, f = data.windows * data.tokens, model.width, model.hidden
    forward = rows * (model.layers * model.layer + model.vocabulary * d)
    if kind == "depth":
        analysis = 4 * forward + rows * model.layers * 2 * d * d
        serial = model.layers * d**3
    else:
        analysis = 7 * forward + rows * model.layers * (2 * f * f + d * d) + model.layers * 4 * f**3
        serial = 0.0
    products, solves = rows * model.layers * (d * d + d * d + f * f + f * d), model.layers * (d**3 + f**3) * 3
    return {
        "analyze": (analysis / processes, serial),
        "plan": (0.0, 0.0),
        "edit": (0.0, 0.0),
        "reconstruct": ((2 * forward + products) / processes, solves),
        "train": (4 * forward / processes, 0.0),  # the teacher, and forward and backward of the smaller model
        "validate": (2 * forward / processes, 0.0),
    }


def formula(name: str, processes: list[int], flops: float, bandwidth: float) -> None:
    """Print what a model costs on 128 windows of 2,048 tokens, in bfloat16, one window at a time."""
    model, data = MODELS[name], Data(128, 2048, 128, 128)
    print(f"\n{name}: {model.parameters / 1e9:.1f}e9 parameters, {data.windows} x {data.tokens} tokens")
    print("| what is removed | processes | stage | memory beyond the model, GB | sent by a process, GB | minutes |")
    print("|---|---|---|---|---|---|")
    for kind in PLANS:
        for count in processes:
            sent, held = traffic(model, data, kind, count), memory(model, data, kind, count)
            for stage, (shared, serial) in work(model, data, kind, count).items():
                if stage in NOTHING:
                    continue
                minutes = (2 * (shared + serial) / flops + sent[stage] / bandwidth) / 60
                what = "layers" if kind == "depth" else "hidden units"
                figures = f"{held[stage] / 1e9:.1f} | {sent[stage] / 1e9:.1f} | {minutes:.1f}"
                print(f"| {what} | {count} | {stage} | {figures} |")


@dataclass(frozen=True)
class Measured:
    """What is measured: a shape with so many layers and random weights, or a trained model; and its inputs."""

    name: str
    kind: str
    layers: int
    windows: int
    batch: int
    model: str | None
    gguf: str | None
    without: list[int]

    def build(self) -> nn.Module:
        if self.model is not None:
            return load_language_model(Path(self.model), self.gguf)[0]
        shape = SHAPES[self.name]
        return build_model(replace(shape, fields=shape.fields | {"num_hidden_layers": self.layers}))


def one(what: Measured) -> dict[str, Any]:
    """Run all stages in this process, of one or several; what each took. With layers to remove it starts there."""
    import torch.distributed as dist

    import simprune as sp
    from simprune.trace.network import Network

    torch.set_num_threads(1)
    model, vocabulary = what.build(), MODELS[what.name].vocabulary
    ids = torch.randint(vocabulary, (what.windows, TOKENS), generator=torch.Generator().manual_seed(1))
    batches = [{"input_ids": part} for part in ids.split(what.batch)]
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    at_once = Network.trace(model, batches[0]).inputs_at_once or what.batch
    asked = PLANS[what.kind]
    figures: dict[str, Any] = {}
    state: dict[str, Any] = {}

    def analyze() -> None:
        state["redundancy"] = sp.analyze(model, batches, structures=asked["structures"])

    def plan() -> None:
        state["plan"] = sp.plan(state["redundancy"], asked["budget"], planner=asked.get("planner", "greedy"))

    def edit() -> None:
        state["small"] = sp.apply(state["plan"], model)

    def reconstruct() -> None:
        sp.reconstruct(state["small"], state["plan"], model, batches)

    def train() -> None:
        sp.finetune(state["small"], batches, model, validation=batches[:1], epochs=1, lr=1e-4)

    def validate() -> None:
        sp.validate(model, state["small"], batches, "language_model")

    runs = dict(zip(STAGES, (analyze, plan, edit, reconstruct, train, validate), strict=True))
    if what.without:
        network = Network.trace(model, batches[0])
        edits = tuple(sp.Edit("block", f"model.layers.{layer}") for layer in what.without)
        state["plan"] = sp.Plan(edits, network.fingerprint, network.description)
        runs = {stage: run for stage, run in runs.items() if stage in ("edit", "train", "validate")}
    for stage, run in runs.items():
        before, sent, start = forget_peak(), bytes_sent(), time.process_time()
        run()
        seconds = time.process_time() - start
        figures[stage] = {"seconds": seconds, "sent": bytes_sent() - sent, "peak": resident("VmHWM") - before}
        print(f"rank {os.environ.get('RANK', '0')}, {stage}: {figures[stage]}", file=sys.stderr, flush=True)
    figures["batches"] = sum(-(-len(batch["input_ids"]) // at_once) for batch in batches)  # which a call divides
    return figures | {"sha256": state["plan"].to_dict()["sha256"]}


def bytes_sent() -> int:
    """Bytes that this process has sent over its connections, as Linux counts them for each of them."""
    total = 0
    for entry in os.listdir("/proc/self/fd"):
        path = Path("/proc/self/fd", entry)
        if not path.is_symlink() or not os.readlink(path).startswith("socket:"):
            continue
        with socket.socket(fileno=os.dup(int(entry))) as connection:
            if connection.type == socket.SOCK_STREAM and connection.family != socket.AF_UNIX:
                facts = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                total += struct.unpack_from("Q", facts, TCP_BYTES_SENT)[0]
    return total


def measure(what: Measured, counts: list[int]) -> None:
    """Print the figures of runs with so many processes, beside the formula."""
    layers = MODELS[what.name].layers if what.model is not None else what.layers
    model = replace(MODELS[what.name], layers=layers)
    print(f"\n{what.name} with {layers} layers, {what.kind}, {what.windows} x {TOKENS} tokens, {what.batch} a batch")
    print("| processes | stage | CPU s of the busiest process | sent, MB (formula) | peak, MB (formula) | plan |")
    print("|---|---|---|---|---|---|", flush=True)
    for count in counts:
        ranks = _ranks(what, count)
        data = Data(what.windows, TOKENS, ranks[0]["batches"], -(-what.windows // what.batch))
        left = replace(model, layers=layers - len(what.without))  # of the model that is trained, as far as is known
        expected, held = traffic(left, data, what.kind, count), memory(left, data, what.kind, count)
        for stage in [stage for stage in STAGES if stage in ranks[0]]:
            most = {key: max(rank[stage][key] for rank in ranks) for key in ("seconds", "sent", "peak")}
            sent = f"{most['sent'] / 1e6:.1f} ({expected[stage] / 1e6:.1f})"
            peak = f"{most['peak'] / 1e6:.0f} ({held[stage] / 1e6:.0f})"
            plans = {rank["sha256"][:8] for rank in ranks}
            print(f"| {count} | {stage} | {most['seconds']:.1f} | {sent} | {peak} | {', '.join(plans)} |", flush=True)


def _ranks(what: Measured, count: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        command = [sys.executable, "-m", "benchmarks.scale", "--one", json.dumps(asdict(what))]
        runs = []
        for rank in range(count):
            env = os.environ | {"OMP_NUM_THREADS": "1"}
            if count > 1:
                env |= {
                    "RANK": str(rank),
                    "WORLD_SIZE": str(count),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                }
            runs.append(subprocess.Popen([*command, f"{folder}/{rank}.json"], env=env))
        codes = [run.wait() for run in runs]
        if any(codes):
            raise SystemExit("a process failed")
        return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", choices=SHAPES, help="measure this shape here; without it the formula is printed")
    parser.add_argument("--kinds", nargs="+", choices=PLANS, default=[*PLANS])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--flops", type=float, default=1e14, help="operations that a process does in a second")
    parser.add_argument("--bandwidth", type=float, default=1e10, help="bytes that a process sends in a second")
    parser.add_argument("--model", help="folder of a trained model of the measured shape")
    parser.add_argument("--gguf", help="file in that folder, where it holds one")
    parser.add_argument("--without", nargs="+", type=int, default=[], help="layers to remove: no analysis and repair")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        what, path = asked.one
        Path(path).write_text(json.dumps(one(Measured(**json.loads(what)))))
    elif asked.measure:
        for kind in asked.kinds:
            sizes = (asked.layers, asked.windows, asked.batch)
            measure(Measured(asked.measure, kind, *sizes, asked.model, asked.gguf, asked.without), asked.processes)
    else:
        for name in ("7B", "70B"):
            formula(name, asked.processes, asked.flops, asked.bandwidth)


if __name__ == "__main__":
    main()
