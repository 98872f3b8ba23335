"""Which noise goes with which data in a batch: each coupling is (key, x0, x1) -> indices of x1, one for each x0.

The data stay in place and the noise moves, so that labels stay with their data. An index beyond the noise means none:
`matching.examples` fills it with NaN.
"""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from optax import assignment

from .. import checks
from ..types import Array, ArrayLike, Key, Scalar, pytree, static_field


@pytree
class Independent:
    """Noise i with data i, drawn apart. See `independent`."""

    independent = True

    def __call__(self, key: Key, x0: Array, x1: Array) -> Array:
        """0 … B − 1, (B,)."""
        return jnp.arange(x0.shape[0])


@pytree
class Paired:
    """Noise i with data i, of which one was made from the other. See `paired`."""

    independent = False

    def __call__(self, key: Key, x0: Array, x1: Array) -> Array:
        """0 … B − 1, (B,)."""
        return jnp.arange(x0.shape[0])


@pytree
class OptimalAssignment:
    """The permutation of least Σ ½‖x_0 − x_1‖². See `optimal_assignment`."""

    independent = False

    def __call__(self, key: Key, x0: Array, x1: Array) -> Array:
        """The indices of x1 (B, *shape) that go with x0 (B, *shape), (B,)."""
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
        """The indices of x1 (m, *shape) drawn for x0 (n, *shape), (n,); m for a row of the plan that is NaN."""
        return _drawn(key, x0, x1, self.regularisation, self.iterations, self.tolerance)


@jax.jit
def _assigned(x0, x1):
    if x0[0].size == 1:
        order = jnp.argsort(jax.lax.stop_gradient(x0).reshape(-1))
        return (
            jnp.zeros_like(order)
            .at[order]
            .set(jnp.argsort(jax.lax.stop_gradient(x1).reshape(-1)))
        )
    rows, columns = assignment.hungarian_algorithm(_centred_cost(x0, x1))
    return jnp.zeros_like(columns).at[rows].set(columns)


@jax.jit
def _drawn(key, x0, x1, regularisation, iterations, tolerance):
    log_plan = _log_plan(_centred_cost(x0, x1), regularisation, iterations, tolerance)
    index = jax.random.categorical(key, log_plan, axis=1)
    return jnp.where(
        jnp.any(jnp.isnan(log_plan), axis=1), x1.shape[0], index
    )  # categorical would draw 0


def independent() -> Independent:
    """The noise as it was drawn, whatever the data: the coupling under which a denoiser has a score."""
    return Independent()


def paired() -> Paired:
    """The noise as it was given, made from its data or the data from it (`reflow_pairs`): the noise is coupled."""
    return Paired()


def optimal_assignment() -> OptimalAssignment:
    """The permutation of the noise of least Σ_i ½‖x_{0,i} − x_{1,i}‖² over the batch; by sorting in one dimension.

    By shortest augmenting paths, under jit: O(B³), on 2 cores 7, 19 and 140 ms for B = 64, 128 and 256. A batch's plan
    tends to the optimal one only as B grows; in D > 4 dimensions its cost is off by about B^{−2/D}. With labels the
    noise given a label is no longer N(0, I), so that samples of one class from all of the noise are biased: couple
    within a class instead. Pooladian et al. 2023; Tong et al. 2023, section 3.2.
    """
    return OptimalAssignment()


def sinkhorn(
    regularisation: Scalar, iterations: int = 500, tolerance: Scalar = 1e-3
) -> Sinkhorn:
    """x_{1,j} for each x_{0,i} with probability B π_ij, π the plan of `sinkhorn_plan` on costs ½‖x_0 − x_1‖².

    Each data enters once, each noise once on average, within `tolerance` in total. regularisation: ε > 0 in squared
    data units; ε = s² is the coupling of the Schrödinger bridge of a Brownian motion of variance s² per unit of time. ε
    → 0 is `optimal_assignment`, ε → ∞ is `independent`. iterations: at most so many; they are needed in proportion to
    1/ε, and the default reaches the default tolerance down to a fiftieth of the mean cost: below, the noise that is
    drawn departs from N(0, I), and `optimal_assignment` is the better choice. Raises ValueError for values out of
    range. Cuturi 2013; Tong et al. 2023, section 3.2.
    """
    regularisation, tolerance = (
        checks.positive("regularisation", regularisation),
        checks.positive("tolerance", tolerance),
    )
    return Sinkhorn(
        regularisation, tolerance, checks.integer("iterations", iterations, minimum=1)
    )


