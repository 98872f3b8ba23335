"""The gallery: one card per experiment, from the table of the README."""

import pathlib
import re
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"
NAMED = {
    "score_sde": "digits.png",
    "train": "patches32.png",
    "flow_matching": "flow_matching_digits.png",
    "bench_solvers": "solvers.png",
}
"""Stored figures that are not called after their experiment."""

HEAD = """# Gallery

Which questions do the experiments pose, and what do they find? Each command prints its
flags with `--help`, and writes figures, `metrics.json` and a page `report.html`. Times
are on 2 CPU cores. [Details of each](experiments.md).

<div class="grid cards" markdown>
"""


class Card(NamedTuple):
    """A row of the README's table of experiments."""

    name: str
    question: str
    time: str
    expect: str


def cards(readme: str) -> list[Card]:
    """The experiments of the README.

    Args:
      readme: Its Markdown.

    Returns:
      The rows of the table under "Experiments".
    """
    section = readme.partition("\n## Experiments\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \| (.*?) \|$", section, re.M)
    return [Card(*row) for row in rows]


def figure(name: str) -> str | None:
    """The stored figure of an experiment.

    Args:
      name: The experiment.

    Returns:
      The file's path below the results. None if there is none.
    """
    choices = (f"gallery/{name}.png", NAMED.get(name, f"{name}.png"))
    return next((path for path in choices if (RESULTS / path).is_file()), None)


def page() -> str:
    """The Markdown of the gallery."""
    parts = [HEAD]
    for card in cards((ROOT / "README.md").read_text(encoding="utf-8")):
        expect = re.sub(r"\]\(docs/pages/", "](", card.expect)
        lines = [f"-   **`{card.name}`**. {card.question}", ""]
        if path := figure(card.name):
            alt = f"Figure of the experiment {card.name}"
            lines += [f"![{alt}](results/{path})", ""]
        source = f"source/experiments/{card.name}/__main__.html"
        lines += [f"{expect} ({card.time})", ""]
        lines += ["```sh", f"python -m experiments.{card.name}", "```", ""]
        lines += [f"[source]({source})"]
        parts.append(
            "\n".join(f"    {x}" if i and x else x for i, x in enumerate(lines))
        )
        parts.append("")
    return "\n".join([*parts, "</div>\n"])
