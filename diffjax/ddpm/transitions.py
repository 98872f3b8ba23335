"""Transitions of the discrete chain, forwards and of its posterior backwards."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks, schedules
from ..distributions.normal import Gaussian
from ..noise import normal
from ..numerics import array_module, float_dtype
from ..schedules import DiscreteChain, Indexed
from ..types import (
    Array,
    ArrayLike,
    Key,
    Scalar,
    as_one_program,
    is_eager,
    one_program,
)

__all__ = ["forward_marginal", "forward_step", "posterior"]

CHAIN = (checks.made_by, DiscreteChain, "schedules.from_betas")
"""Check of a discrete chain."""


def forward_step(chain: DiscreteChain, x: ArrayLike, index: Any) -> Gaussian:
    """One step of the chain forwards (Ho et al. 2020, equation 2).

        q(x_i | x_{i−1} = x) = N(√(1 − β_i) x, β_i)

    Args:
      chain: A chain made by `schedules.from_betas`.
      x: One example of any shape.
      index: i in 1 … T.

    Returns:
      A `distributions.Gaussian` over examples of x's shape.

    Raises:
      ValueError: For an index out of range.
      TypeError: For another schedule.

    Example:
      >>> chain = dj.schedules.from_betas([0.19, 0.36])
      >>> round(float(dj.ddpm.forward_step(chain, jnp.ones(()), 1).mean()), 4)
      0.9
    """
    step = coefficients_at(chain, index)
    return Gaussian(_decayed(checks.real_array("x", x), step.beta), step.beta)


@one_program
def _decayed(x, beta):
    return jnp.sqrt(1 - beta) * x


def forward_marginal(chain: DiscreteChain, x0: ArrayLike, index: Any) -> Gaussian:
    """State of the chain given the data (Ho et al. 2020, equation 4).

        q(x_i | x_0) = N(√ᾱ_i x_0, 1 − ᾱ_i)

    Args:
      chain: A chain made by `schedules.from_betas`.
      x0: One example of any shape.
      index: i in 1 … T.

    Returns:
      A `distributions.Gaussian` over examples of x0's shape.

    Raises:
      ValueError: For an index out of range.
      TypeError: For another schedule.

    Example:
      >>> chain = dj.schedules.from_betas([0.19, 0.36])
      >>> round(float(dj.ddpm.forward_marginal(chain, jnp.ones(()), 2).mean()), 4)
      0.72
    """
    step, x0 = coefficients_at(chain, index), checks.real_array("x0", x0)
    return as_one_program(_forward_marginal, chain, x0, step.time)


def _forward_marginal(chain, x0, t):
    return Gaussian(chain.alpha(t) * x0, chain.sigma(t) ** 2)


def posterior(
    chain: DiscreteChain, x: ArrayLike, x0: ArrayLike, index: Any
) -> Gaussian:
    """Posterior of the previous state given the data (Ho et al. 2020, equations 6–7).

        q(x_{i−1} | x_i = x, x_0) = N(μ̃, β̃),    μ̃ = c_0 x_0 + c_i x

    Args:
      chain: A chain made by `schedules.from_betas`.
      x: The state x_i, one example.
      x0: The data x_0, of the same shape.
      index: i in 1 … T. At 1 the posterior is the point x_0, of variance 0.

    Returns:
      A `distributions.Gaussian` over examples of x's shape.

    Raises:
      ValueError: For shapes that differ, or an index out of range.
      TypeError: For another schedule.

    Example:
      >>> chain = dj.schedules.from_betas([0.19, 0.36])
      >>> dj.ddpm.posterior(chain, jnp.ones(2), jnp.zeros(2), 2).mean().shape
      (2,)
    """
    step = coefficients_at(chain, index)
    x, x0 = checks.real_array("x", x), checks.real_array("x0", x0)
    checks.one_of_shapes("x0", x0, [x.shape])
    return Gaussian(step.data * x0 + step.state * x, step.variance)


# ----------------------------------------------------------- tables of the chain


class StepCoefficients(NamedTuple):
    """Coefficients of a chain's step at an index, each (), or of all steps, (T,).

    In float64 on the host where the chain is concrete.

    Attributes:
      time: The time of the index.
      beta: β.
      data: c_0, the weight of x_0 in the posterior's mean.
      state: c_i, the weight of x_i in it.
      variance: β̃, the posterior's variance. It is 0 at the first index.
      clipped: β̃, with the second index's value at the first.
    """

    time: Any
    beta: Any
    data: Any
    state: Any
    variance: Any
    clipped: Any


def step_coefficients(chain: DiscreteChain) -> StepCoefficients:
    """The coefficients of all steps of a chain, each (T,)."""
    q = chain.posterior()
    xp = array_module(chain)
    # β̃ is 0 at the first index, where its logarithm and a KL would not be finite.
    clipped = xp.concatenate([q.variance[1:2], q.variance[1:]])
    return StepCoefficients(
        chain.times, chain.betas, q.data, q.state, q.variance, clipped
    )


def entry(steps: StepCoefficients, index: Any) -> StepCoefficients:
    """The entries of tables at an index.

    Args:
      steps: Tables, each (T,).
      index: In 1 … T, which may be traced.

    Returns:
      Coefficients, each ().
    """
    return jax.tree.map(lambda column: jnp.asarray(column)[index - 1], steps)


def coefficients_at(chain: DiscreteChain, index: Any) -> StepCoefficients:
    """The coefficients of a chain at an index, both checked.

    Args:
      chain: A discrete chain.
      index: In 1 … T, which may be traced.

    Returns:
      Coefficients, each ().
    """
    checks.made_by("chain", chain, DiscreteChain, "schedules.from_betas")
    steps, index = step_coefficients(chain), checks.index("index", index, chain.steps)
    if not is_eager(chain, index):
        return entry(steps, index)
    # NumPy picks the entries, as JAX would compile a program for every column.
    return jax.tree.map(
        lambda column: jnp.asarray(np.asarray(column)[index - 1], float_dtype()), steps
    )


def state_at(key: Key, chain: Indexed, x0: Array, index: Any, *, time: Scalar) -> Array:
    """One draw of x_i given x_0.

    Args:
      key, index: The draw is a function of the two.
      chain: The chain.
      x0: The example.
      time: The time of the index.

    Returns:
      The state, of x0's shape.
    """
    return schedules.perturb(chain, x0, time, normal(key, index, x0.shape, x0.dtype))


def index_or_draw(key: Key, index: Any, chain: Indexed) -> Any:
    """A checked index.

    Args:
      key: A typed key.
      index: The index, or None for one drawn uniformly from 1 … T.
      chain: A chain or a ladder of T steps.

    Returns:
      The index.
    """
    if index is None:
        # Indices start at 1, so that counter 0 is free of the noise of any state.
        return jax.random.randint(jax.random.fold_in(key, 0), (), 1, chain.steps + 1)
    return checks.index("index", index, chain.steps)
