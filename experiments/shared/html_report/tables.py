"""Nested results as numbers, folded arrays and tables."""

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from .skeleton import fold, label

SHORT = 6
"""Most numbers of an array that are shown without a fold."""

ROWS = 15
"""Most rows of a table that are shown without a fold."""


class Pair(NamedTuple):
    """A number with its standard error."""

    value: float
    error: float


def number(value: float, digits: int = 4) -> str:
    """A number in a few significant digits.

    Args:
      value: The number. An int is shown with all digits.
      digits: Significant digits of a float.

    Returns:
      Its text.
    """
    if isinstance(value, int):
        return str(value).replace("-", "−")
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if size and not 1e-4 <= size < 1e6:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}e{int(exponent)}".replace("-", "−")
    shown = f"{value:.0f}" if size >= 10**digits - 0.5 else f"{value:.{digits}g}"
    return shown.replace("-", "−")


def with_error(value: float, error: float) -> str:
    """A number rounded to the last shown digit of its standard error.

    Args:
      value: The number.
      error: Its standard error, shown with two significant digits.

    Returns:
      "value ± error".
    """
    if math.isfinite(value) and math.isfinite(error) and 1e-6 <= error < 1e4:
        decimals = max(0, 1 - math.floor(math.log10(float(f"{error:.1e}"))))
        if abs(value) < 1e6:
            shown = f"{value:.{decimals}f} ± {error:.{decimals}f}"
            return shown.replace("-", "−")
    return f"{number(value)} ± {number(error, 2)}"


