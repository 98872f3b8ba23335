"""Which errors do Langevin chains make, and do a Metropolis step and annealing
correct them?

    python -m experiments.langevin [--chains 1000] [--steps 1000] [--out DIR] [--seed N]

Every distribution is known exactly: a Gaussian, a two-mode mixture on the line
whose moments come by quadrature, and two far modes in the plane. Unadjusted
chains converge to another distribution, the further from the target the longer
the step, or diverge. A Metropolis step removes that bias at any step size, and
BAOAB has none on a Gaussian.

No such chain crosses between far modes. Annealed dynamics gets their weights
nearly right. Annealed importance sampling corrects the weights of its chains
by importance weights, and gets log Z as well. Figures in OUT:

- paths.png: one chain of each kind over the exact density of a mixture in the
  plane.
- histogram.png: all chains' states on the mixture on the line against its
  exact density, at a long step.
- bias.png: error of the mean square against step size, on the Gaussian beside
  ULA's exact distribution, and on the mixture. Crosses mark chains that
  diverged, which enter no average.
- modes.png: positions of chains on two far modes of weight 0.8 and 0.2, by
  four ways of sampling.

Units: `mean_square` and `step_size`, which is ε, are in squared data units,
`log_z` is in nats, `seconds` in seconds. `effective_sample_size` is a number
of draws, `diverged` one of chains. `bias` is relative to the exact mean
square. It, `distance`, `share`, `unweighted`, `acceptance` and `r_hat` have no
unit.

Hardware and time: a minute and a half on 2 CPU cores.

Expect on N(0, 1) at ε = 1 the mean square 1.333 = 1/(1 − ε/4) of ULA, and 1 of
MALA, BAOAB and underdamped chains, all within a standard error of 0.0025. On
the line at ε = 0.5 histograms are off by 0.23 (ULA), 0.03 (BAOAB), 0.012
(MALA) and 0.009 (underdamped), exact draws by 0.01. There ULA and BAOAB
diverge from ε = 2 on.

The heavy mode, of weight 0.8, gets 0.52 of MALA's chains, 0.79 of the annealed
ones and 0.79 by annealed importance sampling, all ± 0.015. Without its weights
the last would give it 0.54.
"""

from typing import Any

from diffjax import checks, targets
from experiments.langevin.chains import KERNELS, LINE, LONG, bias, on_a_line, path
from experiments.langevin.config import Config
from experiments.langevin.figures import (
    draw_bias,
    draw_histograms,
    draw_modes,
    draw_paths,
)
from experiments.langevin.modes import HEAVY, TITLES, far_modes
from experiments.shared import cli, files
from experiments.shared.figures import save_figure


def run(config: Config) -> dict[str, Any]:
    """Run all chains, measure and draw.

    Returns:
      The metrics, which are also in OUT/metrics.json.
    """
    check(config)
    out = files.start(config)
    clock, line = cli.Clock(), targets.gaussian_mixture(*LINE)
    with cli.progress(
        2 + len(KERNELS) * (1 + 2 * len(config.step_sizes)), label="chains", unit="run"
    ) as bar:
        histograms, counts = on_a_line(config, line, bar)
        clock.lap("histograms")
        biases = {
            "gaussian": bias(config, targets.gaussian([0.0], 1.0), bar),
            "mixture": bias(config, line, bar),
        }
        clock.lap("bias")
        paths = {name: path(config, name) for name in KERNELS}
        bar.update()
        modes, places = far_modes(config)
        bar.update()
        clock.lap("far modes")
    metrics = {
        "histograms": histograms,
        "bias": biases,
        "heavy_mode": modes,
        "seconds": clock.laps,
    }
    files.write_results(out, metrics)
    save_figure(draw_paths(paths), out / "paths.png")
    save_figure(draw_histograms(line, counts, histograms), out / "histogram.png")
    save_figure(draw_bias(config, biases), out / "bias.png")
    save_figure(draw_modes(places, modes), out / "modes.png")
    print_results(metrics)
    return metrics


def check(config: Config) -> None:
    """Raise ValueError for flags that are out of range."""
    checks.integer("chains", config.chains, 50)
    if config.steps < 10 or config.steps % 10:
        raise ValueError(f"steps must be a positive multiple of 10, got {config.steps}")
    # One step in 10 is kept, of which a level has 20, and diagnostics need 8 draws.
    checks.integer("steps", config.steps, 80)
    checks.integer("levels", config.levels, 4)
    if not config.step_sizes:
        raise ValueError("step_sizes must hold at least one size, got none")
    for size in config.step_sizes:
        if not 0 < size < 4:
            raise ValueError(
                "step_sizes must lie between 0 and 4, beyond which ULA diverges, got "
                f"{size}"
            )


def print_results(metrics: dict[str, Any]) -> None:
    """Print the tables."""
    print(
        f"\non the line at ε = {LONG}: distance to the exact histogram, exact draws ",
        end="",
    )
    print(f"{metrics['histograms']['exact']['distance']:.4f}")
    for name in KERNELS:
        row = metrics["histograms"][name]
        print(
            f"{KERNELS[name][0]:24}{row['distance']:.4f}   accepted "
            f"{row['acceptance']:.3f}   R̂ {row['r_hat']:.4f}"
        )
    for distribution, by_kernel in metrics["bias"].items():
        print(f"\nrelative bias of E x² on the {distribution} (± standard error), by ε")
        for name, rows in by_kernel["kernels"].items():
            print(f"{KERNELS[name][0]:24}" + "".join(map(cell, rows)))
    print(f"\nheavy mode's share, exactly {HEAVY}")
    for name, row in metrics["heavy_mode"].items():
        print(f"{TITLES[name]:32}{row['share']:.3f} ± {row['standard_error']:.3f}")


def cell(row: dict[str, Any]) -> str:
    """A bias with its error, or the number of chains that diverged."""
    if row["bias"] is None:
        return f"{row['diverged']:9d} diverged"
    return f"{row['bias']:+9.4f} ± {row['standard_error']:.4f}"


if __name__ == "__main__":
    cli.main(run, Config, __doc__)
