"""What is wrong with a model or its batches is said in one line that names the argument, in every function."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import simprune as sp
from simprune.core.peekable import WALKS, Peekable
from simprune.trace.first_run import check_module
from simprune.trace.later_runs import batches_in_errors


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


X = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(16) % 3


def exported() -> torch.export.ExportedProgram:
    return torch.export.export(network(), (X,))


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.LazyLinear(3)


class OnMps(nn.Linear):
    """Says that its weight is on a device that this machine does not have."""

    def named_parameters(self, *args, **kwargs):
        yield "weight", SimpleNamespace(is_meta=False, device=torch.device("mps"))


NO_MODULES = {
    "a class": (lambda: nn.Linear, "got the class Linear; give an object of it"),
    "a state dict": (lambda: network().state_dict(), "got a state dict; build the network"),
    "a text": (lambda: "resnet", "got str"),
    "nothing": (lambda: None, "got NoneType"),
    "on mps": (lambda: OnMps(4, 3), r"weight is on mps, .* summed in float64; give (model|small).cpu\(\)"),
    "on meta": (lambda: network().to("meta"), "0.weight is on the meta device and has no values; load the weights"),
    "lazy": (Lazy, "first.weight is lazy and has no shape yet; run the model on one batch first"),
    "compiled": (
        lambda: torch.compile(network(), backend="eager"),
        r"got one from torch.compile; give (model|small)._orig_mod",
    ),
    "in DataParallel": (lambda: nn.DataParallel(network()), r"before DataParallel; give (model|small).module"),
    "a program": (exported, "got a program of torch.export; give the module that was exported"),
    "a graph": (lambda: exported().module(), "got a graph of torch.export; give the module that was exported"),
}
FUNCTIONS = {
    "analyze": lambda model, batches: sp.analyze(model, batches),
    "compress": lambda model, batches: sp.compress(model, calibration=batches),
    "frontier": lambda model, batches: sp.frontier(model, calibration=batches),
    "validate": lambda model, batches: sp.validate(model, network(), batches),
    "validate the smaller": lambda model, batches: sp.validate(network(), model, batches),
}


@pytest.mark.parametrize("kind", NO_MODULES)
def test_what_is_no_module_with_layers_is_refused(kind):
    make, expected = NO_MODULES[kind]
    model = make()
    for function in FUNCTIONS.values():
        with pytest.raises(ValueError, match=expected) as caught:
            function(model, [X])
        assert str(caught.value).startswith(("model: ", "small: ")) and "\n" not in str(caught.value)
    plan = sp.plan(sp.analyze(network(), [X]))
    for function in (lambda: sp.apply(plan, model), lambda: sp.reconstruct(network(), plan, model, [X])):
        with pytest.raises(ValueError, match=expected):
            function()


def test_a_scripted_module_is_refused():
    class Scripted(torch.jit.ScriptModule):  # scripting itself is deprecated, and warns
        pass

    with pytest.raises(ValueError, match="got a TorchScript module; give the module that was scripted"):
        check_module(Scripted())
    with pytest.raises(ValueError, match="model: 1 is a TorchScript module; put the module that was scripted in its"):
        check_module(nn.Sequential(nn.Linear(2, 2), Scripted()))


def test_a_traced_graph_of_layers_is_a_network():
    graph = torch.fx.symbolic_trace(network())
    assert sp.analyze(graph, [X]).channels[0].name == sp.analyze(network(), [X]).channels[0].name


class Demanding(nn.Module):
    """Raises, in its middle, what a check of its input returns."""

    def __init__(self, check):
        super().__init__()
        self.first, self.check, self.last = nn.Linear(4, 12), check, nn.Linear(12, 3)

    def forward(self, x):
        x = self.first(x).relu()
        if reason := self.check(x):
            raise RuntimeError(reason)
        return self.last(x)


def test_a_model_that_runs_on_whole_batches_alone_is_one_line():
    model = nn.Sequential(Demanding(lambda x: "16, please" if len(x) not in (1, 2, 16) else ""))
    with pytest.raises(ValueError, match="but not on parts of them .*RuntimeError: 16, please .*, in 0; ") as caught:
        sp.analyze(model, [X])
    assert "\n" not in str(caught.value)


def test_a_model_that_fails_without_what_a_plan_removes_is_one_line():
    """The proof, with one unit less, has passed."""
    model = Demanding(lambda x: "too narrow" if x.shape[1] < 11 else "")
    plan = sp.plan(sp.analyze(model, [X]), budget={"macs": 0.5})
    with pytest.raises(ValueError, match="does not run without what the edits of first remove: .*too narrow") as caught:
        sp.apply(plan, model)
    assert "in its own forward pass" in str(caught.value) and "\n" not in str(caught.value)


def test_a_model_that_overwrites_what_its_backward_pass_needs_is_one_line():
    class Overwriting(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.last(self.first(x).sigmoid_().add_(1))

    with pytest.raises(ValueError, match="changes a tensor in place that its own backward pass needs"):
        sp.analyze(Overwriting(), [X])


WRONG_BATCHES = {
    "wrong width": (X[:, :3], "batch: RuntimeError: mat1 and mat2 shapes .*; its inputs are (16, 3) of float32"),
    "swapped": ((Y, X), "batches are (inputs, labels), in this order"),
    "half inputs": (X.half(), "its inputs are (16, 4) of float16 and its weights of float32: give both the same type"),
    "one item": ((X[0], 2), "got single inputs with a label each, as of a dataset; give torch.utils.data.DataLoader"),
    "one item, label 0-dim": ((X[0], Y[0]), "got single inputs with a label each"),
    "nothing": ({"labels": Y}, "the batch holds no tensor"),
    "NaN": (X.masked_fill(X > 2, float("nan")) * float("nan"), "batch 1 holds NaN; leave these inputs out"),
}


@pytest.mark.parametrize("kind", WRONG_BATCHES)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_batches_that_the_model_cannot_read_are_one_line(function, kind):
    batch, expected = WRONG_BATCHES[kind]
    name = "test" if function.startswith("validate") else "calibration"
    with pytest.raises(ValueError, match=expected.replace("(", r"\(").replace(")", r"\)")) as caught:
        FUNCTIONS[function](network(), [batch])
    assert name in str(caught.value) and "\n" not in str(caught.value)


def convolutional(channels: int = 3, norm: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(channels, 6, 3), nn.BatchNorm2d(6) if norm else nn.Identity(), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)).eval()


class ByName(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = convolutional()

    def forward(self, pixel_values):
        return self.body(pixel_values)


IMAGES = torch.randn(12, 3, 6, 6, generator=torch.Generator().manual_seed(1))
SINGLE = {
    "tensors": (convolutional, [*IMAGES]),
    "one tensor": (convolutional, IMAGES[0]),
    "without BatchNorm, as many channels as an example has inputs": (
        lambda: convolutional(2, norm=False), [*IMAGES[:, :2]]
    ),
    "one channel": (lambda: convolutional(1), [*IMAGES[:, :1]]),
    "tuples": (convolutional, [(image,) for image in IMAGES]),
    "no labels": (convolutional, [(image, None) for image in IMAGES]),
    "a vector as a label": (convolutional, [(image, torch.eye(3)[0]) for image in IMAGES]),
    "dicts": (ByName, [{"pixel_values": image} for image in IMAGES]),
    "dicts with labels": (ByName, [{"pixel_values": image, "labels": 1} for image in IMAGES]),
    "rows": (network, [*X]),
    "rows as wide as an example has inputs": (lambda: nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3)), [*X[:, :2]]),
    "grey images": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).eval(), [*IMAGES[:, 0]]),
}  # fmt: skip
WALKING = FUNCTIONS | {
    "reestimate": lambda model, batches: sp.reestimate_batchnorm(model, batches),
    "plan": lambda model, batches: sp.plan(analysis(), {"macs": 0.9}, model=model, calibration=batches, finalists=2),
    "reconstruct": lambda model, batches: sp.reconstruct(model, sp.plan(analysis()), model, batches),
}


def analysis() -> sp.Redundancy:
    return sp.analyze(network(), [X])


@pytest.mark.parametrize("kind", SINGLE)
def test_single_inputs_without_a_batch_dimension_are_recognised(kind):
    make, batches = SINGLE[kind]
    for function in (*FUNCTIONS.values(), WALKING["reestimate"]):
        if function is FUNCTIONS["validate the smaller"]:
            continue  # its original takes other inputs
        with pytest.raises(ValueError, match="got a single input, .* without a dimension that counts inputs") as caught:
            function(make(), batches) if function is not FUNCTIONS["validate"] else sp.validate(make(), make(), batches)
        assert str(caught.value).startswith(("calibration: ", "test: ")) and "\n" not in str(caught.value)


def test_networks_that_take_one_dimension_less_are_no_single_inputs():
    class Scaled(nn.Module):  # a layer of which is applied to a vector, and images have no channels
        def __init__(self):
            super().__init__()
            self.scale, self.condition = nn.Linear(4, 6), nn.Parameter(torch.ones(4))
            self.conv, self.head = nn.Conv2d(1, 6, 3), nn.Linear(6, 3)

        def forward(self, x):
            return self.head(self.conv(x[:, None]).mean((2, 3)) * self.scale(self.condition))

    model = Scaled()
    assert sp.validate(model, model, [IMAGES[:, 0]] * 2).outcome == "inconclusive"
    assert sp.analyze(Scaled(), [IMAGES[:, 0]]).inputs["args"][0]["shape"] == [2, 6, 6]


LATER = {
    "other width": (X[:, :3], "the .*model does not run on {} batch 2: RuntimeError: mat1 and mat2"),
    "other type": (X.double(), "the .*model does not run on {} batch 2: .*float64 and its weights of float32"),
    "one row": (X[0], "{}: batch 2 has inputs of 1 dimension"),
    "a text": ("rows", "{}: batch 2: a batch must be a tensor"),
    "numpy": (X.numpy(), "{}: batch 2 holds an array of numpy"),
    "numpy with labels": ((X.numpy(), Y), "{}: batch 2 holds an array of numpy"),
    "nothing": (None, "{}: batch 2: a batch must be a tensor"),
    "empty": (X[:0], "{}: batch 2 has no inputs"),
    "on meta": (X.to("meta"), "{}: batch 2 is on the meta device and has no values; load the data first"),
}


@pytest.mark.parametrize("kind", LATER)
@pytest.mark.parametrize("function", WALKING)
def test_a_later_batch_that_the_model_cannot_read_is_named_with_its_number(function, kind):
    batch, expected = LATER[kind]
    name = "test" if function.startswith("validate") else "calibration"
    with pytest.raises(ValueError, match=expected.format(name)) as caught:
        WALKING[function](network(), [X, batch, X])
    assert "\n" not in str(caught.value)


def test_of_two_models_the_one_that_fails_on_a_later_batch_is_named():
    class Counting(nn.Linear):
        def forward(self, x):
            if len(x) == 5:
                raise RuntimeError("five are too few")
            return super().forward(x)

    with pytest.raises(ValueError, match="the smaller model does not run on test batch 2: .*five are too few"):
        sp.validate(nn.Linear(4, 3), Counting(4, 3), [X, X[:5]])


def test_an_error_that_the_model_itself_does_not_raise_is_passed_on():
    def fail(batch):
        raise ZeroDivisionError

    before = list(WALKS)  # of other tests
    walked = Peekable([X, X], "calibration")
    with pytest.raises(ZeroDivisionError), batches_in_errors({"model": network()}):
        list(map(fail, walked))
    assert list(WALKS) == before


@pytest.mark.parametrize("option", ["train", "test"])
def test_later_batches_of_training_and_tests_are_named_as_well(option):
    batches = {"train": [(X, Y), (X, Y)], "test": [(X, Y), (X, Y)]}
    batches[option][1] = (X[:, :3], Y)
    with pytest.raises(ValueError, match=f"the (smaller )?model does not run on {option} batch 2"):
        sp.compress(network(), calibration=[X], finetune=1, **batches)


def test_a_batch_of_one_input_that_batchnorm_cannot_train_on_is_named():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()
    how = {"epochs": 1, "distill": 0.0, "batchnorm": "train"}
    with pytest.raises(ValueError, match="on train batch 2 in training mode: ValueError: Expected more than 1 value"):
        sp.compress(model, calibration=[X], train=[(X, Y), (X[:1], Y[:1])], finetune=how)


NO_BATCHES = {
    "an array": (X.numpy(), "got an array of numpy"),
    "one pair": ((X, Y), r"got one, \(inputs, labels\); give \[\(inputs, labels\)\]"),
    "a data set": (
        torch.utils.data.TensorDataset(X, Y),
        "got a data set of single inputs, TensorDataset; give .*Loader",
    ),
    "a generator": ((x for x in [X]), r"more than once .*; use list\("),
    "a folder's name": ("data/images", "got the text 'data/images'; load the inputs first"),
    "a number": (3, "more than once .*; got int$"),
}


@pytest.mark.parametrize("kind", NO_BATCHES)
@pytest.mark.parametrize("function", WALKING)
def test_what_are_no_batches_is_refused_with_what_to_give(function, kind):
    batches, expected = NO_BATCHES[kind]
    with pytest.raises(ValueError, match=expected) as caught:
        WALKING[function](network(), batches)
    assert str(caught.value).startswith(("test", "calibration")) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["train", "test"])
def test_training_and_test_batches_are_tried_before_the_work(name):
    seen = []
    model = network()
    model.register_forward_hook(lambda *_: seen.append(1))
    given = {"train": [(X, Y)], "test": [(X, Y)], name: [(X[:, :2], Y)]}
    with pytest.raises(ValueError, match=f"does not run on the first {name} batch"):
        sp.compress(model, calibration=[X], finetune=1, **given)
    assert len(seen) <= 6  # twice for each of the three, to see whether answers are the same


def test_a_half_model_with_float_inputs_says_both_types():
    with pytest.raises(ValueError, match="of float32 and its weights of bfloat16: give both the same type"):
        sp.analyze(copy.deepcopy(network()).bfloat16(), [X])


@pytest.mark.parametrize("number", [1, 2, 3])
def test_nan_is_refused_with_the_number_of_its_batch_and_infinite_masks_are_not(number):
    batches = [X.clone() for _ in range(3)]
    batches[number - 1][5, 2] = float("nan")
    with pytest.raises(ValueError, match=f"calibration: batch {number} holds NaN"):
        sp.analyze(network(), batches)
    masked = [(X, X.masked_fill(X > 0, float("-inf")))]
    assert len(list(Peekable(masked, "calibration"))) == 1


class Detector(nn.Module):
    """Boxes of varying number for every input, or the tensors behind them."""

    def __init__(self, raw: bool, pack=lambda box, score: {"boxes": box, "scores": score}) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.boxes, self.scores = nn.Linear(4, 8), nn.Linear(8, 12), nn.Linear(8, 3)
        self.raw, self.pack = raw, pack

    def forward(self, x):
        x = self.body(x).relu()
        boxes, scores = self.boxes(x).unflatten(1, (3, 4)), self.scores(x)
        if self.raw:
            return [boxes, scores]
        return [self.pack(box[score > 0], score[score > 0]) for box, score in zip(boxes, scores, strict=True)]


@pytest.mark.parametrize("pack", [Detector(False).pack, lambda box, score: [box, score], lambda box, score: box])
def test_detections_by_input_are_refused_and_the_tensors_before_them_are_two_outputs(pack):
    for function in ("analyze", "compress", "validate"):
        with pytest.raises(ValueError, match="give a module that returns the tensors before it") as caught:
            FUNCTIONS[function](Detector(False, pack), [X])
        assert "\n" not in str(caught.value) and "one item per input" in str(caught.value)
    assert [entry.name for entry in sp.analyze(Detector(True), [X]).channels] == ["body"]
    two = [torch.cat([X[:1]] * 2)]  # as many inputs as heads
    assert [entry.name for entry in sp.analyze(Detector(True), two).channels] == ["body"]
