"""Bijectors that act entry by entry, or channel by channel."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import log_sigmoid, softplus

from .. import checks
from ..numerics import log_expm1
from ..types import Array, ArrayLike, Scalar, pytree, static_field
from .bijectors import Bijector, full, moved_inside, promoted

__all__ = [
    "actnorm",
    "affine",
    "elementwise",
    "exponential",
    "leaky_relu",
    "logit",
    "positive",
    "sigmoid",
    "sinh_arcsinh",
    "tanh",
]

# ----------------------------------------------------------------------------- affine


@pytree
class Affine(Bijector):
    """An affine map of each entry, with a = log_scale and b = shift.

        forward   y = e^a x + b,      log|det| = Σ a
        inverse   x = e^{−a} (y − b),   log|det| = −Σ a

    See `affine`.
    """

    shift: Array
    log_scale: Array

    def forward_and_log_det(
        self, x: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        log_det = self._log_det(x)
        return x * jnp.exp(self.log_scale) + self.shift, log_det

    def inverse_and_log_det(
        self, y: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        log_det = self._log_det(y)
        return (y - self.shift) * jnp.exp(-self.log_scale), -log_det

    def _log_det(self, x):
        fits = (checks.broadcastable, x)
        checks.attributes(self, shift=fits, log_scale=fits)
        return jnp.sum(jnp.broadcast_to(self.log_scale, jnp.shape(x)))


@checks.arguments(shift=checks.finite_array, scale=checks.positive_array)
def affine(shift: ArrayLike, scale: ArrayLike = 1.0) -> Affine:
    """Affine map of each entry.

        y = scale · x + shift,   log|det ∂y/∂x| = Σ log scale over the entries of x

    Args:
      shift: Broadcastable to the shape of x.
      scale: Broadcastable to the shape of x, positive. Trained as its
        logarithm.

    Returns:
      A bijector with the parameters shift and log_scale.

    Raises:
      ValueError: If scale is not positive, or an argument is NaN or infinite.

    Example:
      >>> y = dj.flows.affine([0.0, 1.0], 2.0).forward(jnp.ones(2))
    """
    return Affine(*_shift_and_log_scale(shift, scale))


def _shift_and_log_scale(shift, scale):
    scale = checks.real_array("scale", scale)
    # On the host where it is concrete, which takes no compiled program.
    log_scale = (
        jnp.log(scale) if checks.is_traced(scale) else jax.device_put(np.log(scale))
    )
    return checks.real_array("shift", shift), log_scale


@pytree
class ActNorm(Bijector):
    """An affine map of each channel, with a = log_scale and b = shift.

        forward   y = e^a x + b,        log|det| = (entries per channel) Σ a
        inverse   x = e^{−a} (y − b),   log|det| = −(entries per channel) Σ a

    See `actnorm`.
    """

    shift: Array  # (C,)
    log_scale: Array  # (C,)

    def forward_and_log_det(
        self, x: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        checks.last_axis("x", x, self.shift.shape[0])
        return Affine(self.shift, self.log_scale).forward_and_log_det(x)

    def inverse_and_log_det(
        self, y: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        checks.last_axis("y", y, self.shift.shape[0])
        return Affine(self.shift, self.log_scale).inverse_and_log_det(y)

    def initialised(self, ys: Array, conditions: Any) -> tuple["ActNorm", Array]:
        """The layer with both parameters set from a batch, and the batch normalised.

        Args:
          ys: A batch (N, …, C).
          conditions: Not used.

        Returns:
          (layer, batch at its base, with 0 in constant channels).
        """
        checks.last_axis("batch", ys, self.shift.shape[0])
        shift, scale, varies = _moments(ys.reshape(-1, ys.shape[-1]))  # rows (M, C)
        new = ActNorm(
            shift.astype(self.shift.dtype), jnp.log(scale).astype(self.log_scale.dtype)
        )
        # Exactly 0 in constant channels, so that no later actnorm finds there
        # rounding that varies.
        return new, jnp.where(varies, jax.vmap(new.inverse)(ys), 0)


def _moments(rows):
    """Mean and scale of each column of (M, C), and whether it varies. See `actnorm`."""
    least, most = jnp.min(rows, 0), jnp.max(rows, 0)
    # Clipped, because equal numbers are their own mean, whatever a sum rounds.
    mean = jnp.clip(jnp.mean(rows, 0), least, most)
    size, centred = jnp.maximum(-least, most), rows - mean
    spread = jnp.max(jnp.abs(centred), 0)
    # Negated, so that a column with NaN varies.
    varies = ~(spread <= CONSTANT * jnp.finfo(rows.dtype).eps * size)
    # Squares of numbers of size 1, which do not overflow in any unit.
    std = spread * jnp.sqrt(jnp.mean((centred / jnp.where(varies, spread, 1)) ** 2, 0))
    return mean, jnp.where(varies, std, jnp.maximum(spread, 1)), varies


CONSTANT = 16
"""Roundings of its largest value within which a channel counts as constant."""


@checks.arguments(channels=(checks.width, 1))
def actnorm(channels: int) -> ActNorm:
    """Activation normalisation (Kingma & Dhariwal 2018, section 3.1).

        y = s x + b,   log|det ∂y/∂x| = (entries per channel) Σ log s

    There is one s and one b per channel, which is the last axis. The identity
    at first. `initialise` sets b to the channel's mean and s to its standard
    deviation, in whatever unit the data are.

    A channel that is constant up to rounding has no scale of its own. It is
    centred, with s = 1, or s the size of its rounding where that is above 1.
    So rounding is never amplified.

    Args:
      channels: C, the length of the last axis.

    Returns:
      A bijector with the parameters shift and log_scale, of shape (C,) each.

    Raises:
      ValueError: If channels is below 1.

    Example:
      >>> base = dj.distributions.standard_normal((2,))
      >>> flow = dj.flows.flow(base, dj.flows.actnorm(2))
      >>> flow = dj.flows.initialise(flow, jax.random.normal(key, (16, 2)))
    """
    return ActNorm(full((channels,)), full((channels,)))


# ------------------------------------------------------------- functions of one number


@pytree
class Elementwise(Bijector):
    """An increasing function f of each entry.

        forward   y_i = f(x_i),     log|det| = Σ log f′(x_i)
        inverse   x_i = f⁻¹(y_i),   log|det| = −Σ log f′(x_i)

    See `elementwise`.
    """

    parameters: tuple
    function: Callable = static_field()
    inverse_function: Callable = static_field()
    log_slope: Callable = static_field()
    image: tuple = static_field(default=(-math.inf, math.inf))

    def forward_and_log_det(
        self, x: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        x = self._checked(x)
        return self.function(x, *self.parameters), self._log_det(x)

    def inverse_and_log_det(
        self, y: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        y, outside = moved_inside(self._checked(y), *self.image)
        x = self.inverse_function(y, *self.parameters)
        return x, jnp.where(jnp.any(outside), -jnp.inf, -self._log_det(x))

    def inverse(self, y: Array, condition: Any = None) -> Array:
        checks.all_between("y", y, *self.image)
        y, outside = moved_inside(self._checked(y), *self.image)
        return jnp.where(outside, jnp.nan, self.inverse_function(y, *self.parameters))

    def _checked(self, x):
        for i, value in enumerate(self.parameters):
            checks.broadcastable(f"parameters[{i}]", value, x)
        return promoted(x, self.parameters)

    def _log_det(self, x):
        return jnp.sum(
            jnp.broadcast_to(self.log_slope(x, *self.parameters), jnp.shape(x))
        )


@checks.arguments(
    function=(checks.callable_, "function(x, *parameters)"),
    inverse_function=(checks.callable_, "inverse_function(x, *parameters)"),
    log_slope=(checks.callable_, "log_slope(x, *parameters)"),
)
def elementwise(
    function: Callable,
    inverse_function: Callable,
    log_slope: Callable,
    *parameters: ArrayLike,
    image: tuple[float, float] = (-math.inf, math.inf),
) -> Elementwise:
    """An increasing function of each entry.

        y_i = f(x_i),   log|det ∂y/∂x| = Σ log f′(x_i)

    The three functions act elementwise on arrays of any shape. They are
    static, hence should be plain functions rather than closures made anew.

    Args:
      function: f, called as function(x, *parameters).
      inverse_function: f⁻¹, called as inverse_function(y, *parameters).
      log_slope: log f′(x), called as log_slope(x, *parameters).
      *parameters: Arrays, broadcastable to x, which are trained.
      image: (lower, upper), the open interval that f reaches. Outside it
        `inverse_and_log_det` returns a log-determinant of −∞, and `inverse`
        returns NaN where traced.

    Returns:
      A bijector.

    Raises:
      TypeError: If a function cannot be called.
      ValueError: If image is out of order. When called, if the parameters do
        not broadcast to x, and by `inverse` for concrete data outside the
        image.

    Example:
      >>> log_slope = lambda x: jnp.log(jnp.cosh(x))
      >>> bijector = dj.flows.elementwise(jnp.sinh, jnp.arcsinh, log_slope)
    """
    values = checks.each("parameters", parameters, checks.real_array)
    lower, upper = map(float, image)
    checks.require(lower < upper, f"image must be (lower, upper) in order, got {image}")
    return Elementwise(values, function, inverse_function, log_slope, (lower, upper))


def exponential() -> Elementwise:
    """y = e^x, the reals to the positive numbers, with log slope x."""
    return elementwise(jnp.exp, jnp.log, _identity, image=(0.0, math.inf))


def positive() -> Elementwise:
    """y = log(1 + e^x), softplus: the reals to the positive numbers.

    The log slope is log sigmoid(x). The slope is 1 for large x.
    """
    return elementwise(softplus, log_expm1, log_sigmoid, image=(0.0, math.inf))


def tanh() -> Elementwise:
    """y = tanh x, the reals to (−1, 1).

    The log slope is 2(log 2 − x − softplus(−2x)).
    """
    return elementwise(jnp.tanh, jnp.arctanh, _log_slope_of_tanh, image=(-1.0, 1.0))


@pytree
class LeakyRelu(Bijector):
    """Leaky ReLU of each entry, with slope s.

        forward   y = x for x ≥ 0, s x below,   log|det| = (number of x < 0) log s
        inverse   x = y for y ≥ 0, y/s below,   log|det| = −(number of y < 0) log s

    See `leaky_relu`.
    """

    slope: float = static_field()

    def forward_and_log_det(
        self, x: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        x = promoted(x)
        return jnp.where(x >= 0, x, self.slope * x), self._log_det(x)

    def inverse_and_log_det(
        self, y: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        y = promoted(y)
        return jnp.where(y >= 0, y, y / self.slope), -self._log_det(y)

    def _log_det(self, x):
        return math.log(self.slope) * jnp.sum(x < 0).astype(x.dtype)


@checks.arguments(slope=checks.positive)
def leaky_relu(slope: float = 0.1) -> LeakyRelu:
    """Leaky ReLU of each entry: y = x for x ≥ 0, slope · x below.

    The slope must be positive, otherwise this raises ValueError. It is not
    trained.

    Example:
      >>> dj.flows.leaky_relu(0.5).forward(jnp.array([-2.0, 2.0]))
      Array([-1.,  2.], dtype=float32)
    """
    return LeakyRelu(float(slope))


@checks.arguments(skew=checks.finite_array, tail=checks.positive_array)
def sinh_arcsinh(skew: ArrayLike = 0.0, tail: ArrayLike = 1.0) -> Elementwise:
    """Sinh-arcsinh transformation of each entry (Jones & Pewsey 2009, equation 1).

        y = sinh(tail (arcsinh x + skew))

    Args:
      skew: Broadcastable to the shape of x. y is skewed where it is not 0.
      tail: Broadcastable to the shape of x, positive. Above 1 the tails of y
        are heavier than those of x, below 1 lighter. Trained as its logarithm.

    Returns:
      A bijector.

    Raises:
      ValueError: If tail is not positive, or an argument is NaN or infinite.

    Example:
      >>> bijector = dj.flows.sinh_arcsinh(skew=0.3, tail=1.2)
    """
    return Elementwise(
        _shift_and_log_scale(skew, tail),
        _sinh_arcsinh,
        _sinh_arcsinh_inverse,
        _sinh_arcsinh_log_slope,
    )


def _identity(x):
    return x


def _log_slope_of_tanh(x):
    return 2 * (math.log(2) - x - softplus(-2 * x))


def _sinh_arcsinh(x, skew, log_tail):
    return jnp.sinh(jnp.exp(log_tail) * (jnp.arcsinh(x) + skew))


def _sinh_arcsinh_inverse(y, skew, log_tail):
    return jnp.sinh(jnp.arcsinh(y) * jnp.exp(-log_tail) - skew)


def _sinh_arcsinh_log_slope(x, skew, log_tail):
    u = jnp.arcsinh(x)
    return log_tail + _log_cosh(jnp.exp(log_tail) * (u + skew)) - _log_cosh(u)


def _log_cosh(u):
    # Neither overflows nor cancels for large |u|.
    u = jnp.abs(u)
    return u + jnp.log1p(jnp.exp(-2 * u)) - math.log(2)


@pytree
class Logit(Bijector):
    """A sigmoid onto the interval (l, u).

        forward   y = l + (u − l) sigmoid(x)
                  log|det| = Σ [log(u − l) + log sigmoid(x) + log sigmoid(−x)]
        inverse   x = log(y − l) − log(u − y)
                  log|det| = Σ [log(u − l) − log(y − l) − log(u − y)]

    See `logit`.
    """

    lower: float = static_field()
    upper: float = static_field()

    def forward_and_log_det(
        self, x: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        x = promoted(x)
        y = self.lower + (self.upper - self.lower) * jax.nn.sigmoid(x)
        log_slope = math.log(self.upper - self.lower) + log_sigmoid(x) + log_sigmoid(-x)
        return y, jnp.sum(log_slope)

    def inverse_and_log_det(
        self, y: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        y, outside = moved_inside(promoted(y), self.lower, self.upper)
        below, above = jnp.log(y - self.lower), jnp.log(self.upper - y)
        log_det = jnp.sum(math.log(self.upper - self.lower) - below - above)
        return below - above, jnp.where(jnp.any(outside), -jnp.inf, log_det)

    def inverse(self, y: Array, condition: Any = None) -> Array:
        checks.all_between("y", y, self.lower, self.upper)
        y, outside = moved_inside(promoted(y), self.lower, self.upper)
        return jnp.where(
            outside, jnp.nan, jnp.log(y - self.lower) - jnp.log(self.upper - y)
        )


@checks.arguments(lower=checks.number, upper=checks.number, margin=checks.number)
def logit(lower: Scalar = 0.0, upper: Scalar = 1.0, margin: Scalar = 0.05) -> Logit:
    """Last layer for data in [lower, upper] (Dinh et al. 2017, section 4.1).

        inverse   x = logit(margin + (1 − 2 margin) (y − lower)/(upper − lower))

    Towards the base this is a logit, towards the data a sigmoid. The margin
    keeps the ends finite. `forward` reaches the interval widened on each side
    by margin/(1 − 2 margin) of its length. Outside it the density of a flow is
    0 and there is no latent.

    Args:
      lower, upper: Ends of the data's interval. They are not trained.
      margin: Share of the unit interval left free at each end, in [0, ½).

    Returns:
      A bijector.

    Raises:
      ValueError: If the ends are out of order or the margin is outside [0, ½).
        Also by `inverse` for concrete data outside the widened interval. There
        it returns NaN where traced.

    Example:
      >>> latents = dj.flows.logit(0.0, 16.0).inverse(jnp.array([0.0, 7.0, 16.0]))
    """
    lower, upper, margin = float(lower), float(upper), float(margin)
    checks.greater("upper", upper, "lower", lower)
    message = f"margin must be at least 0 and less than 0.5, got {margin}"
    checks.require(0 <= margin < 0.5, message)
    beyond = margin / (1 - 2 * margin) * (upper - lower)
    return Logit(lower - beyond, upper + beyond)


def sigmoid() -> Logit:
    """y = 1/(1 + e^{−x}), the reals to (0, 1): `logit` without a margin."""
    return logit(margin=0.0)
