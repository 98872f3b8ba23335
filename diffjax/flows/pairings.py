"""Pairings: which noise goes with which data in a batch.

A pairing is a function (key, x0, x1) -> indices of x1, one for each x0. The
data keep their order and the noise is reordered, so that labels stay with
their data. An index beyond the noise means none: `matching.examples` fills it
with NaN.

Its attribute `independent` says whether the noise stays independent of the
data. Only then does a denoiser fitted under it have a score.
"""

import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from optax import assignment

from .. import checks
from ..types import Array, ArrayLike, Key, Scalar, pytree, static_field

__all__ = [
    "FixedPairs",
    "Independent",
    "OptimalAssignment",
    "Pairing",
    "Sinkhorn",
    "fixed_pairs",
    "independent",
    "optimal_assignment",
    "sinkhorn",
    "sinkhorn_plan",
    "transport_cost",
]


class Pairing(Protocol):
    """A callable that chooses the noise of each data point."""

    @property
    def independent(self) -> bool:
        """True if the noise stays independent of the data."""
        ...

    def __call__(self, key: Key, x0: Array, x1: Array) -> Array:
        """Indices of x1 (m, *shape) that go with x0 (n, *shape), integers (n,)."""
        ...


@pytree
class Independent:
    """Noise i with data i, drawn independently. See `independent`."""

    independent = True

    def __call__(self, key: Key, x0: Array, x1: Array) -> Array:
        """0 … B − 1, (B,)."""
        return jnp.arange(x0.shape[0])


@pytree
class FixedPairs:
    """Noise i with data i, one of them made from the other. See `fixed_pairs`."""

    independent = False

    def __call__(self, key: Key, x0: Array, x1: Array) -> Array:
        """0 … B − 1, (B,)."""
        return jnp.arange(x0.shape[0])


@pytree
class OptimalAssignment:
    """Permutation of least Σ ½‖x_0 − x_1‖². See `optimal_assignment`."""

    independent = False

    def __call__(self, key: Key, x0: Array, x1: Array) -> Array:
        """Indices of x1 (B, *shape) that go with x0 (B, *shape), (B,)."""
        checks.one_of_shapes("x1", x1, [jnp.shape(x0)])
        return _assigned(x0, x1)


@pytree
class Sinkhorn:
    """x_1 drawn for each x_0 from the entropic plan. See `sinkhorn`."""

    regularisation: Scalar
    tolerance: Scalar
    iterations: int = static_field()
    independent = False

    def __call__(self, key: Key, x0: Array, x1: Array) -> Array:
        """Indices of x1 (m, *shape) drawn for x0 (n, *shape), (n,).

        An index is m, which means none, where its row of the plan is NaN.
        """
        return _drawn(key, x0, x1, self.regularisation, self.iterations, self.tolerance)


@jax.jit
def _assigned(x0, x1):
    x0, x1 = jax.lax.stop_gradient((x0, x1))
    if x0[0].size == 1:  # on the line the sorted pairs are optimal
        order = jnp.argsort(x0.reshape(-1))
        return jnp.zeros_like(order).at[order].set(jnp.argsort(x1.reshape(-1)))
    rows, columns = assignment.hungarian_algorithm(_centred_cost(x0, x1))
    return jnp.zeros_like(columns).at[rows].set(columns)


@jax.jit
def _drawn(key, x0, x1, regularisation, iterations, tolerance):
    log_plan = _log_plan(_centred_cost(x0, x1), regularisation, iterations, tolerance)
    index = jax.random.categorical(key, log_plan, axis=1)
    # from a row of NaN categorical would draw 0
    broken = jnp.any(jnp.isnan(log_plan), axis=1)
    return jnp.where(broken, x1.shape[0], index)


def independent() -> Independent:
    """Independent pairing: noise in the order drawn, whatever the data.

    The only pairing under which a fitted denoiser has a score.

    Example:
      >>> dj.flows.independent()(key, jnp.zeros((3, 2)), jnp.ones((3, 2))).tolist()
      [0, 1, 2]
    """
    return Independent()


def fixed_pairs() -> FixedPairs:
    """Pairs as they were passed, where the noise depends on the data.

    For pairs of which one was made from the other, as by `reflow_pairs`.

    Example:
      >>> dj.flows.fixed_pairs().independent
      False
    """
    return FixedPairs()


