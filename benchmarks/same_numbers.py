"""Does a change of the code change any number? Plans, analyses, repairs and measures, written to a file and compared.

    python -m benchmarks.same_numbers save FILE.json
    python -m benchmarks.same_numbers compare OLD.json NEW.json

`save` runs everything on small seeded networks and fixed data, on one thread: about two minutes. Run it before a
change and after it, in the same environment on the same machine. `compare` prints every difference with its path and a
count for each section, and exits with 1 if there is one. Texts, plan files among them, must be equal to the byte;
numbers to 1e-12, outputs of repaired networks to 1e-9, relative plus absolute.

Only simprune's public functions are called, so that the file also runs on a commit of another layout: copy it there.
What is refused (a budget out of reach, a measure that needs equal widths) is written down as its error's text.
"""

import argparse
import copy
import json
import math
import platform
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

import simprune as sp
from simprune import functional, measures, zoo

ROWS, BATCHES = 32, 2  # calibration inputs: so many in each batch
CLASSES, VOCABULARY = 10, 40
SPREAD = 0.2  # of weights: transformers begin at a tenth of it, where they are almost linear
SIZES = {"num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40}  # of Hugging Face's networks

CHANNELS, BLOCKS, BOTH = ("channels",), ("blocks",), ("channels", "blocks")
ATTENTION = (("heads",), ("heads", *BOTH), ("sub_blocks",))
PLANS: dict[str, dict[str, Any]] = {
    "greedy": {"budget": {"macs": 0.6}},
    "optimal": {"budget": {"macs": 0.6}},
    "random": {"budget": {"macs": 0.6}, "seed": 3},
    "uniform": {"budget": {"macs": 0.6}},
    "clusters": {"budget": {"macs": 0.6}},
    "greedy, params": {"budget": {"params": 0.5}},
    "optimal, macs and params": {"budget": {"macs": 0.7, "params": 0.7}},
    "optimal, constrained": {"budget": {"macs": 0.8}, "round_to": 2, "min_width": 3, "max_share": 0.75},
    "greedy, out of reach": {"budget": {"macs": 0.001}},
    "threshold": {"budget": {}, "threshold": 0.8},
}
LEAST = 0.85  # of the cost, kept where only heads may go
FEW_PLANS = ("greedy", "optimal", "clusters")  # for every score
CHANNEL_SCORES = (
    "predictability", "correlation", "leave_one_out_cka", "independence", "geometric_median", "weight_cosine",
    "magnitude", "bn_scale", "taylor", "random",
)  # fmt: skip
BLOCK_SCORES = (
    "block_influence", "windows", "leave_one_out", "greedy_leave_one_out", "segments", "clusters", "trend", "consensus",
)  # fmt: skip
SCORED = ("digits", "mobilenet", "vit", "bert")  # networks on which every score is tried
REPAIRED = ("digits", "mobilenet", "vit", "bert", "llama")  # and every repair
REPAIRS = ("none", "fold", "blockwise")  # beside "least_squares"

MEASURES: dict[str, list[dict[str, Any]]] = {  # hyperparameters, where there must or should be others than the defaults
    "cka_deconfounded": [{}, {"psd": False}],
    "cka_minibatch": [{"batch_size": 20}],
    "cka_rbf": [{}, {"threshold": 0.5, "debiased": True}],
    "cka_sparse": [{"top": 10}, {"top": 7, "kernel": "rbf"}],
    "contrasim": [{}, {"steps": 20}],
    "distance_correlation": [{}, {"debiased": True}],
    "gbs": [{}, {"k": 5, "center": True}],
    "geometry_score": [{"repeats": 20, "landmarks": 20}],
    "gradient_cka": [{}, {"sketch": 16, "chunks": 2, "debiased": True}],
    "gradient_nbs": [{}, {"sketch": 16}],
    "gulp": [{}, {"lam": 0.1}],
    "imd": [{}, {"exact_up_to": 10, "probes": 10}],
    "intrinsic_dimension": [{}, {"method": "mle", "k": 5}],
    "linear_regression": [{}, {"target": "second"}],
    "maximum_match": [{"epsilon": 0.5}],
    "mean_cca": [{}, {"denominator": "dim"}],
    "partial_whitening_shape_metric": [{"alpha": 0.5}],
    "permutation_angular": [{}, {"center": False}],
    "permutation_procrustes": [{}, {"center": True}],
    "pwcca": [{}, {"weights": "second"}],
    "relational_knowledge_loss": [{}, {"form": "angle", "triples": 500}],
    "riemannian_distance": [{}, {"reg": 0.1}],
    "rsa": [{}, {"inner": "euclidean", "outer": "pearson"}],
    "rsm_norm_difference": [{}, {"inner": "dot"}],
    "rtd": [{"subsets": 2, "size": 30}],
    "uniformity": [{}, {"t": 1.0, "normalize": False}],
}
CHANCE = ("cka_debiased", "mean_squared_cca", "orthogonal_procrustes")  # also with a null and an interval
FUNCTIONAL: dict[str, list[dict[str, Any]]] = {
    "adversarial_transferability": [{"radius": 0.3}, {"radius": 0.5, "norm": "l2"}],
    "jensen_shannon_divergence": [{}, {"base": math.e}],
    "modeldiff": [{"radius": 0.3}, {"radius": 0.5, "norm": "l2"}],
    "neighbour_overlap": [{}, {"k": 3}],
    "performance_difference": [{}, {"metric": "f1_macro"}],
    "perplexity_change": [{}, {"shift": True}],
    "prediction_difference": [{}, {"p": 2}],
    "prediction_norm_difference": [{}, {"p": 1}],
    "prune_potential": [{"ratios": (0.3, 0.5, 0.7), "delta": 0.05}, {"ratios": (0.5,), "delta": 0.2}],
    "representational_similarity": [{"measure": "cka"}, {"measure": "gulp"}],
    "stable_core": [{}, {"theta": 0.5}],
    "stitching_score": [{"layer_a": "0"}, {"layer_a": "1", "method": "task", "epochs": 2}],
    "surrogate_churn": [{}, {"alpha": 2}],
    "token_agreement": [{}, {"shift": True}],
    "token_kl_divergence": [{}, {"shift": True}],
}
TOLERANCE = {"repaired": 1e-9}  # by section
STRICT = 1e-12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    saving = commands.add_parser("save", help="compute everything and write it")
    saving.add_argument("file", type=Path)
    comparing = commands.add_parser("compare", help="say what differs between two files")
    comparing.add_argument("old", type=Path)
    comparing.add_argument("new", type=Path)
    options = parser.parse_args()
    if options.command == "compare":
        sys.exit(compare(json.loads(options.old.read_text()), json.loads(options.new.read_text())))
    warnings.simplefilter("ignore")  # undefined values are written down
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)  # which asks an attention that has gone for its bias
    with threadpool_limits(1):
        found = compute()
    options.file.write_text(json.dumps(found, indent=1))
    print(f"written to {options.file}: {describe(count(found))}")


