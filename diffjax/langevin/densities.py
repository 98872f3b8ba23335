"""What a chain needs of its law: log p up to a constant and ∇log p, or ∇log p alone."""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from .. import checks
from ..types import Array, Scalar, as_pytree_callable, pytree


class Density(Protocol):
    """A law known up to its normaliser."""

    def score(self, x: Array) -> Array:
        """∇log p(x), shape of x."""
        ...


@pytree
class LogDensity:
    """A law by its log density up to a constant. See `as_density`."""

    function: Any

    def log_prob(self, x: Array) -> Array:
        """log p(x) + constant in nats, shape (); refuses anything but a real scalar."""
        value = jnp.asarray(self.function(x))
        if value.shape != ():
            raise ValueError(
                f"a log density must return a scalar, got shape {value.shape} for x of shape {x.shape}"
            )
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise TypeError(
                f"a log density must return a real number, got dtype {value.dtype}"
            )
        return value

    def value_and_score(self, x: Array) -> tuple[Array, Array]:
        """(log p(x) + constant, ∇log p(x)) from one evaluation, shapes () and of x."""
        return jax.value_and_grad(self.log_prob)(x)

    def score(self, x: Array) -> Array:
        """∇log p(x), shape of x."""
        return self.value_and_score(x)[1]


@pytree
class ScoreOnly:
    """A law by its score alone. See `score_only`."""

    function: Any

    def score(self, x: Array) -> Array:
        """∇log p(x), shape of x; refuses another shape."""
        value = self.function(x)
        if jnp.shape(value) != x.shape:
            raise ValueError(
                f"a score must return its example's shape {x.shape}, got {jnp.shape(value)}"
            )
        return value


@pytree
class Tempered:
    """p_β ∝ p_0^{1−β} p_1^β between two log densities. See `tempered`."""

    start: Any
    end: Any
    beta: Any

    def log_prob(self, x: Array) -> Array:
        """(1 − β) log p_0(x) + β log p_1(x), each term left out where its weight is 0; shape ()."""
        start, end = self.start.log_prob(x), self.end.log_prob(x)
        return _weighted(1 - self.beta, start) + _weighted(self.beta, end)

    def value_and_score(self, x: Array) -> tuple[Array, Array]:
        """(log p_β(x), ∇log p_β(x)). A term of weight 0 is left out of the gradient too, where it may be NaN."""
        (start, start_score), (end, end_score) = (
            self.start.value_and_score(x),
            self.end.value_and_score(x),
        )
        value = _weighted(1 - self.beta, start) + _weighted(self.beta, end)
        return value, _weighted(1 - self.beta, start_score) + _weighted(
            self.beta, end_score
        )

    def score(self, x: Array) -> Array:
        """∇log p_β(x), shape of x."""
        return self.value_and_score(x)[1]


def _weighted(weight, value):
    """weight · value, 0 at weight 0 for any value."""
    return weight * jnp.where(weight > 0, value, 0)


def score_only(score: Callable[[Array], Array]) -> ScoreOnly:
    """A law known by its score, score(x) -> ∇log p(x) of x's shape: enough for kernels that accept every step.

    Raises TypeError for what cannot be called.
    """
    return ScoreOnly(
        as_pytree_callable(
            checks.callable_("score", score, "score(x) -> array of x's shape")
        )
    )


def tempered(start: Any, end: Any, beta: Scalar) -> Tempered:
    """The law ∝ p_0^{1−β} p_1^β, β in [0, 1]: the geometric path from `start` to `end`, each as in `as_density`.

    Raises ValueError for β outside [0, 1], TypeError for a law known by its score alone.
    """
    beta = checks.within("beta", beta, 0.0, 1.0)
    return Tempered(as_log_density("start", start), as_log_density("end", end), beta)


def as_density(name: str, value: Any) -> LogDensity | ScoreOnly | Tempered:
    """The law that `value` states: a target with `log_prob`, a log density x -> (), or `score_only(score)`.

    Raises TypeError for anything else, naming the argument.
    """
    if isinstance(value, LogDensity | ScoreOnly | Tempered):
        return value
    if hasattr(value, "log_prob"):
        return LogDensity(as_pytree_callable(value.log_prob))
    if not callable(value):
        raise TypeError(
            f"{name} must have log_prob(x), or be callable as log_density(x) -> (), got {value!r}"
        )
    return LogDensity(as_pytree_callable(value))


def as_log_density(name: str, value: Any) -> LogDensity | Tempered:
    """`as_density`, with a TypeError for a law known by its score alone."""
    density = as_density(name, value)
    if isinstance(density, ScoreOnly):
        raise TypeError(
            f"{name} must have a log density, got a law known by its score alone"
        )
    return density
