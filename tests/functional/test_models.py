"""Measures that run the models: their contract, every id against a plain formula, degenerate cases."""

import copy
import dataclasses
import json
import math
import pickle

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import nn
from torch.nn import functional as F

import simprune as sp
from simprune import functional
from simprune.functional.gradients import pgd

N, C = 24, 3
HYPER = {
    "adversarial_transferability": {"radius": 0.5},
    "modeldiff": {"radius": 0.5},
    "saliency_cosine_similarity": {},
    "stitching_score": {"layer_a": "3"},
}


class Network(nn.Sequential):
    """Maps, a hidden layer, class scores; works in place, as many networks do."""

    def __init__(self, seed=0, width=4, dtype=torch.float64):
        torch.manual_seed(seed)
        super().__init__(
            nn.Conv2d(2, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.Tanh(),
            nn.Conv2d(width, 5, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Flatten(),
            nn.Linear(45, C),
        )
        self.to(dtype).get_submodule("1").running_mean.normal_()


@pytest.fixture
def models():
    return Network(0), Network(1)


@pytest.fixture
def inputs():
    return torch.randn(N, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def labels(models, inputs):
    """Mostly right for the first model, so that both are right now and then."""
    with torch.no_grad():
        return Network(0).eval()(inputs).argmax(1).where(torch.arange(N) % 4 > 0, torch.arange(N) % C)


@pytest.fixture(params=HYPER)
def measure(request):
    return functional.get(request.param, **HYPER[request.param])


# ---- contract ----


def test_every_id_has_a_contract():
    forms = {id: cls.form for id, cls in functional.classes().items()}
    of_models = {id for id, form in forms.items() if form == "models"}
    assert {id for id in of_models if not functional.classes()[id].gate} == set(HYPER)
    # tests/checks, test_language.py and test_tasks.py check these
    gates = {"block_drift", "greedy_continuation", "multiple_choice_drop", "task_accuracy_drop"}
    assert of_models - set(HYPER) == gates
    assert set(forms.values()) == {"classes", "tokens", "vectors", "multilabel", "maps", "models"}


def test_declares_what_callers_rely_on(measure):
    low, high = type(measure).range
    assert low < high
    assert measure.form == "models" and measure.kind == "statistic"
    assert measure.source and ">>>" in type(measure).__doc__
    assert functional.classes()[measure.id] is type(measure)


def test_is_a_frozen_hashable_plain_dataclass(measure):
    fields = {each.name: getattr(measure, each.name) for each in dataclasses.fields(measure)}
    again = functional.get(measure.id, **fields)
    assert measure == again == copy.copy(measure) == pickle.loads(pickle.dumps(measure))
    assert hash(measure) == hash(again)
    for name in fields:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(measure, name, fields[name])
        with pytest.raises(ValueError, match=rf"{measure.id}: {name} must be"):
            functional.get(measure.id, **fields | {name: object()})


def test_score_is_in_range_and_carries_its_evidence(measure, models, inputs, labels):
    score = measure(*models, inputs, labels=labels)
    low, high = measure.range
    assert score.defined and low <= score <= high
    assert score.count > 0 and score.count + score.skipped == N
    assert json.loads(json.dumps(score.details, allow_nan=False)) == score.details
    if "radius" in HYPER[measure.id]:
        settings = ("norm", "radius", "steps", "step_size", "random_start", "seed")
        assert set(score.details["attack"]) == set(settings)
        assert score.details["attack"]["radius"] == 0.5


def test_a_model_is_like_itself(measure, models, inputs, labels):
    if measure.id == "adversarial_transferability":  # as far as attacks work at all
        measure = dataclasses.replace(measure, radius=5.0)
    best = {"stitching_score": 0.0}.get(measure.id, measure.range[1])
    for twin in (models[0], copy.deepcopy(models[0])):
        score = measure(models[0], twin, inputs, labels=labels)
        assert score == pytest.approx(best, abs=1e-12)
    if measure.id != "stitching_score":  # a joint model may happen to be as right as b
        assert measure(*models, inputs, labels=labels) < best - 1e-6


def test_symmetry_is_as_declared(measure, models, inputs, labels):
    there, back = (measure(*order, inputs, labels=labels) for order in (models, models[::-1]))
    assert (there == pytest.approx(back, abs=1e-12)) == measure.symmetric


def test_batches_give_the_same_as_one_tensor(measure, models, inputs, labels):
    whole = measure(*models, inputs, labels=labels)
    pairs = list(zip(inputs.split(7), labels.split(7), strict=True))
    forms = {
        "pairs": (pairs, None),
        "tensors": ([x for x, _ in pairs], labels),
        "dicts": ([{"input": x, "labels": y} for x, y in pairs], None),
    }
    for batches, given in forms.values():
        score = measure(*models, batches, labels=given)
        assert score == pytest.approx(whole, abs=1e-12)
        assert (score.count, score.skipped) == (whole.count, whole.skipped)


def test_two_runs_are_equal_and_inputs_left_alone(measure, models, inputs, labels):
    kept, state = inputs.clone(), torch.get_rng_state()
    first = measure(*models, inputs, labels=labels)
    with torch.inference_mode():  # nor does it matter where the caller stands
        assert measure(*models, inputs, labels=labels) == first
    with torch.no_grad():
        assert measure(*models, inputs, labels=labels) == first
    assert torch.equal(inputs, kept) and not inputs.requires_grad
    assert torch.equal(torch.get_rng_state(), state)


class Broken(nn.Module):
    def forward(self, x):
        raise RuntimeError("broken")


@pytest.mark.parametrize("broken", [False, True])
def test_models_are_afterwards_as_before(measure, models, inputs, labels, broken):
    a, b = models
    if broken:
        b[6] = nn.Sequential(nn.Flatten(), Broken())
    a.train()
    a[1].eval()
    b.eval()
    a[0].weight.requires_grad_(False)
    a[3].weight.grad = torch.ones_like(a[3].weight)

    def state():
        modules = [module for each in models for module in each.modules()]
        parameters = [each for model in models for each in model.parameters()]
        return (
            [module.training for module in modules],
            [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules],
            [each.requires_grad for each in parameters],
            [None if each.grad is None else each.grad.sum().item() for each in parameters],
            [each.double().sum().item() for model in models for each in model.state_dict().values()],
            torch.backends.mha.get_fastpath_enabled(),
            torch.is_grad_enabled(),
        )

    before = state()
    if broken:
        with pytest.raises(RuntimeError, match="broken"):
            measure(a, b, inputs, labels=labels)
    else:
        measure(a, b, inputs, labels=labels)
    assert state() == before


def test_both_models_run_in_evaluation_mode(measure, models, inputs, labels):
    score = measure(*(each.train() for each in models), inputs, labels=labels)  # dropout, batch statistics
    assert measure(*(each.eval() for each in models), inputs, labels=labels) == score


def test_outputs_are_refused(measure):
    outputs = torch.zeros(2, 3)
    for call in (measure.per_sample, measure.stream().update):
        with pytest.raises(ValueError, match="runs the models"):
            call([outputs, outputs])
    with pytest.raises(ValueError, match="takes models"):
        measure(outputs, outputs, outputs)


class Remembering(Network):
    """Keeps an activation of its last pass, in an attribute, a list and a dict, as some published networks do."""

    def __init__(self, seed=0):
        super().__init__(seed)
        self.seen, self.history, self.by_name = None, [], {}

    def forward(self, x):
        for name, module in self.named_children():
            x = module(x)
            if name == "2":
                self.seen, self.by_name["seen"] = x, x
                self.history.append(x)
        return x


def remembered(model):
    return model.seen, model.history, model.by_name


def test_what_modules_keep_of_a_pass_is_given_up(measure, inputs, labels):
    """Otherwise the model could not be copied, and so not be analysed, after a measure with gradients."""
    a, b = Remembering(0), Remembering(1)
    measure(a, b, inputs, labels=labels)
    for model in (a, b):
        assert remembered(model) == (None, [], {})
        redundancy = sp.analyze(model, [inputs], score="correlation", structures=("channels",))
        assert redundancy.channels


def test_an_attack_gives_up_what_modules_keep_too(inputs, labels):
    model = Remembering()
    pgd(model, inputs, labels, steps=2)
    assert remembered(model) == (None, [], {}) and model.training


class Answer(Network):
    """Answers with a dict that begins with a loss nobody asked for, as of transformers."""

    def forward(self, input):
        return {"loss": None, "logits": super().forward(input)}


def test_an_answer_may_be_a_dict_without_a_loss(measure, models, inputs, labels):
    if measure.id != "stitching_score":
        answers = Answer(0), Answer(1)
        assert measure(*answers, inputs, labels=labels) == measure(*models, inputs, labels=labels)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x, y: ([(x, x, y)], y), r"of length 3; wrap several inputs as \(\(input_1, input_2\), labels\)"),
        (lambda x, y: ([{"input": "text"}], y), "dict of tensors"),
        (lambda x, y: (iter([x]), y), "walked more than once"),
        (lambda x, y: (3, y), "got int"),
        (lambda x, y: ([], y), "no batch"),
        (lambda x, y: (x[:0], y[:0]), "holds no sample"),
        (lambda x, y: ([(x, y)], y), "pass them once"),
        (lambda x, y: ([x], y[:-1]), "labels must"),
        (lambda x, y: ([x], torch.cat([y, y])), "one per input"),
        (lambda x, y: ([3], y), "a batch must be"),
        (lambda x, y: (x.index_fill(0, torch.tensor([1]), math.nan), y), "must be finite"),
    ],
)
def test_bad_inputs_are_one_clear_error(measure, models, inputs, labels, change, message):
    if measure.needs_labels or "labels must" not in message:
        x, y = change(inputs, labels)
        with pytest.raises(ValueError, match=message):
            measure(*models, x, labels=y)


