"""The chain's laws: forward steps, their posterior, and the model's reverse step made of a denoiser."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks, schedules
from ..distributions.discretised import DiscretisedGaussian
from ..distributions.lattice import check_levels
from ..distributions.normal import Gaussian, gaussian_kl_entries
from ..noise import normal
from ..numerics import float_dtype
from ..schedules import DiscreteChain, Indexed
from ..types import (
    Array,
    ArrayLike,
    Denoiser,
    Key,
    Scalar,
    as_one_program,
    as_pytree_callable,
    is_eager,
    one_program,
    pytree,
    static_field,
)


def forward_step(chain: DiscreteChain, x: ArrayLike, index: Any) -> Gaussian:
    """q(x_i | x_{i−1} = x) = N(√(1 − β_i) x, β_i). x: one example. index: i in 1 … T.

    Raises ValueError for an index out of range, TypeError for no chain. Ho et al. 2020, eq. 2.
    """
    row = _row(chain, index)
    return Gaussian(_decayed(checks.real_array("x", x), row.beta), row.beta)


@one_program
def _decayed(x, beta):
    """√(1 − β) x."""
    return jnp.sqrt(1 - beta) * x


def forward_marginal(chain: DiscreteChain, x0: ArrayLike, index: Any) -> Gaussian:
    """q(x_i | x_0) = N(√ᾱ_i x_0, 1 − ᾱ_i). x0: one example. index: i in 1 … T.

    Raises ValueError for an index out of range, TypeError for no chain. Ho et al. 2020, eq. 4.
    """
    row = _row(chain, index)
    return as_one_program(
        _forward_marginal, chain, checks.real_array("x0", x0), row.time
    )


def _forward_marginal(chain, x0, t):
    return Gaussian(chain.alpha(t) * x0, chain.sigma(t) ** 2)


def posterior(
    chain: DiscreteChain, x: ArrayLike, x0: ArrayLike, index: Any
) -> Gaussian:
    """q(x_{i−1} | x_i = x, x_0) = N(μ̃, β̃), μ̃ = c_0 x_0 + c_i x; at index 1 the point x_0, of variance 0.

    x, x0: one example each, of one shape. index: i in 1 … T. Raises ValueError for shapes that differ and an index out
    of range, TypeError for no chain. Ho et al. 2020, eq. 6–7.
    """
    row, x, x0 = (
        _row(chain, index),
        checks.real_array("x", x),
        checks.real_array("x0", x0),
    )
    checks.one_of_shapes("x0", x0, [x.shape])
    return Gaussian(row.data * x0 + row.state * x, row.variance)


def reverse_step(
    denoiser: Denoiser,
    chain: DiscreteChain,
    x: ArrayLike,
    index: Any,
    variance: str = "posterior",
) -> Gaussian:
    """p(x_{i−1} | x_i = x) = N(c_0 D + c_i x, v): the model's step, whose mean is that of the posterior at x_0 = D.

    x: one example. index: i in 1 … T. variance: a name of `VARIANCES`; for "optimal" and "learned" the denoiser returns
    a pair, see `paired`. With ε̂ = (x − √ᾱ D)/√(1 − ᾱ) the mean is (x − β ε̂/√(1 − ᾱ))/√(1 − β). Raises ValueError for
    another name or index. Ho et al. 2020, eq. 11; Nichol & Dhariwal 2021, eq. 15; Bishop & Bishop 2024, Algorithm 20.2.
    """
    model = model_of(denoiser, chain, variance)
    x, row = checks.real_array("x", x), _row(chain, index)
    return _reverse_step(model, row, x)


@one_program
def _reverse_step(model, row, x):
    data, spread = model.predict(row, x)
    return model.step(row, x, data, spread)


LEAST_SHARE = 1e-6
"""The least optimal variance at the first index, as a share of the second's β̃: where x_0 is certain it would be 0."""

