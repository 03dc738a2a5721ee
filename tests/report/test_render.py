"""The page is self-contained, escapes everything, and says what the report says."""

import copy
import json
import math
import re
from functools import cache
from html.parser import HTMLParser

import pytest

from simprune.report import render
from simprune.report.units import DASH, MINUS

FILES = ("plan.yaml", "model.safetensors", "report.json", "recipe.yaml")
VOID = {"meta", "link", "br", "wbr", "img", "hr", "input"}


class Page(HTMLParser):
    """Collects tags, attributes and text; fails on a tag that is not closed in order."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(html)
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)


@cache
def _rendered(report: str) -> str:
    return render(json.loads(report))


def page_of(report: dict) -> Page:
    """The page of a report; the charts of equal reports are drawn once."""
    return Page(_rendered(json.dumps(report)))


@pytest.fixture(params=["rich", "minimal", "long", "empty"])
def any_report(request):
    return {} if request.param == "empty" else request.getfixturevalue(request.param)


def test_every_page_is_well_formed_and_loads_nothing(any_report):
    html = render(any_report, {"budget": {"macs": 0.5}}, FILES)
    page = Page(html)
    assert [value for name, value in page.attributes if name == "href"] == [*FILES]
    assert "macs: 0.5" in html
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on")
        assert name not in ("src", "srcset")
        assert name != "href" or value in FILES
        assert name != "xlink:href" or value.startswith(("#", "data:image/png;base64,"))
    assert not re.search(r"https?://|@import|@font-face|url\((?!#)", html)
    assert "default-src 'none'" in html


def test_the_same_report_gives_the_same_page_and_is_not_changed(any_report):
    before = copy.deepcopy(any_report)
    assert render(any_report) == render(any_report)
    assert any_report == before


def test_ids_are_unique_and_labels_point_to_them(rich):
    attributes = page_of(rich).attributes
    ids = [value for name, value in attributes if name == "id"]
    assert len(set(ids)) == len(ids)
    assert {value for name, value in attributes if name == "aria-labelledby"} <= set(ids)


EVIL = "\"><script>alert('x')</script>&{{ 7 * 7 }}"


def poisoned(value):
    """The report with every free text replaced by an attack."""
    if isinstance(value, dict):
        fixed = ("kind", "remove", "outcome")
        return {
            key if key in KNOWN else EVIL + str(key): item if key in fixed else poisoned(item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    return value + EVIL if isinstance(value, str) else value


KNOWN = {
    "simprune", "seed", "settings", "stages", "redundancy", "plan", "reconstruction", "finetuning",
    "verdict", "notes", "environment", "name", "accuracy", "agreement", "macs", "params", "bytes",
    "latency_ms", "entries", "unprunable", "similarity", "kind", "size", "nearest", "order", "share",
    "neighbour", "reason", "measure", "names", "values", "edits", "remove", "indices", "of", "layer",
    "before", "after", "epoch", "loss", "outcome", "count", "gates", "value", "lower", "upper", "limit",
    "confidence", "detail",
}  # fmt: skip


def test_every_text_is_escaped(rich):
    clean, attacked = page_of(rich), Page(render(poisoned(rich)))
    assert "script" not in attacked.tags
    assert attacked.text.count(EVIL) > 50
    assert {name for name, _ in attacked.attributes} == {name for name, _ in clean.attributes}
    assert set(attacked.tags) == set(clean.tags)


def test_an_unknown_outcome_cannot_leave_its_class(rich):
    rich["verdict"]["gates"][0]["outcome"] = EVIL
    assert "script" not in page_of(rich).tags


def test_the_outcome_comes_first(rich):
    text = page_of(rich).text
    assert "Keeps 47% of the multiply-adds and 41% of the parameters; accuracy 98.2% before, 97.9% after." in text
    assert "1 of 3 gates cannot be decided with 797 test inputs." in text


@pytest.mark.parametrize(
    "outcomes, badge, sentence",
    [
        ("pass pass pass", "Passed", "Every gate holds on 797 test inputs (3 checked)."),
        ("pass fail inconclusive", "Failed", "1 of 3 gates failed on 797 test inputs."),
        ("inconclusive pass inconclusive", "Inconclusive", "2 of 3 gates cannot be decided with 797 test inputs."),
    ],
)
def test_the_verdict_in_words(rich, outcomes, badge, sentence):
    outcomes = outcomes.split()
    for gate, outcome in zip(rich["verdict"]["gates"], outcomes, strict=True):
        gate["outcome"] = outcome
    rich["verdict"]["outcome"] = next(o for o in ("fail", "inconclusive", "pass") if o in outcomes)
    text = page_of(rich).text
    assert f"{badge} {sentence}" in text


def test_nothing_measured_is_said_and_dashed(minimal):
    text = page_of(minimal).text
    assert "accuracy was not measured" in text
    assert "Not checked No gate was checked" in text
    assert f"original {DASH} {DASH} 1.00 k 90 360 B {DASH}" in text
    assert "no test set: accuracy, agreement and checks were left out" in text
    assert "How similar" not in text


def test_nan_is_a_dash_everywhere(rich):
    def undefined(value):
        if isinstance(value, dict):
            return {key: undefined(item) for key, item in value.items()}
        if isinstance(value, list):
            return [undefined(item) for item in value]
        return math.nan if isinstance(value, float) else value

    html = render(undefined(rich))
    Page(html)
    assert not re.search(r"\b(nan|inf|None)\b", html)


def test_each_stage_is_compared_with_the_original(rich):
    text = page_of(rich).text
    assert "original 98.2% 100.0% 12.3 M 272 k 1.09 MB 3.21 ms" in text
    pruned = f"pruned 89.2% {MINUS}9.0 pt below the axis 90.1%"
    assert f"{pruned} 5.80 M 47.0% 110 k 40.6% 448 kB 41.0% 1.92 ms 59.7%" in text
    assert f"random control 93.1% {MINUS}5.1 pt" in text


def test_every_edit_and_reason_is_there(rich):
    text = page_of(rich).text.replace(" ", "")
    for edit in rich["plan"]["edits"]:
        assert edit["reason"].replace(" ", "") in text
    for item in rich["redundancy"]["unprunable"]:
        assert (item["name"] + item["reason"]).replace(" ", "") in text


def test_expected_damage_is_shown_and_the_outcome_where_it_was_measured(rich):
    plan = rich["plan"]
    edits = [edit | {"damage": 0.0123} for edit in plan["edits"]]
    edits[0]["left"] = 0.0456
    page = render(rich | {"plan": plan | {"edits": edits, "expected": plan["expected"] | {"damage": 0.0789}}})
    assert page.count("expected damage 0.0123") == len(edits)
    assert page.count("· error left at its place 0.0456") == 1
    assert "Expected damage in all: 0.0789." in page
    assert "what edits before it left is in it" in page
    assert "xpected damage" not in render(rich)


def test_latency_that_does_not_follow_the_macs_is_said(rich):
    def page(latency):
        stages = [stage | {"latency_ms": 3.0 if stage["name"] == "original" else latency} for stage in rich["stages"]]
        return render(rich | {"stages": stages})

    assert "of them take 90% of the time" in page(2.7)
    assert "of them take 10% of the time" in page(0.3)
    assert "does not follow" not in page(1.5)
    assert "does not follow" not in page(None)


def test_channels_of_a_removed_block_go_with_it(rich):
    rich["plan"]["edits"] = [{"remove": "block", "name": "layer1.1", "reason": "alike"}]
    text = page_of(rich).text
    assert "layer1.1.conv1 gone with layer1.1 · 4.0% of cost" in text
    assert "layer1.0.conv1 0/16 removed · 4.0% of cost" in text


def test_the_final_stage_is_never_the_control(rich):
    rich["stages"] = [stage for stage in rich["stages"] if stage["name"] in ("original", "pruned", "random control")]
    rich["stages"][2]["macs"] = 1
    assert "Keeps 47% of the multiply-adds" in page_of(rich).text


def test_the_plans_that_were_tried_are_shown_and_the_chosen_one_is_marked(rich):
    tried = [
        {"blocks": 0, "expected": 0.3, "measured": 0.11},
        {"blocks": 2, "expected": 0.4, "measured": 0.09, "chosen": True},
        {"blocks": 4, "expected": 0.5, "measured": 0.2},
    ]
    report = copy.deepcopy(rich)
    report["plan"]["planner"] = {"name": "greedy", "finalists": tried}
    text = page_of(report).text
    assert "3 plans were tried" in text
    assert "2 0.4 0.09 chosen 4" in text.replace("0.400", "0.4").replace("0.0900", "0.09")
    assert "nats per token" not in text
    tried[2]["run"] = ["layers.3", "layers.6"]
    text = page_of(report).text
    assert "4: layers.3 to layers.6" in text and "nats per token" in text
    assert "plans were tried" not in page_of(rich).text


def test_rates_have_their_intervals_and_the_margin_over_the_control(rich):
    rich["stages"][2]["accuracy_bounds"] = [0.955, 0.981]
    rich["stages"][-1] |= {"plans": 3, "margin": {"of": "accuracy", "value": 0.03, "bounds": [0.018, 0.042]}}
    text = page_of(rich).text
    assert "97.0% 95.5% to 98.1%" in text
    assert "3 plans drawn at random at the same cost, repaired alike: accuracy +3.0 pt" in text
    assert "(95% interval +1.8 pt to +4.2 pt" in text and "mean of 3 plans" in text


@pytest.mark.parametrize("apart, tile", [(True, "Latency 60% 3.21 ms"), (False, "Latency unclear 3.21 ms")])
def test_no_latency_is_claimed_where_its_spread_covers_the_difference(rich, apart, tile):
    for stage in rich["stages"]:
        stage |= {"latency_ms": 3.214 if stage["name"] == "original" else 1.92, "latency_spread_ms": [1.5, 3.6]}
        stage["latency_told_apart"] = apart
    text = page_of(rich).text
    assert tile in text
    assert ("1.50 to 3.60 not told apart" in text) != apart


def test_every_layer_is_shown_before_and_after(rich):
    rich["layers"] = [
        {"name": "stem", "shape": [[16, 3, 3, 3], [9, 3, 3, 3]], "width": [16, 9], "macs": [900, 500],
         "params": [432, 243]},
        {"name": "gone", "shape": [[8, 4], None], "width": [8, None], "macs": [32, 0], "params": [32, 0]},
        {"name": "head", "shape": [[10, 8], [10, 8]], "width": [10, 10], "macs": [80, 80], "params": [80, 80]},
    ]  # fmt: skip
    rich["plan"]["edits"] = [{"remove": "heads", "name": "stem", "indices": [1], "of": 2, "damage": 0.0123}]
    rich["reconstruction"] = [{"layer": "stem", "before": 0.5, "after": 0.25}]
    text = page_of(rich).text
    assert "3 layers, of which 1 go whole, 1 get narrower, 1 stay as they are" in text
    shapes = "16x3x3x3 9x3x3x3".replace("x", "\N{MULTIPLICATION SIGN}")
    assert f"stem 16 → 9 {shapes} 900 500 432 243 0.0123 0.5 0.25" in text
    assert f"gone whole 8 → {DASH}" in text and "Heads in 1 group" in text


def test_halves_of_blocks_are_not_counted_as_blocks(rich):
    names = ["layers.0", "layers.1.attn", "layers.2.attn"]
    kinds = ["identity", "zero", "zero"]
    rich["plan"]["edits"] = [{"remove": "block", "name": n, "replace": r} for n, r in zip(names, kinds, strict=True)]
    assert "1 block and 2 halves of blocks" in page_of(rich).text


def test_every_cell_of_a_table_names_its_column_for_narrow_pages(rich):
    cells = re.findall(r"<td[^>]*>", render(rich).split('id="stages"')[1].split("</table>")[0])
    assert len(cells) == 7 * len(rich["stages"]) and all("data-label=" in cell for cell in cells)


def test_no_line_breaks_within_multiply_adds(rich):
    others = render(rich).replace('<span class="whole">multiply-adds</span>', "")
    assert "multiply-adds" not in re.sub(r"<style.*?</style>|<[^>]*>", "", others)