def test_labels_are_checked(measure, models, inputs, labels):
    if measure.needs_labels:
        with pytest.raises(ValueError, match="needs labels"):
            measure(*models, inputs)
        for bad, message in ((labels + C, r"in \[0, 3\)"), (labels.double(), "integer class")):
            with pytest.raises(ValueError, match=message):
                measure(*models, inputs, labels=bad)
    else:
        assert measure(*models, inputs) == measure(*models, inputs, labels=labels)


def test_mixed_inputs_are_refused(measure, inputs, labels):
    model = nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False), nn.Flatten(), nn.Linear(72, C)).double()
    with pytest.raises(ValueError, match="0 is BatchNorm without running statistics"):
        measure(model, model, inputs, labels=labels)


def test_single_precision_is_fine(measure, inputs, labels):
    models = [Network(seed, dtype=torch.float32) for seed in (0, 1)]
    score = measure(*models, inputs.float(), labels=labels)
    assert score == pytest.approx(measure(*(each.double() for each in models), inputs, labels=labels), abs=0.1)


# ---- gradients ----


def cosine(a, b):
    a, b = np.asarray(a).ravel(), np.asarray(b).ravel()
    return a @ b / math.sqrt((a @ a) * (b @ b))


def saliency(models, inputs):
    values = []
    for x in inputs:
        for c in range(C):
            maps = []
            for model in models:
                leaf = x[None].clone().requires_grad_()
                model(leaf.clone())[0, c].backward()
                maps.append(leaf.grad.abs().numpy())
            values.append(cosine(*maps))
    return np.mean(values)


