"""Pages of the reference say everything that the tables, the registry and the docstrings say."""

import simprune
from simprune.cli.help import LISTED
from simprune.cli.reference import escaped, pages
from simprune.core.registry import parts
from simprune.settings import group, recipe_table


def test_every_option_part_and_public_name_has_its_line():
    made = pages()
    options, named = made["reference/options.md"], made["reference/parts.md"]
    for option in recipe_table():
        assert f"| `{option.name}` |" in options
        assert group(option) is None or f"\n## {option.name}\n" in options
    for name, kind in LISTED.items():
        page = made.get(f"reference/{name}.md", named)
        for part in parts(kind) if kind else ():
            assert f"# {part}\n" in page
    for name in {*simprune.__all__} - {"measures", "functional"}:
        assert f"heading: sp.{name}\n" in made["reference/python.md"]


def test_a_measure_has_formula_range_invariances_cost_and_source():
    page = pages()["reference/measures.md"]
    entry = page.partition("\n## cka\n")[2].partition("\n## ")[0]
    for line in (
        "|X'Y|^2 / (|X'X| |Y'Y|)", "- range: 0 to 1; larger is more similar\n", "- invariant to: PT, OT, IS, TR\n",
        "- cost: prepare: the Gram matrix", "- source: Kornblith", ">>> round(CKA()",
    ):  # fmt: skip
        assert line in entry


def test_text_of_docstrings_is_no_markup():
    assert escaped("a_b * c < [0, 1], `d_e*`") == r"a\_b \* c &lt; \[0, 1], `d_e*`"
