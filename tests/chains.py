"""Chains and one-dimensional distributions known in closed form."""

import functools
import math

import jax
import numpy as np

from diffjax import ddpm, distributions, predictions, schedules, targets
from tests.families import quick

MEAN, STD = 0.3, 0.5
KEY = jax.random.key(0)


def vp_betas(steps):
    """β of the variance-preserving schedule with β(t) = 0.1 + 19.9 t, at
    t = i/T: "linear β" at any T.
    """
    return ddpm.betas_of(schedules.vp_linear(), steps)


def betas_of_log_snrs(log_snrs):
    """The betas whose chain has the given log-SNR at its indices."""
    log_bars = -np.logaddexp(0, -np.asarray(log_snrs))
    return -np.expm1(np.diff(log_bars, prepend=0.0))


def normal_1d(mean=MEAN, std=STD):
    return targets.gaussian([mean], std)


def mixture_1d():
    return targets.gaussian_mixture([0.4, 0.6], [[-0.9], [0.7]], [0.3, 0.4])


def spread_of(target, schedule):
    """Var(x_0 | x_t) of a target."""
    return predictions.variance(schedule, targets.denoiser(target, schedule))


def exact(target, chain, variance="posterior"):
    """The exact denoiser of a one-dimensional target, paired with
    Var(x_0 | x_t) for the variance "optimal".
    """
    denoiser = targets.denoiser(target, chain)
    return (
        ddpm.paired(denoiser, spread_of(target, chain))
        if variance in ddpm.PAIRED
        else denoiser
    )


def tables(chain):
    """SNR (T,), β, β̃, c_0, c_t and Var(x_0 | x_t) of N(·, STD²), each from the
    betas by the textbook's formula.
    """
    betas = np.asarray(chain.betas)
    bars = np.cumprod(1 - betas)
    before = np.concatenate([[1.0], bars[:-1]])
    return {
        "snr": bars / (1 - bars),
        "beta": betas,
        "posterior": betas * (1 - before) / (1 - bars),
        "data": np.sqrt(before) * betas / (1 - bars),
        "state": np.sqrt(1 - betas) * (1 - before) / (1 - bars),
        "var": STD**2 * (1 - bars) / (bars * STD**2 + 1 - bars),
    }


def draws(target, count, seed=1):
    """Samples of a target, leading axis `count`."""
    return quick(
        lambda: jax.vmap(target.sample)(jax.random.split(jax.random.key(seed), count))
    )()


def log_probs(target, xs):
    """The target's log density at each of xs."""
    return np.asarray(quick(jax.vmap(target.log_prob))(xs))


def end_distribution(target, schedule, t=1.0):
    """The distribution of x_t of a Gaussian target."""
    end = quick(lambda: target.noised(schedule, t))()
    return distributions.Gaussian(
        np.asarray(end.means[0]), np.asarray(end.variances[0])
    )


def bounds(estimator, denoiser, chain, xs, seed=2, **settings):
    """The estimator's Bound for each x, leading axis N."""
    one = functools.partial(estimator, denoiser=denoiser, chain=chain, **settings)
    run = quick(
        lambda xs: jax.vmap(one)(jax.random.split(jax.random.key(seed), len(xs)), x=xs)
    )
    return run(xs)


def assert_mean(values, expected, sigmas=4.0, most=math.inf):
    """The mean of independent values is `expected` within 4 standard errors,
    which are at most `most`.
    """
    values = np.asarray(values, np.float64)
    error = values.std(ddof=1) / math.sqrt(values.size)
    assert error < most, error
    assert abs(values.mean() - expected) < sigmas * error, (
        values.mean(),
        expected,
        error,
    )