def sinkhorn_plan(
    cost: ArrayLike,
    regularisation: Scalar,
    iterations: int = 500,
    tolerance: Scalar = 1e-3,
) -> Array:
    """π of least Σ π c + ε Σ π log π with rows summing to 1/n and columns to 1/m, (n, m).

    By alternating updates of the potentials in the log domain, ending on the rows, which are exact to rounding; until
    the columns' total error Σ_j |Σ_i π_ij − 1/m| is at most `tolerance`, or for `iterations`, with a warning where it
    can be seen. cost: (n, m), finite, also when divided by ε. Not to be differentiated. Raises ValueError otherwise;
    traced costs too large for ε give NaN. Cuturi 2013, Algorithm 1; Peyré & Cuturi 2019, section 4.4.
    """
    cost = checks.real_array("cost", cost)
    if cost.ndim != 2 or cost.size == 0:
        raise ValueError(f"cost must have shape (n, m), got {cost.shape}")
    checks.finite("cost", cost)
    regularisation = checks.positive("regularisation", regularisation)
    iterations = checks.integer("iterations", iterations, minimum=1)
    if not checks.is_traced(cost, regularisation) and not _finite_ratio(
        cost, regularisation
    ):
        raise ValueError(
            f"regularisation must be large enough for cost/regularisation to be finite in {cost.dtype}, "
            f"got {regularisation}"
        )
    plan = _plan(
        cost, regularisation, iterations, checks.positive("tolerance", tolerance)
    )
    if not checks.is_traced(plan, tolerance):
        error = float(
            np.sum(np.abs(np.sum(np.asarray(plan), axis=0) - 1 / cost.shape[1]))
        )
        if error > tolerance:
            warnings.warn(
                f"columns of the plan are off by {error:.2g} after {iterations} iterations",
                stacklevel=2,
            )
    return plan


def _finite_ratio(cost, regularisation):
    with np.errstate(over="ignore"):
        return np.all(
            np.isfinite(np.asarray(cost) / np.asarray(regularisation, cost.dtype))
        )


@jax.jit
def _plan(cost, regularisation, iterations, tolerance):
    return jnp.exp(_log_plan(cost, regularisation, iterations, tolerance))


def transport_cost(x0: Array, x1: Array) -> Array:
    """½‖x_{0,i} − x_{1,j}‖² of all pairs, in squared data units, (n, m); x0: (n, *shape), x1: (m, *shape).

    One product of matrices, whose rounding is relative to the squared distances from the mean of x1. Concrete data are
    shifted by their mean in float64 before they are rounded. Raises ValueError for shapes that differ beyond the
    leading axis, for no examples, and for concrete NaN or infinity.
    """
    exact = x0, x1
    x0, x1 = checks.real_array("x0", x0), checks.real_array("x1", x1)
    for name, x in (("x0", x0), ("x1", x1)):
        if x.ndim < 1 or x.size == 0:
            raise ValueError(
                f"{name} must have shape (n, *shape), of n examples of 1 entry or more, got {x.shape}"
            )
        checks.finite(name, x)
    checks.one_of_shapes("x1", x1, [(*x1.shape[:1], *x0.shape[1:])])
    if not checks.is_traced(x0, x1):
        dtypes, hosted = (
            (x0.dtype, x1.dtype),
            [np.asarray(x, np.float64) for x in exact],
        )
        origin = np.mean(hosted[1], axis=0)
        x0, x1 = (
            jnp.asarray(x - origin, dtype)
            for x, dtype in zip(hosted, dtypes, strict=True)
        )
    return _transport_cost(x0, x1)


@jax.jit
def _transport_cost(x0, x1):
    origin = jnp.mean(x1, axis=0)
    a, b = (
        (x0 - origin).reshape(x0.shape[0], -1),
        (x1 - origin).reshape(x1.shape[0], -1),
    )
    product = jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.maximum(
        0.5 * jnp.sum(a**2, -1)[:, None] + 0.5 * jnp.sum(b**2, -1) - product, 0
    )


def _centred_cost(x0, x1):
    """½‖(x_{0,i} − x̄_0) − (x_{1,j} − x̄_1)‖², of the same plans as the cost itself, with less rounding; (n, m)."""
    x0, x1 = jax.lax.stop_gradient((x0, x1))
    return transport_cost(x0 - jnp.mean(x0, axis=0), x1 - jnp.mean(x1, axis=0))


def _log_plan(cost, regularisation, iterations, tolerance):
    """log π by Sinkhorn's updates; the columns' error is that of the plan whose rows are exact."""
    n, m = cost.shape
    kernel = -cost / regularisation  # (n, m)

    def below(potential, axis):
        """(log π less its greatest along an axis, that greatest).

        The difference is taken of costs and of potentials apart. With sums x of 1e11, x − max x may be 0 nowhere: XLA
        may round x in one place and keep a product of it unrounded in the other.
        """
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
        error = jnp.sum(jnp.abs(jnp.exp(sums) - 1 / m))
        column = jnp.where(error > tolerance, column - sums - jnp.log(m), column)
        return step + 1, rows(column), column, error

    column = jnp.zeros(m, cost.dtype)
    start = (
        jnp.zeros((), jnp.int32),
        rows(column),
        column,
        jnp.full((), jnp.inf, cost.dtype),
    )
    _, _, column, _ = jax.lax.while_loop(unfinished, update, start)
    less, _ = below(column, 1)
    # exact rows, where adding `row` would round
    return less - jnp.log(jnp.sum(jnp.exp(less), 1, keepdims=True)) - jnp.log(n)
