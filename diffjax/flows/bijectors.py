"""Bijectors: invertible maps with their log-determinants; here what they are, and those that act entry by entry.

A bijector is a frozen pytree with `forward(x)`, from the base to the data, `inverse(y)`, `forward_and_log_det(x)` and
`inverse_and_log_det(y)`, each with an optional `condition` and for ONE example. Its leaves are its parameters, arrays
of floating point all of which may be trained; shapes, masks and permutations are static. So `jax.grad` by a bijector,
and `optax.apply_updates` to one, are all that training needs.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import log_sigmoid, softplus

from .. import checks
from ..numerics import float_dtype, log_expm1
from ..types import Array, ArrayLike, PyTree, Scalar, pytree, static_field
from .compiled import call

METHODS = ("forward", "inverse", "forward_and_log_det", "inverse_and_log_det")


def _one_program(method):
    """A method of a bijector that compiles one program when it is called outside of others."""

    def apply(self, value, condition):
        if checks.is_traced(self, value, condition):
            return method(self, value, condition)
        return call(method, self, value, condition)

    if method.__name__.startswith("forward"):
        return functools.wraps(method)(
            lambda self, x, condition=None: apply(self, x, condition)
        )
    return functools.wraps(method)(
        lambda self, y, condition=None: apply(self, y, condition)
    )


class Bijector(Protocol):
    """An invertible map of one example, y = f(x; condition). Classes that derive from this one state the two methods
    with log-determinants; the other two follow (under `jit` without the cost of the log-determinant).

    A method of such a class, called with concrete arrays, runs as one compiled program.
    """

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        for name in METHODS:
            own = cls.__dict__.get(name)
            if own is not None or cls.__bases__ == (Bijector,):
                setattr(cls, name, _one_program(own or getattr(cls, name)))

    def forward_and_log_det(
        self, x: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        """(y, log|det ∂y/∂x|), the second of shape ()."""
        ...

    def inverse_and_log_det(
        self, y: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        """(x, log|det ∂x/∂y|), the second of shape ().

        No x maps to a y outside the image of f. There the log-determinant is −∞ and x is some finite point of the
        domain, so that a density by the change of variables is 0 and its gradient is finite.
        """
        ...

    def forward(self, x: Array, condition: Any = None) -> Array:
        """y = f(x), from the base to the data."""
        return self.forward_and_log_det(x, condition)[0]

    def inverse(self, y: Array, condition: Any = None) -> Array:
        """x = f⁻¹(y), from the data to the base. Outside the image of f: ValueError where y is concrete, else NaN."""
        return self.inverse_and_log_det(y, condition)[0]


def check_bijector(name: str, value: Any) -> Any:
    """`value` if it has the four methods of a bijector."""
    missing = [
        method for method in METHODS if not callable(getattr(value, method, None))
    ]
    if missing or isinstance(value, type):
        raise TypeError(
            f"{name} must be a bijector, with {', '.join(METHODS)}; got {value!r}"
        )
    return value


def promoted(x: ArrayLike, *parameters: PyTree) -> Array:
    """x in the widest dtype of itself and the parameters, float32 at least, so that a loop's state keeps its dtype."""
    leaves = jax.tree.leaves(parameters)
    return jnp.asarray(x, checks.promoted(checks.promoted(x, *leaves), jnp.float32))


# --------------------------------------------------------------------------------------------------------- elementwise


