"""Tables of options: limits in words, and what is refused."""

from dataclasses import dataclass

import pytest

from simprune.core.options import Options, option, phrase


@dataclass(frozen=True)
class Table(Options):
    share: float = option(0.5, "a share", above=0, most=1)
    count: int = option(2, "a count", least=1)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"share": 0.0}, r"share: expected a number in \(0, 1\]; got 0.0"),
        ({"share": float("nan")}, r"share: expected a number in \(0, 1\]; got nan"),
        ({"count": 0}, "count: expected a whole number of at least 1; got 0"),
        ({"shares": 1}, "settings: there is no option 'shares'; did you mean 'share'?"),
    ],
)
def test_values_outside_the_limits_are_refused(values, message):
    assert Table.of({"share": 1, "count": 1}).to_dict() == {"share": 1, "count": 1}
    with pytest.raises(ValueError, match=message):
        Table.of(values)


def test_limits_have_words_and_no_other_names():
    assert phrase(float, {"limits": {"above": 0}, "example": ""}) == "a number above 0"
    assert phrase(float, {"limits": {"most": 1}, "example": ""}) == "a number"
    with pytest.raises(KeyError, match="atleast"):
        option(1, "misspelt", atleast=1)
