"""What a study says: sentences, tables and figures, as plain data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from simprune.core.plain import finite


@dataclass(frozen=True)
class Table:
    """A table of results.

    Args:
        name: by which tests and readers of findings.json find it.
        title: above the table.
        columns: their names.
        rows: cells are texts, numbers, None, or a list of a value and its lower and upper bound.
        note: what a reader has to know of the numbers.

    Raises:
        ValueError: for a row with another number of cells than there are columns.

    >>> Table("chance", "Chance", ("layers", "accuracy"), [[4, 0.25]]).column("accuracy")
    [0.25]
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.name}: expected rows of {len(self.columns)} cells; got {list(row)}")

    def column(self, name: str) -> list[Any]:
        """The cells of one column."""
        at = list(self.columns).index(name)
        return [row[at] for row in self.rows]


@dataclass(frozen=True)
class Figure:
    """A figure, as the data that a chart of `simprune.report.charts` draws.

    Args:
        name: of its files.
        chart: which function of the charts draws it, such as "dots", "lines", "scatter" or "similarity_map".
        data: the arguments of that function; whatever JSON can hold.
        caption: what it shows, and what its bars and dashes are.
    """

    name: str
    chart: str
    data: Mapping[str, Any]
    caption: str


@dataclass(frozen=True)
class Findings:
    """The result of a study.

    Args:
        conclusions: sentences that follow from the numbers, the most important first.
        tables: of results.
        figures: of results.
        controls: what chance, permutations and baselines gave, as sentences.
        limits: what cannot be concluded.
        about: how the study was run; the frame fills it in.
    """

    conclusions: Sequence[str]
    tables: Sequence[Table]
    figures: Sequence[Figure] = ()
    controls: Sequence[str] = ()
    limits: Sequence[str] = ()
    about: Mapping[str, Any] = field(default_factory=dict)

    def table(self, name: str) -> Table:
        """A table by its name.

        Raises:
            KeyError: for a name that no table has.
        """
        for table in self.tables:
            if table.name == name:
                return table
        raise KeyError(f"no table {name!r}; there are {', '.join(table.name for table in self.tables)}")

    def to_dict(self) -> dict[str, Any]:
        """The content of findings.json."""
        parts = {key: [dict(vars(part)) for part in getattr(self, key)] for key in ("tables", "figures")}
        texts = {key: list(getattr(self, key)) for key in ("conclusions", "controls", "limits")}
        return finite({"about": dict(self.about), **texts, **parts})