def attacked(model, x, y, norm, radius, steps, step, start):
    """One input after projected ascent on the cross-entropy, written out."""
    change = start.clone()
    for _ in range(steps):
        leaf = (x + change)[None].requires_grad_()
        F.cross_entropy(model(leaf.clone()), y[None]).backward()
        gradient = leaf.grad[0]
        if norm == "linf":
            change = torch.clamp(change + step * gradient.sign(), -radius, radius)
        else:
            change = change + step * gradient / gradient.norm()
            change = change * min(1.0, radius / change.norm().item())
    return x + change


SETTINGS = [
    {"norm": "linf", "radius": 0.3, "steps": 4},
    {"norm": "l2", "radius": 1.0, "steps": 5, "step_size": 0.3},
    {"norm": "linf", "radius": 0.3, "steps": 1, "step_size": 0.3},  # FGSM
]


def by_hand(model, inputs, labels, norm, radius, steps, step_size=None, start=None):
    step = 2.5 * radius / steps if step_size is None else step_size
    start = torch.zeros_like(inputs) if start is None else start
    rows = [
        attacked(model, *row, norm, radius, steps, step, first)
        for *row, first in zip(inputs, labels, start, strict=True)
    ]
    return torch.stack(rows)


def test_saliency_agrees_with_a_loop(models, inputs):
    models = [each.eval() for each in models]
    score = functional.get("saliency_cosine_similarity")(*models, inputs)
    assert score == pytest.approx(saliency(models, inputs), abs=1e-12)
    assert score.details["pairs"] == N * C and score.details["zero_gradients"] == 0
    assert 0 < score.details["standard_error"] < 0.1