def compute() -> dict[str, Any]:
    """All sections: {section: {...: {...: text or number}}}."""
    start = time.perf_counter()

    def say(what: str) -> None:
        print(f"{time.perf_counter() - start:5.0f} s  {what}", flush=True)

    say(f"simprune in {Path(sp.__file__).parent}")
    found: dict[str, Any] = {"about": about(), "measures": measured(), "matrices": matrices()}
    say("measures of representations")
    found["functional"] = answered()
    say("functional measures")
    found |= {"plans": {}, "redundancy": {}, "repaired": {}}
    for name, make in NETWORKS.items():
        network = Network.make(name, make)
        record = Record(found, network)
        record.defaults()
        if name in SCORED:
            record.scores()
        if name in REPAIRED:
            record.repairs()
        say(f"{name}: {describe(count({part: found[part][name] for part in ('plans', 'redundancy', 'repaired')}))}")
    return found


def about() -> dict[str, str]:
    """What numbers may depend on beside the code."""
    packages = ("torch", "numpy", "scipy", "scikit-learn", "torch-pruning", "transformers")
    return {"python": platform.python_version(), "machine": platform.machine()} | {p: version(p) for p in packages}


def attempt(run: Callable[[], Any]) -> Any:
    """The result as plain data, or the text of what was refused."""
    try:
        return plain(run())
    except (ValueError, KeyError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"


def plain(value: Any) -> Any:
    """Numbers, texts, lists and mappings, as JSON has them."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | str) else float(value)


# ---- networks ----


class Encoder(nn.Module):
    """nn.TransformerEncoder on tokens (N, T, 6), with a classifier on the mean token."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(24, 4, 40, batch_first=True, norm_first=True)
        self.embed, self.head = nn.Linear(6, 24), nn.Linear(24, CLASSES)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))


