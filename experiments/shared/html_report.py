"""The report of a run: one HTML page that needs no other file and no script.

`page` is the skeleton of every page. `numbers` shows nested results as tables, and
`figure` embeds an image. All text is escaped where it enters the page.
"""

import base64
import html
import json
import math
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --faint: #5b6570; --line: #d5dae0;
  --back: #fff; --panel: #f4f6f8; --link: #0b5cad; --good: #1a7f37; --bad: #c01c28; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e8ec; --faint: #a0abb6;
  --line: #39424c; --back: #14181c; --panel: #1e242a; --link: #7db7f5;
  --good: #5fce7c; --bad: #ff7b7b; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text);
  background: var(--back); max-width: 60rem; margin: 0 auto;
  padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .2rem 0 .6rem; text-wrap: balance; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; padding-top: .6rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .4rem; overflow-wrap: anywhere; }
p, ul { margin: .5rem 0; max-width: 44rem; }
a { color: var(--link); }
.faint { color: var(--faint); }
code, pre { font-family: ui-monospace, monospace; font-size: .92em;
  overflow-wrap: anywhere; }
pre { overflow-x: auto; background: var(--panel); padding: .6rem .8rem; }
figure { margin: 1rem 0 1.6rem; }
img { display: block; max-width: 100%; height: auto; background: #fff;
  border: 1px solid var(--line); border-radius: 4px; }
figcaption { margin-top: .4rem; color: var(--faint); font-size: .95rem; }
.scroll { overflow-x: auto; margin: .5rem 0 1.2rem; }
table { border-collapse: collapse; font-size: .93rem; }
caption { text-align: left; color: var(--faint); padding: .2rem 0; }
th, td { text-align: left; vertical-align: top; padding: .3rem .9rem .3rem 0;
  border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; }
thead th { color: var(--faint); font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 500; }
td.n { text-align: right; white-space: nowrap; }
td.text { overflow-wrap: anywhere; }
thead th.n { text-align: right; }
td .scroll { margin: 0; }
summary { cursor: pointer; padding: .15rem 0; }
details > div { overflow-wrap: anywhere; white-space: normal; }
.warning { background: var(--panel); border-left: 4px solid var(--bad);
  padding: .5rem .8rem; }
.pass { color: var(--good); } .fail { color: var(--bad); font-weight: bold; }
.note { color: var(--faint); }
.pair { white-space: nowrap; }
@media (max-width: 40rem) { th, td { padding-right: .7rem; }
  .wide { overflow-x: auto; } .wide img { max-width: none; width: 44rem; } }
@media print { body { max-width: none; } .scroll { overflow: visible; } }
"""

# Nothing is loaded from elsewhere, whatever the texts of a run hold.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

SHORT = 6
"""Most numbers of an array that are shown without a fold."""

ROWS = 15
"""Most rows of a table that are shown without a fold."""


def page(title: str, lead: Sequence[str], parts: Sequence[str], foot: str = "") -> str:
    """A whole page.

    Args:
      title: Text of the window and first words of the page.
      lead: HTML above and below the heading: what the page is, and of what.
      parts: HTML of its sections.
      foot: HTML of the last lines.

    Returns:
      The page.
    """
    above, below = lead
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f'<body>\n<header>\n<p class="faint">{above}</p>\n'
        f"<h1>{rich(title)}</h1>\n{below}\n</header>\n<main>\n{body}\n</main>\n"
        f'<footer class="faint">\n{foot}\n</footer>\n</body>\n</html>\n'
    )


def section(title: str, body: str, *, folded: bool = False) -> str:
    """A part of a page under a heading of its own. Empty if the body is.

    Args:
      title: The heading.
      body: HTML.
      folded: Whether the reader has to open it.

    Returns:
      HTML.
    """
    if not body:
        return ""
    name = re.sub(r"\W+", "-", title).lower()
    if folded:
        body = fold("show", body)
    return (
        f'<section aria-labelledby="{name}">\n<h2 id="{name}">{html.escape(title)}'
        f"</h2>\n{body}\n</section>"
    )


def fold(summary: str, body: str) -> str:
    """Content that is hidden until the reader opens it.

    Args:
      summary: The text that is always visible.
      body: HTML of the content.

    Returns:
      HTML.
    """
    shown = html.escape(summary)
    return f"<details><summary>{shown}</summary><div>{body}</div></details>"


def rich(text: str) -> str:
    """Escaped text, in which words in backquotes are set as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def label(text: Any) -> str:
    """An escaped name, which may break after its underscores."""
    return html.escape(str(text)).replace("_", "_<wbr>")