def joined(values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries, in which numbers and their standard errors are one `Pair`.

    The error of `x` is `x_standard_error`, and `standard_error` alone is that of the
    entry before it. Dictionaries with the same keys are joined entry by entry.
    """
    shown: dict[str, Any] = {}
    for name, value in values.items():
        base = name.removesuffix("standard_error")
        entry = base[:-1] if base.endswith("_") else next(reversed(shown), "")
        estimate: Any = shown.get(entry) if base != name else None
        if _is_number(estimate) and _is_number(value):
            shown[entry] = Pair(estimate, value)
        elif _same_numbers(estimate, value):
            shown[entry] = {key: Pair(estimate[key], value[key]) for key in estimate}
        else:
            shown[name] = value
    return shown


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _same_numbers(first, second):
    """Whether both are dictionaries of numbers with the same keys."""
    return all(
        isinstance(value, dict) and value and all(map(_is_number, value.values()))
        for value in (first, second)
    ) and (first.keys() == second.keys())


def _is_rows(value):
    """Whether it is a list of dictionaries, the rows of a table."""
    return (
        isinstance(value, list)
        and any(value)
        and all(isinstance(v, dict) for v in value)
    )


def cell(value: Any) -> str:
    """The HTML of one entry: a number, a text, or an array, folded if it is long."""
    if isinstance(value, Pair):
        return f'<span class="pair">{with_error(*value)}</span>'
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if _is_number(value):
        return number(value)
    if _is_rows(value):
        return fold(f"{len(value)} rows", _rows(value))
    if isinstance(value, dict):
        return "; ".join(f"{label(k)}: {cell(v)}" for k, v in value.items()) or "none"
    if not isinstance(value, list):
        return html.escape(str(value))
    leaves = list(_leaves(value))
    text = _listed(value)
    if len(leaves) <= SHORT:
        return text or "none"
    return fold(_summary(value, leaves), text)


def _leaves(value: Any) -> Iterable[Any]:
    if isinstance(value, list):
        for entry in value:
            yield from _leaves(entry)
    else:
        yield value


def _listed(value):
    return ", ".join(
        f"[{_listed(entry)}]" if isinstance(entry, list) else cell(entry)
        for entry in value
    )


def _summary(value, leaves):
    """The length or shape of an array, its range and its mean."""
    sizes = []
    while isinstance(value, list):
        sizes.append(len(value))
        value = value[0] if value else None
    size = " × ".join(map(str, sizes)) if math.prod(sizes) == len(leaves) else ""
    size = size or str(len(leaves))
    finite = [v for v in leaves if _is_number(v) and math.isfinite(v)]
    if not finite:
        return f"{size} entries"
    low, high, mean = min(finite), max(finite), math.fsum(finite) / len(finite)
    few = lambda v: number(v, 3)
    rest = len(leaves) - len(finite)
    return f"{size} numbers from {few(low)} to {few(high)}, mean {few(float(mean))}" + (
        f", {rest} not finite" if rest else ""
    )


def table(
    head: Sequence[Any],
    rows: Sequence[Sequence[Any]],
    name: str = "",
    *,
    first: bool = True,
) -> str:
    """A table, which scrolls sideways where the screen is narrow.

    Args:
      head: Headings of the columns. Empty for a table of names and values.
      rows: Values, as `cell` takes them.
      name: What the table shows, for screen readers.
      first: Whether the first value of each row is its heading.

    Returns:
      HTML.
    """
    right = [_column_kind([row[i] for row in rows]) for i in range(len(rows[0]))]
    shown = [
        "<tr>"
        + "".join(
            f'<th scope="row">{label(value)}</th>'
            if first and i == 0
            else f'<td class="{kind}">{cell(value)}</td>'
            for i, (value, kind) in enumerate(zip(row, right, strict=True))
        )
        + "</tr>"
        for row in rows
    ]
    kinds = ["text", *right[1:]] if first else right
    top = "".join(
        f'<th scope="col" class="{kind}">{label(text)}</th>'
        for text, kind in zip(head, kinds, strict=False)
    )
    top = f"<thead><tr>{top}</tr></thead>\n" if head else ""
    body = "\n".join(shown)
    named = html.escape(name or "numbers")
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{named}">'
        f'<table aria-label="{named}">\n{top}<tbody>\n{body}\n</tbody></table></div>'
    )


def _column_kind(values):
    """The class of a column: "n" of numbers, which are aligned at the right."""
    short = [
        v is None or isinstance(v, (bool, Pair, _Blank)) or _is_number(v)
        for v in values
    ]
    return "n" if all(short) else "text"


class _Blank(str):
    """The cell of an entry that a row lacks."""


def _rows(rows: list[dict[str, Any]], name: str = "") -> str:
    """A list of dictionaries as a table with a row for each."""
    rows = [joined(row) for row in rows]
    head = list(dict.fromkeys(key for row in rows for key in row))
    blank = _Blank()
    body = [[row.get(key, blank) for key in head] for row in rows]
    shown = table(head, body, name, first=isinstance(body[0][0], str))
    return fold(f"{len(rows)} rows", shown) if len(rows) > ROWS else shown


def numbers(values: Mapping[str, Any]) -> str:
    """Nested results as tables under headings.

    Args:
      values: Numbers, texts, lists and dictionaries by name, as JSON has them.

    Returns:
      HTML with every number.
    """
    return "\n".join(_blocks(values, ()))


def _blocks(values, path):
    """HTML of single entries, then of everything nested, in the order of `values`."""
    values = joined(values)
    records = {k: v for k, v in values.items() if isinstance(v, dict) and v}
    grouped = _is_group(records) and not any(map(_is_deep, records.values()))
    cells, tables, parts, nested = {}, {}, [], []
    for name, value in values.items():
        if name not in records:
            entries, lists = {name: value}, {}
            if _is_rows(value):
                entries, lists = lists, entries
        elif grouped:
            continue
        elif _is_deep(value):
            nested += _blocks(value, (*path, name))
            continue
        else:
            entries, lists = _flat(value, name)
        cells |= entries
        nested += _tables(lists, path)
    title = " › ".join(path)
    if cells:
        parts.append(table((), list(cells.items()), title or "single numbers"))
    if grouped:
        grouped_parts, tables = _group(records, path[-1] if path else "of")
        parts += grouped_parts
    if path and parts:
        parts.insert(0, f"<h3>{label(title)}</h3>")
    return parts + _tables(tables, path) + nested


def _tables(tables, path):
    parts = []
    for name, rows in tables.items():
        heading = " › ".join((*path, name))
        parts += [f"<h3>{label(heading)}</h3>", _rows(rows, heading)]
    return parts


def _is_series(value):
    """Whether it has numbers for names, as errors by evaluations have."""
    return all(re.fullmatch(r"[-+.\de]+", str(name)) for name in value)


def _is_group(records):
    """Whether dictionaries have mostly the same entries, so that one table fits."""
    names = [set(joined(v)) for v in records.values() if not _is_series(v)]
    if len(names) < 2 or len(names) != len(records):
        return False
    shared = set().union(*names)
    return 2 * sum(map(len, names)) >= len(names) * len(shared)


def _is_deep(value):
    """Whether it holds a group of dictionaries, which gets a table of its own."""
    inner = [v for v in value.values() if isinstance(v, dict) and v]
    records = {k: v for k, v in value.items() if isinstance(v, dict) and v}
    return _is_group(records) or any(map(_is_deep, inner))


def _flat(value, name=""):
    """(Entries, tables) of a dictionary by the names on the way to them."""
    lists = [v for v in value.values() if _is_rows(v)]
    if len(lists) == len(value):
        return {}, {name: _stacked(value, name)}
    cells, tables = {}, {}
    for key, entry in joined(value).items():
        full = f"{name} {key}".strip()
        if isinstance(entry, dict) and entry:
            inner_cells, inner_tables = _flat(entry, full)
            cells |= inner_cells
            tables |= inner_tables
        elif _is_rows(entry):
            tables[full] = entry
        else:
            cells[full] = entry
    return cells, tables


def _stacked(lists, name):
    """The rows of several lists, each with the name of its list."""
    while any(name in row for rows in lists.values() for row in rows):
        name += " "
    return [{name: key, **row} for key, rows in lists.items() for row in rows]


def _group(records, name):
    """(HTML of one table, further tables) of dictionaries with the same entries."""
    flat = {key: _flat(value) for key, value in records.items()}
    head = list(dict.fromkeys(n for cells, _ in flat.values() for n in cells))
    blank, parts = _Blank(), []
    if head and len(head) <= len(flat):
        rows = [[key, *(c.get(n, blank) for n in head)] for key, (c, _) in flat.items()]
        parts.append(table(["", *head], rows, name))
    elif head:
        rows = [[n, *(c.get(n, blank) for c, _ in flat.values())] for n in head]
        parts.append(table(["", *flat], rows, name))
    tables = {}
    for key in dict.fromkeys(n for _, inner in flat.values() for n in inner):
        lists = {k: inner[key] for k, (_, inner) in flat.items() if key in inner}
        tables[key or name] = _stacked(lists, name)
    return parts, tables