def images() -> list:
    generator = torch.Generator().manual_seed(2)
    pictures = torch.randn(BATCHES, ROWS, 3, 8, 8, generator=generator)
    return list(zip(pictures, torch.randint(CLASSES, (BATCHES, ROWS), generator=generator), strict=True))


def rows_of_tokens() -> list:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randn(BATCHES, ROWS, 5, 6, generator=generator)
    return list(zip(tokens, torch.randint(CLASSES, (BATCHES, ROWS), generator=generator), strict=True))


def sentences() -> list:
    """Token ids of several lengths, padded, with one label a sentence."""
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(3, VOCABULARY, (BATCHES, ROWS, 7), generator=generator)
    lengths = torch.randint(4, 8, (BATCHES, ROWS, 1), generator=generator)
    mask = (torch.arange(7) < lengths).long()
    labels = torch.randint(CLASSES, (BATCHES, ROWS), generator=generator)
    together = zip(ids * mask, mask, labels, strict=True)
    return [{"input_ids": i, "attention_mask": m, "labels": y} for i, m, y in together]


def pixel_values() -> list:
    return [{"pixel_values": pictures, "labels": labels} for pictures, labels in images()]


def written_digits() -> list:
    pictures, labels = digit_tensors()
    taken = slice(1000, 1000 + BATCHES * ROWS)
    return list(zip(pictures[taken].split(ROWS), labels[taken].split(ROWS), strict=True))


def digit_tensors() -> tuple[Tensor, Tensor]:
    pixels, labels = load_digits(return_X_y=True)
    return torch.tensor(pixels / 16, dtype=torch.float32).reshape(-1, 1, 8, 8), torch.tensor(labels)