@pytree
class Affine(Bijector):
    """y = e^{log_scale} x + shift. See `affine`."""

    shift: Array
    log_scale: Array

    def forward_and_log_det(
        self, x: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        self._check(x)
        return x * jnp.exp(self.log_scale) + self.shift, self._log_det(x)

    def inverse_and_log_det(
        self, y: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        self._check(y)
        return (y - self.shift) * jnp.exp(-self.log_scale), -self._log_det(y)

    def _log_det(self, x):
        return jnp.sum(jnp.broadcast_to(self.log_scale, jnp.shape(x)))

    def _check(self, x):
        for name, value in (("shift", self.shift), ("log_scale", self.log_scale)):
            check_broadcast(name, jnp.shape(value), jnp.shape(x))


def affine(shift: ArrayLike, scale: ArrayLike = 1.0) -> Affine:
    """y = scale · x + shift, elementwise; log|det| = Σ log scale over the entries of x.

    shift, scale: each broadcastable to x's shape; scale positive, and trained as its logarithm. Raises ValueError for a
    scale that is not positive, NaN or infinity.
    """
    shift, scale = checks.real_array("shift", shift), checks.real_array("scale", scale)
    checks.finite("shift", shift)
    checks.finite("scale", scale)
    if not checks.is_traced(scale) and not np.all(np.asarray(scale) > 0):
        raise ValueError(f"scale must be positive, got {np.min(np.asarray(scale))}")
    return Affine(
        shift,
        jnp.log(scale) if checks.is_traced(scale) else jax.device_put(np.log(scale)),
    )


@pytree
class ActNorm(Bijector):
    """y = e^{log_scale} x + shift with one pair a channel. See `actnorm`."""

    shift: Array  # (C,)
    log_scale: Array  # (C,)

    def forward_and_log_det(
        self, x: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        check_channels("x", x, self.shift.shape[0])
        return Affine(self.shift, self.log_scale).forward_and_log_det(x)

    def inverse_and_log_det(
        self, y: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        check_channels("y", y, self.shift.shape[0])
        return Affine(self.shift, self.log_scale).inverse_and_log_det(y)

    def initialised(self, ys: Array, conditions: Any) -> tuple["ActNorm", Array]:
        """Its two parameters from a batch's channels, and the batch normalised, with 0 in constant channels."""
        check_channels("batch", ys, self.shift.shape[0])
        shift, scale, varies = _moments(ys.reshape(-1, ys.shape[-1]))
        new = ActNorm(
            shift.astype(self.shift.dtype), jnp.log(scale).astype(self.log_scale.dtype)
        )
        return new, jnp.where(
            varies, jax.vmap(new.inverse)(ys), 0
        )  # no later actnorm is to find rounding that varies


def _moments(rows):
    """Mean, scale and whether it varies of each column of (N, C). See `actnorm`.

    Squares are of numbers of size 1, in whatever unit. Equal numbers are their own mean, whatever a sum rounds.
    """
    least, most = jnp.min(rows, 0), jnp.max(rows, 0)
    mean = jnp.clip(jnp.mean(rows, 0), least, most)
    size, centred = jnp.maximum(-least, most), rows - mean
    spread = jnp.max(jnp.abs(centred), 0)
    varies = ~(spread <= CONSTANT * jnp.finfo(rows.dtype).eps * size)  # NaN does
    std = spread * jnp.sqrt(jnp.mean((centred / jnp.where(varies, spread, 1)) ** 2, 0))
    return mean, jnp.where(varies, std, jnp.maximum(spread, 1)), varies


CONSTANT = 16
"""Roundings of its largest value within which a channel counts as constant."""


def actnorm(channels: int) -> ActNorm:
    """Activation normalisation y = s x + b, one s and b per channel (the last axis); the identity at first.

    `initialise` sets b to the channel's mean and s to its standard deviation, in whatever unit the data are. A channel
    that is constant up to rounding has no scale of its own: it is centred, with s = 1, or s the size of its rounding
    where that is above 1, so that rounding is never amplified. log|det| = (entries per channel) Σ log s. Kingma &
    Dhariwal 2018, section 3.1.

    Args:
      channels: C, the length of the last axis.

    Returns:
      A bijector with the parameters shift and log_scale, of shape (C,) each.

    Raises:
      ValueError: If channels is below 1.

    Example:
      >>> flow = dj.flows.flow(dj.distributions.standard_normal((2,)), dj.flows.actnorm(2))
      >>> flow = dj.flows.initialise(flow, jax.random.normal(key, (16, 2)))
    """
    channels = checks.width("channels", channels, 1)
    return ActNorm(full((channels,)), full((channels,)))


def full(shape: tuple, value: float = 0.0) -> Array:
    """An array of one value, in the default floating-point dtype, without a program to fill it."""
    return jax.device_put(
        np.full(shape, value, float_dtype())
    )  # jnp.asarray compiles a program per shape


@pytree
class Elementwise(Bijector):
    """y_i = f(x_i) for one increasing function. See `elementwise`."""

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
        check_image("y", y, *self.image)
        y, outside = moved_inside(self._checked(y), *self.image)
        return jnp.where(outside, jnp.nan, self.inverse_function(y, *self.parameters))

    def _checked(self, x):
        for i, value in enumerate(self.parameters):
            check_broadcast(f"parameters[{i}]", jnp.shape(value), jnp.shape(x))
        return promoted(x, self.parameters)

    def _log_det(self, x):
        return jnp.sum(
            jnp.broadcast_to(self.log_slope(x, *self.parameters), jnp.shape(x))
        )


def elementwise(
    function: Callable,
    inverse_function: Callable,
    log_slope: Callable,
    *parameters: ArrayLike,
    image: tuple[float, float] = (-math.inf, math.inf),
) -> Elementwise:
    """y_i = f(x_i), f increasing: log|det| = Σ log f′(x_i).

    function(x, *parameters), inverse_function(y, *parameters), log_slope(x, *parameters) -> log f′(x): of arrays of any
    shape, elementwise; plain functions, not closures made anew, since they are static. parameters: arrays,
    broadcastable to x, which are trained. image: (lower, upper), the open interval that f reaches. Outside it
    `inverse_and_log_det` returns a log-determinant of −∞, and `inverse` NaN where traced. Raises TypeError for what
    cannot be called, ValueError for an image out of order, for parameters that do not broadcast to x, and by `inverse`
    for concrete data outside the image.
    """
    for name, value in (
        ("function", function),
        ("inverse_function", inverse_function),
        ("log_slope", log_slope),
    ):
        checks.callable_(name, value, f"{name}(x, *parameters)")
    values = tuple(
        checks.real_array(f"parameters[{i}]", value)
        for i, value in enumerate(parameters)
    )
    lower, upper = map(float, image)
    if not lower < upper:
        raise ValueError(f"image must be (lower, upper) in order, got {image}")
    return Elementwise(values, function, inverse_function, log_slope, (lower, upper))


def exponential() -> Elementwise:
    """y = e^x, the reals to the positive numbers."""
    return elementwise(jnp.exp, jnp.log, _identity, image=(0.0, math.inf))


def positive() -> Elementwise:
    """y = log(1 + e^x), softplus: the reals to the positive numbers, with slope 1 far out."""
    return elementwise(softplus, log_expm1, log_sigmoid, image=(0.0, math.inf))


def tanh() -> Elementwise:
    """y = tanh x, the reals to (−1, 1); log slope 2(log 2 − x − softplus(−2x))."""
    return elementwise(jnp.tanh, jnp.arctanh, _log_slope_of_tanh, image=(-1.0, 1.0))


@pytree
class LeakyRelu(Bijector):
    """y = x for x ≥ 0, slope · x below. See `leaky_relu`."""

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


def leaky_relu(slope: float = 0.1) -> LeakyRelu:
    """y = x for x ≥ 0, slope · x below, elementwise. slope: positive, not trained. Raises ValueError unless it is."""
    return LeakyRelu(float(checks.positive("slope", slope)))


def sinh_arcsinh(skew: ArrayLike = 0.0, tail: ArrayLike = 1.0) -> Elementwise:
    """y = sinh(tail (arcsinh x + skew)): skewed for skew ≠ 0, of heavier tails than x for tail > 1, lighter below.

    skew, tail: broadcastable to x's shape; tail positive, and trained as its logarithm. Jones & Pewsey 2009, eq. 1.
    """
    scale = affine(skew, tail)  # the same conditions hold for its shift and scale
    return Elementwise(
        (scale.shift, scale.log_scale),
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
    u = jnp.abs(u)
    return u + jnp.log1p(jnp.exp(-2 * u)) - math.log(2)


@pytree
class Logit(Bijector):
    """The sigmoid onto an interval a little wider than the data's. See `logit`."""

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
        check_image("y", y, self.lower, self.upper)
        y, outside = moved_inside(promoted(y), self.lower, self.upper)
        return jnp.where(
            outside, jnp.nan, jnp.log(y - self.lower) - jnp.log(self.upper - y)
        )


def logit(lower: Scalar = 0.0, upper: Scalar = 1.0, margin: Scalar = 0.05) -> Logit:
    """The last layer for data in [lower, upper]: towards the base their logit, towards the data a sigmoid.

    x = logit(margin + (1 − 2 margin) (y − lower)/(upper − lower)), elementwise, so that the ends stay finite; forward
    reaches the interval widened by margin/(1 − 2 margin) of its length on each side. The bounds are not trained.
    Outside that interval the density of a flow is 0 and there is no latent: `inverse` returns NaN where traced. Raises
    ValueError for bounds out of order, a margin outside [0, ½), and by `inverse` for concrete data outside. Dinh et al.
    2017, section 4.1.
    """
    lower, upper = (
        float(checks.number("lower", lower)),
        float(checks.number("upper", upper)),
    )
    checks.greater("upper", upper, "lower", lower)
    margin = float(checks.number("margin", margin))
    if not 0 <= margin < 0.5:
        raise ValueError(f"margin must be at least 0 and less than 0.5, got {margin}")
    beyond = margin / (1 - 2 * margin) * (upper - lower)
    return Logit(lower - beyond, upper + beyond)


def sigmoid() -> Logit:
    """y = 1/(1 + e^{−x}), the reals to (0, 1): the logit layer without a margin."""
    return logit(margin=0.0)


# ------------------------------------------------------------------------------------------------------- shape checks


def check_channels(name: str, x: Any, channels: int) -> None:
    """Refuse an array whose last axis is not `channels` long."""
    if jnp.ndim(x) == 0 or jnp.shape(x)[-1] != channels:
        raise ValueError(
            f"{name} must have {channels} channels on its last axis, got shape {jnp.shape(x)}"
        )


def check_image(name: str, y: Any, lower: float, upper: float) -> None:
    """Refuse concrete values outside the open interval that a bijector reaches, NaN included where it has a bound."""
    if checks.is_traced(y) or (lower, upper) == (-math.inf, math.inf):
        return
    outside = ~((np.asarray(y) > lower) & (np.asarray(y) < upper))
    if np.any(outside):
        raise ValueError(
            f"{name} must lie in ({lower}, {upper}) to have an inverse, got {np.asarray(y)[outside][0]}"
        )


def moved_inside(y: Array, lower: float, upper: float) -> tuple[Array, Array]:
    """(y with a point of the open interval in place of each entry outside it, which entries those are); NaN stays."""
    if (lower, upper) == (-math.inf, math.inf):
        return y, jnp.zeros(jnp.shape(y), bool)
    if math.isfinite(lower) and math.isfinite(upper):
        inner = 0.5 * lower + 0.5 * upper
    else:
        inner = lower + 1 if math.isfinite(lower) else upper - 1
    outside = (y <= lower) | (y >= upper)
    return jnp.where(outside, inner, y), outside


def check_broadcast(name: str, shape: tuple, target: tuple) -> None:
    """Refuse a parameter's shape that does not broadcast to the example's."""
    try:
        fits = np.broadcast_shapes(shape, target) == tuple(target)
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"{name} of shape {shape} must be broadcastable to the example's shape, got {target}"
        )
