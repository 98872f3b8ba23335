"""Does the library cost more than a loop written by hand, and does any cost grow
with the steps?

    python -m experiments.bench_speed [--quick] [--out DIR]       (make bench)
    python -m experiments.bench_speed --parts couplings patches depth

Every row is a ratio of two programs measured in one process, alternated A B, B
A, …: the median of the pairs' ratios and its quartiles. "Limit" is the
library's promise. Rows without one are for comparison. The first row times one
program against itself, so that differences within its quartiles of 1 are
noise. The second command measures flows alone.

The six solvers that have a loop by hand, and DPM-Solver++(2M), are compared
with that, every other one with a bare scan of its step over the whole batch as
one array. Coupling flows of 8 layers, 64 wide, are compared with one pass by
hand, and with the same function, weight for weight, in flowjax and in distrax
where these are installed (the extra `peers`). Without them a line says so.

1000 MALA chains of 1000 steps are compared with a scan by hand, and with
blackjax (the extra `chains`).

Units: `median`, `quartiles` and the limit `at_most` are in seconds where
`unit` says so. Elsewhere they are ratios and have no unit.

Hardware and time: about 11 minutes on 2 CPU cores, one minute of them for
compiling the U-Net's programs. A GPU runs a larger U-Net.

Expect loops within 1.09 of those by hand (within noise of 1 for the U-Net,
whose evaluations outweigh all else), equal compilation times and memory at 20
and 2000 steps, noise at a quarter of the cost of `fold_in` and `normal`, a
guided step at most 2.05 of an unguided one, a training step within 1.05 of its
gradient and update, MALA chains within 1.25, and an import below 0.3 seconds.

Runs of 0.1 seconds on a busy machine scatter by 10 % and more. Read a ratio
beside its quartiles and those of the first row.
"""

import dataclasses
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.bench_speed import compilation as speed_compilation
from experiments.bench_speed import devices as speed_devices
from experiments.bench_speed import flows as speed_flows
from experiments.bench_speed import langevin as speed_langevin
from experiments.bench_speed import networks as speed_networks
from experiments.bench_speed import solvers as speed_solvers
from experiments.bench_speed.ratios import Config, RatioRow
from experiments.shared import cli, devices, files
from experiments.shared.figures import save_figure

PARTS = {
    part.__name__: part
    for part in (
        speed_solvers.loops,
        speed_solvers.bare_scans,
        speed_solvers.noise_of_a_loop,
        speed_solvers.peers,
        speed_networks.network_loops,
        speed_networks.guided,
        speed_networks.training_steps,
        speed_devices.eight_devices,
        speed_flows.couplings,
        speed_flows.peer_couplings,
        speed_flows.autoregressions,
        speed_flows.patches,
        speed_flows.depth,
        speed_langevin.chains,
        speed_compilation.memory,
        speed_compilation.compilation,
        speed_compilation.imports,
    )
}
"""name -> (config) -> rows, in the order of the table."""

NETWORK_PARTS = ("network_loops", "guided", "training_steps")


def run(config: Config) -> dict[str, RatioRow]:
    """Measure every row, print the table, and write metrics.json and ratios.png.

    Returns:
      The rows by name.
    """
    if config.quick:
        config = dataclasses.replace(config, samples=64, alternations=2)
    if config.alternations < 1 or config.samples < 1:
        raise ValueError(
            f"alternations and samples must be positive, got {config.alternations} and "
            f"{config.samples}"
        )
    unknown = set(config.parts) - set(PARTS)
    if unknown:
        raise ValueError(
            f"parts must be among {', '.join(PARTS)}, got {', '.join(sorted(unknown))}"
        )
    names = config.parts or [
        name for name in PARTS if config.network or name not in NETWORK_PARTS
    ]
    parts = [PARTS[name] for name in names]
    out = files.start(config)
    rows: list[RatioRow] = []
    with cli.progress(len(parts), label="measuring", unit="part") as bar:
        for part in parts:
            bar.set_postfix_str(part.__name__)
            rows += part(config)
            bar.update()
    results = {row.name: row for row in rows}
    files.write_results(out, report(results))
    save_figure(draw(rows), out / "ratios.png")
    print_rows(rows)
    return results


# ---------------------------------------------------------------------- report


def report(results: dict[str, RatioRow]) -> dict[str, Any]:
    """The rows as JSON."""
    return {"rows": {name: row._asdict() for name, row in results.items()}}


def print_rows(rows: list[RatioRow]) -> None:
    """Print the table: median, quartiles, limit."""
    width = max(len(row.name) + len(row.unit) for row in rows) + 4
    print(
        f"\n{'on ' + devices.name():{width}}{'median':>9}{'quartiles':>17}{'limit':>8}"
    )
    for row in rows:
        low, high = row.quartiles
        limit = (
            ""
            if row.at_most is None
            else f"{row.at_most:8.2f}" + ("  over" if row.median > row.at_most else "")
        )
        name = f"{row.name}, {row.unit}" if row.unit else row.name
        print(f"{name:{width}}{row.median:9.3f}{f'{low:.3f} … {high:.3f}':>17}{limit}")


def draw(rows: list[RatioRow]) -> Any:
    """Draw medians with quartiles of the ratios, and their limits."""
    ratios = [row for row in rows if not row.unit]
    figure, axis = plt.subplots(
        figsize=(8.5, 0.34 * len(ratios) + 1.2), layout="constrained"
    )
    places = np.arange(len(ratios))[::-1]
    medians = np.array([row.median for row in ratios])
    spread = np.abs(np.array([row.quartiles for row in ratios]) - medians[:, None]).T
    over = [row.at_most is not None and row.median > row.at_most for row in ratios]
    axis.barh(
        places,
        medians,
        xerr=spread,
        color=np.where(over, "#c0504d", "#5b8db8"),
        height=0.62,
    )
    for place, row in zip(places, ratios, strict=True):
        if row.at_most is not None:
            axis.plot(
                [row.at_most] * 2,
                [place - 0.42, place + 0.42],
                color="black",
                linewidth=1.6,
            )
    axis.axvline(1, color="black", linewidth=0.6, linestyle=":")
    axis.set_yticks(places, [row.name for row in ratios], fontsize=9)
    axis.set_xscale("log")
    axis.set_xticks([0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100])
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_locator(plt.NullLocator())
    axis.set_xlabel("ratio, log axis (bar: median, line: quartiles, black mark: limit)")
    axis.set_title(
        f"Cost of one program against another, on {devices.name()}",
        fontsize=11,
    )
    return figure


if __name__ == "__main__":
    cli.main(run, Config, __doc__)
