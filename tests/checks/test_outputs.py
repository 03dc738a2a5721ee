"""Gates on models with several outputs, and on maps: nothing is left unchecked without a word."""

import pytest
import torch
from torch import Tensor, nn

from simprune.checks import Gate, Verdict, check, validate
from simprune.report.verdict import label

N = 40


class Heads(nn.Module):
    """Class scores, a map of class scores, and a vector, under the names that a function gives them."""

    def __init__(self, pack, noise=(0.0, 0.0, 0.0)) -> None:
        super().__init__()
        self.pack, self.noise = pack, noise
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor):
        generator = torch.Generator().manual_seed(0)
        outputs = [x.mean((2, 3)), x, x.mean(1, keepdim=True).mean((2, 3))]
        return self.pack(
            *(
                y + noise * torch.randn(y.shape, generator=generator)
                for y, noise in zip(outputs, self.noise, strict=True)
            )
        )


def named(scores, pixels, vector):
    return {"scores": scores, "pixels": pixels, "vector": vector}


INPUTS = torch.randn(N, 3, 4, 4, generator=torch.Generator().manual_seed(1))
SCENES = [(INPUTS[:20], INPUTS[:20].argmax(1)), (INPUTS[20:], INPUTS[20:].argmax(1))]


def outcomes(verdict: Verdict) -> dict[str, str]:
    return {result.gate.label: result.outcome for result in verdict.results}


@pytest.mark.parametrize("spoiled", range(3))
def test_by_default_every_output_has_gates_that_fit_it(spoiled):
    noise = tuple(3.0 * (index == spoiled) for index in range(3))
    verdict = validate(Heads(named), Heads(named, noise), SCENES)
    by_output = {"scores": [], "pixels": [], "vector": []}
    for result in verdict.results:
        by_output[result.gate.output].append((result.gate.measure, result.outcome))
    assert [name for name, _ in by_output["pixels"]] == ["miou_drop", "max_class_iou_drop", "pixel_disagreement"]
    assert [name for name, _ in by_output["vector"]] == ["relative_error"]
    failed = {name for name, gates in by_output.items() if any(outcome == "fail" for _, outcome in gates)}
    assert failed == {["scores", "pixels", "vector"][spoiled]}


@pytest.mark.parametrize("output", ["pixels", 1])
def test_a_gate_names_its_output(output):
    gate = Gate("pixel_disagreement", limit=0.05, output=output)
    verdict = validate(Heads(named), Heads(named, (3.0, 0.0, 3.0)), SCENES, [gate])
    assert verdict.results[0].value == 0 and verdict.results[0].gate.label == f"pixel_disagreement of {output}"
    assert verdict.notes == (
        "no gate checks the outputs scores, vector; a gate checks what its `output` names, by default scores",
    )
    again = Verdict.from_dict(verdict.to_dict())
    assert again == verdict and label(verdict.to_dict()["gates"][0]) == gate.label
    assert f"pixel_disagreement of {output}" in verdict.table()


def test_a_tuple_is_named_by_positions():
    gates = [Gate("miou_drop", limit=0.02, output="1"), Gate("relative_error", limit=0.1, output=2)]
    verdict = validate(Heads(lambda *y: y), Heads(lambda *y: y, (0.0, 3.0, 0.0)), SCENES, gates)
    assert verdict.results[0].outcome == "fail" and verdict.results[1].value == 0


@pytest.mark.parametrize(
    ("output", "message"), [("pixel", "no output 'pixel'; did you mean"), (3, "give 3 outputs: scores, pixels, vector")]
)
def test_an_unknown_output_is_one_clear_error(output, message):
    with pytest.raises(ValueError, match=message):
        validate(Heads(named), Heads(named), SCENES, [Gate("relative_error", limit=0.1, output=output)])
    for wrong in (1.5, True, ["a"]):
        with pytest.raises(ValueError, match="must be a name or a number"):
            Gate("relative_error", limit=0.1, output=wrong)
    with pytest.raises(ValueError, match="leave output out"):
        Gate("block_drift", limit=0.1, output="a")


def test_a_loss_is_not_what_gates_check():
    def with_loss(scores, pixels, vector):
        return {"loss": scores.square().mean(), "logits": scores}

    data = [(INPUTS, INPUTS.mean((2, 3)).argmax(1))]
    verdict = validate(Heads(with_loss), Heads(with_loss, (3.0, 0.0, 0.0)), data)
    assert "accuracy_drop" in outcomes(verdict) and verdict.outcome == "fail" and not verdict.notes


