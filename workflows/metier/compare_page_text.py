"""Text of others on the page of a comparison: only shown. `compare_page` and its plots and tables put every name through it."""

from __future__ import annotations

from html import escape

from metier.terminal import shown


def safe(text: str, longest: int | None = None) -> str:
    """As it may stand in HTML, SVG or an attribute; what is not printable is written out, and what is longer than `longest` characters is cut."""
    one = shown(text)
    return escape(one if longest is None or len(one) <= longest else f"{one[: longest - 1]}…")
