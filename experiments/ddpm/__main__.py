"""Into how many bits does DDPM's discrete chain compress handwritten digits, and
which terms cost them?

    python -m experiments.ddpm
    python -m experiments.ddpm --objective hybrid --network dit --out runs/ddpm_hybrid
    python -m experiments.ddpm --betas cosine --chain-steps 200 --out runs/ddpm_cosine

Trains one denoiser on the chain x_1 … x_T and prints the bound on −log P(x) of
the test digits term by term for each variance of p(x_{t−1} | x_t): prior
matching L_T, denoising ΣL_{t−1}, and reconstruction L_0 by the discretised
Gaussian decoder. Beside it stand the score of the same network by the
probability flow and that of independent histograms.

Then it samples the chain, sends test digits progressively (rate against
distortion), and interpolates in latents. A run on the same OUT resumes.
Figures in OUT:

- samples.png: test digits, samples by all T steps and by fewer.
- bound.png: nats of each term L_{t−1} for each variance, and how they add up.
- rate_distortion.png: √mean squared error against bits sent, and both by
  index.
- progressive.png: some test digits at several indices: x_t, and x̂_0 = D(x_t).
- interpolation.png: between test digits through latents at several indices and
  through the probability flow.

Hardware and time: about 5 minutes on 2 CPU cores, a third of it training. The
bound of 447 digits over 1000 terms takes about half a minute.

Expect on digits a bound of 2.02 bits/dim with the optimal variance, 2.13 with
β̃ and 2.46 with β, all of it in the denoising terms. The flow has 1.98, the
histograms 2.42. Where the denoiser is exact, expect gaps at T = 1000 of 0,
0.44 nats (β̃) and 0.001 (β) on a Gaussian. For a mixture they fall as 1/T,
from 2.3 to 0.10.
"""

import dataclasses
import functools
import math
import pathlib
import time
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from diffjax import ddpm, distributions, metrics, schedules, solvers
from experiments.ddpm import figures as ddpm_figures
from experiments.shared import cli, datasets, devices, files, scoring, training
from experiments.shared.mapping import map_examples
from experiments.shared.training import DenoiserModel

BETAS = {
    "linear": lambda steps: ddpm.linear_betas(steps, 0.1 / steps, 20 / steps),
    "cosine": ddpm.cosine_betas,
    "sigmoid": lambda steps: ddpm.sigmoid_betas(steps, 0.1 / steps, 20 / steps),
    "constant": lambda steps: ddpm.constant_betas(steps, 10 / steps),
}
"""β tables whose sum does not depend on the number of steps: that of Ho et al.
2020 at 1000 steps.
"""

COMPRESSED = 64
"""Test examples over which rate and distortion are averaged."""


@dataclasses.dataclass(frozen=True)
class Config(training.Training):
    """Train a DDPM, bound its code length term by term, sample and compress."""

    out: pathlib.Path = pathlib.Path("runs/ddpm")
    """Folder for config.json, metrics.json, figures and checkpoints. A run on the
    same folder resumes.
    """
    data: str = "digits"
    """"digits", or the path of an .npy or .npz file of integers (N, H, W[, C]) or
    (N, D).
    """
    network: Literal["auto", "dit", "unet", "mlp"] = "mlp"
    """Network. A patch transformer (dit, auto for images of even sides) needs
    fewer steps, each ten times as long.
    """
    steps: int = 3000
    """Training steps."""
    betas: Literal["linear", "cosine", "sigmoid", "constant"] = "linear"
    """Forward variances."""
    chain_steps: int = 1000
    """T, the length of the chain."""
    prediction: Literal["levels", "noise", "data", "v", "edm"] = "levels"
    """The network's prediction. levels is a softmax over the values that pixels
    take, exact in rounding.
    """
    objective: Literal["simple", "bound", "hybrid"] = "simple"
    """simple is L_simple, bound the bound itself (noisy to train by), hybrid
    L_simple for the mean and the bound for the variance alone.
    """
    variance: Literal["forward", "posterior", "optimal"] = "optimal"
    """Variance of p(x_{t−1} | x_t): β, β̃, or β̃ plus the softmax's variance
    (prediction levels only).
    """
    bound_examples: int | None = None
    """Test examples whose bound is computed. Default: all."""
    likelihood_steps: int = 16
    """Runge-Kutta steps of the probability flow upwards for log p, each of four
    evaluations.
    """
    probes: int = 2
    """Hutchinson probes per test example, 2 or more."""
    exact: bool = True
    """Whether to print the gaps of exact denoisers too."""
    samples: int = 128
    """Samples of the chain."""
    few_steps: int = 50
    """Steps of the samples that visit only a part of the indices."""
    chunk: int = 16
    """Test examples at a time."""