def test_saliency_of_a_group_is_the_mean_over_pairs(models, inputs):
    f, group = functional.get("saliency_cosine_similarity"), [*models, Network(3)]
    pairs = [f(group[i], group[j], inputs) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert f.group(group, inputs) == pytest.approx(np.mean(pairs), abs=1e-12)
    with pytest.raises(ValueError, match="at least 2 models; got 1"):
        f.group(group[:1], inputs)


def test_zero_gradients_are_left_out_and_counted():
    a, b = (nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU()) for _ in range(2))
    a[0].weight.data.copy_(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    b[0].weight.data.copy_(torch.tensor([[1.0, 0.0], [1.0, -1.0]]))
    f = functional.get("saliency_cosine_similarity")
    inputs = torch.tensor([[2.0, 1.0], [1.0, 2.0], [-5.0, 0.0]])  # the last leaves all of ReLU's outputs off
    score = f(a, b, inputs)  # |gradients| agree where both are on; b's second output is off for the second input
    assert (score, score.count, score.skipped) == (1.0, 2, 1)
    assert score.details["pairs"] == 3 and score.details["zero_gradients"] == 3
    score = f(a, b, inputs[2:])
    assert not score.defined and "every gradient is zero" in score.reason and score.skipped == 1


def test_tiny_gradients_are_no_zeros():
    a = nn.Linear(2, 2, bias=False, dtype=torch.float64)
    b = copy.deepcopy(a)
    b.weight.data.mul_(1e-200)
    assert functional.get("saliency_cosine_similarity")(a, b, torch.ones(1, 2).double()) == pytest.approx(1, abs=1e-12)


def test_outputs_without_a_gradient_are_refused(inputs, labels):
    class Detached(Network):
        def forward(self, x):
            return super().forward(x).detach()

    for id in ("saliency_cosine_similarity", "modeldiff"):
        with pytest.raises(ValueError, match="Detached does not depend on its inputs"):
            functional.get(id)(Detached(), Network(), inputs, labels=labels)
    assert functional.get("modeldiff")(Network(), Detached(), inputs, labels=labels).defined  # b is a black box
    embedding = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 2))
    with pytest.raises(ValueError, match="one floating-point input"):
        functional.get("saliency_cosine_similarity")(embedding, embedding, torch.zeros(3, 2, dtype=torch.long))


@pytest.mark.parametrize("settings", SETTINGS)
def test_attack_agrees_with_a_loop_and_stays_in_its_ball(models, inputs, labels, settings):
    model = models[0].eval()
    start = 0.1 * torch.randn_like(inputs) / 8
    found = pgd(model, inputs, labels, start=start, **settings)
    assert torch.allclose(found, by_hand(model, inputs, labels, start=start, **settings), atol=1e-9)
    order = math.inf if settings["norm"] == "linf" else 2
    assert torch.linalg.vector_norm((found - inputs).flatten(1), order, dim=1).max() <= settings["radius"] + 1e-12
    with torch.no_grad():
        losses = [F.cross_entropy(model(x), labels) for x in (inputs, found)]
    assert losses[1] > losses[0]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_attack_does_not_stall_where_the_model_is_certain(norm):
    model = nn.Linear(2, 2, bias=False)
    model.weight.data.copy_(1e4 * torch.eye(2))
    found = pgd(model, torch.tensor([[1.0, 0.0]]), torch.tensor([0]), norm, radius=2.0, steps=20)
    assert model(found).argmax(1).item() == 1


