"""Does the density equation ∂p/∂t = −div(f p) + ½g²Δp hold, and do simulated
paths follow it?

    python -m experiments.fokker_planck [--schedules vp_linear ve edm] [--paths 20000]

Mixtures are known exactly at every noise level. So the equation's terms can be
taken by central differences of the density itself, and its solution on cells
can be compared with the truth. Figures in OUT:

- densities.png: Euler–Maruyama paths of VP, VE and Langevin dynamics in a
  double well as histograms, beside the density solved on cells and the exact
  one.
- residuals.png: the residual of the equation as Δx and Δt are halved together,
  for forward SDE, probability flow and reverse SDE on every schedule, and for
  the flow with the sign of its score reversed, f + ½g²∇log p.
- along_a_path.png: d log p(x(t), t)/dt along a path of the flow beside ∂log
  p/∂t at a fixed point.

Units: `largest_rate`, `along_error`, `fixed_error` and the others of
`along_a_path` are in nats per unit of t. L1 distances (`solver_l1`,
`histogram_l1`, `l1_to_rest`), `mass_error`, `chi_squared`, `z`, orders and
`residuals`, which are relative to |λ′|, have no unit. `degrees` is a count.

Hardware and time: about a minute on 2 CPU cores.

Expect residuals that fall with order 2.00 until rounding, on every schedule.
That of the reversed sign stays at 1.33 in units of |λ′|, and its distance from
its limit g²Δp/p falls with order 2.00. Solved densities are within 0.002 (L1)
of the exact ones, of order 2.0, and keep their mass to rounding.

Histograms are as far from the exact densities (0.026 to 0.044) as that many
exact draws are (0.037 ± 0.004), and χ² is within 3 standard deviations of its
mean. With --steps 2000 --paths 100000 the bias of Euler–Maruyama in the double
well shows: χ² is 94 at t = 3.2, for 43 ± 9.
"""

from typing import Any

import jax
import numpy as np

from diffjax import checks
from experiments.fokker_planck import figures as fokker_planck_figures
from experiments.fokker_planck.config import Config
from experiments.fokker_planck.evolution import evolve
from experiments.fokker_planck.one_path import along_a_path, differences
from experiments.fokker_planck.processes import PROCESSES
from experiments.fokker_planck.residuals import (
    COARSEST,
    LEVELS,
    MEASURED,
    SCHEDULES,
    residuals_of,
    summary,
)
from experiments.shared import cli, files
from experiments.shared.figures import save_figure


def run(config: Config) -> dict[str, Any]:
    """Simulate, solve, take differences and draw.

    Returns:
      The metrics, which are also in OUT/metrics.json.
    """
    check(config)
    out = files.start(config)
    with cli.progress(
        len(config.processes) + len(config.schedules) + 1,
        label="Fokker–Planck",
        unit="part",
    ) as bar:
        evolutions, residuals = {}, {}
        for name in config.processes:
            key = jax.random.fold_in(
                jax.random.key(config.seed), list(PROCESSES).index(name)
            )
            evolutions[name] = evolve(config, PROCESSES[name](), key)
            bar.update()
        with jax.enable_x64(True):
            for name in config.schedules:
                residuals[name] = residuals_of(config, SCHEDULES[name].factory())
                bar.update()
            path = along_a_path()
            bar.update()
    metrics = {
        "densities": {
            name: evolution.metrics for name, evolution in evolutions.items()
        },
        "residuals": {name: summary(sizes) for name, sizes in residuals.items()},
        "along_a_path": path.metrics,
    }
    files.write_results(out, metrics)
    save_figure(
        fokker_planck_figures.draw_densities(config.paths, evolutions),
        out / "densities.png",
    )
    titles = {name: title for name, (title, _) in SCHEDULES.items()}
    figure = fokker_planck_figures.draw_residuals(residuals, LEVELS, titles, COARSEST)
    save_figure(figure, out / "residuals.png")
    save_figure(
        fokker_planck_figures.draw_path(path, differences), out / "along_a_path.png"
    )
    print_metrics(metrics)
    return metrics


def check(config: Config) -> None:
    """Raise ValueError for settings too small to be meaningful."""
    for name, table in (("processes", PROCESSES), ("schedules", SCHEDULES)):
        if not getattr(config, name):
            raise ValueError(
                f"{name} must name at least one of {list(table)}, got none"
            )
    checks.integer("halvings", config.halvings, MEASURED - 1, 16)
    checks.integer("points", config.points, 1)
    checks.integer("paths", config.paths, 500)
    checks.integer("steps", config.steps, 100)
    checks.integer("cells", config.cells, 100)
    for name in ("steps", "cells"):
        if getattr(config, name) % 2:
            raise ValueError(
                f"{name} must be even, to be halved, got {getattr(config, name)}"
            )


def print_metrics(metrics: dict[str, Any]) -> None:
    """Print three short tables."""
    print(
        f"\n{'':9}{'t':>9}  L1 distance to the exact density   as many exact draws   "
        "χ² to the solver"
    )
    print(f"{'':9}{'':>9}{'solver':>12}{'histogram':>16}{'':>26}")
    for name, row in metrics["densities"].items():
        for s in row["snapshots"]:
            solver = "not known" if s["solver_l1"] is None else f"{s['solver_l1']:.1e}"
            floor = f"{s['histogram_l1_floor']:.4f} ± {s['histogram_l1_std']:.4f}"
            deviation = np.sqrt(2 * s["degrees"])
            chi_squared = (
                f"{s['chi_squared']:.0f}, expected {s['degrees']} ± {deviation:.0f}"
            )
            print(
                f"{name:9}{s['t']:9.3g}{solver:>12}{s['histogram_l1']:16.4f}"
                f"{floor:>26}   {chi_squared}"
            )
        end = (
            f"order {row['solver_order']:.3f}"
            if "solver_order" in row
            else f"{row['l1_to_rest']:.4f} from rest in L1"
        )
        print(f"{'':9}solver: {end}; mass kept within {row['mass_error']:.0e}")
    titles = "".join(f"{LEVELS[level].split(',')[0]:>18}" for level in LEVELS)
    print(
        f"\n{'order':15}{titles}   reversed sign: residual, order of its gap to g²Δp/p"
    )
    for name, row in metrics["residuals"].items():
        orders = "".join(f"{row['order'][level]:18.3f}" for level in LEVELS)
        print(f"{name:15}{orders}{row['wrong']:12.2f}{row['order']['wrong_gap']:12.3f}")
    path = metrics["along_a_path"]
    print(
        f"\ndifferences of log p along a path are within {path['along_error']:.1e} of "
        "−tr ∂v/∂x, at a fixed point"
        f" within {path['fixed_error']:.1e}\nof ∂log p/∂t, nats per unit of t; the two "
        "rates differ by up to"
        f" {path['largest_difference_of_the_two']:.2g}"
    )


if __name__ == "__main__":
    cli.main(run, Config, __doc__)
