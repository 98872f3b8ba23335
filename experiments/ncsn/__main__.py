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

Hardware and time: about a minute on 2 CPU cores.

Expect the heavy mode, of weight 0.8, to get 0.51 of the samples by plain
Langevin and 0.78 by annealed Langevin, with standard errors of 0.005. By the
learned score it gets 0.57 and 0.77. More steps bring it nearer: 0.748, 0.783
and 0.792 with 250, 1000 and 4000 steps on 20 levels. With 2 levels it stays at
0.50.
"""

import dataclasses
import functools
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import diffjax as dj
from diffjax import grids, ncsn, predictions, schedules, sde, solvers, targets
from diffjax.networks import MLP
from experiments.shared import cli, devices, files
from experiments.shared.figures import PALE_GREYS, histogram, save_figure
from experiments.shared.mapping import map_examples

WEIGHTS, MEANS = (0.8, 0.2), ((5.0, 5.0), (-5.0, -5.0))

SHOWN_LEVELS = 6
ERROR_STATES = 2048
LOSS_DRAWS = 8192
EXTENT, CELLS = 9.0, 72


@dataclasses.dataclass(frozen=True)
class Config(devices.Devices):
    """Plain and annealed Langevin dynamics on two far modes, with exact and
    learned scores.
    """

    out: pathlib.Path = pathlib.Path("runs/ncsn")
    """Folder for figures, config.json and metrics.json."""
    seed: int = 0
    """Seed of all draws."""
    samples: int = 8192
    """Samples of each kind."""
    levels: int = 20
    """Noise levels of the ladder, in geometric progression."""
    sigma_min: float = 0.1
    """The least noise level, in data units."""
    sigma_max: float = 20.0
    """The greatest noise level, in data units: above the modes' distance of 14."""
    corrections: int = 50
    """Langevin steps at each level."""
    step_size: float = 0.2
    """Annealed Langevin's step ε over σ² at each level, below 4."""
    plain_step: float = 0.1
    """Plain Langevin's step ε, in squared data units, below 4."""
    level_counts: tuple[int, ...] = (2, 5, 10, 20, 50)
    """Numbers of levels to compare, between the same ends."""
    budgets: tuple[int, ...] = (250, 1000, 4000)
    """Langevin steps of a whole run in that comparison."""
    steps: int = 2000
    """Training steps of the network."""
    batch_size: int = 512
    """Samples of the target per training step."""
    width: int = 64
    """Features of the network's hidden layers."""


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
    files.write_json(out / "metrics.json", metrics)
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


# -------------------------------------------------------------------- samplers


def exact_samples(key: jax.Array, distribution: Any, count: int) -> jax.Array:
    """Independent samples of a target, (count, 2)."""
    return jax.vmap(distribution.sample)(jax.random.split(key, count))


def langevin_steps(config: Config) -> int:
    """The Langevin steps of a whole run.

    The first level makes none, as the run starts there, and neither does the
    last step, which denoises.
    """
    return (config.levels - 1) * config.corrections


def plain(
    config: Config, key: jax.Array, denoiser: Any, ladder: Any, bar: Any
) -> np.ndarray:
    """Samples from N(0, σ_max²) by Langevin steps at the least level alone,
    (samples, 2).

    x ← x + ½ε ∇log p + √ε z
    """
    ts = config.plain_step * jnp.arange(langevin_steps(config) + 1)
    starts = config.sigma_max * jax.random.normal(key, (config.samples, 2))
    keys = jax.random.split(jax.random.fold_in(key, 1), config.samples)

    def end(denoiser, key, start):
        score = predictions.score(ladder, denoiser)
        dynamics = sde.SDE(
            lambda x, t: 0.5 * score(x, ladder.t_min), lambda x, t: jnp.ones(())
        )
        return solvers.integrate(
            key, solvers.euler_maruyama(), dynamics, x=start, ts=ts
        )

    ends = map_examples(end, denoiser, (keys, starts), chunk=config.samples)
    bar.update()
    return ends