def optimal_assignment() -> OptimalAssignment:
    """Permutation of the noise of least Σ_i ½‖x_{0,i} − x_{1,i}‖² over the batch.

    In one dimension by sorting, otherwise by shortest augmenting paths, under
    jit. They cost O(B³): 7, 19 and 140 ms on 2 cores for B = 64, 128 and 256.
    A batch's plan tends to the optimal one only as B grows. In D > 4
    dimensions its cost is off by about B^{−2/D}.

    With labels, the noise of one label is no longer N(0, I). Samples of one
    class from all of the noise are then biased. Pair within each class
    instead.

    References:
      Pooladian et al. 2023. Tong et al. 2023, section 3.2.

    Example:
      >>> x0, x1 = jnp.array([[0.0], [1.0]]), jnp.array([[2.0], [-1.0]])
      >>> dj.flows.optimal_assignment()(key, x0, x1).tolist()
      [1, 0]
    """
    return OptimalAssignment()


ITERATION = {
    "regularisation": checks.positive,
    "iterations": (checks.integer, 1),
    "tolerance": checks.positive,
}
"""Checks of the arguments of Sinkhorn's iteration."""


@checks.arguments(**ITERATION)
def sinkhorn(
    regularisation: Scalar, iterations: int = 500, tolerance: Scalar = 1e-3
) -> Sinkhorn:
    """Entropic pairing: x_{1,j} goes with x_{0,i} with probability B π_ij.

    π is the plan of `sinkhorn_plan` for the costs ½‖x_0 − x_1‖². Each data
    point enters once. Each noise enters once on average, within `tolerance` in
    total.

    Args:
      regularisation: ε > 0, in squared data units. ε = s² pairs the ends of
        the Schrödinger bridge of a Brownian motion of variance s² per unit of
        time. ε → 0 is `optimal_assignment`, ε → ∞ is `independent`.
      iterations: The greatest number of iterations. They are needed in
        proportion to 1/ε. The default reaches the default tolerance down to a
        fiftieth of the mean cost. Below, the noise that is drawn departs from
        N(0, I), and `optimal_assignment` is the better choice.
      tolerance: Greatest total error of the plan's columns.

    Returns:
      The pairing.

    Raises:
      ValueError: If an argument is out of range.

    References:
      Cuturi 2013. Tong et al. 2023, section 3.2.

    Example:
      >>> pairing = dj.flows.sinkhorn(0.5)
      >>> pairing(key, jnp.zeros((3, 2)), jnp.ones((3, 2))).shape
      (3,)
    """
    return Sinkhorn(regularisation, tolerance, iterations)


@checks.arguments(cost=checks.finite_array, **ITERATION)
def sinkhorn_plan(
    cost: ArrayLike,
    regularisation: Scalar,
    iterations: int = 500,
    tolerance: Scalar = 1e-3,
) -> Array:
    """Entropic optimal transport plan (Cuturi 2013, Algorithm 1).

        π = argmin Σ π c + ε Σ π log π,    rows sum to 1/n, columns to 1/m

    The potentials are updated in turn in the log domain (Peyré & Cuturi 2019,
    section 4.4). The last update is that of the rows, which are exact to
    rounding. The plan is not to be differentiated.

    Args:
      cost: c, (n, m), finite, also when divided by ε.
      regularisation: ε > 0, in the unit of the cost.
      iterations: The greatest number of iterations. A warning says where they
        did not suffice, unless the cost is traced.
      tolerance: Iterations stop where Σ_j |Σ_i π_ij − 1/m| is at most this.

    Returns:
      π, (n, m).

    Raises:
      ValueError: If an argument is out of range, or a concrete cost is too
        large for ε. A traced one gives NaN.

    Example:
      >>> plan = dj.flows.sinkhorn_plan(jnp.array([[0.0, 1.0], [1.0, 0.0]]), 0.5)
      >>> bool(jnp.allclose(plan.sum(1), 0.5))
      True
    """
    message = f"cost must have shape (n, m), got {cost.shape}"
    checks.require(cost.ndim == 2 and cost.size > 0, message)
    concrete = not checks.is_traced(cost, regularisation)
    message = (
        "regularisation must be large enough for cost/regularisation to be finite in "
        f"{cost.dtype}, got {regularisation}"
    )
    checks.require(not concrete or _finite_ratio(cost, regularisation), message)
    plan = _plan(cost, regularisation, iterations, tolerance)
    if not checks.is_traced(plan, tolerance):
        columns = np.sum(np.asarray(plan), axis=0)
        error = float(np.sum(np.abs(columns - 1 / cost.shape[1])))
        if error > tolerance:
            checks.warn(
                f"columns of the plan are off by {error:.2g} after {iterations} "
                "iterations"
            )
    return plan


def _finite_ratio(cost, regularisation):
    with np.errstate(over="ignore"):
        ratio = np.asarray(cost) / np.asarray(regularisation, cost.dtype)
        return np.all(np.isfinite(ratio))


