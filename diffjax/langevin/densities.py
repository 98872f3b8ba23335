"""Densities of chains: log p up to a constant with its gradient, or ∇log p alone."""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from .. import checks
from ..types import Array, Scalar, as_pytree_callable, pytree

__all__ = ["Density", "LogDensity", "ScoreOnly", "Tempered", "score_only", "tempered"]


class Density(Protocol):
    """A density known up to its normaliser.

    An optional member is `log_prob(x)`, log p(x) + constant. Only a density
    that has it can be used where positions are accepted or weighted.
    """

    def score(self, x: Array) -> Array:
        """∇log p(x), shape of x."""
        ...


@pytree
class LogDensity:
    """A density given by its logarithm up to a constant. See `as_density`."""

    function: Any

    def log_prob(self, x: Array) -> Array:
        """log p(x) + constant, (). Raises an error unless it is a real scalar."""
        value = jnp.asarray(self.function(x))
        checks.scalar_of("a log density", value)
        message = f"a log density must return a real number, got dtype {value.dtype}"
        checks.require(jnp.issubdtype(value.dtype, jnp.floating), message, TypeError)
        return value

    def value_and_score(self, x: Array) -> tuple[Array, Array]:
        """log p(x) + constant, (), and ∇log p(x), shape of x, from one evaluation."""
        return jax.value_and_grad(self.log_prob)(x)

    def score(self, x: Array) -> Array:
        """∇log p(x), shape of x."""
        return self.value_and_score(x)[1]


@pytree
class ScoreOnly:
    """A density known by its score alone. See `score_only`."""

    function: Any

    def score(self, x: Array) -> Array:
        """∇log p(x). Raises ValueError unless it has the shape of x."""
        return checks.example_shaped("a score", self.function(x), x)


@pytree
class Tempered:
    """p_β ∝ p_0^{1−β} p_1^β between two log densities. See `tempered`."""

    start: Any
    end: Any
    beta: Any

    def log_prob(self, x: Array) -> Array:
        """(1 − β) log p_0(x) + β log p_1(x), (). A term of weight 0 is left out."""
        start, end = self.start.log_prob(x), self.end.log_prob(x)
        return _weighted(1 - self.beta, start) + _weighted(self.beta, end)

    def value_and_score(self, x: Array) -> tuple[Array, Array]:
        """log p_β(x), (), and ∇log p_β(x). A term of weight 0 is left out of both."""
        start, start_score = self.start.value_and_score(x)
        end, end_score = self.end.value_and_score(x)
        value = _weighted(1 - self.beta, start) + _weighted(self.beta, end)
        return value, _weighted(1 - self.beta, start_score) + _weighted(
            self.beta, end_score
        )

    def score(self, x: Array) -> Array:
        """∇log p_β(x), shape of x."""
        return self.value_and_score(x)[1]


def _weighted(weight, value):
    # At weight 0 the value may be NaN or infinite, and 0 · ∞ would be NaN.
    return weight * jnp.where(weight > 0, value, 0)


def score_only(score: Callable[[Array], Array]) -> ScoreOnly:
    """A density known by its score alone.

    This is enough for kernels that accept every step, such as `ula` and
    `baoab`.

    Args:
      score: score(x) -> ∇log p(x), of x's shape.

    Returns:
      The density, for the argument `target` of those kernels.

    Raises:
      TypeError: If `score` cannot be called.

    Example:
      >>> kernel = dj.langevin.ula(dj.langevin.score_only(jnp.negative), 0.1)
    """
    checks.callable_("score", score, "score(x) -> array of x's shape")
    return ScoreOnly(as_pytree_callable(score))


def as_density(name: str, value: Any) -> LogDensity | ScoreOnly | Tempered:
    """The density that an argument states.

    Args:
      name: The argument's name, for the message.
      value: A target with `log_prob`, a log density x -> (), or
        `score_only(score)`.

    Returns:
      The density, as a pytree.

    Raises:
      TypeError: If `value` is none of these.
    """
    if isinstance(value, LogDensity | ScoreOnly | Tempered):
        return value
    if hasattr(value, "log_prob"):
        return LogDensity(as_pytree_callable(value.log_prob))
    checks.callable_(name, value, "log_density(x) -> (), or have log_prob(x)")
    return LogDensity(as_pytree_callable(value))


def as_log_density(name: str, value: Any) -> LogDensity | Tempered:
    """The density that an argument states, with its logarithm.

    Args:
      name: The argument's name, for the message.
      value: As in `as_density`, but not `score_only(score)`.

    Returns:
      The density, as a pytree.

    Raises:
      TypeError: If `value` states no log density.
    """
    density = as_density(name, value)
    message = f"{name} must have a log density, got a density known by its score alone"
    checks.require(not isinstance(density, ScoreOnly), message, TypeError)
    return density


@checks.arguments(
    start=as_log_density, end=as_log_density, beta=(checks.within, 0.0, 1.0)
)
def tempered(start: Any, end: Any, beta: Scalar) -> Tempered:
    """The geometric mean of two densities, with weights 1 − β and β.

        p_β(x) ∝ p_0(x)^{1−β} p_1(x)^β

    Args:
      start: p_0, a target with `log_prob` or a log density x -> ().
      end: p_1, likewise.
      beta: β in [0, 1].

    Returns:
      The density, with `log_prob(x)` up to a constant and `score(x)`.

    Raises:
      ValueError: If β lies outside [0, 1].
      TypeError: If a density is known by its score alone.
    """
    return Tempered(start, end, beta)
