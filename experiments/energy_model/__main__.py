"""Which objective fits an energy best, and how accurate are estimates of its
normaliser?

    python -m experiments.energy_model [--target moons] [--objectives denoising exact]

An energy network log p̃(x) = −½‖x − f(x)‖² is fitted to samples of a density
in the plane by denoising, sliced and exact score matching and by contrastive
divergence with persistent MALA chains. In two dimensions quadrature normalises
the learned density, so that its KL divergence from the truth is known in nats.

Where quadrature is impossible, annealed importance sampling and thermodynamic
integration estimate log Z. Here they can be compared with it. Figures in OUT:

- densities.png: the exact density and each learned one, with KL(p‖q).
- log_z.png: estimates of log Z less the one by quadrature, against the number
  of levels, with ± 2 standard errors.

Units: `kl`, `kl_from_noised`, `gaussian_kl`, `log_z` and `discretisation` are
in nats, `seconds` in seconds. `effective_size` is a number of walkers,
`levels` a number of levels.

Hardware and time: about 2 minutes on 2 CPU cores. A run resumes from its
checkpoints.

Expect on moons KL(p‖q) of 0.04 nats by denoising (0.02 from the noised data,
which is what it fits), 0.03 by sliced and 0.01 by exact score matching, 0.03
by contrastive divergence. The best Gaussian has 0.90. Expect log Z by either
method within 0.03 ± 0.025 of quadrature at 128 levels, within 0.2 ± 0.1 at 8.
"""

from typing import Any

from diffjax import (
    checks,
    divergences,
)
from experiments.energy_model.config import Config
from experiments.energy_model.figures import draw_densities, draw_log_z
from experiments.energy_model.fitting import TITLES, fit
from experiments.energy_model.normalisers import compare, divergence, log_z_estimates
from experiments.shared import cli, files, training
from experiments.shared.datasets import TOYS
from experiments.shared.figures import save_figure


def run(config: Config) -> dict[str, Any]:
    """Fit, normalise, estimate and draw.

    Returns:
      The metrics, which are also in OUT/metrics.json.
    """
    check(config)
    out = files.open_folder(config)
    clock, target = cli.Clock(), TOYS[config.target]()
    fitted = {}
    for name in config.objectives:
        fitted[name] = fit(config, out, target, name)
        clock.lap(name)
    # Each `fit` wrote the configuration of its network. This is that of the
    # whole run.
    files.write_config(out, config)
    results: dict[str, Any] = {
        "objectives": {
            name: compare(config, target, distribution)
            for name, distribution in fitted.items()
        }
    }
    results["gaussian_kl"] = divergence(target, divergences.moment_matched(target))
    clock.lap("quadrature")
    with cli.progress(
        len(fitted) * 2 * len(config.levels), label="log Z", unit="estimate"
    ) as bar:
        for name, distribution in fitted.items():
            results["objectives"][name]["estimates"] = log_z_estimates(
                config, distribution, bar
            )
    clock.lap("log Z")
    results["seconds"] = clock.laps
    files.write_results(out, results)
    save_figure(draw_densities(target, fitted, results), out / "densities.png")
    save_figure(draw_log_z(config, results), out / "log_z.png")
    print_results(results)
    return results


def check(config: Config) -> None:
    """Raise ValueError for flags that are out of range."""
    for name in ("objectives", "levels"):
        if not getattr(config, name):
            raise ValueError(f"{name} must hold at least one entry, got none")
    training.check_optimisation(config)
    for name in ("chains", "chain_steps", "width"):
        checks.integer(name, getattr(config, name), 1)
    checks.integer("depth", config.depth, 0)
    checks.integer("walkers", config.walkers, 2)
    checks.integer("examples", config.examples, config.batch_size)
    for count in config.levels:
        checks.integer("levels", count, 1)
    for name in ("sigma", "chain_step_size", "contrastive_rate"):
        checks.positive(name, getattr(config, name))
    checks.within("restart", config.restart, 0.0, 1.0)
    checks.non_negative("penalty", config.penalty)


def print_results(results: dict[str, Any]) -> None:
    """Print the tables."""
    print(f"\nKL(p‖q) in nats; of the best Gaussian {results['gaussian_kl']:.3f}")
    for name, row in results["objectives"].items():
        print(
            f"{TITLES[name]:28}{row['kl']:.4f}   from the noised data "
            f"{row['kl_from_noised']:.4f}"
        )
    print("\nlog Z less the one by quadrature ± standard error, by number of levels")
    for name, row in results["objectives"].items():
        for kind, estimates in row["estimates"].items():
            cells = (
                f"{e['log_z'] - row['log_z']:+.3f} ± {e['standard_error']:.3f}"
                for e in estimates
            )
            print(f"{TITLES[name]:28}{kind:15}" + "   ".join(cells))


if __name__ == "__main__":
    cli.main(run, Config, __doc__)