@pytest.mark.parametrize("norm, order", [("linf", math.inf), ("l2", 2)])
def test_random_starts_fill_the_ball(norm, order):
    f = functional.get("modeldiff", norm=norm, radius=0.5)
    batch = functional._models.Batch.of(torch.zeros(500, 2, dtype=torch.float64))
    starts = f._starts(batch, torch.Generator().manual_seed(0))
    lengths = torch.linalg.vector_norm(starts, order, dim=1)
    assert lengths.max() <= 0.5
    assert (lengths < 0.25).double().mean() == pytest.approx(0.25, abs=0.06)  # a quarter of the area
    assert starts.mean(0).abs().max() < 0.05
    assert functional.get("modeldiff", random_start=False)._starts(batch, torch.Generator()) is None


@pytest.mark.parametrize("settings", SETTINGS)
def test_transferability_agrees_with_a_loop(models, inputs, labels, settings):
    models = [models[0].eval(), copy.deepcopy(models[0]).eval()]
    with torch.no_grad():
        models[1][7].weight.add_(0.1 * torch.randn(C, 45))
    f = functional.get("adversarial_transferability", random_start=False, **settings)
    score = f(*models, inputs, labels=labels)
    with torch.no_grad():
        right = (models[0](inputs).argmax(1) == labels) & (models[1](inputs).argmax(1) == labels)
    x, y, n = inputs[right], labels[right], int(right.sum())
    hits = {}
    for i, first in zip("ab", models, strict=True):
        found = by_hand(first, x, y, **settings)
        for j, second in zip("ab", models, strict=True):
            with torch.no_grad():
                hits[f"{i}_to_{j}"] = int((second(found).argmax(1) != y).sum())
    crossed = hits["a_to_b"] + hits["b_to_a"]
    assert n > 2 and crossed > 0
    assert (score.count, score.skipped) == (n, N - n)
    assert score == pytest.approx(math.log(100 / (2 * n) * crossed), abs=1e-12)
    assert {name: score.details[name] * n for name in hits} == pytest.approx(hits)
    assert score.details["rate"] == pytest.approx(crossed / (2 * n))
    interval = binomtest(hits["a_to_b"], n).proportion_ci()
    assert score.details["intervals"]["a_to_b"] == pytest.approx([interval.low, interval.high], abs=1e-9)


def test_transferability_without_attack_or_inputs(models, inputs, labels):
    harmless = functional.get("adversarial_transferability", radius=1e-9, epsilon=0.01)
    score = harmless(*models, inputs, labels=labels)
    assert score == harmless.range[0] == math.log(0.01)
    assert score.details["intervals"]["a_to_b"][0] == 0.0
    with torch.no_grad():
        wrong = (models[0].eval()(inputs).argmax(1) + 1) % C
    score = harmless(*models, inputs, labels=wrong)
    assert not score.defined and "no input is right for both models" in score.reason
    assert (score.count, score.skipped) == (0, N)


@pytest.mark.parametrize("settings", SETTINGS)
def test_modeldiff_agrees_with_a_loop(models, inputs, labels, settings):
    models = [each.eval() for each in models]
    score = functional.get("modeldiff", random_start=False, **settings)(*models, inputs, labels=labels)
    found = by_hand(models[0], inputs, labels, **settings)
    with torch.no_grad():
        v = [[cosine(m(x[None]), m(y[None])) for x, y in zip(inputs, found, strict=True)] for m in models]
    assert score == pytest.approx(cosine(*v), abs=1e-9)
    assert score.details["distance"] == pytest.approx(1 - cosine(*v), abs=1e-9)
    assert [score.details["kept_a"], score.details["kept_b"]] == pytest.approx([np.mean(v[0]), np.mean(v[1])], abs=1e-9)