def figure(png: bytes, alt: str, caption: str = "") -> str:
    """An embedded PNG.

    Args:
      png: The file's bytes.
      alt: What it shows, for those who do not see it.
      caption: HTML below it.

    Returns:
      HTML.
    """
    width, height = (int.from_bytes(png[i : i + 4], "big") for i in (16, 20))
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    # On a phone a wide figure scrolls sideways, as its text would be too small.
    wide = width > 1.4 * height
    box = 'class="wide" role="region" tabindex="0" aria-label="figure"' if wide else ""
    return (
        f'<figure><div {box}><img alt="{html.escape(alt)}" width="{width}" '
        f'height="{height}" src="{_data("image/png", png)}"></div>{below}</figure>'
    )


def download(name: str, text: str) -> str:
    """A link that saves a JSON file, whose content is in the link.

    Args:
      name: Name of the file.
      text: Its content.

    Returns:
      HTML.
    """
    address = _data("application/json", text.encode())
    return f'<a download="{html.escape(name)}" href="{address}">{html.escape(name)}</a>'


def _data(kind, content):
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


# --------------------------------------------------------------------- numbers


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
    shown = f"{value:.0f}" if size >= 10**digits else f"{value:.{digits}g}"
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
        of: Any = base[:-1] if base.endswith("_") else next(reversed(shown), None)
        mate: Any = shown.get(of) if of is not None and base != name else None
        if _is_number(mate) and _is_number(value):
            shown[of] = Pair(mate, value)
        elif _numbers_of(mate) and _numbers_of(value) and mate.keys() == value.keys():
            shown[of] = {key: Pair(mate[key], value[key]) for key in mate}
        else:
            shown[name] = value
    return shown


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _numbers_of(value):
    return isinstance(value, dict) and value and all(map(_is_number, value.values()))


def _is_rows(value):
    """Whether it is a list of dictionaries, the rows of a table."""
    return isinstance(value, list) and value and all(isinstance(v, dict) for v in value)


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
            some, more = ({}, {name: value}) if _is_rows(value) else ({name: value}, {})
        elif grouped:
            continue
        elif _is_deep(value):
            nested += _blocks(value, (*path, name))
            continue
        else:
            some, more = _flat(value, name)
        cells |= some
        nested += _tables(more, path)
    title = " › ".join(path)
    if cells:
        parts.append(table((), list(cells.items()), title or "single numbers"))
    if grouped:
        some, tables = _group(records, path[-1] if path else "of")
        parts += some
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
            some, more = _flat(entry, full)
            cells |= some
            tables |= more
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
    for key in dict.fromkeys(n for _, more in flat.values() for n in more):
        lists = {k: more[key] for k, (_, more) in flat.items() if key in more}
        tables[key or name] = _stacked(lists, name)
    return parts, tables


# ------------------------------------------------------------------- documents


def paragraphs(document: str) -> list[str]:
    """The paragraphs and list items of a docstring, unwrapped. Lines of code, which
    are indented, keep their breaks.
    """
    parts: list[str] = []
    for block in re.split(r"\n\s*\n", document.strip("\n")):
        lines = block.split("\n")
        if all(line.startswith("    ") for line in lines):
            parts.append(block)
            continue
        for line in lines:
            if line.startswith("- ") or line is lines[0]:
                parts.append(line.strip())
            else:
                parts[-1] += f" {line.strip()}"
    return parts