# ------------------------------------------------------------- what is trained


def make_model(config: Config, data: datasets.Dataset) -> DenoiserModel:
    """Make the model that the flags select, on the chain. Raises ValueError for
    flags that exclude each other.
    """
    if data.levels is None:
        raise ValueError(
            f"data must be integers of at most {datasets.MAX_LEVELS} levels, "
            f"{data.name} is not"
        )
    if config.variance == "optimal" and config.prediction != "levels":
        raise ValueError(
            f"variance 'optimal' needs prediction 'levels', got {config.prediction!r}; "
            "use posterior"
        )
    if config.objective == "hybrid" and config.variance != "optimal":
        raise ValueError(
            "objective 'hybrid' trains a variance: it needs variance 'optimal', got "
            f"{config.variance!r}"
        )
    chain = schedules.from_betas(BETAS[config.betas](config.chain_steps))
    return DenoiserModel(
        data, chain, training.make_module(config, data), config.prediction
    )


def with_variance(denoiser: Any, variance: str) -> Any:
    """The denoiser as a variance needs it: D, or (D, Var) by one call."""
    return dj.predictions.moments(denoiser) if variance == "optimal" else denoiser


def train(
    config: Config, model: DenoiserModel, out: pathlib.Path
) -> tuple[Any, np.ndarray]:
    """Train the denoiser, resuming from the checkpoints in `out`.

    Returns:
      (averaged parameters, loss of every step).
    """
    chain = model.schedule
    term = {
        "simple": ddpm.simple_loss,
        "bound": functools.partial(
            ddpm.bound_loss, variance=config.variance, levels=model.data.levels
        ),
        "hybrid": functools.partial(
            ddpm.hybrid_loss, variance=config.variance, levels=model.data.levels
        ),
    }[config.objective]
    # Nats per dimension.
    scale = (
        chain.steps / math.prod(model.data.shape)
        if config.objective == "bound"
        else 1.0
    )

    def loss(params, key, batch):
        key_index, key_noise = jax.random.split(key)
        indices = stratified_indices(key_index, len(batch), chain.steps)

        def one(key, x, index):
            key_net, key_noise = jax.random.split(key)
            denoiser = model.denoiser(params, key_net if config.dropout else None)
            if config.objective != "simple":
                denoiser = with_variance(denoiser, config.variance)
            return term(key_noise, denoiser, chain, x, index=index)

        return scale * jnp.mean(
            jax.vmap(one)(jax.random.split(key_noise, len(batch)), batch, indices)
        )

    return training.fit(
        config, out, loss, model.init, arrays=model.data.train, fields=_FIELDS
    )


_FIELDS = ("data", "betas", "chain_steps", "prediction", "objective", "variance")


def stratified_indices(key: jax.Array, count: int, steps: int) -> jax.Array:
    """Indices of the chain, stratified over a batch.

        1 + ⌊T ((i/count + u) mod 1)⌋,    one u ~ U(0, 1)

    At each position i they are uniform on 1 … T.

    Returns:
      (count,) integers.
    """
    quantiles = jnp.mod(jnp.arange(count) / count + jax.random.uniform(key), 1)
    return jnp.minimum(1 + jnp.floor(steps * quantiles).astype(int), steps)


