"""Laws of one example that a decoder answers with: log_prob(x) in nats, sample(key), mean; pytrees of their parameters.

Entries are independent given the latent. `gaussian` gives a density; the others give probabilities, of bits or of
levels on a lattice, and sum to one over what they range over.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks
from ..ddpm.gaussian import (
    Gaussian,
    cell_of,
    check_variance,
    decoder_log_prob,
    impossible_off_levels,
)
from ..predictions import check_levels
from ..types import Array, ArrayLike, Key, pytree


def gaussian(mean: ArrayLike, log_std: ArrayLike) -> Gaussian:
    """N(mean, e^{2 log_std}) of each entry, a density; log_std: () or of mean's shape.

    With log_std free its density of data on a lattice, or on a plane, is unbounded: dequantise, or use
    `discretised_gaussian`. Raises ValueError for shapes that do not fit, concrete NaN or infinity, and a concrete
    log_std whose variance is 0 or infinite in the dtype, as −60 in float32.
    """
    mean, log_std = _parameters("mean", mean, "log_std", log_std)
    return Gaussian(mean, variance_of("log_std", log_std))


@pytree
class Bernoulli:
    """P(x_i = 1) = 1/(1 + e^{−logit_i}). See `bernoulli`."""

    logits: Any

    def log_prob(self, x: ArrayLike) -> Array:
        """Σ x·logit − log(1 + e^{logit}) in nats, shape ().

        An entry that is neither 0 nor 1, such as a pixel of 255, has probability 0: −∞ where x is traced, ValueError
        where it is concrete.
        """
        x = _example(x, self.logits)
        if not checks.is_traced(x):
            values = np.asarray(x)
            if not np.all((values == 0) | (values == 1)):
                raise ValueError(
                    f"x must be 0 or 1 in every entry, got values from {values.min()} to {values.max()}"
                )
        value = jnp.sum(x * self.logits - jax.nn.softplus(self.logits))
        return jnp.where(jnp.any((x != 0) & (x != 1) & ~jnp.isnan(x)), -jnp.inf, value)

    def sample(self, key: Key) -> Array:
        """One draw, of zeros and ones."""
        return jax.random.bernoulli(key, self.mean).astype(self.logits.dtype)

    @property
    def mean(self) -> Array:
        """The probability of each 1."""
        return jax.nn.sigmoid(self.logits)


def bernoulli(logits: ArrayLike) -> Bernoulli:
    """Independent bits with log-odds `logits`, of the example's shape. Raises ValueError for concrete NaN."""
    logits = checks.real_array("logits", logits)
    checks.finite("logits", logits)
    return Bernoulli(logits)


@pytree
class DiscretisedLogistic:
    """A logistic law rounded to the nearest level. See `discretised_logistic`."""

    location: Any
    log_scale: Any
    levels: Any  # (K,)

    def log_prob(self, x: ArrayLike) -> Array:
        """Σ log [s((b − m)/r) − s((a − m)/r)] over the cells [a, b] of x's entries, in nats, shape ().

        s is the sigmoid, m the location, r the scale. The difference is s(b)·s(−a)·(1 − e^{a − b}) of the standardised
        ends, b − a by the cell's own width, so that no digit cancels in either tail, however far. An entry that is
        no level has probability 0: −∞ where x is traced, ValueError where it is concrete.
        """
        cell = cell_of(_example(x, self.location), self.levels)
        lower, upper = self._standard(cell.lower), self._standard(cell.upper)
        edge = cell.first | cell.last
        width = jnp.where(
            edge, 1.0, (cell.upper - cell.lower) * jnp.exp(-self.log_scale)
        )
        inner = (
            jax.nn.log_sigmoid(upper)
            + jax.nn.log_sigmoid(-lower)
            + jnp.log(-jnp.expm1(-width))
        )
        value = jnp.sum(
            jnp.where(
                edge, jax.nn.log_sigmoid(jnp.where(cell.last, -lower, upper)), inner
            )
        )
        return impossible_off_levels(value, cell)

    def sample(self, key: Key) -> Array:
        """One draw, of levels."""
        scale = jnp.broadcast_to(jnp.exp(self.log_scale), self.location.shape)
        noise = jax.random.logistic(key, self.location.shape, self.location.dtype)
        return _nearest(self.location + scale * noise, self.levels)

    @property
    def mean(self) -> Array:
        """Σ level · P(level) of each entry."""
        return _lattice_mean(
            lambda middle: jax.nn.sigmoid(self._standard(middle)), self.levels
        )

    def _standard(self, value):
        return (value - self.location) * jnp.exp(-self.log_scale)