def prose(parts: Iterable[str]) -> str:
    """Paragraphs, list items and code of a docstring as HTML."""
    shown = []
    for part in parts:
        if part.startswith("    "):
            shown.append(f'<pre tabindex="0">{html.escape(part)}</pre>')
        elif part.startswith("- "):
            item = f"<li>{rich(part[2:])}</li></ul>"
            if shown and shown[-1].endswith("</ul>"):
                shown[-1] = shown[-1].removesuffix("</ul>") + item
            else:
                shown.append(f"<ul>{item}")
        else:
            shown.append(f"<p>{rich(part)}</p>")
    return "\n".join(shown)


def captions(parts: Iterable[str]) -> dict[str, str]:
    """The captions in a docstring, list items "- NAME.png: text", by NAME.png.

    A <word> in NAME stands for any text.
    """
    pairs = (re.fullmatch(r"- (\S+\.png): (.+)", part) for part in parts)
    return {pair[1]: pair[2] for pair in pairs if pair}


def caption_of(name: str, known: Mapping[str, str]) -> str:
    """The caption of a figure.

    Args:
      name: Name of its file.
      known: Captions as `captions` returns them.

    Returns:
      The caption. Empty if there is none.
    """
    for pattern, text in known.items():
        words = re.split(r"<\w+>", pattern)
        if re.fullmatch(".+".join(map(re.escape, words)), name):
            return text[:1].upper() + text[1:]
    return ""


# ---------------------------------------------------------------------- report


class Figure(NamedTuple):
    """A figure of a run.

    Attributes:
      path: Its PNG file.
      alt: What it shows, in words.
    """

    path: pathlib.Path
    alt: str


class Report(NamedTuple):
    """The content of a run's report.

    Attributes:
      name: Name of the experiment.
      document: Docstring of the experiment, whose first lines are its question.
      metrics: Text of metrics.json.
      config: Text of config.json. Empty if there is none.
      figures: Figures in the order of their making.
      about: Where, when and how it ran, by name.
      shown: HTML that stands for the results. Empty to show the numbers.
      notes: Sentences that a reader must know, such as that the run goes on.
    """

    name: str
    document: str
    metrics: str
    config: str
    figures: Sequence[Figure]
    about: Mapping[str, str]
    shown: str
    notes: Sequence[str]


def whole(report: Report) -> str:
    """The page of a run."""
    parts = paragraphs(report.document) or [report.name]
    question, known = parts[0], captions(parts)
    expected = [i for i, part in enumerate(parts) if part.startswith("Expect")]
    expectation = parts[expected[0] :] if expected else []
    images = []
    for path, alt in report.figures:
        if not path.is_file():
            continue
        told = caption_of(path.name, known)
        caption = f"<code>{label(path.name)}</code>" + (
            f" {rich(told)}" if told else ""
        )
        images.append(figure(path.read_bytes(), alt or told or path.stem, caption))
    results = json.loads(report.metrics)
    # The device stands in the table of the run.
    every = numbers({k: v for k, v in results.items() if k != "device"})
    flags = joined(json.loads(report.config)) if report.config else {}
    kept = ("started", "ran for", "device")
    line = " · ".join(html.escape(report.about[k]) for k in kept if k in report.about)
    warnings = "".join(
        f'<p class="warning" role="note">{html.escape(note)}</p>'
        for note in report.notes
    )
    files = [download(f"{report.name}_metrics.json", report.metrics)]
    if report.config:
        files.append(download(f"{report.name}_config.json", report.config))
    return page(
        question,
        (
            f"Report of the experiment <code>{label(report.name)}</code>",
            f'<p class="faint">{line}</p>{warnings}',
        ),
        [
            section("Results", report.shown),
            section("Figures", "\n".join(images)),
            section("All numbers", every, folded=True)
            if report.shown
            else section("Numbers", every),
            section("What to expect", prose(expectation)),
            section("Run", table((), list(report.about.items()), "the run")),
            section(
                "Flags",
                table((), list(flags.items()), "the flags") if flags else "",
                folded=True,
            ),
        ],
        f"<p>± is one standard error. All digits are in {' and '.join(files)}, which "
        "this page holds.</p>",
    )
