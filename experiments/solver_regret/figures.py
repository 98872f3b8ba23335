"""The figure of the regrets."""

from typing import Any

import matplotlib.pyplot as plt


def draw(summary: dict[str, Any], measured: str = "trimmed") -> Any:
    """Regrets of the best pairs and of the recommended one, one panel per budget.

    Args:
      summary: As `summarise` returns it.
      measured: One of the measures of the errors.

    Returns:
      The figure.
    """
    lines = {
        title: pairs
        for title, pairs in summary["least worst regret"].items()
        if title.endswith(f", {measured}")
    }
    height = 1 + 1.35 * len(lines)
    figure, axes = plt.subplots(
        len(lines),
        figsize=(7.5, height),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, (title, best) in zip(axes[:, 0], lines.items(), strict=True):
        recommended = summary["recommended"].get(title)
        shown = best if recommended in [None, *best] else [*best, recommended]
        for place, line in enumerate(reversed(shown)):
            colour = "#d55e00" if line == recommended else "#0072b2"
            median, worst = (line["held out"][key] for key in ("median", "worst"))
            axis.plot([median, worst], [place, place], color=colour, lw=1.5)
            axis.plot(median, place, "o", color=colour, ms=5)
            axis.plot(worst, place, "|", color=colour, ms=9, mew=2)
        names = [f"{line['solver']} on {line['grid']}" for line in reversed(shown)]
        axis.set_yticks(range(len(shown)), names, fontsize=8)
        axis.set_xscale("log")
        axis.set_title(title.partition(",")[0], fontsize=9, loc="left")
        axis.grid(axis="x", alpha=0.3)
    axes[-1, 0].set_xlabel(
        "error over that of the best pair, held-out problems\n"
        "(dot: median, bar: worst problem, orange: recommended)"
    )
    return figure