def test_labels_are_those_of_the_main_output_and_of_others_with_its_classes():
    def exits(scores, pixels, vector):
        return {"coarse": torch.cat([scores, scores], 1), "early": scores + 0, "logits": scores}

    data = [(INPUTS, INPUTS.mean((2, 3)).argmax(1))]
    verdict = validate(Heads(exits), Heads(exits), data)
    drops = {result.gate.output for result in verdict.results if result.gate.measure == "accuracy_drop"}
    assert drops == {"early", "logits"} and verdict.results[0].gate.output == "coarse"


@pytest.mark.parametrize("pack", [named, lambda *outputs: outputs])
def test_labels_by_output_are_those_of_their_outputs(pack):
    """The pruned model turns one output around; gates see it at that output, whatever the main one is."""
    scores, pixels = INPUTS.mean((2, 3)).argmax(1), INPUTS.argmax(1)
    model, turned = Heads(pack), Heads(lambda a, b, c: pack(a, b.flip(1), c))
    labels = pack(scores, pixels, None)
    verdict = validate(model, turned, [(INPUTS, labels)])
    name = [*labels][1] if isinstance(labels, dict) else "1"
    drops = {(result.gate.measure, result.gate.output): result.value for result in verdict.results}
    main = "scores" if name == "pixels" else "0"
    assert drops["accuracy_drop", main] == 0 and drops["miou_drop", name] > 0.5


@pytest.mark.parametrize(
    "labels, message",
    [
        ({"boxes": INPUTS}, "labels of the outputs scores, pixels, vector; got some of boxes"),
        ([{"boxes": INPUTS}] * N, "got some of 0.boxes"),
        ({"pixels": INPUTS.argmax(1)}, "those of the main output first, scores, or None for it; got pixels"),
        ({"scores": object()}, "got a object"),
    ],
)
def test_labels_that_fit_no_output_are_one_line(labels, message):
    with pytest.raises(ValueError, match=message):
        validate(Heads(named), Heads(named), [(INPUTS, labels)])


@pytest.mark.parametrize("labelled", [True, False])
def test_one_map_has_gates_that_fit_it_by_default(labelled):
    def pixels(_, y, __):
        return y

    data = SCENES if labelled else [x for x, _ in SCENES]
    verdict = validate(Heads(pixels), Heads(pixels, (0.0, 3.0, 0.0)), data)
    assert ("miou_drop" in outcomes(verdict)) == labelled and verdict.outcome == "fail"
    assert labelled or [*outcomes(verdict)] == ["relative_error"]
    same = validate(Heads(pixels), Heads(pixels), data)
    assert "fail" not in outcomes(same).values()


def test_rows_of_a_detector_have_a_gate_by_default():
    """(N, channels, anchors) and (N, tokens, features) without labels are compared as they are."""

    def anchors(_, y, __):
        return y.flatten(2)

    data = [x for x, _ in SCENES]
    assert [*outcomes(validate(Heads(anchors), Heads(anchors), data))] == ["relative_error"]


def test_bounds_of_pixels_are_over_images():
    """Pixels that all change together in an image tell as much as one image; repeating them narrows no bound."""
    wrong = torch.arange(N) % 8 == 0
    small = torch.where(wrong[:, None, None, None], -INPUTS, INPUTS)
    verdicts = [
        check(
            x.repeat_interleave(times, 3), y.repeat_interleave(times, 3), gates=[Gate("pixel_disagreement", limit=0.2)]
        )
        for times in (1, 16)
        for x, y in [(INPUTS, small)]
    ]
    first, many = (verdict.results[0] for verdict in verdicts)
    assert first.upper == pytest.approx(many.upper) and first.count == many.count == N
    assert first.upper - first.value > 0.04  # of independent pixels, 640 of them, it would be half of that


def test_other_outputs_or_other_shapes_are_one_clear_error():
    with pytest.raises(ValueError, match="both models must give the same outputs"):
        validate(Heads(named), Heads(lambda *y: y), SCENES)
    with pytest.raises(ValueError, match=r"disagreement of pixels needs class scores \(N, C\); .*segmentation"):
        validate(Heads(named), Heads(named), SCENES, [Gate("disagreement", limit=0.1, output="pixels")])