VARIANCES: dict[str, Callable] = {
    "forward": lambda row, _: row.beta,
    "posterior": lambda row, _: row.clipped,
    "optimal": lambda row, spread: jnp.maximum(
        row.variance + row.data**2 * spread, LEAST_SHARE * row.clipped
    ),
    "learned": lambda row, share: jnp.exp(
        share * jnp.log(row.beta) + (1 - share) * jnp.log(row.clipped)
    ),
}
"""The variance v of p(x_{t−1} | x_t) for each name.

forward: β, right for data of unit variance · posterior: β̃, right for data that are one point; at the first index,
where it is 0, the second's (Ho et al. 2020, section 3.2) · optimal: β̃ + c_0² Var(x_0 | x_t), that of q(x_{t−1} | x_t),
where the denoiser returns (D, Var) (Bao et al. 2022, Theorem 1) · learned: β^v β̃^{1−v}, where it returns (D, v)
(Nichol & Dhariwal 2021, eq. 15). Var and v are of shape () or of x's.
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


def paired(denoiser: Denoiser, second: Callable) -> Paired:
    """The denoiser (x, t) -> (D, second(x, t)) that the variances "optimal" and "learned" ask for; a pytree callable.

    second: Var(x_0 | x_t) or the share v. A network that gives both at once needs no pairing: return them as a tuple.
    What wraps a denoiser, as guidance does, asks for D alone: wrap first and pair last, `paired(guided, second)`.
    """
    checks.callable_("denoiser", denoiser, "denoiser(x, t)")
    checks.callable_("second", second, "second(x, t)")
    return Paired(as_pytree_callable(denoiser), as_pytree_callable(second))


class Row(NamedTuple):
    """What the chain's tables hold at an index, each (), or (T,) for all; in float64 where the chain is concrete."""

    time: Any
    beta: Any
    data: Any  # c_0
    state: Any  # c_t
    variance: Any  # β̃, 0 at the first index
    clipped: Any  # β̃, the second index's at the first


def rows_of(chain: DiscreteChain) -> Row:
    """The chain's tables, each (T,)."""
    q = chain.posterior()
    xp = jnp if checks.is_traced(chain) else np
    clipped = xp.concatenate([q.variance[1:2], q.variance[1:]])
    return Row(chain.times, chain.betas, q.data, q.state, q.variance, clipped)


def entry(rows: Row, index: Any) -> Row:
    """The tables' entries at an index in 1 … T."""
    return jax.tree.map(lambda column: jnp.asarray(column)[index - 1], rows)


def _row(chain, index):
    if is_eager(check_chain(chain), index):
        index = check_index(index, chain) - 1
        return jax.tree.map(
            lambda column: jnp.asarray(np.asarray(column)[index], float_dtype()),
            rows_of(chain),
        )
    return entry(rows_of(check_chain(chain)), check_index(index, chain))


def check_chain(chain: Any) -> DiscreteChain:
    """`chain`, refused unless it is a discrete one."""
    if not isinstance(chain, DiscreteChain):
        raise TypeError(f"chain must be made by schedules.from_betas, got {chain!r}")
    return chain


def check_index(index: Any, chain: Indexed) -> Any:
    """An index in 1 … T; a traced one is checked for its type alone."""
    if (
        isinstance(index, jax.Array)
        and jnp.issubdtype(index.dtype, jnp.integer)
        and index.ndim == 0
    ):
        if checks.is_traced(index):
            return index
        index = int(index)
    return checks.integer("index", index, minimum=1, maximum=chain.steps)


def index_or_draw(key: Key, index: Any, chain: Indexed) -> Any:
    """A checked index; one drawn uniformly from 1 … T where it is None."""
    if index is None:
        return jax.random.randint(jax.random.fold_in(key, 0), (), 1, chain.steps + 1)
    return check_index(index, chain)


def state_at(key: Key, chain: Indexed, x0: Array, index: Any, time: Scalar) -> Array:
    """One draw of x_i given x_0, a function of (key, index)."""
    return schedules.perturb(chain, x0, time, normal(key, index, x0.shape, x0.dtype))


