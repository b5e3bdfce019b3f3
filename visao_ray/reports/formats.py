"""Numbers formatted for people."""

import math
from collections.abc import Mapping
from typing import Any

SPACE = "\u202f"
"""Narrow no-break space, between a number and its percent sign."""


def estimate(entry: Mapping[str, Any] | None, kind: str = "share") -> dict[str, str]:
    """Format a value and its interval.

    Args:
        entry: `{"value", "low", "high", "n"}`; None if undefined.
        kind: "share" for a percentage with one decimal, "area" for three decimals.

    Returns:
        Texts `{"value", "interval", "n"}`; an undefined value is a dash.
    """
    if not entry or entry.get("value") is None:
        return {"value": "—", "interval": "", "n": ""}
    scale, digits = (100.0, 1) if kind == "share" else (1.0, 3)
    value = f"{scale * entry['value']:.{digits}f}" + (f"{SPACE}%" if kind == "share" else "")
    interval = ""
    if entry.get("low") is not None:
        interval = f"{scale * entry['low']:.{digits}f}–{scale * entry['high']:.{digits}f}"
    return {"value": value, "interval": interval, "n": f"{entry['n']:,}"}


def number(value: Any) -> str:
    """Format a number with thousands separators and about four significant digits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return plain(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return "—"
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.2e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def plain(value: Any) -> str:
    """Format any setting as text; None is a dash, lists are joined."""
    if value is None:
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {plain(v)}" for k, v in value.items()) or "—"
    if isinstance(value, list | tuple):
        return ", ".join(plain(v) for v in value) or "—"
    return str(value)


def with_interval(entry: Mapping[str, Any] | None, kind: str = "share") -> str:
    """Format a value and its interval as one text: 96.1 % (93.0–98.2)."""
    texts = estimate(entry, kind)
    return f"{texts['value']} ({texts['interval']})" if texts["interval"] else texts["value"]


def difference(entry: Mapping[str, Any], kind: str = "share") -> str:
    """Format a difference and its interval with signs: +2.0 (+1.0 to +3.0); never -0.0.

    Args:
        entry: `{"value", "low", "high", "n"}`.
        kind: "share" for percentage points with one decimal, "area" for three decimals.

    Returns:
        The text; an undefined value is a dash.
    """
    scale, digits = (100.0, 1) if kind == "share" else (1.0, 3)

    def signed(value: float) -> str:
        return f"{round(scale * value, digits) + 0.0:+.{digits}f}"

    if entry["value"] is None:
        return "—"
    if entry["low"] is None:
        return signed(entry["value"])
    return f"{signed(entry['value'])} ({signed(entry['low'])} to {signed(entry['high'])})"