# ------------------------------------------------------------ what is measured


def bounds(
    config: Config, model: DenoiserModel, denoiser: Any, variance: str, test: np.ndarray
) -> ddpm.Bound:
    """The bound of each test example in nats, term by term, with a leading axis
    of examples.
    """
    keys = jax.random.split(jax.random.key(config.seed + 2), len(test))

    def one(denoiser, key, x):
        return ddpm.elbo(
            key,
            denoiser,
            model.schedule,
            x,
            variance=variance,
            levels=model.data.levels,
            chunk=25,
        )

    return map_examples(
        one,
        with_variance(denoiser, variance),
        (keys, test),
        chunk=config.chunk,
        label=f"bound, {variance}",
    )


def bits(values: Any, model: DenoiserModel) -> np.ndarray:
    """Convert nats of examples to bits per dimension."""
    return np.asarray(values) / (math.prod(model.data.shape) * math.log(2))


def bound_table(
    config: Config, model: DenoiserModel, denoiser: Any
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The bound for every variance, the chosen one first.

    All variances use the same examples and the same noise.

    Returns:
      ({variance: bits/dim by term}, {variance: mean nats per dimension of L_0
        … L_{T−1}}).
    """
    test = model.data.test[: config.bound_examples]
    names = [
        config.variance,
        *(v for v in ("optimal", "posterior", "forward") if v != config.variance),
    ]
    table, terms = {}, {}
    for name in names:
        if name == "optimal" and config.prediction != "levels":
            continue
        began = time.perf_counter()
        bound = bounds(config, model, denoiser, name, test)
        table[name] = summary(config, model, bound) | {
            "seconds": round(time.perf_counter() - began, 1)
        }
        means = np.concatenate(
            [np.mean(bound.reconstruction, keepdims=True), np.mean(bound.denoising, 0)]
        )
        terms[name] = means / math.prod(model.data.shape)
    return table, terms


def summary(
    config: Config, model: DenoiserModel, bound: ddpm.Bound
) -> dict[str, float]:
    """Mean bits/dim of each term and of the total, with the total's standard
    error over examples.
    """
    parts = {
        "prior": bound.prior,
        "denoising": np.sum(bound.denoising, -1),
        "reconstruction": bound.reconstruction,
        "total": bound.total,
    }
    values = {name: bits(part, model) for name, part in parts.items()}
    return {name: float(value.mean()) for name, value in values.items()} | {
        "total_standard_error": scoring.standard_error(values["total"]),
        "examples": len(bound.prior),
    }


def flow_score(config: Config, model: DenoiserModel, params: Any) -> dict[str, float]:
    """Bits/dim of the same network by the probability flow.

    The network knows t by the log-SNR alone, so it serves every
    variance-preserving schedule. The flow takes one whose log-SNR is smooth in
    t where the β table is linear.
    """
    chain = model.schedule
    if config.betas == "linear":
        least = scoring.LEAST_FLOOR * model.data.spacing
        end = min(float(schedules.log_snr(chain, chain.t_min)), -2 * math.log(least))
        smooth = schedules.vp_linear(
            t_min=float(schedules.time_of_log_snr(schedules.vp_linear(t_min=1e-7), end))
        )
        model = dataclasses.replace(model, schedule=smooth)
    test = model.data.stored_test[: config.bound_examples]
    return scoring.score(
        jax.random.key(config.seed + 3),
        dataclasses.replace(model.data, stored_test=test),
        model.schedule,
        model.denoiser(params),
        steps=config.likelihood_steps,
        probes=config.probes,
        chunk=4 * config.chunk,
    )


def exact_gaps(config: Config) -> dict[str, dict[str, Any]]:
    """The gap between the bound and −log p where the denoiser is exact, in nats.

    Gaussian: N(0.3, 0.5²) on β(t) = 0.1 + 19.9 t at t = i/T, p(x_T) = q(x_T),
    decoder N(D, Var). The gap of β̃ tends to 0.289, that of the optimal
    variance is 0. Mixture: two modes, log-SNR from 8 to −8, where the gap
    falls as 1/T.

    Returns:
      {case: {T: (mean, standard error)}}.
    """
    gaussian = dj.targets.gaussian([0.3], 0.5)
    mixture = dj.targets.gaussian_mixture([0.4, 0.6], [[-0.9], [0.7]], [0.3, 0.4])
    cases: dict[str, tuple] = {
        f"Gaussian, {name}": (gaussian, vp_chain, name, GAUSSIAN_STEPS)
        for name in ("optimal", "posterior", "forward")
    }
    cases["mixture, posterior"] = (mixture, log_snr_chain, "posterior", MIXTURE_STEPS)
    table: dict[str, dict[str, Any]] = {}
    with cli.progress(
        sum(len(case[-1]) for case in cases.values()),
        label="exact denoisers",
        unit="chain",
    ) as bar:
        for name, (target, make, variance, lengths) in cases.items():
            table[name] = {}
            for steps in lengths:
                gap = exact_gap(config, target, make(steps), variance)
                table[name][str(steps)] = (
                    float(gap.mean()),
                    scoring.standard_error(gap),
                )
                bar.update()
    return table


GAUSSIAN_STEPS, MIXTURE_STEPS, EXACT_DRAWS = (10, 100, 1000), (16, 64, 256), 4096


def vp_chain(steps: int) -> schedules.DiscreteChain:
    """The chain of the variance-preserving SDE at t = i/T."""
    return schedules.from_betas(ddpm.betas_of(schedules.vp_linear(), steps))


def log_snr_chain(steps: int, end: float = 8.0) -> schedules.DiscreteChain:
    """The chain whose log-SNR falls from `end` to −`end` in equal steps."""
    return schedules.from_betas(
        -np.expm1(
            np.diff(-np.logaddexp(0, -np.linspace(end, -end, steps)), prepend=0.0)
        )
    )


def exact_gap(
    config: Config, target: Any, chain: schedules.DiscreteChain, variance: str
) -> np.ndarray:
    """The bound plus log p at draws of a one-dimensional target, in nats,
    (EXACT_DRAWS,).
    """
    keys = jax.random.split(jax.random.key(config.seed + 7), (2, EXACT_DRAWS))
    denoiser, first = dj.targets.denoiser(target, chain), chain.t_min

    gaussian = variance if target.means.shape[0] == 1 else None
    decoder = float((chain.sigma(first) / chain.alpha(first)) ** 2)
    if gaussian:
        decoder = 1 / (1 / decoder + 1 / float(target.covariance()[0, 0]))
    end = target.noised(chain, chain.t_max)
    prior = (
        distributions.Gaussian(end.mean(), jnp.diagonal(end.covariance()))
        if gaussian
        else None
    )
    pair = (
        ddpm.paired(denoiser, dj.predictions.variance(chain, denoiser))
        if variance == "optimal"
        else denoiser
    )

    def gap(_, key_data, key):
        x = target.sample(key_data)
        bound = ddpm.elbo(
            key,
            pair,
            chain,
            x,
            variance=variance,
            decoder_variance=decoder,
            prior=prior,
        )
        return bound.total + target.log_prob(x)

    return map_examples(gap, (), tuple(keys), chunk=EXACT_DRAWS)


def draw_samples(
    config: Config, model: DenoiserModel, denoiser: Any
) -> dict[str, np.ndarray]:
    """Samples of the chain by all its steps, and by `few_steps` of them with each
    variance.
    """
    chain, drawn = model.schedule, {}
    whole = {
        f"all {chain.steps} steps, {config.variance}": (config.variance, chain.steps)
    }
    few = {
        f"{config.few_steps} steps, {name}": (name, config.few_steps)
        for name in ("optimal", "posterior", "forward")
        if name != "optimal" or config.prediction == "levels"
    }
    cases = whole | few
    with cli.progress(len(cases), label="samples", unit="sampler") as bar:
        for name, (variance, steps) in cases.items():
            grid = dj.grids.to_zero(
                dj.grids.from_indices(
                    chain, np.linspace(chain.steps, 1, steps).round().astype(int)
                )
            )
            xs = dj.sample_many(
                jax.random.key(config.seed + 1),
                config.samples,
                with_variance(denoiser, variance),
                chain,
                solver=solvers.ddpm(variance),
                grid=grid,
                shape=model.data.shape,
                chunk=64,
                mesh=devices.mesh(),
            )
            drawn[name] = devices.on_host(xs)
            bar.update()
    return drawn


def rate_distortion(
    config: Config, model: DenoiserModel, denoiser: Any
) -> ddpm.RateDistortion:
    """Rate and distortion by index 1 … T, over some test examples.

    Rate is in mean bits/dim, distortion is the √mean squared error in levels.
    """
    test = model.data.test[:COMPRESSED]
    keys = jax.random.split(jax.random.key(config.seed + 4), len(test))

    def one(denoiser, key, x):
        return ddpm.rate_distortion(
            key, denoiser, model.schedule, x, variance=config.variance, chunk=25
        )

    curve = map_examples(
        one,
        with_variance(denoiser, config.variance),
        (keys, test),
        chunk=config.chunk,
        label="rate–distortion",
    )
    return ddpm.RateDistortion(
        curve.rate.mean(0), np.sqrt((curve.rmse**2).mean(0)) / model.data.spacing
    )


def progressive(
    config: Config, model: DenoiserModel, denoiser: Any, count: int = 6, frames: int = 9
) -> Any:
    """The first test digits as sent progressively, with one noise for each digit.

    Returns:
      (indices (F,), x_t (count, F, …), x̂_0 (count, F, …)).
    """
    chain, xs = model.schedule, jnp.asarray(model.data.test[:count])
    indices = np.unique(
        np.geomspace(max(1, chain.steps // 100), chain.steps, frames)
        .round()
        .astype(int)
    )[::-1]
    keys = jax.random.split(jax.random.key(config.seed + 5), count)

    @jax.jit
    def show(key, x, t):
        noisy = schedules.perturb(chain, x, t, jax.random.normal(key, x.shape))
        return noisy, denoiser(noisy, t)

    show_all = jax.vmap(jax.vmap(show, (None, None, 0)), (0, 0, None))
    return indices, *show_all(keys, xs, jnp.asarray(indices / chain.steps, jnp.float32))


def interpolations(
    config: Config, model: DenoiserModel, denoiser: Any, frames: int = 9
) -> dict[str, np.ndarray]:
    """Frames between two test digits, through latents at three indices and the
    probability flow.
    """
    chain, (start, end) = model.schedule, model.data.test[:2]
    weights, drawn = jnp.linspace(0, 1, frames), {}
    for share in (0.1, 0.2, 0.4):
        index = max(1, round(share * chain.steps))
        drawn[f"latents x_{index}"] = ddpm.interpolate(
            jax.random.key(config.seed + 6),
            with_variance(denoiser, config.variance),
            chain,
            start=start,
            end=end,
            weights=weights,
            index=index,
            variance=config.variance,
        )
    grid = dj.grids.log_snr(chain, 32)
    drawn["probability flow"] = dj.interpolate(
        denoiser, chain, start, end, weights=weights, solver=solvers.heun(), grid=grid
    )
    return {name: np.asarray(images) for name, images in drawn.items()}


# ------------------------------------------------------------------------ main


def check(config: Config) -> None:
    """Raise ValueError for flags that are not usable."""
    training.check(config)
    at_least = {
        1: ("chunk",),
        2: (
            "samples",
            "probes",
            "bound_examples",
            "chain_steps",
            "few_steps",
            "likelihood_steps",
        ),
    }
    for minimum, names in at_least.items():
        for name in names:
            if getattr(config, name) is not None:
                dj.checks.integer(name, getattr(config, name), minimum)
    # The last β of these tables, 20/T or 10/T, must be below 1.
    least = {"linear": 21, "sigmoid": 21, "constant": 11}.get(config.betas, 2)
    if config.chain_steps < least:
        raise ValueError(
            f"chain_steps must be at least {least} for betas {config.betas!r}, got "
            f"{config.chain_steps}"
        )
    dj.checks.integer("few_steps", config.few_steps, 2, config.chain_steps)


def run(config: Config) -> dict[str, Any]:
    """Train, bound, sample, compress and draw.

    Returns:
      The metrics, which are also in OUT/metrics.json.
    """
    check(config)
    data = datasets.open_dataset(
        config.data, config.held_out, config.seed, least_test=2
    )
    model = make_model(config, data)
    out = files.open_folder(config)
    print(f"{data.sizes} of shape {data.shape}")
    clock = cli.Clock()
    params, history = train(config, model, out)
    clock.lap("training")
    denoiser = model.denoiser(params)
    table, terms = bound_table(config, model, denoiser)
    clock.lap("bounds")
    results: dict[str, Any] = {"bound": table} | flow_score(config, model, params)
    results |= {"histogram_bits_per_dim": datasets.histogram_bits(data)}
    clock.lap("likelihood")
    results["exact_gaps_nats"] = exact_gaps(config) if config.exact else {}
    clock.lap("exact_denoisers")
    drawn = draw_samples(config, model, denoiser)
    results["frechet_distance"] = {
        name: float(metrics.frechet_distance(xs, data.test))
        for name, xs in drawn.items()
    }
    clock.lap("samples")
    curve = rate_distortion(config, model, denoiser)
    clock.lap("rate_distortion")
    training.draw_loss(
        history,
        f"loss, {config.objective}",
        f"Training, {config.data}",
        out / "loss.png",
    )
    ddpm_figures.draw_bound(terms, table, out)
    ddpm_figures.draw_rate_distortion(curve, data, out)
    if data.is_image:
        ddpm_figures.draw_samples(data, drawn, out)
        ddpm_figures.draw_progressive(
            data, curve, progressive(config, model, denoiser), out
        )
        ddpm_figures.draw_interpolations(
            data, interpolations(config, model, denoiser), out
        )
    clock.lap("figures")
    results["seconds"] = clock.laps
    files.write_results(out, results)
    print_table(config, results)
    return results


def print_table(config: Config, results: dict[str, Any]) -> None:
    """Print the bound by term, one row per variance, beside the scores of flow
    and histograms.
    """
    columns = ("prior", "denoising", "reconstruction", "total")
    print(
        f"\ntest bits/dim, T = {config.chain_steps}"
        + "".join(f"{name:>16}" for name in columns)
    )
    for name, row in results["bound"].items():
        print(
            f"{name:>{18 + len(str(config.chain_steps))}}"
            + "".join(f"{row[column]:16.4f}" for column in columns)
            + f" ± {row['total_standard_error']:.4f}"
            + f" ({row['examples']} examples, {row['seconds']} s)"
        )
    print(f"probability flow of the same network: {results['test_bits_per_dim']:.4f} "
          f"± {results['test_bits_per_dim_standard_error']:.4f}")  # fmt: skip
    print(
        f"independent histograms:               {results['histogram_bits_per_dim']:.4f}"
    )
    if results["exact_gaps_nats"]:
        print("\nexact denoisers in one dimension, bound + log p in nats by T:")
    for name, gaps in results["exact_gaps_nats"].items():
        cells = (
            f"{steps}: {mean:.4f} ± {error:.4f}"
            for steps, (mean, error) in gaps.items()
        )
        print(f"{name:>20}   " + "   ".join(cells))
    for name, distance in results["frechet_distance"].items():
        print(f"Fréchet distance to the test set, {name}: {distance:.3f}")


if __name__ == "__main__":
    cli.main(run, Config, __doc__)
