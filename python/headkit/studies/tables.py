"""Markdown tables, and the parts of a page that results fill."""

import re
from collections.abc import Mapping, Sequence


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column to the left, others to the right.

    Example:
        >>> print(table(["name", "value"], [["a", "1"]]))
        | name | value |
        |---|---:|
        | a | 1 |
    """
    rule = "|".join("---" if place == 0 else "---:" for place in range(len(titles)))
    lines = ["| " + " | ".join(titles) + " |", f"|{rule}|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def interval(value: float, lower: float, upper: float) -> str:
    """A share in percent with its interval.

    Example:
        >>> interval(0.875, 0.85, 0.9)
        '87.5 (85.0..90.0)'
    """
    return f"{100 * value:.1f} ({100 * lower:.1f}..{100 * upper:.1f})"


def signed(value: float, lower: float, upper: float) -> str:
    """A difference in points with its interval.

    Example:
        >>> signed(-0.0125, -0.02, 0.01)
        '-1.2 (-2.0..+1.0)'
    """
    return f"{100 * value:+.1f} ({100 * lower:+.1f}..{100 * upper:+.1f})"


def p_value(p: float) -> str:
    """A p value with as many digits as mean something.

    Example:
        >>> p_value(0.0312), p_value(0.0000123)
        ('0.031', '<0.001')
    """
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def fill(page: str, parts: Mapping[str, str]) -> str:
    """Put parts between ``<!-- results: NAME -->`` and ``<!-- end -->`` of a page.

    Raises:
        ValueError: if a part has no place in the page.

    Example:
        >>> print(fill("<!-- results: a -->\\nold\\n<!-- end -->", {"a": "new"}))
        <!-- results: a -->
        new
        <!-- end -->
    """
    for name, part in parts.items():
        place = re.compile(rf"(<!-- results: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        page, found = place.subn(lambda match, part=part: f"{match[1]}{part}\n{match[2]}", page)
        if not found:
            raise ValueError(f"[page] expected a place for {name!r}; found none")
    return page
