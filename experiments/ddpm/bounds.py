"""Scores of `ddpm` on test examples: the bound term by term, and log p along the
probability flow.
"""

import dataclasses
import math
import time
from typing import Any

import jax
import numpy as np

from diffjax import ddpm, schedules
from experiments.ddpm.config import Config
from experiments.ddpm.model import with_variance
from experiments.shared import scoring
from experiments.shared.mapping import map_examples
from experiments.shared.training import DenoiserModel


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
