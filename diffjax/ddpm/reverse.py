"""The model of the chain backwards: a denoiser, a variance for its steps, a decoder."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from .. import checks
from ..distributions.discretised import DiscretisedGaussian
from ..distributions.lattice import check_levels, level_index
from ..distributions.normal import Gaussian, gaussian_kl_entries
from ..schedules import DiscreteChain
from ..types import (
    Array,
    ArrayLike,
    Denoiser,
    Key,
    Scalar,
    as_pytree_callable,
    one_program,
    pytree,
    static_field,
)
from .transitions import (
    StepCoefficients,
    coefficients_at,
    entry,
    state_at,
    step_coefficients,
)

__all__ = ["PAIRED", "VARIANCES", "Paired", "paired", "reverse_step"]

LEAST_SHARE = 1e-6
"""The least optimal variance at the first index, as a share of the second's β̃.

Where x_0 is certain it would be 0.
"""

VARIANCES: dict[str, Callable] = {
    "forward": lambda step, _: step.beta,
    "posterior": lambda step, _: step.clipped,
    "optimal": lambda step, variance_of_data: jnp.maximum(
        step.variance + step.data**2 * variance_of_data, LEAST_SHARE * step.clipped
    ),
    "learned": lambda step, share: jnp.exp(
        share * jnp.log(step.beta) + (1 - share) * jnp.log(step.clipped)
    ),
}
"""The variance v of p(x_{t−1} | x_t) for each name.

forward: β, right for data of unit variance.
posterior: β̃, right for data that are one point. At the first index, where it is 0, the
  second's (Ho et al. 2020, section 3.2).
optimal: β̃ + c_0² Var(x_0 | x_t), the variance of q(x_{t−1} | x_t), where the denoiser
  returns (D, Var) (Bao et al. 2022, Theorem 1).
learned: β^v β̃^{1−v}, where it returns (D, v) (Nichol & Dhariwal 2021, equation 15).

Var and v are of shape () or of x's.
"""

PAIRED = ("optimal", "learned")
"""The variances for which the denoiser returns a pair."""


@pytree
class Paired:
    """(x, t) -> (first(x, t), second(x, t)). See `paired`."""

    first: Any
    second: Any

    def __call__(self, x: Array, t: Scalar, *condition: Any) -> tuple[Array, Array]:
        """Both functions' values."""
        return self.first(x, t, *condition), self.second(x, t, *condition)


@checks.arguments(denoiser=checks.denoiser, second=(checks.callable_, "second(x, t)"))
def paired(denoiser: Denoiser, second: Callable) -> Paired:
    """Denoiser that returns a pair, for the variances "optimal" and "learned".

        (x, t) -> (D(x, t), second(x, t))

    A network that returns both at once, as a tuple, needs no `paired`.
    Functions that wrap a denoiser, as guidance does, expect D alone. Wrap
    first and pair last: `paired(guided, second)`.

    Args:
      denoiser: (x, t) -> D.
      second: (x, t) -> Var(x_0 | x_t) for "optimal", or the share v for
        "learned", of shape () or of x's.

    Returns:
      The pair, a pytree callable.

    Raises:
      TypeError: For what cannot be called.

    Example:
      >>> pair = dj.ddpm.paired(denoiser, dj.predictions.variance(schedule, denoiser))
      >>> [part.shape for part in pair(jnp.ones(2), 0.5)]
      [(2,), (2,)]
    """
    return Paired(as_pytree_callable(denoiser), as_pytree_callable(second))


def reverse_step(
    denoiser: Denoiser,
    chain: DiscreteChain,
    x: ArrayLike,
    index: Any,
    *,
    variance: str = "posterior",
) -> Gaussian:
    """One step of the model backwards (Ho et al. 2020, equation 11).

        p(x_{i−1} | x_i = x) = N(c_0 D + c_i x, v)

    The mean is the posterior's at x_0 = D. With ε̂ = (x − √ᾱ D)/√(1 − ᾱ) it is
    (x − β ε̂/√(1 − ᾱ))/√(1 − β).

    Args:
      denoiser: (x, t) -> D, or a pair for the variances "optimal" and
        "learned", see `paired`.
      chain: A chain made by `schedules.from_betas`.
      x: The state x_i, one example.
      index: i in 1 … T.
      variance: A name of `VARIANCES`, for v.

    Returns:
      A `distributions.Gaussian` over examples of x's shape.

    Raises:
      ValueError: For another name, or an index out of range.
      TypeError: For another schedule.

    References:
      Nichol & Dhariwal 2021, equation 15. Bishop & Bishop 2024, Algorithm
      20.2.

    Example:
      >>> chain = dj.schedules.from_betas([0.19, 0.36])
      >>> step = dj.ddpm.reverse_step(lambda x, t: 0.5 * x, chain, jnp.ones(2), 2)
      >>> step.mean().shape
      (2,)
    """
    model = reverse_model(denoiser, chain, variance)
    x, step = checks.real_array("x", x), coefficients_at(chain, index)
    return _reverse_step(model, step, x)


@one_program
def _reverse_step(model, step, x):
    return model.transition(step, x, *model.predict(step, x))


# ---------------------------------------------------------------- the model's parts


