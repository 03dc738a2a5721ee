"""The artefact: readable, editable, refused when wrong."""

import pytest

from simprune.core.plan import Edit, Plan, fingerprint
from tests.networks import build

PLAN = Plan(
    (Edit("block", "blocks.1", reason="like its input"), Edit("channels", "stem.0", (1, 4), 8, "said: «twice»")),
    fingerprint(build("Residual")[0]),
    {"args": [{"shape": [2, 3, 8, 8], "dtype": "float32"}], "kwargs": {}},
    {"macs": 0.5},
    {"name": "greedy"},
    {"macs": 10},
    {"macs": 5},
)


def test_a_round_trip_gives_the_same_plan_and_the_same_bytes(tmp_path):
    PLAN.save(tmp_path / "plan.yaml")
    assert Plan.load(tmp_path / "plan.yaml") == PLAN
    assert Plan.load(tmp_path / "plan.yaml").to_yaml() == (tmp_path / "plan.yaml").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["plan.yaml"]


def test_a_person_can_edit_the_text():
    text = PLAN.to_yaml().replace("[1, 4]", "[4]")
    assert [edit.indices for edit in Plan.from_yaml(text).of_kind("channels")] == [(4,)]


def test_a_file_that_is_cut_off_anywhere_is_refused():
    text = PLAN.to_yaml()
    for end in range(len(text) - 1):  # without its last line break alone it is whole
        with pytest.raises(ValueError, match="plan") as caught:
            Plan.from_yaml(text[:end])
        assert "\n" not in str(caught.value)
    assert Plan.from_yaml(text[:-1]) == PLAN


def test_a_file_from_before_the_mark_is_read():
    old = PLAN.to_dict() | {"simprune_plan": 1}
    del old["end"]
    assert Plan.from_dict(old) == PLAN


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({"args": [{"shape": [1 << 40], "dtype": "float32"}], "kwargs": {}}, "at most 134,217,728 numbers"),
        ({"args": [{"shape": [1 << 26], "dtype": "int8"}] * 3, "kwargs": {}}, "at most 134,217,728 numbers"),
        ({"args": [{"shape": [2, -3], "dtype": "float32"}], "kwargs": {}}, "whole numbers from 0"),
        ({"args": [{"shape": 3, "dtype": "float32"}], "kwargs": {}}, "whole numbers from 0"),
        ({"args": [{"shape": [2.5], "dtype": "float32"}], "kwargs": {}}, "whole numbers from 0"),
        ({"args": [{"shape": [True], "dtype": "float32"}], "kwargs": {}}, "whole numbers from 0"),
        ({"args": [{"shape": [2], "dtype": "load"}], "kwargs": {}}, "dtype: expected one of"),
        ({"args": [{"shape": [2], "dtype": ["float32"]}], "kwargs": {}}, "dtype: expected one of"),
        ({"args": [{"image": {2}}], "kwargs": {}}, "expected shape and dtype"),
        ({"args": [[[[[[[[[[1]]]]]]]]]], "kwargs": {}}, "expected shape and dtype"),
        ({"args": {}, "kwargs": {}}, "expected a list args"),
        ({"args": [], "kwargs": {3: 1}}, "expected names"),
        ({"args": [], "kwargs": {}, "more": 1}, "expected a list args"),
    ],
)
def test_inputs_that_no_example_can_be_built_from_are_refused(inputs, message):
    with pytest.raises(ValueError, match=f"plan: inputs: .*{message}") as caught:
        Plan.from_dict(PLAN.to_dict() | {"inputs": inputs})
    assert len(str(caught.value)) < 300


def test_a_plan_that_is_no_text_is_one_line(tmp_path):
    (tmp_path / "plan.yaml").write_bytes(PLAN.to_yaml().encode("latin-1"))
    with pytest.raises(ValueError, match=r"plan\.yaml: expected a text in UTF-8; got the byte 0xab"):
        Plan.load(tmp_path / "plan.yaml")