def annealed(
    config: Config, key: jax.Array, denoiser: Any, ladder: Any, bar: Any
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Samples by annealed Langevin down the ladder and to noise 0, (samples, 2).

    The second result has the states at a few indices of the ladder.
    """
    grid = grids.to_zero(grids.from_indices(ladder, range(ladder.steps, 0, -1)))
    solver = solvers.annealed_langevin(config.corrections, config.step_size)
    path = devices.on_host(
        dj.sample_many(
            key,
            config.samples,
            denoiser,
            ladder,
            solver=solver,
            grid=grid,
            shape=(2,),
            path=True,
            mesh=devices.mesh(),
        )
    )
    indices = np.unique(
        np.rint(np.linspace(ladder.steps, 1, SHOWN_LEVELS)).astype(int)
    )[::-1]
    bar.update()
    return path[:, -1], {int(i): path[:, ladder.steps - i] for i in indices}


def levels_alone(
    config: Config, key: jax.Array, target: Any, levels: int, budget: int, bar: Any
) -> dict[str, float]:
    """The heavy mode's share after about `budget` Langevin steps spread over
    `levels` levels.

    The ends of the ladder are the same.
    """
    ladder = schedules.from_sigmas(
        ncsn.geometric_sigmas(levels, config.sigma_min, config.sigma_max)
    )
    spread = dataclasses.replace(
        config, levels=levels, corrections=max(1, round(budget / (levels - 1)))
    )
    return share(
        annealed(spread, key, targets.denoiser(target, ladder), ladder, bar)[0]
    )


def share(x: np.ndarray) -> dict[str, float]:
    """The share of samples (n, 2) on the heavy mode's side, and its standard
    error.

    The modes lie seven standard deviations from the line between the sides.
    Without noise the exact share is the weight, to 1e-11.
    """
    p = float(np.mean(x.sum(-1) > 0))
    return {"share": p, "error": math.sqrt(max(p * (1 - p), 1 / len(x)) / len(x))}


def exact_share(sigma: float) -> float:
    """The exact share on the heavy mode's side at a noise level."""
    reach = math.hypot(*MEANS[0]) / math.hypot(1, sigma)
    above = 0.5 * (1 + math.erf(reach / math.sqrt(2)))
    return WEIGHTS[0] * above + WEIGHTS[1] * (1 - above)


# -------------------------------------------------------------------- training


def train(
    config: Config, key: jax.Array, target: Any, ladder: Any
) -> tuple[Any, list[float]]:
    """Train a network by `ncsn.score_loss` on fresh samples of the target.

    Returns:
      (denoiser, loss of every step).
    """
    model, sigma_data = (
        MLP(width=config.width, depth=2),
        float(jnp.sqrt(jnp.trace(target.covariance()) / 2)),
    )
    params = devices.whole(model.init(key, jnp.zeros(2), 0.0))
    optimiser = optax.adam(optax.cosine_decay_schedule(2e-3, config.steps))

    def denoiser_of(params):
        net = functools.partial(model.apply, params)
        return predictions.denoiser(
            ladder, net, "noise", sigma_data=sigma_data, inputs="scaled"
        )

    def mean_loss(params, keys):
        one = functools.partial(loss_of_one, denoiser_of(params), ladder, target)
        return jnp.mean(jax.vmap(one)(keys))

    @jax.jit
    def update(params, state, key):
        keys = devices.shared(jax.random.split(key, config.batch_size))
        loss, gradient = jax.value_and_grad(mean_loss)(params, keys)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(params, updates), state, loss

    # Placed as a step returns it, or the second step would compile anew.
    state, history = devices.whole(optimiser.init(params)), []
    with cli.progress(config.steps, label="training") as bar:
        for i in range(config.steps):
            params, state, loss = update(params, state, jax.random.fold_in(key, i))
            if i % 50 == 0 or i == config.steps - 1:
                history.append(float(loss))
                if not math.isfinite(history[-1]):
                    raise FloatingPointError(f"the loss is {history[-1]} at step {i}")
                bar.set_postfix(loss=f"{history[-1]:.3f}")
            bar.update()
    return denoiser_of(params), history


def loss_of_one(denoiser: Any, ladder: Any, target: Any, key: jax.Array) -> jax.Array:
    """`ncsn.score_loss` of a fresh sample at an index drawn uniformly, ()."""
    key_data, key_loss = jax.random.split(key)
    return ncsn.score_loss(key_loss, denoiser, ladder, target.sample(key_data))


def compare_losses(
    key: jax.Array, learned: Any, exact: Any, target: Any, ladder: Any
) -> dict[str, float]:
    """Mean losses of both denoisers on the same fresh draws, their difference and
    its standard error.

    In expectation the difference is the mean over levels of ½σ²‖s_θ − s‖²,
    that is `score_error` times half the number of entries. The network cannot
    reduce the loss of the exact score.
    """
    keys = jax.random.split(key, LOSS_DRAWS)
    one = lambda denoiser, key: loss_of_one(denoiser, ladder, target, key)
    both = [
        map_examples(one, denoiser, (keys,), chunk=LOSS_DRAWS).astype(np.float64)
        for denoiser in (learned, exact)
    ]
    excess = both[0] - both[1]
    return {
        "learned": float(both[0].mean()),
        "exact": float(both[1].mean()),
        "excess": float(excess.mean()),
        "excess_error": float(excess.std() / math.sqrt(len(excess))),
    }


def score_errors(
    key: jax.Array, learned: Any, target: Any, ladder: Any
) -> list[dict[str, float]]:
    """At each level σ² E‖s_θ − s‖²/D, and σ² E‖s‖²/D of the exact score.

    The error is taken on states of that level and on states of the greatest.
    """
    wide = target.noised(ladder, ladder.t_max)

    def squares(state, key):
        denoiser, t = state
        distribution, score = (
            target.noised(ladder, t),
            predictions.score(ladder, denoiser),
        )
        true = lambda x: targets.score(distribution, x)
        square = lambda v: ladder.sigma(t) ** 2 * jnp.mean(v**2)
        error = lambda x: square(score(x, t) - true(x))
        near = distribution.sample(key)
        return error(near), error(wide.sample(key)), square(true(near))

    rows = []
    for i, (sigma, t) in enumerate(zip(ladder.sigmas, ladder.times, strict=True)):
        keys = jax.random.split(jax.random.fold_in(key, i), ERROR_STATES)
        parts = map_examples(squares, (learned, t), (keys,), chunk=ERROR_STATES)
        near, far, size = (float(part.mean()) for part in parts)
        rows.append(
            {
                "sigma": float(sigma),
                "error": near,
                "error_far": far,
                "exact_score": size,
            }
        )
    return rows


# --------------------------------------------------------------------- figures


def density(distribution: Any, edges: np.ndarray) -> np.ndarray:
    """A density at the centres of square cells, (x_1, x_2)."""
    centres = jnp.asarray(0.5 * (edges[1:] + edges[:-1]))
    places = jnp.stack(jnp.meshgrid(centres, centres, indexing="ij"), -1)
    return np.asarray(
        jnp.exp(jax.jit(jax.vmap(jax.vmap(distribution.log_prob)))(places))
    )


def draw_samples(
    config: Config, target: Any, samples: dict[str, np.ndarray], shares: dict[str, Any]
) -> Any:
    """Draw the exact density and the histogram of each kind of samples, on one
    colour scale.
    """
    edges = np.linspace(-EXTENT, EXTENT, CELLS + 1)
    exact = density(target, edges)
    titles = {
        "exact": "exact samples",
        "plain": f"plain Langevin, σ = {config.sigma_min:g}",
        "annealed": "annealed Langevin",
        "plain, learned": "plain Langevin, learned score",
        "annealed, learned": "annealed Langevin, learned score",
    }
    panels = {"exact density": (exact, "heavy mode: 0.8")}
    for kind, x in samples.items():
        outside = np.mean(np.abs(x).max(-1) > EXTENT)
        label = f"heavy mode: {shares[kind]['share']:.3f} ± {shares[kind]['error']:.3f}"
        label += f"; outside the frame: {outside:.2f}" if outside >= 0.005 else ""
        panels[titles[kind]] = histogram(x, edges), label
    figure, axes = plt.subplots(
        2, 3, figsize=(11.5, 8.1), sharex=True, sharey=True, layout="constrained"
    )
    order = [
        "exact density",
        *(
            titles[k]
            for k in (
                "plain",
                "annealed",
                "exact",
                "plain, learned",
                "annealed, learned",
            )
        ),
    ]
    for axis, title in zip(axes.flat, order, strict=True):
        values, label = panels[title]
        image = axis.pcolormesh(
            edges,
            edges,
            values.T,
            cmap="magma",
            vmin=0,
            vmax=exact.max(),
            rasterized=True,
        )
        axis.set_title(f"{title}\n{label}", fontsize=10)
        axis.set_aspect("equal")
    for axis in axes[-1]:
        axis.set_xlabel("$x_1$ (data units)")
    for axis in axes[:, 0]:
        axis.set_ylabel("$x_2$ (data units)")
    figure.colorbar(image, ax=axes, shrink=0.7, label="density (1 / data unit²)")
    budget = langevin_steps(config)
    figure.suptitle(
        f"Two far modes of weights 0.8 and 0.2: {config.samples} samples after "
        f"{budget} Langevin steps each"
    )
    return figure


def draw_annealing(
    config: Config, target: Any, ladder: Any, states: dict[int, np.ndarray], sweep: Any
) -> Any:
    """Draw states over the exact density at a few levels, and the share against
    the number of levels.
    """
    figure = plt.figure(figsize=(13.5, 6.9), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.15))
    axes = np.atleast_1d(top.subplots(1, len(states)))
    for axis, (index, x) in zip(axes, states.items(), strict=True):
        sigma = float(ladder.sigmas[index - 1])
        side = 6 + 2.6 * math.hypot(sigma, 1)
        edges = np.linspace(-side, side, CELLS + 1)
        axis.pcolormesh(
            edges,
            edges,
            density(target.noised(ladder, index / ladder.steps), edges).T,
            cmap=PALE_GREYS,
            rasterized=True,
        )
        axis.scatter(*x[:300].T, s=3, color="#a03020", linewidths=0)
        axis.set(
            xlim=(-side, side),
            ylim=(-side, side),
            aspect="equal",
            xlabel="$x_1$ (data units)",
        )
        start = ", the starts" if index == ladder.steps else ""
        label = (
            f"σ = {sigma:.3g}{start}\n"
            f"{share(x)['share']:.3f}, exact {exact_share(sigma):.3f}"
        )
        axis.set_title(label, fontsize=10)
    axes[0].set_ylabel("$x_2$ (data units)")
    top.suptitle(
        "300 states of annealed Langevin over the exact density at six levels; all "
        "states' share on the heavy side"
    )
    axis = bottom.subplots()
    for (budget, shares), colour in zip(
        sweep.items(),
        plt.get_cmap("viridis")(np.linspace(0.75, 0.1, len(sweep))),
        strict=True,
    ):
        values, errors = ([s[k] for s in shares] for k in ("share", "error"))
        axis.errorbar(
            config.level_counts,
            values,
            [2 * e for e in errors],
            color=colour,
            marker="o",
            ms=4,
            capsize=3,
            label=f"about {budget} Langevin steps in all",
        )
    axis.axhline(WEIGHTS[0], color="black", lw=1, label="exact, 0.8")
    axis.axhline(
        0.5, color="black", lw=1, ls=":", label="share of the starts on its side, 0.5"
    )
    axis.set_xscale("log")
    axis.set_xticks(config.level_counts, [str(n) for n in config.level_counts])
    axis.minorticks_off()
    axis.set(
        xlabel="number of noise levels (geometric, same ends)",
        ylabel="heavy mode's share of samples",
    )
    axis.set_title(
        "As many steps on more levels: the modes' shares come right (bars: two "
        "standard errors)",
        fontsize=11,
    )
    axis.legend(loc="center right", bbox_to_anchor=(0.99, 0.3), framealpha=0.9)
    return figure