@pytree
class ReverseModel:
    """The model's distributions p(x_{t−1} | x_t) and p(x_0 | x_1).

    Attributes:
      denoiser: (x, t) -> D, or a pair.
      chain: The discrete chain.
      steps: Its `StepCoefficients`, each (T,).
      levels: (K,) if the data lie on a lattice, or None.
      decoder_variance: The variance of p(x_0 | x_1), or None for that of a
        step.
      variance: A name of `VARIANCES`.
    """

    denoiser: Any
    chain: Any
    steps: Any
    levels: Any
    decoder_variance: Any
    variance: str = static_field()

    def predict(self, step: StepCoefficients, x: Array) -> tuple[Array, Any]:
        """The denoiser's output, checked.

        Args:
          step: The coefficients of the step.
          x: The state x_t.

        Returns:
          (D, second), with second = None where it returns no pair.
        """
        output = self.denoiser(x, step.time)
        if self.variance not in PAIRED:
            return checks.denoised(output, x), None
        message = f"denoiser must return a pair for variance {self.variance!r}"
        pair = isinstance(output, tuple) and len(output) == 2
        checks.require(pair, f"{message}, see ddpm.paired")
        checks.one_of_shapes("denoiser's second value", output[1], [(), jnp.shape(x)])
        return checks.denoised(output[0], x), jnp.asarray(output[1])

    def transition(
        self, step: StepCoefficients, x: Array, denoised: Array, second: Any
    ) -> Gaussian:
        """p(x_{t−1} | x_t = x) = N(c_0 D + c_t x, v).

        Args:
          step: The coefficients of the step.
          x: The state x_t.
          denoised, second: From `predict`.

        Returns:
          A `Gaussian`.
        """
        mean = step.data * denoised + step.state * x
        return Gaussian(mean, VARIANCES[self.variance](step, second))

    def denoising_term(
        self, step: StepCoefficients, x0: Array, denoised: Array, second: Any
    ) -> Array:
        """KL(q(x_{t−1} | x_t, x_0) ‖ p(x_{t−1} | x_t)), for t above 1.

        Args:
          step: The coefficients of the step.
          x0: The example.
          denoised, second: From `predict`.

        Returns:
          Nats, shape ().
        """
        v = VARIANCES[self.variance](step, second)
        # The means differ by c_0 (x_0 − D) alone: the terms in x_t cancel exactly.
        difference = step.data * (x0 - denoised)
        return jnp.sum(gaussian_kl_entries(step.clipped, v, difference))

    def reconstruction_term(
        self, step: StepCoefficients, x0: Array, denoised: Array, second: Any
    ) -> Array:
        """−log p(x_0 | x_1), for index 1.

        Args:
          step: The coefficients of the step.
          x0: The example.
          denoised, second: From `predict`.

        Returns:
          Nats, shape ().
        """
        v = self.decoder_variance
        v = VARIANCES[self.variance](step, second) if v is None else v
        return -decoder(denoised, v, self.levels).log_prob(x0)

    def term(
        self,
        step: StepCoefficients,
        index: Any,
        x0: Array,
        denoised: Array,
        *,
        second: Any,
    ) -> Array:
        """The term of the bound that belongs to an index.

        Args:
          step: The coefficients of the step.
          index: The index, which may be traced.
          x0: The example.
          denoised, second: From `predict`.

        Returns:
          Nats, shape ().
        """
        # The index may be traced: both terms are computed, and one is kept.
        return jnp.where(
            index == 1,
            self.reconstruction_term(step, x0, denoised, second),
            self.denoising_term(step, x0, denoised, second),
        )

    def observe(
        self, key: Key, x0: Array, index: Any
    ) -> tuple[StepCoefficients, Array, Any]:
        """The denoiser's output at a draw of x_t given x_0.

        Args:
          key, index: The draw is a function of the two.
          x0: The example.

        Returns:
          (coefficients of the step, D, second).
        """
        step = entry(self.steps, index)
        # One noise for each (key, index), in all bounds and losses alike
        x = state_at(key, self.chain, x0, index, time=step.time)
        return step, *self.predict(step, x)


def decoder(mean: Array, variance: Any, levels: Array | None) -> Any:
    """A Gaussian, rounded to levels where they are given.

    Args:
      mean, variance: Of the Gaussian.
      levels: (K,) or None.

    Returns:
      A distribution.
    """
    gaussian = Gaussian(mean, variance)
    return gaussian if levels is None else DiscretisedGaussian(gaussian, levels)


def reverse_model(
    denoiser: Denoiser,
    chain: DiscreteChain,
    variance: str,
    *,
    levels: ArrayLike | None = None,
    decoder_variance: ArrayLike | None = None,
    x: Array | None = None,
) -> ReverseModel:
    """The model of checked arguments, as one pytree.

    Args:
      denoiser, chain, variance, levels, decoder_variance: As in `elbo`.
      x: The example, where the model's decoder is used.

    Returns:
      The model.

    Raises:
      ValueError: If an entry of x is no level.
    """
    checks.denoiser("denoiser", denoiser)
    checks.choice("variance", variance, VARIANCES)
    checks.made_by("chain", chain, DiscreteChain, "schedules.from_betas")
    if levels is not None:
        levels = check_levels("levels", levels)
        level_index(x, levels)
    return ReverseModel(
        as_pytree_callable(denoiser),
        chain,
        step_coefficients(chain),
        levels,
        check_decoder_variance(decoder_variance, np.shape(x)),
        variance=variance,
    )


def check_decoder_variance(variance: ArrayLike | None, shape: tuple[int, ...]) -> Any:
    """None, or a checked positive variance.

    Args:
      variance: () or of an example's shape, or None.
      shape: Of an example.

    Returns:
      The variance, in float64 on the host where it is no JAX array.
    """
    if variance is None:
        return None
    # Before the shape, so that a string is a TypeError.
    if np.ndim(variance) == 0:
        checks.number("decoder_variance", variance)
    checks.one_of_shapes("decoder_variance", variance, [(), shape])
    checks.all_positive("decoder_variance", variance)
    is_array = isinstance(variance, jnp.ndarray)
    return variance if is_array else np.asarray(variance, np.float64)