def lively(model: nn.Module, batches: list) -> nn.Module:
    """Weights are large enough for curvature, nothing stays at zero or one, BatchNorm has seen the batches."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter += 0.2 * noise
            elif parameter.std() < SPREAD:
                parameter.copy_(SPREAD * noise)
        if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
            for batch, _ in 10 * batches:
                model.train()(batch)
    return model.eval()


def trained_digits(model: nn.Module, epochs: int = 4) -> nn.Module:
    """Trained on a thousand handwritten digits: its numbers are those of a real network."""
    pictures, labels = (each[:1000] for each in digit_tensors())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(epochs):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(epoch))
        for some in order.split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model.train()(pictures[some]), labels[some]).backward()
            optimizer.step()
    return model.eval()


def bert() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=24, max_position_embeddings=16, num_labels=CLASSES, **SIZES
    )
    return transformers.BertForSequenceClassification(config)


def hugging_face_vit() -> nn.Module:
    config = transformers.ViTConfig(image_size=8, patch_size=4, hidden_size=24, num_labels=CLASSES, **SIZES)
    return transformers.ViTForImageClassification(config)


def llama() -> nn.Module:
    """Grouped-query attention: two query heads share a key/value head."""
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
    config = transformers.LlamaConfig(vocab_size=VOCABULARY, hidden_size=48, use_cache=False, **(SIZES | heads))
    return transformers.LlamaForCausalLM(config)


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=24, n_layer=3, n_head=4, n_positions=16, use_cache=False,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


@dataclass(frozen=True)
class Recipe:
    """How a network is built, its calibration batches, and whether it has attention heads."""

    build: Callable[[], nn.Module]
    batches: Callable[[], list] = images
    heads: bool = False
    trained: bool = False


NETWORKS = {
    "digits": Recipe(
        lambda: zoo.ResidualCNN(in_channels=1, widths=(8, 16), depths=(2, 3)), written_digits, trained=True
    ),
    "resnet": Recipe(lambda: zoo.ResidualCNN(widths=(6, 12), depths=(2, 3), shortcut="A")),
    "vgg": Recipe(lambda: zoo.VGG(widths=(8, 12), depths=(1, 2), hidden=16)),
    "mobilenet": Recipe(lambda: zoo.MobileNet(widths=(6, 8), depths=(2, 2), expansion=2, last=16)),
    "densenet": Recipe(lambda: zoo.DenseNet(depths=(2, 2), growth=4, stem=6)),
    "inception": Recipe(lambda: zoo.Inception(widths=(4, 6), stem=8)),
    "convnext": Recipe(lambda: zoo.ConvNeXt(widths=(8, 12), depths=(2, 2), expansion=2)),
    "unet": Recipe(lambda: zoo.UNet(widths=(8, 12), groups=2)),
    "vit": Recipe(lambda: zoo.ViT(size=8, width=24, depth=3, heads=4, hidden=40), heads=True),
    "vit, separate": Recipe(lambda: zoo.ViT(size=8, width=16, depth=2, heads=4, hidden=24, fused=False), heads=True),
    "encoder": Recipe(Encoder, rows_of_tokens, heads=True),
    "bert": Recipe(bert, sentences, heads=True),
    "hugging face vit": Recipe(hugging_face_vit, pixel_values, heads=True),
    "llama": Recipe(llama, sentences, heads=True),
    "gpt2": Recipe(gpt2, sentences, heads=True),
}


@dataclass(frozen=True)
class Network:
    """A network in evaluation mode and its calibration batches."""

    name: str
    model: nn.Module
    batches: list
    heads: bool

    @classmethod
    def make(cls, name: str, recipe: Recipe) -> "Network":
        torch.manual_seed(0)
        model, batches = recipe.build(), recipe.batches()
        model = trained_digits(model) if recipe.trained else lively(model, batches)
        return cls(name, model, batches, recipe.heads)

    @property
    def structures(self) -> tuple[tuple[str, ...], ...]:
        return (CHANNELS, BLOCKS, BOTH, *(ATTENTION if self.heads else ()))

    def output(self, model: nn.Module) -> dict[str, float]:
        """What an output is known by; the weighted sum tells its entries apart."""
        with torch.no_grad():
            found = torch.cat([_output(model, batch) for batch in self.batches]).double().flatten()
        weights = torch.linspace(-1, 1, len(found), dtype=torch.float64)
        sums = {"mean": found.mean(), "absolute sum": found.abs().sum(), "weighted sum": found @ weights}
        return {key: float(value) for key, value in sums.items()}


def _output(model: nn.Module, batch: Any) -> Tensor:
    if isinstance(batch, Mapping):
        return model(**{key: value for key, value in batch.items() if key != "labels"}).logits
    return model(batch[0])


# ---- plans, analyses, repairs ----


@dataclass(frozen=True)
class Record:
    """Writes what comes of one network to the sections."""

    found: dict[str, Any]
    network: Network

    def defaults(self) -> None:
        """Default scores, every combination of structures, every planner; two plans each are applied and repaired."""
        self._write("repaired", "original", "output", self.network.output(self.network.model))
        for structures in self.network.structures:
            at = "+".join(structures)
            redundancy = self._analysis(at, PLANS, structures=structures)
            if redundancy is not None:
                for planner in ("greedy", "random"):  # the second mixes all structures
                    self._repair(at, redundancy, "least_squares", planner)

    def scores(self) -> None:
        """Every other score of channels, heads and blocks; another measure; what stands in for blocks; trials."""
        for score in CHANNEL_SCORES:
            self._analysis(f"channels by {score}", FEW_PLANS, structures=CHANNELS, score=score)
        if self.network.heads:
            for score in ("magnitude", "predictability", "taylor"):
                self._analysis(f"heads by {score}", FEW_PLANS, structures=("heads",), score=score)
        for score in BLOCK_SCORES:
            self._analysis(f"blocks by {score}", FEW_PLANS, structures=BLOCKS, block_score=score)
        self._analysis("both by windows and predictability", FEW_PLANS, block_score="windows", score="predictability")
        for measure in ("gulp", "mean_cca"):
            self._analysis(f"blocks by similarity, {measure}", FEW_PLANS, structures=BLOCKS, measure=measure)
        for replace in ("linear", "mean"):
            at = f"blocks replaced, {replace}"
            redundancy = self._analysis(at, FEW_PLANS, structures=BLOCKS, replace=replace)
            if redundancy is not None:
                self._repair(at, redundancy, "least_squares")
        self._analysis("both with trials", FEW_PLANS, structures=BOTH, trials=(0.3,))

    def repairs(self) -> None:
        """Every repair, of the fullest structures; finalists, which are chosen by their repair."""
        structures = ("heads", *BOTH) if self.network.heads else BOTH
        model, batches = self.network.model, self.network.batches
        redundancy = sp.analyze(model, batches, structures=structures)
        for method in REPAIRS:
            self._repair("+".join(structures), redundancy, method, "random")
        contest = {"budget": {"macs": 0.6}, "finalists": 3, "model": model, "calibration": batches}
        self._write("plans", "+".join(structures), "finalists", attempt(lambda: _text(redundancy, "greedy", contest)))

    def _analysis(self, at: str, plans: Sequence[str] | Mapping[str, Any], **options: Any) -> Any:
        """Analyze once, plan in several ways; None where the analysis is refused."""
        try:
            redundancy = sp.analyze(self.network.model, self.network.batches, **options)
        except (ValueError, KeyError) as error:
            self._write("plans", at, "analysis", f"{type(error).__name__}: {' '.join(str(error).split())}")
            return None
        self._write("redundancy", at, "analysis", plain(redundancy.to_dict()))
        for name in plans:
            planner, arguments = name.split(",")[0], PLANS[name] | {"budget": _budget(at, PLANS[name]["budget"])}
            text = attempt(lambda planner=planner, arguments=arguments: _text(redundancy, planner, arguments))
            self._write("plans", at, name, text)
        return redundancy

    def _repair(self, at: str, redundancy: Any, method: str, planner: str = "greedy") -> None:
        """Plan, apply, repair."""
        arguments = PLANS[planner] | {"budget": _budget(at, PLANS[planner]["budget"])}
        value = attempt(lambda: self._repaired(sp.plan(redundancy, planner=planner, **arguments), method))
        self._write("repaired", at, f"{planner}, {method}", value)

    def _repaired(self, plan: sp.Plan, method: str) -> dict[str, Any]:
        """The output after apply, and after the repair."""
        model = self.network.model
        small = sp.apply(plan, model)
        before = self.network.output(small)
        repaired = copy.deepcopy(small)
        sp.reconstruct(repaired, plan, model, self.network.batches, method=method)
        return {"applied": before, "repaired": self.network.output(repaired)}

    def _write(self, section: str, at: str, name: str, value: Any) -> None:
        self.found[section].setdefault(self.network.name, {}).setdefault(at, {})[name] = value


def _budget(at: str, budget: Mapping[str, float]) -> dict[str, float]:
    """Heads alone cannot save much."""
    alone = at.split()[0] == "heads"
    return {kind: max(share, LEAST) if alone and share > 0.1 else share for kind, share in budget.items()}


def _text(redundancy: Any, planner: str, arguments: Mapping[str, Any]) -> str:
    return sp.plan(redundancy, planner=planner, **arguments).to_yaml()


# ---- measures ----


def representations() -> dict[str, Tensor]:
    """Rows of 60 inputs of four classes with a shared signal: a and c of one width, b narrower, d and e wider."""
    generator = torch.Generator().manual_seed(5)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    signal = noise(60, 5) + 2 * noise(4, 5)[torch.arange(60) % 4]
    return {name: signal @ noise(5, width) + 0.5 * noise(60, width) for name, width in WIDTHS.items()}


WIDTHS = {"a": 12, "b": 9, "c": 12, "d": 70, "e": 70, "extra": 7}
LABELS = torch.arange(60) % 4


def measured() -> dict[str, Any]:
    """Values of pairs and of single representations by every measure."""
    rows = representations()
    return {
        f"{name} {options or ''}".strip(): attempt(lambda name=name, options=options: _values(name, options, rows))
        for name in measures.names()
        for options in MEASURES.get(name, [{}])
    }


def _measure(name: str, options: Mapping[str, Any], rows: Mapping[str, Tensor]) -> Any:
    """Learned ones are fitted; without options they say that they are not."""
    measure = measures.get(name, **options)
    return measure.fit({key: rows[key] for key in "abcde"}) if name == "contrasim" and options else measure


def _values(name: str, options: Mapping[str, Any], rows: Mapping[str, Tensor]) -> dict[str, Any]:
    measure = _measure(name, options, rows)
    more = dict.fromkeys(measure.extras, rows["extra"])
    pairs = ("ab", "ba", "ac", "ca", "aa", "de")
    found = {
        pair: attempt(lambda pair=pair: measure(rows[pair[0]], rows[pair[1]], labels=LABELS, **more)) for pair in pairs
    }
    single = {key: value.float() for key, value in rows.items()}
    more = dict.fromkeys(measure.extras, single["extra"])
    found["ac, float32"] = attempt(lambda: measure(single["a"], single["c"], labels=LABELS, **more))
    found["description"] = attempt(lambda: measure.describe(rows["a"], labels=LABELS, **more))
    return found


def matrices() -> dict[str, Any]:
    """All pairs together by every measure; with chance and intervals by some."""
    rows = representations()
    found = {name: attempt(lambda name=name: _matrix(name, rows)) for name in measures.names()}
    return found | {f"{name}, chance": attempt(lambda name=name: _chance(name, rows)) for name in CHANCE}


def _matrix(name: str, rows: Mapping[str, Tensor]) -> Any:
    measure = _measure(name, MEASURES.get(name, [{}])[-1], rows)
    more = dict.fromkeys(measure.extras, rows["extra"])
    return measures.matrix(measure, {key: rows[key] for key in "ac"}, LABELS, **more).values


def _chance(name: str, rows: Mapping[str, Tensor]) -> dict[str, Any]:
    chosen = {key: rows[key] for key in "abc"}
    result = measures.matrix(name, chosen, null="permuted", bootstrap=10, repeats=10, seed=1, resample_inputs=40)
    return {"values": result.values, "null": vars(result.null), "interval": vars(result.interval)}


def answered() -> dict[str, Any]:
    """Scores of one to four models' outputs by every functional measure."""
    given = outputs()
    return {
        f"{name} {options or ''}".strip(): attempt(lambda name=name, options=options: _scores(name, options, given))
        for name in functional.names()
        for options in FUNCTIONAL.get(name, [{}])
    }