def draw_errors(rows: list[dict[str, float]]) -> Any:
    """Draw the network's score error by noise level."""
    figure, axis = plt.subplots(figsize=(6.8, 4.3), layout="constrained")
    sigma = [row["sigma"] for row in rows]
    for name, label, style in (
        (
            "exact_score",
            "the exact score itself, on states of level σ",
            {"color": "black", "ls": ":"},
        ),
        (
            "error_far",
            "error on states of the greatest level, whence samplers start",
            {"color": "#c05020", "marker": "s", "ms": 4},
        ),
        (
            "error",
            "error on states of level σ, as trained",
            {"color": "#1f4e79", "marker": "o", "ms": 4},
        ),
    ):
        axis.plot(sigma, [row[name] for row in rows], label=label, **style)
    axis.set(xscale="log", yscale="log", xlabel="noise level σ (data units)")
    axis.set_ylabel("σ² E‖·‖² / D, mean square (no unit)")
    axis.set_title("Score error of the trained network", fontsize=11)
    axis.legend(
        frameon=False,
        fontsize=9,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.14),
        ncols=1,
    )
    return figure


def print_results(metrics: dict[str, Any]) -> None:
    """Print the table of shares, and the losses."""
    print("\nheavy mode's share of the samples (exact: 0.8)")
    for kind, row in metrics["heavy_mode"].items():
        print(f"  {kind:20}{row['share']:.4f} ± {row['error']:.4f}")
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