def test_modeldiff_takes_models_with_other_classes(models, inputs, labels):
    other = nn.Sequential(nn.Flatten(), nn.Linear(72, 7)).double()
    assert functional.get("modeldiff")(models[0], other, inputs, labels=labels).defined
    with pytest.raises(ValueError, match="one shape"):
        functional.get("adversarial_transferability")(models[0], other, inputs, labels=labels)


def test_modeldiff_of_zero_outputs_is_undefined(models, inputs, labels):
    models[1][7].weight.data.zero_()
    models[1][7].bias.data.zero_()
    score = functional.get("modeldiff")(*models, inputs, labels=labels)
    assert not score.defined and "zero output" in score.reason and score.skipped == N


def test_the_seed_changes_the_start(models, inputs, labels):
    one, other = (
        functional.get("modeldiff", steps=1, seed=s)(*models, inputs, labels=labels).details["kept_a"] for s in (0, 1)
    )
    assert one != other


@pytest.mark.parametrize(
    "hyper, message",
    [
        ({"radius": 0.0}, "radius must be positive"),
        ({"radius": math.inf}, "radius must be positive"),
        ({"step_size": -1.0}, "step_size must be positive"),
        ({"steps": 0}, "at least one step"),
        ({"norm": "l1"}, "norm must be 'linf' or 'l2'"),
        ({"epsilon": 0.0}, "epsilon must lie"),
    ],
)
def test_bad_attacks_are_refused(hyper, message):
    with pytest.raises(ValueError, match=message):
        functional.get("adversarial_transferability", **hyper)


# ---- stitching ----


def parts(model, cut):
    return nn.Sequential(*list(model)[: cut + 1]), nn.Sequential(*list(model)[cut + 1 :])


def right_share(output, labels):
    return (output.argmax(1) == labels).double().mean().item()


@pytest.mark.parametrize("cut", [0, 3, 6])
def test_direct_matching_agrees_with_numpy(models, inputs, labels, cut):
    a, b = (each.eval() for each in models)
    score = functional.get("stitching_score", layer_a=str(cut))(
        a, b, list(zip(inputs.split(9), labels.split(9), strict=True))
    )
    with torch.no_grad():
        below, wanted = (parts(each, cut)[0](inputs.clone()) for each in (a, b))
        rows = [(each.movedim(1, -1) if each.ndim == 4 else each).flatten(0, -2).numpy() for each in (below, wanted)]
        design = np.hstack([rows[0], np.ones((len(rows[0]), 1))])
        weights, _, rank, _ = np.linalg.lstsq(design, rows[1], rcond=None)
        mapped = torch.from_numpy(design @ weights)
        shape = wanted.movedim(1, -1).shape if wanted.ndim == 4 else wanted.shape
        mapped = mapped.view(shape).movedim(-1, 1) if wanted.ndim == 4 else mapped
        stitched = parts(b, cut)[1](mapped.clone())
        assert score.details["accuracy"] == pytest.approx(right_share(stitched, labels), abs=1e-12)
        assert score == pytest.approx(right_share(stitched, labels) - right_share(b(inputs), labels), abs=1e-12)
        identity = right_share(parts(b, cut)[1](below.clone()), labels) - right_share(b(inputs), labels)
        assert score.details["identity"] == pytest.approx(identity, abs=1e-12)
    error = np.linalg.norm(mapped.numpy() - wanted.numpy()) / np.linalg.norm(rows[1] - rows[1].mean(0))
    assert score.details["relative_error"] == pytest.approx(error, abs=1e-9)
    assert score.details["rows"] == len(design)
    assert cut == 6 or score.details["rank"] == rank - 1
    assert score.details["fit_on_inputs"] and not score.details["bypassed"] and not score.reason


