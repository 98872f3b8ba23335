"""Averages of the parameters over a share of the training that has passed.

The average at step t weighs the parameters of step s by a power of s/t (Karras
et al. 2024, section 3.1). So its length grows with the training, and σ_rel, its
length as a share of t, stays. `snapshots` reconstructs other lengths afterwards.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks
from ..types import Array, PyTree, Scalar

__all__ = [
    "LONGEST",
    "SHORTEST",
    "combination",
    "decay",
    "exponent",
    "inner_products",
    "lengths",
    "relative_length",
    "start",
    "updated",
]

LONGEST = 1 / (2 * 3**0.5)
"""Greatest relative length, which is that of the plain mean: γ = 0."""

SHORTEST = 1e-9
"""Least relative length, of which no training has a whole step."""


def lengths(name: str, value: Any) -> tuple[float, ...]:
    """A tuple of relative lengths, for `checks.arguments`.

    Args:
      name: Its name, for the message.
      value: Numbers in [`SHORTEST`, `LONGEST`], all different.

    Returns:
      The lengths as Python floats.

    Raises:
      ValueError: If one is out of range, or two are equal.
      TypeError: If the value is no sequence of numbers.
    """
    checks.instance(name, value, tuple | list, "a tuple of relative lengths")
    numbers = tuple(
        _length_rule(f"{name}[{i}]", length) for i, length in enumerate(value)
    )
    different = len(set(numbers)) == len(numbers)
    checks.require(different, f"{name} must differ from one another, got {numbers}")
    return numbers


def _length_rule(name, value):
    value = checks.positive_up_to(name, value, LONGEST)
    least = f"{name} must be at least {SHORTEST}, got {value}"
    checks.require(value >= SHORTEST, least)
    return value


@checks.arguments(sigma_rel=_length_rule)
def exponent(sigma_rel: float) -> float:
    """Exponent γ of the power function with a relative length.

        (γ + 2)² (γ + 3) σ_rel² = γ + 1

    Args:
      sigma_rel: Standard deviation of the profile as a share of the time
        trained, in [1e-9, 1/√12].

    Returns:
      γ ≥ 0, the inverse of `relative_length`.

    Raises:
      ValueError: If sigma_rel is out of range.

    References:
      Karras et al. 2024, section 3.1 and Algorithm 2.

    Example:
      >>> round(dj.training.averages.exponent(0.10), 2)
      6.94
    """
    inverse = sigma_rel**-2.0
    gamma = float(np.max(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real))
    # One Newton step of log σ_rel removes the rounding of the eigenvalues.
    slope = 0.5 / (gamma + 1) - 1 / (gamma + 2) - 0.5 / (gamma + 3)
    return max(gamma - float(np.log(_length(gamma) / sigma_rel)) / slope, 0.0)


@checks.arguments(gamma=checks.non_negative)
def relative_length(gamma: float) -> float:
    """Standard deviation of a power function's profile as a share of the time.

        σ_rel = √(γ + 1) / ((γ + 2) √(γ + 3))

    Args:
      gamma: Exponent γ, 0 or more.

    Returns:
      σ_rel, in (0, 1/√12].

    Raises:
      ValueError: If gamma is negative.

    References:
      Karras et al. 2024, section 3.1.
    """
    return _length(gamma)


def _length(gamma):
    return (gamma + 1) ** 0.5 / ((gamma + 2) * (gamma + 3) ** 0.5)


def _count(name, value):
    value = checks.number(name, value)
    least = checks.is_traced(value) or value >= 1
    checks.require(least, f"{name} must be at least 1, got {value}")
    return value


@checks.arguments(step=_count, gamma=checks.non_negative)
def decay(step: Array | int, gamma: float) -> Array:
    """Decay of a power-function average at a step.

        β(t) = (1 − 1/t)^(γ+1)

    It is 0 at t = 1. The parameters of step s then weigh
    (s^(γ+1) − (s − 1)^(γ+1))/t^(γ+1) after step t.

    Args:
      step: t = 1, 2, …, the number of steps taken, the present one included.
      gamma: Exponent γ of the profile.

    Returns:
      The decay, ().

    Raises:
      ValueError: If gamma is negative, or step is below 1 or no scalar.

    References:
      Karras et al. 2024, section 3.1.
    """
    return 1 - _gain(step, gamma, jnp.float32)


def _gain(step, gamma, dtype):
    # 1 − β(t), without the cancellation that 1 − (1 − 1/t)^(γ+1) has.
    return -jnp.expm1((gamma + 1) * jnp.log1p(-1 / jnp.asarray(step, dtype)))


def start(params: PyTree) -> PyTree:
    """Copies of the parameters in float32 at least, where an average starts.

    Args:
      params: A pytree of arrays.

    Returns:
      The average before the first step.
    """
    return _start(params)


@jax.jit
def _start(params):
    return jax.tree.map(
        lambda p: jnp.array(p, checks.promoted(p.dtype, jnp.float32), copy=True), params
    )


def updated(average: PyTree, params: PyTree, step: Scalar, sigma_rel: float) -> PyTree:
    """A power-function average after one more step.

        θ̂ ← β(t) θ̂ + (1 − β(t)) θ

    Args:
      average: θ̂ before the step, as `start` or this function returns it.
      params: θ after the step.
      step: t = 1, 2, …, the number of the step, ().
      sigma_rel: The relative length.

    Returns:
      θ̂ after the step. After the first one it is θ exactly.
    """
    gamma = exponent(sigma_rel)

    def update(e, p):
        # The increment keeps its relative precision however late the step.
        p = p.astype(e.dtype)
        gain = _gain(step, gamma, e.dtype)
        return jnp.where(step == 1, p, e + gain * (p - e))

    return jax.tree.map(update, average, params)


# ------------------------------------------------------- other lengths, afterwards


def inner_products(
    first: Sequence[tuple[int, float]], second: Sequence[tuple[int, float]]
) -> np.ndarray:
    """Inner products of the profiles of averages.

        Σ_s w_i(s) w_j(s),    w_i(s) = (s^(γ_i+1) − (s − 1)^(γ_i+1))/t_i^(γ_i+1)

    over the steps s ≤ min(t_i, t_j), where w_i(s) is the weight of the parameters
    of step s, see `decay`. The sum is exact, also at the first steps. For s ≫ γ it
    is the integral

        (γ_i + 1)(γ_j + 1)/(γ_i + γ_j + 1) min(t_i, t_j)^(γ_i+γ_j+1)
            / (t_i^(γ_i+1) t_j^(γ_j+1))

    Args:
      first: n pairs (t, γ).
      second: m pairs (t, γ).

    Returns:
      (n, m) in float64. The time is proportional to the greatest t.

    References:
      Karras et al. 2024, Algorithm 3, which uses the integral.
    """
    powers = {1 + gamma for _, gamma in [*first, *second]}
    steps = sorted({step for step, _ in [*first, *second]})
    sums = {(a, b): _sums(steps, a, b) for a in powers for b in powers if a <= b}
    products = np.empty((len(first), len(second)))
    for i, (t, gamma) in enumerate(first):
        for j, (u, delta) in enumerate(second):
            a, b, earlier = 1 + gamma, 1 + delta, min(t, u)
            shared = sums[min(a, b), max(a, b)][earlier]
            products[i, j] = shared * (earlier / t) ** a * (earlier / u) ** b
    return products


def _sums(steps, a, b):
    # Σ_{s≤t} w_a(s) w_b(s) at each of the steps t. Powers of s alone would
    # overflow, so that each sum is that of the step before, decayed, and a rest.
    sums, total, last = {}, 0.0, 0
    for step in steps:
        s = np.arange(last + 1, step + 1, dtype=float)
        with np.errstate(divide="ignore"):  # at s = 1
            gap = np.log1p(-1 / s)
        terms = np.expm1(a * gap) * np.expm1(b * gap) * (s / step) ** (a + b)
        total = total * (last / step) ** (a + b) + terms.sum()
        sums[step], last = total, step
    return sums


def _pairs(name, value):
    steps = [step for step, _ in value]
    some = bool(steps) and min(steps) >= 1
    checks.require(some, f"{name} must hold pairs (t, σ_rel), t ≥ 1, got {value}")


@checks.arguments(stored=_pairs, step=(checks.integer, 1, None))
def combination(
    stored: Sequence[tuple[int, float]], step: int, sigma_rel: float
) -> np.ndarray:
    """Coefficients with which stored averages give one of another length.

        min_c ‖Σ_i c_i w_i − w‖²,    Σ_i c_i = 1

    of the weights w that each average gives to the parameters of every step. The
    constraint, which all averages fulfil, is not the paper's. It makes
    parameters that do not change exact. The authors' program divides the
    unconstrained coefficients by their sum instead.

    Args:
      stored: Pairs (t, σ_rel) of the n stored averages.
      step: t of the average wanted.
      sigma_rel: Its relative length.

    Returns:
      The coefficients, (n,) in float64.

    Raises:
      ValueError: If there are no averages, or a step or length is out of range.

    References:
      Karras et al. 2024, section 3.2 and Algorithm 3.

    Example:
      >>> stored = [(8, 0.05), (8, 0.10), (16, 0.05), (16, 0.10)]
      >>> dj.training.averages.combination(stored, 16, 0.10).round(6) + 0.0
      array([0., 0., 0., 1.])
    """
    profiles = [(t, exponent(length)) for t, length in stored]
    gram = inner_products(profiles, profiles)
    scale = 1 / np.sqrt(np.diag(gram))
    wanted = inner_products(profiles, [(step, exponent(sigma_rel))])[:, 0]
    # The conditions of a minimum, with the multiplier of the constraint last. Each
    # profile is divided by its norm. Neighbouring ones are almost parallel, so
    # that the smallest singular values are rounding.
    size, norm = len(stored), np.linalg.norm(scale)
    matrix = np.zeros((size + 1, size + 1))
    matrix[:size, :size] = gram * scale * scale[:, None]
    matrix[size, :size] = matrix[:size, size] = scale / norm
    right = np.append(wanted * scale, 1 / norm)
    return scale * np.linalg.lstsq(matrix, right, rcond=1e-14)[0][:size]