@jax.jit
def _plan(cost, regularisation, iterations, tolerance):
    return jnp.exp(_log_plan(cost, regularisation, iterations, tolerance))


def transport_cost(x0: ArrayLike, x1: ArrayLike) -> Array:
    """½‖x_{0,i} − x_{1,j}‖² of all pairs.

    One matrix product, whose rounding is relative to the squared distances
    from the mean of x1. Concrete data are shifted by their mean in float64
    before they are rounded.

    Args:
      x0: (n, *shape).
      x1: (m, *shape).

    Returns:
      The costs, in squared data units, (n, m).

    Raises:
      ValueError: If the shapes differ beyond the leading axis, there are no
        examples, or concrete values are NaN or infinite.
    """
    exact = x0, x1
    x0, x1 = checks.finite_batch("x0", x0), checks.finite_batch("x1", x1)
    checks.one_of_shapes("x1", x1, [(*x1.shape[:1], *x0.shape[1:])])
    if not checks.is_traced(x0, x1):
        first, second = (np.asarray(x, np.float64) for x in exact)
        origin = np.mean(second, axis=0)
        x0 = jnp.asarray(first - origin, x0.dtype)
        x1 = jnp.asarray(second - origin, x1.dtype)
    return _transport_cost(x0, x1)


@jax.jit
def _transport_cost(x0, x1):
    origin = jnp.mean(x1, axis=0)
    a = (x0 - origin).reshape(x0.shape[0], -1)  # (n, D)
    b = (x1 - origin).reshape(x1.shape[0], -1)  # (m, D)
    product = jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)  # (n, m)
    squares = 0.5 * jnp.sum(a**2, -1)[:, None] + 0.5 * jnp.sum(b**2, -1)
    return jnp.maximum(squares - product, 0)


def _centred_cost(x0, x1):
    """Costs of clouds shifted to a common mean: the same plans, with less rounding."""
    x0, x1 = jax.lax.stop_gradient((x0, x1))
    return transport_cost(x0 - jnp.mean(x0, axis=0), x1 - jnp.mean(x1, axis=0))


def _log_plan(cost, regularisation, iterations, tolerance):
    """log π by Sinkhorn's updates of the potentials f (rows) and g (columns).

    log π_ij = −c_ij/ε + f_i + g_j
    """
    n, m = cost.shape
    kernel = -cost / regularisation  # (n, m)

    def below(potential, axis):
        """(kernel + potential less its greatest along an axis, that greatest)."""
        # Costs and potentials are subtracted separately. With sums x of 1e11, x − max x
        # may be 0 nowhere: XLA may round x in one place and keep a product of it
        # unrounded in the other.
        x, potential = kernel + potential, jnp.broadcast_to(potential, kernel.shape)
        at = jnp.argmax(x, axis, keepdims=True)
        top = functools.partial(jnp.take_along_axis, indices=at, axis=axis)
        less = (top(cost) - cost) / regularisation + (potential - top(potential))
        return jnp.where(less > 0, 0, less), top(x)

    def log_sums(potential, axis):
        less, greatest = below(potential, axis)
        return jnp.log(jnp.sum(jnp.exp(less), axis)) + jnp.squeeze(greatest, axis)

    def rows(column):
        return -log_sums(column, 1) - jnp.log(n)

    def unfinished(state):
        step, _, _, error = state
        return (step < iterations) & (error > tolerance)

    def update(state):
        step, row, column, _ = state
        sums = log_sums(row[:, None], 0) + column  # log of the columns' sums, (m,)
        # of the plan whose rows are exact
        error = jnp.sum(jnp.abs(jnp.exp(sums) - 1 / m))
        column = jnp.where(error > tolerance, column - sums - jnp.log(m), column)
        return step + 1, rows(column), column, error

    column = jnp.zeros(m, cost.dtype)
    unknown = jnp.full((), jnp.inf, cost.dtype)
    start = (jnp.zeros((), jnp.int32), rows(column), column, unknown)
    _, _, column, _ = jax.lax.while_loop(unfinished, update, start)
    less, _ = below(column, 1)
    # rows are normalised directly: adding `row` would round
    return less - jnp.log(jnp.sum(jnp.exp(less), 1, keepdims=True)) - jnp.log(n)


def check_pairing(name: str, value: Any) -> None:
    """Raise TypeError unless an argument is a pairing.

    Args:
      name, value: The name of the argument, for the message, and its value.
    """
    stated = isinstance(getattr(value, "independent", None), bool)
    accepted = "one of flows.pairings, or (key, x0, x1) -> indices with `independent`"
    message = f"{name} must be {accepted}, got {value!r}"
    checks.require(callable(value) and stated, message, TypeError)