def test_a_linear_change_of_basis_is_undone():
    torch.manual_seed(0)
    a = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, C)).double()
    turn = torch.randn(6, 6, dtype=torch.float64)

    class Turned(nn.Module):
        def forward(self, x):
            return 1e3 + x @ turn

    b = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), Turned(), nn.Linear(6, C)).double()
    b[0].load_state_dict(a[0].state_dict())
    b[3].weight.data = a[2].weight.data @ torch.linalg.inv(turn).T
    b[3].bias.data = a[2].bias.data - b[3].weight.data @ torch.full((6,), 1e3, dtype=torch.float64)
    x = torch.randn(40, 4, dtype=torch.float64)
    y = a(x).argmax(1)
    score = functional.get("stitching_score", layer_a="1", layer_b="2")(a, b, x, labels=y)
    assert score == 0.0
    assert score.details["relative_error"] < 1e-9 and score.details["agreement"] == 1.0
    assert score.details["identity"] < 0


def test_evidence_of_pairs_is_the_paired_formula(models, inputs, labels):
    d = functional.get("stitching_score", layer_a="3")(*models, inputs, labels=labels).details
    change = (d["gained"] - d["lost"]) / N
    assert change == pytest.approx(d["accuracy"] - d["accuracy_b"])
    assert d["penalty"] == pytest.approx(-change)
    expected = math.sqrt(d["gained"] + d["lost"] - N * change**2) / N
    assert d["standard_error"] == pytest.approx(expected) and expected > 0


def test_other_layers_widths_and_sizes(inputs, labels):
    a, b = Network(0, width=7), Network(1)
    f = functional.get("stitching_score", layer_a="2", layer_b="3")
    score = f(a, b, inputs, labels=labels)
    assert score.details["resized"] == [[6, 6], [3, 3]] and score.details["identity"] is None
    assert functional.get("stitching_score", layer_a="2")(a, b, inputs, labels=labels).details["resized"] is None
    with pytest.raises(ValueError, match="of one kind; 2 gives"):
        functional.get("stitching_score", layer_a="2", layer_b="6")(a, b, inputs, labels=labels)


def test_fitting_on_other_data(models, inputs, labels):
    f = functional.get("stitching_score", layer_a="6")
    few = [(inputs[:5], labels[:5])]
    score = f(*models, inputs, labels=labels, fit=few)
    assert score.details["rows"] == 5 and not score.details["fit_on_inputs"]
    assert score.details["rank"] == 4 and score.details["relative_error"] < 1e-9, "5 points fit exactly"
    assert f(*models, *few[0]) != score or score == 0
    with pytest.raises(ValueError, match="in fit"):
        functional.get("stitching_score", layer_a="6", method="task")(*models, inputs, labels=labels, fit=[inputs])


def test_one_sample_and_constant_layers_are_no_exception(models, inputs, labels):
    f = functional.get("stitching_score", layer_a="3")
    assert f(*models, inputs[:1], labels=labels[:1]).defined
    with torch.no_grad():
        models[1][3].weight.zero_()
    score = f(*models, inputs, labels=labels)
    assert score == 0.0 and score.details["relative_error"] is None
    with torch.no_grad():
        models[0][3].weight.zero_()
    assert f(*models, inputs, labels=labels).details["rank"] == 0


class TokenNetwork(nn.Module):
    def __init__(self, seed):
        torch.manual_seed(seed)
        super().__init__()
        self.embed = nn.Embedding(9, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, C)

    def forward(self, x):
        return (self.head(self.norm(self.layer(self.embed(x))).mean(1)), "more")


def test_tokens_and_integer_inputs():
    a, b = TokenNetwork(0), TokenNetwork(1)
    x, y = torch.randint(9, (30, 5)), torch.randint(C, (30,))
    for layer in ("layer", "norm", "layer.norm2"):
        f = functional.get("stitching_score", layer_a=layer)
        assert f(a, copy.deepcopy(a), x, labels=y) == 0.0
        score = f(a, b, x, labels=y)
        assert score.details["bypassed"] is None and score.details["rows"] == 150
    with pytest.raises(ValueError, match="their number must agree"):
        functional.get("stitching_score", layer_a="norm")(a, Shorter(1), x, labels=y)