def outputs() -> dict[str, tuple[list, tuple, Any]]:
    """By form: outputs of four models (or the models), what else a measure takes, labels."""
    generator = torch.Generator().manual_seed(6)

    def alike(*shape: int) -> list[Tensor]:
        common = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return [common + 0.8 * torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(4)]

    logits, tokens = alike(80, 5), alike(10, 8, 6)
    truth, words = (sum(each).argmax(-1) for each in (logits, tokens))
    truth[::5], words[::3, ::2], words[1, 5:] = truth[::5].flip(0), 1, -100
    inputs = torch.randn(80, 6, generator=generator)
    models = [_perceptron(seed, inputs, truth) for seed in range(4)]
    plain_ones = dict.fromkeys(("classes", "vectors", "multilabel"), (logits, (), truth))
    return plain_ones | {"tokens": (tokens, (), words), "models": (models, (inputs,), truth)}


def _perceptron(seed: int, inputs: Tensor, truth: Tensor) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 5))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), truth).backward()
        optimizer.step()
    return model.eval()


def _scores(name: str, options: Mapping[str, Any], given: Mapping[str, tuple[list, tuple, Any]]) -> dict[str, Any]:
    if "measure" in options:
        options = {**options, "measure": measures.get(options["measure"])}
    measure = functional.get(name, **options)
    every, more, labels = given[measure.form]
    found = {"pair": attempt(lambda: _evidence(measure(every[0], every[1], *more, labels=labels)))}
    for size in (1, 2, 3, 4):
        some = every[:size]
        found[f"group of {size}"] = attempt(lambda some=some: _evidence(measure.group(some, *more, labels=labels)))
    found["without labels"] = attempt(lambda: _evidence(measure(every[0], every[1], *more)))
    return found


