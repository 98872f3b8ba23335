"""The gap between the bound of `ddpm` and −log p where the denoiser is exact."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from diffjax import ddpm, distributions, schedules
from experiments.ddpm.config import Config
from experiments.shared import cli, scoring
from experiments.shared.mapping import map_examples


def exact_gaps(config: Config) -> dict[str, dict[str, Any]]:
    """The gap between the bound and −log p where the denoiser is exact, in nats.

    Gaussian: N(0.3, 0.5²) on β(t) = 0.1 + 19.9 t at t = i/T, p(x_T) = q(x_T),
    decoder N(D, Var). The gap of β̃ tends to 0.289, that of the optimal
    variance is 0. Mixture: two modes, log-SNR from 8 to −8, where the gap
    falls as 1/T.

    Returns:
      {case: {T: the mean gap and its standard error}}.
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
                table[name][str(steps)] = {
                    "gap": float(gap.mean()),
                    "standard_error": scoring.standard_error(gap),
                }
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