class Shorter(TokenNetwork):
    def forward(self, x):
        return super().forward(x[:, 1:])


def test_a_layer_that_is_bypassed_gives_a_reason(inputs, labels):
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch, self.join, self.head = nn.Linear(72, 72), nn.Identity(), nn.Linear(72, C)

        def forward(self, x):
            x = x.flatten(1)
            return self.head(self.join(x + self.branch(x)))

    model = Residual().double()
    whole = functional.get("stitching_score", layer_a="join")(model, model, inputs, labels=labels)
    branch = functional.get("stitching_score", layer_a="branch")(model, model, inputs, labels=labels)
    assert (whole.details["bypassed"], whole.reason) == (False, "")
    assert branch.details["bypassed"] and "around branch" in branch.reason


@pytest.mark.parametrize("method", ["task", "soft_labels"])
def test_training_recovers_a_model_from_itself(method, inputs):
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 6), nn.Tanh(), nn.Linear(6, C)).double()
    y = model(inputs).argmax(1)
    f = functional.get("stitching_score", layer_a="2", method=method, epochs=150, lr=0.05, seeds=[0, 1])
    score = f(model, copy.deepcopy(model), list(zip(inputs.split(8), y.split(8), strict=True)))
    assert score >= -0.05
    assert len(score.details["scores"]) == 2 and score == pytest.approx(np.mean(score.details["scores"]))
    lazy = dataclasses.replace(f, epochs=1, lr=1e-6)
    assert lazy(model, model, inputs, labels=y) < score, "it is the training that helps"
    assert lazy(model, model, inputs, labels=y).details["identity"] == 0.0


def test_training_agrees_with_a_loop(models, inputs, labels):
    a, b = (each.eval() for each in models)
    f = functional.get("stitching_score", layer_a="3", method="task", epochs=4, lr=0.1, seeds=(5,))
    score = f(a, b, inputs, labels=labels)
    weight = torch.randn(5, 5, generator=torch.Generator().manual_seed(5)).double() / math.sqrt(5)
    adapter = nn.Conv2d(5, 5, 1).double()
    adapter.weight.data, adapter.bias.data = weight.T[:, :, None, None].clone(), torch.zeros(5).double()
    optimizer = torch.optim.Adam(adapter.parameters(), lr=0.1)
    with torch.no_grad():
        below = parts(a, 3)[0](inputs.clone())
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(parts(b, 3)[1](adapter(below)), labels).backward()
        optimizer.step()
    with torch.no_grad():
        assert score.details["accuracy"] == pytest.approx(right_share(parts(b, 3)[1](adapter(below)), labels))


@pytest.mark.parametrize(
    "hyper, error, message",
    [
        ({"layer_a": "33"}, KeyError, "no module '33'; did you mean '3'"),
        ({"layer_a": "3", "layer_b": "stem"}, KeyError, "no module 'stem'; known: 0, 1"),
        ({"layer_a": ""}, KeyError, "no module ''"),
        ({}, ValueError, "needs layer_a"),
        ({"layer_a": "3", "epochs": 0}, ValueError, "epochs and seeds"),
        ({"layer_a": "3", "seeds": ()}, ValueError, "epochs and seeds"),
    ],
)
def test_bad_layers_are_refused(models, inputs, labels, hyper, error, message):
    with pytest.raises(error, match=message):
        functional.get("stitching_score", **hyper)(*models, inputs, labels=labels)


def test_modules_must_run_once(inputs, labels):
    class Twice(nn.Module):
        def __init__(self, times):
            super().__init__()
            self.times, self.layer, self.head = times, nn.Linear(72, 72), nn.Linear(72, C)

        def forward(self, x):
            x = x.flatten(1)
            for _ in range(self.times):
                x = self.layer(x)
            return self.head(x)

    f = functional.get("stitching_score", layer_a="layer")
    for times in (0, 2):
        model = Twice(times).double()
        with pytest.raises(ValueError, match=f"layer ran {times} times"):
            f(model, model, inputs, labels=labels)