def _evidence(score: Any) -> dict[str, Any]:
    said = {key: getattr(score, key) for key in ("count", "skipped", "reason", "details")}
    return {"score": float(score), **said}


# ---- comparison ----


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> int:
    """Print what differs; 1 if anything does."""
    for key, value in old["about"].items():
        if new["about"].get(key) != value:
            print(f"note: {key} is another: {value}, then {new['about'].get(key)}")
    found: Counter[str] = Counter()
    sections = [key for key in dict.fromkeys([*old, *new]) if key != "about"]
    for section in sections:
        tolerance = TOLERANCE.get(section, STRICT)
        for path, said in differences(old.get(section, {}), new.get(section, {}), section, tolerance):
            found[section] += 1
            print(f"{path}: {said}")
    held = count(old)
    print("; ".join(f"{section}: {found[section]} of {held[section]} differ" for section in sections))
    return 1 if found else 0


def differences(old: Any, new: Any, path: str, tolerance: float) -> Iterator[tuple[str, str]]:
    """(path, what differs) of every text and number."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            if key not in old or key not in new:
                yield f"{path} / {key}", "is new" if key not in old else "is missing"
            else:
                yield from differences(old[key], new[key], f"{path} / {key}", tolerance)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for place, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from differences(one, other, f"{path} [{place}]", tolerance)
    elif not same(old, new, tolerance):
        yield path, shown(old, new)


def same(old: Any, new: Any, tolerance: float) -> bool:
    """Numbers up to the tolerance, NaN equal to itself; everything else exactly, in type too."""
    if type(old) is not type(new):
        return False
    if not isinstance(old, float) or old == new:
        return old == new
    if math.isnan(old) or math.isnan(new):
        return math.isnan(old) and math.isnan(new)
    return math.isfinite(old) and math.isfinite(new) and abs(old - new) <= tolerance * (1 + abs(old))


def shown(old: Any, new: Any) -> str:
    """Both values; of texts of several lines the first line that differs, and how many do."""
    if not (isinstance(old, str) and isinstance(new, str)):
        return f"{old!r}, then {new!r}"
    before, after = old.splitlines(), new.splitlines()
    unlike = [place for place in range(max(len(before), len(after))) if before[place : place + 1] != after[place:][:1]]
    if not unlike:
        return "line ends differ"
    first = unlike[0]
    one, other = ("".join(lines[first : first + 1]) for lines in (before, after))
    where = f"line {first + 1}, {len(unlike)} lines differ: " if max(len(before), len(after)) > 1 else ""
    return f"{where}{one!r}, then {other!r}"


def count(found: Mapping[str, Any]) -> dict[str, int]:
    """How many texts and numbers each section holds."""
    return {section: _leaves(value) for section, value in found.items() if section != "about"}


def _leaves(value: Any) -> int:
    if isinstance(value, dict | list):
        return sum(_leaves(each) for each in (value.values() if isinstance(value, dict) else value))
    return 1


def describe(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {section}" for section, number in counts.items())


if __name__ == "__main__":
    main()