def discretised_logistic(
    location: ArrayLike, log_scale: ArrayLike, levels: ArrayLike
) -> DiscretisedLogistic:
    """Lattice data under a logistic law of each entry, rounded to the nearest level; the end levels take the tails.

    location: of the example's shape. log_scale: () or the same. levels: (K,), increasing. Raises ValueError for shapes
    that do not fit, and concrete NaN or infinity. Kingma et al. 2016, section 5; Salimans et al. 2017, section 2.1.
    """
    location, log_scale = _parameters("location", location, "log_scale", log_scale)
    return DiscretisedLogistic(location, log_scale, check_levels(levels))


@pytree
class DiscretisedGaussian:
    """A Gaussian rounded to the nearest level. See `discretised_gaussian`."""

    law: Any
    levels: Any  # (K,)

    def log_prob(self, x: ArrayLike) -> Array:
        """log P(x) in nats, shape (). −∞ where a traced entry of x is no level, ValueError where a concrete one is."""
        return decoder_log_prob(self.law, _example(x, self.law.mean), self.levels)

    def sample(self, key: Key) -> Array:
        """One draw, of levels."""
        return _nearest(self.law.sample(key), self.levels)

    @property
    def mean(self) -> Array:
        """Σ level · P(level) of each entry."""
        std = jnp.sqrt(self.law.variance)
        return _lattice_mean(
            lambda middle: jax.scipy.special.ndtr((middle - self.law.mean) / std),
            self.levels,
        )


def discretised_gaussian(
    mean: ArrayLike, log_std: ArrayLike, levels: ArrayLike
) -> DiscretisedGaussian:
    """Lattice data under a Gaussian of each entry, rounded to the nearest level: `ddpm.discretised_log_prob`.

    mean: of the example's shape. log_std: () or the same. levels: (K,), increasing. Errors as `discretised_logistic`.
    """
    return DiscretisedGaussian(gaussian(mean, log_std), check_levels(levels))


def variance_of(name: str, log_std: Array) -> Array:
    """e^{2 log_std}, refused where a concrete one is 0 or infinite in its dtype."""
    variance = jnp.exp(2 * log_std)
    checks.finite(f"the variance of {name}", variance)
    check_variance(f"the variance of {name}", variance)
    return variance


def _parameters(location_name, location, scale_name, scale):
    location, scale = (
        checks.real_array(location_name, location),
        checks.real_array(scale_name, scale),
    )
    checks.one_of_shapes(scale_name, scale, list({(), location.shape}))
    checks.finite(location_name, location)
    checks.finite(scale_name, scale)
    return location, scale


def _example(x, location):
    x = checks.real_array("x", x)
    checks.one_of_shapes("x", x, [jnp.shape(location)])
    checks.finite("x", x)
    return x


def _nearest(x, levels):
    middles = 0.5 * (levels[1:] + levels[:-1])
    return levels[jnp.sum(x[..., None] > middles, -1)].astype(x.dtype)


def _lattice_mean(cumulative, levels):
    """Σ_k l_k P_k = l_K − Σ_k (l_{k+1} − l_k) F(m_k), m_k the midpoints and F the law's distribution function."""
    gaps, middles = jnp.diff(levels), 0.5 * (levels[1:] + levels[:-1])
    return levels[-1] - jnp.tensordot(gaps, jax.vmap(cumulative)(middles), 1)
