"""Wrong arguments of the discrete chain, by name."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import ddpm, distributions, sampling, schedules, solvers
from tests.chains import KEY
from tests.families import assert_raises

# ------------------------------------------------------------------------------- errors

CHAIN = schedules.from_betas([0.1, 0.2, 0.3])
PLAIN = lambda x, t: x
X = np.array([0.0, 1.0], np.float32)
ERRORS = {
    "steps": (
        lambda: ddpm.linear_betas(1),
        ValueError,
        "steps must be at least 2, got 1",
    ),
    "steps type": (
        lambda: ddpm.cosine_betas(10.0),
        TypeError,
        "steps must be an integer",
    ),
    "first": (
        lambda: ddpm.linear_betas(10, 0.0),
        ValueError,
        r"first must lie in \(0, 1\), got 0.0",
    ),
    "last": (
        lambda: ddpm.sigmoid_betas(10, last=1.0),
        ValueError,
        r"last must lie in \(0, 1\), got 1.0",
    ),
    "beta": (
        lambda: ddpm.constant_betas(10, -0.1),
        ValueError,
        r"beta must lie in \(0, 1\), got -0.1",
    ),
    "offset": (
        lambda: ddpm.cosine_betas(10, 0.0),
        ValueError,
        "offset must be positive, got 0",
    ),
    "clip": (
        lambda: ddpm.cosine_betas(10, clip=1.5),
        ValueError,
        r"clip must lie in \(0, 1\), got 1.5",
    ),
    "reach": (
        lambda: ddpm.sigmoid_betas(10, reach=-1.0),
        ValueError,
        "reach must be positive, got -1",
    ),
    "index low": (
        lambda: ddpm.posterior(CHAIN, X, X, 0),
        ValueError,
        "index must be between 1 and 3, got 0",
    ),
    "index high": (
        lambda: ddpm.forward_step(CHAIN, X, 4),
        ValueError,
        "index must be between 1 and 3, got 4",
    ),
    "index type": (
        lambda: ddpm.forward_marginal(CHAIN, X, 0.5),
        TypeError,
        "index must be an integer, got 0.5",
    ),
    "index array": (
        lambda: ddpm.simple_loss(KEY, PLAIN, CHAIN, X, index=jnp.int32(9)),
        ValueError,
        "between 1 and 3, got 9",
    ),
    "chain": (
        lambda: ddpm.elbo(KEY, PLAIN, schedules.vp_linear(), X),
        TypeError,
        "chain must be made by schedules.from_betas",
    ),
    "variance": (
        lambda: ddpm.elbo(KEY, PLAIN, CHAIN, X, variance="small"),
        ValueError,
        (
            "variance must be one of 'forward', 'posterior', 'optimal', 'learned'; got "
            "'small'"
        ),
    ),
    "pair": (
        lambda: ddpm.elbo(KEY, PLAIN, CHAIN, X, variance="learned"),
        ValueError,
        "denoiser must return a pair for variance 'learned', see ddpm.paired",
    ),
    "shape": (
        lambda: ddpm.reverse_step(lambda x, t: x[:1], CHAIN, X, 2),
        ValueError,
        r"denoiser must return its example's shape \(2,\), got \(1,\)",
    ),
    "level": (
        lambda: ddpm.elbo(KEY, PLAIN, CHAIN, X + 0.2, levels=[0, 1]),
        ValueError,
        "x must take values among the 2",
    ),
    "levels": (
        lambda: ddpm.elbo(KEY, PLAIN, CHAIN, X, levels=[1, 0]),
        ValueError,
        "levels must increase",
    ),
    "decoder": (
        lambda: ddpm.elbo(KEY, PLAIN, CHAIN, X, decoder_variance=0.0),
        ValueError,
        "decoder_variance must be positive, got 0",
    ),
    "prior": (
        lambda: ddpm.elbo(KEY, PLAIN, CHAIN, X, prior=1.0),
        TypeError,
        "prior must be a distributions.Gaussian",
    ),
    "chunk": (
        lambda: ddpm.elbo(KEY, PLAIN, CHAIN, X, chunk=0),
        ValueError,
        "chunk must be at least 1, got 0",
    ),
    "key": (
        lambda: ddpm.elbo(0, PLAIN, CHAIN, X),
        TypeError,
        "key must be a typed key",
    ),
    "nan": (
        lambda: ddpm.elbo(KEY, PLAIN, CHAIN, X * np.nan),
        ValueError,
        "x must be finite, got 2 NaN",
    ),
    "denoiser": (
        lambda: ddpm.simple_loss(KEY, 3, CHAIN, X),
        TypeError,
        r"denoiser must be callable as denoiser\(x, t\)",
    ),
    "second": (
        lambda: ddpm.paired(PLAIN, None),
        TypeError,
        r"second must be callable as second\(x, t\)",
    ),
    "bound weight": (
        lambda: ddpm.hybrid_loss(KEY, PLAIN, CHAIN, X, bound_weight=-1.0),
        ValueError,
        "bound_weight must be 0 or more, got -1",
    ),
    "history": (
        lambda: ddpm.record(ddpm.loss_history(3), [1, 2], [0.1]),
        ValueError,
        r"losses must have shape \(2,\), got \(1,\)",
    ),
    "floor": (
        lambda: ddpm.index_probabilities(ddpm.loss_history(3), 2.0),
        ValueError,
        r"floor must lie in \[0, 1\], got 2",
    ),
    "count": (
        lambda: ddpm.continuous_elbo(KEY, PLAIN, CHAIN, X, count=0),
        ValueError,
        "count must be at least 1, got 0",
    ),
    "posterior shapes": (
        lambda: ddpm.posterior(CHAIN, X, X[:1], 2),
        ValueError,
        r"x0 must have shape \(2,\), got \(1,\)",
    ),
    "history index": (
        lambda: ddpm.record(ddpm.loss_history(3), [0, 4], [0.1, 0.2]),
        ValueError,
        r"indices must lie in \[1, 3\], got 0 in entry 0, the first of 2",
    ),
    "decoder shape": (
        lambda: ddpm.elbo(KEY, PLAIN, CHAIN, X, decoder_variance=np.ones(3)),
        ValueError,
        r"decoder_variance must have shape \(\) or \(2,\), got \(3,\)",
    ),
    "prior variance": (
        lambda: ddpm.elbo(
            KEY, PLAIN, CHAIN, X, prior=distributions.Gaussian(0.0, -1.0)
        ),
        ValueError,
        "prior.var must be positive, got -1",
    ),
    "variance of a chain": (
        lambda: distributions.discretised_log_prob(
            distributions.Gaussian(0.0, 0.0), X, [0, 1]
        ),
        ValueError,
        "gaussian.var must be positive, got 0",
    ),
    "continuous time": (
        lambda: ddpm.continuous_loss(KEY, PLAIN, CHAIN, X, t=5.0),
        ValueError,
        r"t must lie in \[0.33.*, 1.0\], got 5",
    ),
    "continuous shape": (
        lambda: ddpm.continuous_elbo(KEY, lambda x, t: x[:1], CHAIN, X),
        ValueError,
        r"denoiser must return its example's shape \(2,\), got \(1,\)",
    ),
    "betas of": (
        lambda: ddpm.betas_of(schedules.edm(), 10),
        ValueError,
        "schedule must have t_max = 1, got 80",
    ),
    "betas of ve": (
        lambda: ddpm.betas_of(schedules.ve(), 10),
        ValueError,
        "schedule must have α² \\+ σ² = 1",
    ),
    "interpolate": (
        lambda: ddpm.interpolate(
            KEY, PLAIN, CHAIN, start=X, end=X[:1], weights=[0.5], index=2
        ),
        ValueError,
        r"end must have shape \(2,\), got \(1,\)",
    ),
    "interpolate index": (
        lambda: ddpm.interpolate(
            KEY, PLAIN, CHAIN, start=X, end=X, weights=[0.5], index=4
        ),
        ValueError,
        "index must be between 1 and 3, got 4",
    ),
    "unpaired": (
        lambda: sampling.sample(
            KEY, PLAIN, CHAIN, solver=solvers.ddpm("optimal"), shape=(2,)
        ),
        TypeError,
        r"denoiser's value must be a pair \(D, second\), see ddpm.paired",
    ),
    "paired": (
        lambda: sampling.sample(
            KEY, ddpm.paired(PLAIN, PLAIN), CHAIN, solver=solvers.ddpm(), shape=(2,)
        ),
        TypeError,
        "denoiser must return an array of its example's shape",
    ),
    "schedule": (
        lambda: ddpm.continuous_loss(KEY, PLAIN, 1.0, X),
        TypeError,
        "schedule must have alpha",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_raises(name):
    assert_raises(*ERRORS[name])
