"""The page of a run: question, results, figures, flags, versions."""

import html
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from .. import strict_json
from .skeleton import download, figure, label, page, rich, section
from .tables import joined, numbers, table


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
      document: Docstring of the experiment. Its first lines are its question, and
        the paragraph "Units: …" is shown below the numbers.
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


def run_page(report: Report) -> str:
    """The page of a run."""
    parts = paragraphs(report.document) or [report.name]
    question, known = parts[0], captions(parts)
    expected = [i for i, part in enumerate(parts) if part.startswith("Expect")]
    expectation = parts[expected[0] :] if expected else []
    units = [
        part[7:8].upper() + part[8:] for part in parts if part.startswith("Units:")
    ]
    images = []
    for path, alt in report.figures:
        if not path.is_file():
            continue
        caption = caption_of(path.name, known)
        below = f"<code>{label(path.name)}</code> {rich(caption)}".rstrip()
        images.append(figure(path.read_bytes(), alt or caption or path.stem, below))
    results = strict_json.loads(report.metrics)
    # The device stands in the table of the run.
    result_tables = numbers({k: v for k, v in results.items() if k != "device"})
    flags = joined(strict_json.loads(report.config)) if report.config else {}
    fields = ("started", "ran for", "device")
    line = " · ".join(html.escape(report.about[k]) for k in fields if k in report.about)
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
            section("All numbers", result_tables, folded=True)
            if report.shown
            else section("Numbers", result_tables),
            section("Units", prose(units)),
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
