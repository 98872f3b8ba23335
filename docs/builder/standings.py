"""The measured curves of solvers, as a script and as a table for their page."""

import html
import json
import pathlib
from collections.abc import Callable
from typing import Any

from experiments.bench_solvers.report import best, points, within

CURVES = (
    pathlib.Path(__file__).parents[2] / "experiments" / "results" / "solver_curves.json"
)
"""Written by `python -m experiments.bench_solvers --site`."""

MARK = "<!-- the best solvers -->"
"""Where the page has the table."""


def curves() -> dict[str, Any]:
    """The stored curves. `experiments.bench_solvers.report.curves` describes them."""
    return json.loads(CURVES.read_text(encoding="utf-8"))


def script(address: Callable[[str], str | None]) -> str:
    """A script that sets `window.standings`.

    It is loaded by a tag, because a page that is opened as a file cannot fetch.

    Args:
      address: Code such as `dj.solvers.ddim` -> its address from the root of the site.

    Returns:
      JavaScript. To the curves it adds the address of each solver.
    """
    data = curves()
    for solver in data["solvers"].values():
        solver["address"] = address(solver["code"])
    return f"window.standings = {json.dumps(data, separators=(',', ':'))};\n"


def table() -> str:
    """The best solver of each problem and budget, for browsers without scripts.

    Returns:
      HTML.
    """
    data = curves()
    lines = []
    for problem in data["problems"]:
        runs = list(points(problem))
        for budget in sorted({run.budget for run in runs if run.budget is not None}):
            top = best(within(runs, budget))
            cells = (
                data["targets"][problem["target"]]["title"],
                data["schedules"][problem["schedule"]]["title"],
                "stochastic" if problem["stochastic"] else "deterministic",
                budget,
                f"<code>{html.escape(top.solver)}</code>",
                top.grid,
                f"{top.error:.3g} {data['measures'][problem['measure']]['unit']}",
            )
            lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells))
    head = "".join(f'<th scope="col">{title}</th>' for title in HEADS)
    body = "</tr>\n".join(lines)
    return (
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>{body}</tr></tbody>\n</table>"
    )


HEADS = (
    "Target",
    "Schedule",
    "Solvers",
    "Evaluations",
    "Least error",
    "Grid",
    "Error",
)
