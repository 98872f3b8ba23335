"""The measured curves of solvers, as a script and as a table for their page."""

import html
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

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


def best(problem: dict[str, Any], fields: list[str], budget: int) -> dict[str, Any]:
    """The point of least error for a budget.

    Args:
      problem: One of the stored problems.
      fields: Names of a point's numbers.
      budget: Evaluations.

    Returns:
      Its numbers by field, with its "solver" and "grid".
    """
    points = [
        dict(zip(fields, point, strict=False)) | {"solver": solver, "grid": grid}
        for solver, grids in problem["curves"].items()
        for grid, points in grids.items()
        for point in points
    ]
    within = [
        point
        for point in points
        if budget == point["budget"]
        or (point["budget"] is None and point["nfe"] <= budget)
    ]
    return min(
        within,
        key=lambda point: math.inf if point["error"] is None else point["error"],
    )


def table() -> str:
    """The best solver of each problem and budget, for browsers without scripts.

    Returns:
      HTML.
    """
    data = curves()
    lines = []
    for problem in data["problems"]:
        budgets = {
            point[0]
            for grids in problem["curves"].values()
            for points in grids.values()
            for point in points
            if point[0]
        }
        for budget in sorted(budgets):
            top = best(problem, data["point"], budget)
            cells = (
                problem["target"],
                problem["schedule"],
                "stochastic" if problem["stochastic"] else "deterministic",
                budget,
                f"<code>{html.escape(top['solver'])}</code>",
                top["grid"],
                f"{top['error']:.3g} {UNITS[problem['measure']]}",
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

UNITS = {"rms": "data units", "kl": "nats", "sliced_wasserstein": "data units"}
"""Units of the measures."""
