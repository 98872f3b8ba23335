"""Does annealing give two far modes of unequal weight their shares of Langevin
samples?

    python -m experiments.ncsn [--levels 20] [--corrections 50] [--steps 2000]

The target is 0.8 N((5, 5), I) + 0.2 N((−5, −5), I) (Song & Ermon 2019, Figure
3). Between the modes its density is so small that Langevin dynamics at the
least noise never crosses: each mode keeps the share of the starts that lay on
its side. From level to level of a noise ladder the modes part slowly, and the
shares are decided while they still overlap.

All runs start from N(0, σ_max²), which replaces steps at the greatest level,
and make (levels − 1) · corrections Langevin steps. The score is first exact,
then that of a small network trained by the ladder's objective on samples of
the target. Figures in OUT:

- samples.png: the exact density beside samples of every kind.
- annealing.png: annealed states at six noise levels over the exact density
  there, and the heavy mode's share against the number of levels for two
  budgets of Langevin steps.
- score_error.png: the network's score error by noise level, on states of that
  level and on those of the greatest.

Units: `sigma` is in data units. `share` is a share. The losses `learned`,
`exact`, `excess` and `first`, and the squares `error`, `error_far` and
`exact_score`, are of scores times σ. All these have no unit.

Hardware and time: about a minute on 2 CPU cores.

Expect the heavy mode, of weight 0.8, to get 0.51 of the samples by plain
Langevin and 0.78 by annealed Langevin, with standard errors of 0.005. By the
learned score it gets 0.57 and 0.77. More steps bring it nearer: 0.748, 0.783
and 0.792 with 250, 1000 and 4000 steps on 20 levels. With 2 levels it stays at
0.50.
"""

from typing import Any

import jax
import numpy as np

from diffjax import ncsn, schedules, targets
from experiments.ncsn.config import Config
from experiments.ncsn.figures import draw_annealing, draw_errors, draw_samples
from experiments.ncsn.network import compare_losses, score_errors, train
from experiments.ncsn.samplers import (
    MEANS,
    WEIGHTS,
    annealed,
    exact_samples,
    levels_alone,
    plain,
    share,
)
from experiments.shared import cli, devices, files
from experiments.shared.figures import save_figure


def run(config: Config) -> dict[str, Any]:
    """Sample, train, sample again, compare and draw.

    Returns:
      The metrics, which are also in OUT/metrics.json.
    """
    check(config)
    target = targets.gaussian_mixture(WEIGHTS, MEANS, [1.0, 1.0])
    ladder = schedules.from_sigmas(
        ncsn.geometric_sigmas(config.levels, config.sigma_min, config.sigma_max)
    )
    out = files.start(config)
    devices.check_batch("batch_size", config.batch_size)
    keys = jax.random.split(jax.random.key(config.seed), 7)
    exact = targets.denoiser(target, ladder)
    samples = {"exact": np.asarray(exact_samples(keys[0], target, config.samples))}
    with cli.progress(
        4 + len(config.level_counts) * len(config.budgets), label="Langevin", unit="run"
    ) as bar:
        samples["plain"] = plain(config, keys[1], exact, ladder, bar)
        samples["annealed"], states = annealed(config, keys[2], exact, ladder, bar)
        sweep = {
            budget: [
                levels_alone(config, keys[3], target, count, budget, bar)
                for count in config.level_counts
            ]
            for budget in config.budgets
        }
        learned, history = train(config, keys[4], target, ladder)
        samples["plain, learned"] = plain(config, keys[1], learned, ladder, bar)
        samples["annealed, learned"], _ = annealed(
            config, keys[2], learned, ladder, bar
        )
    metrics = {
        "heavy_mode": {kind: share(x) for kind, x in samples.items()},
        "levels": {
            str(budget): dict(zip(config.level_counts, shares, strict=True))
            for budget, shares in sweep.items()
        },
        "loss": compare_losses(keys[5], learned, exact, target, ladder)
        | {"first": history[0]},
        "score_error": score_errors(keys[6], learned, target, ladder),
    }
    files.write_results(out, metrics)
    save_figure(
        draw_samples(config, target, samples, metrics["heavy_mode"]),
        out / "samples.png",
    )
    save_figure(
        draw_annealing(config, target, ladder, states, sweep), out / "annealing.png"
    )
    save_figure(draw_errors(metrics["score_error"]), out / "score_error.png")
    print_results(metrics)
    return metrics


def check(config: Config) -> None:
    """Raise ValueError for flags that would fail or be meaningless."""
    for name, least in (
        ("samples", 100),
        ("levels", 2),
        ("corrections", 1),
        ("steps", 1),
        ("batch_size", 1),
        ("width", 2),
    ):
        if getattr(config, name) < least:
            raise ValueError(
                f"{name} must be at least {least}, got {getattr(config, name)}"
            )
    for name, least in (("level_counts", 2), ("budgets", 1)):
        values = getattr(config, name)
        if not values or min(values) < least:
            raise ValueError(
                f"{name} must be integers of at least {least}, got {values}"
            )
    for name in ("step_size", "plain_step"):
        if not 0 < getattr(config, name) < 4:
            raise ValueError(
                f"{name} must lie between 0 and 4, where Langevin steps diverge, got "
                f"{getattr(config, name)}"
            )


def print_results(metrics: dict[str, Any]) -> None:
    """Print the table of shares, and the losses."""
    print("\nheavy mode's share of the samples (exact: 0.8)")
    for kind, row in metrics["heavy_mode"].items():
        print(f"  {kind:20}{row['share']:.4f} ± {row['standard_error']:.4f}")
    for budget, shares in metrics["levels"].items():
        print(
            f"  {budget} steps over levels: "
            + ", ".join(f"{n}: {s['share']:.3f}" for n, s in shares.items())
        )
    loss = metrics["loss"]
    print(
        f"loss {loss['learned']:.4f}, of the exact score {loss['exact']:.4f}, excess "
        f"{loss['excess']:.4f}"
    )


if __name__ == "__main__":
    cli.main(run, Config, __doc__)
