"""How the figures of a comparison of models are written: in its tables (`compare_tables`) and on its page (`compare_page`)."""

from __future__ import annotations

from metier_workflows.choosing.statistics import Estimate

NONE = "\u2013"
MINUS = "\u2212"


def percent(value: float | None, digits: int = 1) -> str:
    """`84.1`, or a dash."""
    return NONE if value is None else _signed(100 * value, digits)


def percents(found: Estimate | None) -> str:
    """`84.1 [83.0 to 85.2]`, or a dash."""
    return NONE if found is None else f"{percent(found.value)} [{percent(found.low)} to {percent(found.high)}]"


def part(found: Estimate | None) -> str:
    """A correlation: `0.56 [0.53 to 0.59]`, or a dash."""
    if found is None:
        return NONE
    return f"{_signed(found.value, 2)} [{_signed(found.low, 2)} to {_signed(found.high, 2)}]"


def thousand(usd: float) -> str:
    """USD by query as dollars for 1,000."""
    dear = 1000 * usd
    return f"{dear:,.2f}" if dear >= 0.1 or not dear else f"{dear:.2g}"


def thousands(found: Estimate | None) -> str:
    """`2.40 [2.31 to 2.49]`, or a dash."""
    return NONE if found is None else f"{thousand(found.value)} [{thousand(found.low)} to {thousand(found.high)}]"


def chance(p: float) -> str:
    """A p-value."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _signed(value: float, digits: int) -> str:
    """With a true minus, and no zero that is less than nothing."""
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if not float(text) else text.replace("-", MINUS)