def decoder_log_prob(decoder: Gaussian, x: Array, levels: Array | None) -> Array:
    """log p(x) of a Gaussian, or of the same rounded to levels where they are given."""
    if levels is not None:
        return DiscretisedGaussian(decoder, levels).log_prob(x)
    return decoder.log_prob(x)


@pytree
class Model:
    """A denoiser on a chain with its variance and its decoder: the laws p(x_{t−1} | x_t) and p(x_0 | x_1)."""

    denoiser: Any
    chain: Any
    rows: Any
    levels: Any
    decoder_variance: Any
    variance: str = static_field()

    def predict(self, row, x):
        """(D, what the denoiser says of the variance or None) at x_t = x."""
        output = self.denoiser(x, row.time)
        if self.variance not in PAIRED:
            return checks.denoised(output, x), None
        if not (isinstance(output, tuple) and len(output) == 2):
            raise ValueError(
                f"denoiser must return a pair for variance {self.variance!r}, see ddpm.paired"
            )
        checks.one_of_shapes("denoiser's second value", output[1], [(), jnp.shape(x)])
        return checks.denoised(output[0], x), jnp.asarray(output[1])

    def step(self, row, x, data, spread):
        """p(x_{t−1} | x_t = x)."""
        return Gaussian(
            row.data * data + row.state * x, VARIANCES[self.variance](row, spread)
        )

    def denoising(self, row, x0, data, spread):
        """KL(q(x_{t−1} | x_t, x_0) ‖ p(x_{t−1} | x_t)), shape (); for indices above 1."""
        v = VARIANCES[self.variance](row, spread)
        return jnp.sum(gaussian_kl_entries(row.clipped, v, row.data * (x0 - data)))

    def reconstruction(self, row, x0, data, spread):
        """−log p(x_0 | x_1), shape (); for index 1."""
        own = self.decoder_variance is None
        variance = (
            VARIANCES[self.variance](row, spread) if own else self.decoder_variance
        )
        return -decoder_log_prob(Gaussian(data, variance), x0, self.levels)

    def term(self, row, index, x0, data, spread):
        """The one of the two that belongs to a random index; shape ()."""
        own = (
            self.reconstruction(row, x0, data, spread),
            self.denoising(row, x0, data, spread),
        )
        return jnp.where(index == 1, *own)

    def observe(self, key, x0, index):
        """(row, D, what it says of the variance) at one draw of x_t given x_0, a function of (key, index)."""
        row = entry(self.rows, index)
        return row, *self.predict(row, state_at(key, self.chain, x0, index, row.time))


def model_of(
    denoiser: Denoiser,
    chain: DiscreteChain,
    variance: str,
    levels: ArrayLike | None = None,
    decoder_variance: ArrayLike | None = None,
    shape: tuple[int, ...] = (),
) -> Model:
    """The checked arguments as one pytree; shape: of an example."""
    checks.callable_("denoiser", denoiser, "denoiser(x, t)")
    checks.choice("variance", variance, VARIANCES)
    rows = rows_of(check_chain(chain))
    levels = None if levels is None else check_levels(levels)
    decoder_variance = check_decoder_variance(decoder_variance, shape)
    return Model(
        as_pytree_callable(denoiser),
        chain,
        rows,
        levels,
        decoder_variance,
        variance=variance,
    )


def check_decoder_variance(
    decoder_variance: ArrayLike | None, shape: tuple[int, ...]
) -> Any:
    """`decoder_variance`, refused unless None or positive and of shape () or an example's."""
    if decoder_variance is None:
        return None
    if np.ndim(decoder_variance) == 0:
        checks.number("decoder_variance", decoder_variance)
    checks.one_of_shapes("decoder_variance", decoder_variance, [(), shape])
    if checks.is_traced(decoder_variance):
        return decoder_variance
    values = np.asarray(decoder_variance, np.float64)
    if not np.all(values > 0):
        raise ValueError(f"decoder_variance must be positive, got {values.min()}")
    return decoder_variance if isinstance(decoder_variance, jax.Array) else values
