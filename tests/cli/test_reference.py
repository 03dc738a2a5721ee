"""The reference page is that of the tables and parts as they are."""

from simprune.cli.folders import PACKAGE
from simprune.cli.reference import reference


def test_the_reference_page_is_up_to_date():
    page = (PACKAGE.parent / "docs" / "reference.md").read_text(encoding="utf-8")
    assert page == reference(), "docs/reference.md: run `make docs`"
