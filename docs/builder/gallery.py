"""The gallery: one card per experiment, from the table of the README.

    python -m docs.builder.gallery runs

stores one figure of each experiment whose folder lies in runs/, as small as a card
needs.
"""

import argparse
import pathlib
import re
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"
CHOSEN = {
    "evaluate": "frechet.png",
    "import_model": "errors.png",
    "ddpm": "rate_distortion.png",
    "vae": "reconstructions.png",
    "progressive_vae": "reconstructions.png",
    "guidance": "densities.png",
    "inverse_problems": "posteriors.png",
    "toy_sde": "paths.png",
    "fokker_planck": "densities.png",
    "ncsn": "annealing.png",
    "kl_directions": "pictures.png",
    "langevin": "modes.png",
    "energy_model": "densities.png",
    "bench_networks": "ratios.png",
    "certify": "errors.png",
    "solver_regret": "regret.png",
}
"""The figure of a run that its card shows."""

WIDTH = 1000
"""Pixels across a stored figure, twice what a card shows."""

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


def store(runs: pathlib.Path) -> list[pathlib.Path]:
    """Store the figures that the cards show.

    Args:
      runs: A folder with the folders of runs, each called after its experiment.

    Returns:
      The files that were written.

    Raises:
      FileNotFoundError: If no run has its figure.
    """
    from PIL import Image  # type: ignore[import-not-found]

    written = []
    for name, chosen in CHOSEN.items():
        if not (runs / name / chosen).is_file():
            continue
        image = Image.open(runs / name / chosen).convert("RGB")
        image.thumbnail((WIDTH, 2 * WIDTH), Image.Resampling.LANCZOS)
        path = RESULTS / "gallery" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        # A palette takes a third of the bytes, and plots have few colours.
        image.quantize(128, Image.Quantize.MEDIANCUT).save(path, optimize=True)
        written.append(path)
    if not written:
        known = ", ".join(f"{name}/{chosen}" for name, chosen in CHOSEN.items())
        raise FileNotFoundError(f"{runs} has none of {known}")
    return written


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=pathlib.Path, help="folder with folders of runs")
    for stored in store(parser.parse_args().runs):
        print(f"{stored.relative_to(ROOT)}  {stored.stat().st_size // 1024} KB")
