"""Numbers as people read them, where a missing or undefined one is a dash, and rows as CSV."""

import csv
import io
from collections.abc import Iterable

DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


def number(value, digits=3) -> str:
    """A number with `digits` significant digits: 0.0123, 4.57, 1235.

    >>> number(0.012345), number(1234.6), number(999.7), number(None), number(-0.5)
    ('0.0123', '1235', '1000', '–', '−0.5')
    """
    if value is None:
        return DASH
    whole = isinstance(value, int) or (value != 0 and abs(value) >= 10**digits - 0.5)
    text = f"{value:.0f}" if whole and abs(value) < 1e15 else f"{value:.{digits}g}"
    return text.replace("-", MINUS)


def fixed(value, decimals=3) -> str:
    """A number with `decimals` decimals, so that a column of them lines up.

    >>> fixed(1.0), fixed(-0.25, 2), fixed(-0.0001), fixed(None)
    ('1.000', '\N{MINUS SIGN}0.25', '0.000', '\N{EN DASH}')
    """
    return DASH if value is None else f"{value:z.{decimals}f}".replace("-", MINUS)


def percent(value, digits=1) -> str:
    """A share in percent.

    >>> percent(0.4712), percent(None)
    ('47.1%', '–')
    """
    return DASH if value is None else f"{100 * value:.{digits}f}%".replace("-", MINUS)


def points(value) -> str:
    """A difference of two shares in percentage points, always signed.

    >>> points(-0.004), points(0.0), points(None)
    ('−0.4 pt', '±0.0 pt', '–')
    """
    if value is None:
        return DASH
    text = f"{100 * value:+.1f}"
    return ("±0.0" if float(text) == 0 else text.replace("-", MINUS)) + " pt"


def count(value, unit="") -> str:
    """A large count with a decimal prefix.

    >>> count(950), count(1_234_567), count(2_048, "B"), count(None)
    ('950', '1.23 M', '2.05 kB', '–')
    """
    if value is None:
        return DASH
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{_three(value / size)} {prefix}{unit}"
    return f"{number(value)} {unit}".strip()


def size(value) -> str:
    """Bytes with a decimal prefix.

    >>> size(431_000)
    '431 kB'
    """
    return count(value, "B")


def milliseconds(value) -> str:
    """Milliseconds.

    >>> milliseconds(1.8)
    '1.80 ms'
    """
    return DASH if value is None else f"{_three(value)} ms"


def bounds(lower, upper) -> str:
    """An interval, or the one side that is known.

    >>> bounds(0.1, 0.25), bounds(None, 0.25), bounds(0.1, None), bounds(None, None)
    ('0.1 … 0.25', '≤ 0.25', '≥ 0.1', '–')
    """
    if lower is None or upper is None:
        return DASH if lower is upper else f"≤ {number(upper)}" if lower is None else f"≥ {number(lower)}"
    return f"{number(lower)} … {number(upper)}"


def _three(value: float) -> str:
    """Three significant digits with their zeros, so that columns line up.

    >>> _three(1.8), _three(100.2), _three(12345.6)
    ('1.80', '100', '12346')
    """
    return f"{value:.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".rstrip(".")


def ranges(indices) -> str:
    """Sorted indices with runs joined.

    >>> ranges([0, 1, 2, 7, 9, 10])
    '0–2, 7, 9–10'
    """
    runs: list[list[int]] = []
    for index in sorted(indices):
        if runs and index == runs[-1][-1] + 1:
            runs[-1][-1] = index
        else:
            runs.append([index, index])
    return ", ".join(f"{a}" if a == b else f"{a}{DASH}{b}" for a, b in runs)


def abbreviate(name: str, length: int) -> str:
    """A dotted name cut to a length: leading words shrink to one letter, numbers and the last words stay.

    A name that is still too long is cut in the middle; its end, which tells layers apart, stays longest.

    >>> abbreviate("encoder.layers.11.attention.output", 25), abbreviate("classification.head", 10)
    ('e.l.11.attention.output', 'c.head')
    >>> abbreviate("multihead_attention", 10)
    'mul…ention'
    """
    words = name.split(".")
    for index, word in enumerate(words[:-1]):
        if len(".".join(words)) > length and not word.isdigit():
            words[index] = word[:1]
    name = ".".join(words)
    if len(name) <= length:
        return name
    head = length // 3
    return f"{name[:head]}…{name[len(name) - (length - head - 1) :]}"


def csv_text(rows: Iterable[Iterable]) -> str:
    """Rows as the text of a CSV file.

    >>> csv_text([["name", "share"], ["a,b", 0.5]])
    'name,share\\n"a,b",0.5\\n'
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