@pytest.mark.parametrize(
    "change, message",
    [
        (("budget:", "budget: {a: &x [1], b: *x}\nbudget:"), "the key 'budget' stands there twice"),
        (("planner:", "planner: [1]\nplaner:"), "planner"),
        (("macs: 10", "10: 3"), "original must be a mapping of names"),
        (("end: true", "end: false"), "cut off"),
        (("macs: 10", "macs: .nan"), "plan: original.macs: expected a finite number; got nan"),
        (("macs: 0.5", "macs: .inf"), "plan: budget.macs: expected a finite number; got inf"),
        (("[1, 4]", "[1, 8]"), r"channels \[8\] are out of range; the layer has channels 0 to 7"),
        (("[1, 4]", "[-1, 4]"), "out of range"),
        (("[1, 4]", "[4, 4]"), r"channels \[4\] are listed twice"),
        (("[1, 4]", "[0, 1, 2, 3, 4, 5, 6, 7]"), "leave the layer empty"),
        (("[1, 4]", "[]"), "no channels are listed"),
        (("[1, 4]", "[1.5]"), "whole numbers"),
        (("[1, 4]", "4"), "must be a list"),
        (("name: stem.0", "name: blocks.1.conv1"), "lies inside blocks.1"),
        (("remove: block", "remove: blok"), "remove must be one of"),
        (("indices:", "indexes:"), "unknown key 'indexes'; did you mean 'indices'"),
        (("simprune_plan: 2", "simprune_plan: 99"), "format 99 is not known"),
        (("edits:", "edit:"), "unknown key 'edit'; did you mean 'edits'"),
        (("simprune_plan: 2", "[1"), "not valid YAML"),
        (("fingerprint: ", "fingerprint: 1 #"), "fingerprint must be a str"),
    ],
)
def test_a_wrong_plan_is_one_clear_error(change, message):
    text = PLAN.to_yaml()
    assert change[0] in text
    with pytest.raises(ValueError, match=message) as error:
        Plan.from_yaml(text.replace(*change))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "- 1", "a: 1", "null"])
def test_what_is_no_plan_is_said_so(text):
    with pytest.raises(ValueError, match="expected a simprune plan"):
        Plan.from_yaml(text)


def test_two_edits_of_one_layer_are_refused():
    with pytest.raises(ValueError, match="edited twice"):
        Plan((Edit("channels", "a", (0,), 4), Edit("channels", "a", (1,), 4)), "f", {})


def test_the_fingerprint_ignores_values_and_sees_shapes():
    (one, _), (other, _) = build("Residual"), build("Residual")
    other.head.weight.data += 1
    assert fingerprint(one) == fingerprint(other) != fingerprint(build("Flat")[0])


def test_a_failed_write_leaves_the_old_plan(tmp_path, monkeypatch):
    PLAN.save(tmp_path / "plan.yaml")
    before = (tmp_path / "plan.yaml").read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        Plan((), "other", {}).save(tmp_path / "plan.yaml")
    assert (tmp_path / "plan.yaml").read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        ("[1, 4]", "[4]"),
        ("macs: 0.5", "macs: 0.6"),
        ("like its input", "as it was"),
        ("name: greedy", "date: 2020-01-01"),
    ],
)
def test_a_plan_that_was_edited_says_so(change):
    text = PLAN.to_yaml()
    assert change[0] in text and not Plan.from_yaml(text).edited
    assert Plan.from_yaml(text.replace(*change)).edited
    assert not Plan.from_yaml(Plan.from_yaml(text.replace(*change)).to_yaml()).edited  # as it is written again
    comments = text.replace("\nedits:", "\n# of mine\n\nedits:").replace("[1, 4]", "[4,\n  1]")
    assert not Plan.from_yaml(comments).edited  # the same plan in other words


def test_a_plan_that_does_not_say_what_was_written_counts_as_edited():
    data = PLAN.to_dict()
    del data["sha256"]
    assert Plan.from_dict(data).edited and Plan.from_dict(data) == PLAN
