"""Coupling layers (Dinh et al. 2015) and the flows made of them.

One part of an example moves by a scalar map, whose parameters a network
computes from the part that stays.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks
from ..distributions.normal import standard_normal
from ..types import Array, Key, as_pytree_callable, pytree, static_field
from .bijectors import Bijector
from .checks import NETWORK, check_parameters
from .composition import Stack, chain
from .conditioners.perceptrons import PerceptronSizes, perceptron_of_sizes
from .conditioners.weights import networks_in_turn
from .density import Flow, flow
from .elementwise import actnorm
from .linear import lu_linear
from .scalar_maps import (
    SCALAR_MAP,
    ScalarMap,
    additive,
    bounded_affine,
)
from .shapes import reshape, take
from .splines import rational_quadratic

__all__ = [
    "alternate_mask",
    "checkerboard_mask",
    "coupling",
    "coupling_flow",
    "half_mask",
    "nice",
    "real_nvp",
    "spline_coupling",
]

# ------------------------------------------------------------------------------ masks


@dataclasses.dataclass(frozen=True)
class AxisMask:
    """Which entries of the last axis stay, and which move."""

    kept: tuple
    moved: tuple

    def parts(self, x: Array) -> tuple[Array, Array]:
        """The part that the conditioner sees, and the part that moves."""
        size = len(self.kept) + len(self.moved)
        checks.last_axis("x", x, size)
        return take(x, self.kept), take(x, self.moved)

    def join(self, x: Array, moved: Array) -> Array:
        """An example with its moving part replaced.

        Args:
          x: The example.
          moved: The new moving part.
        """
        order = tuple(np.argsort(self.kept + self.moved).tolist())
        return take(jnp.concatenate([take(x, self.kept), moved], -1), order)

    def total(self, log_slopes: Array) -> Array:
        """Σ over the entries that move, shape ()."""
        return jnp.sum(log_slopes)


@dataclasses.dataclass(frozen=True)
class CheckerboardMask:
    """A checkerboard over rows and columns, or over the index of a vector.

    Entries whose row and column add up to an even number stay, and those of
    the other colour move. `swap` exchanges the two.
    """

    swap: bool

    def parts(self, x: Array) -> tuple[Array, Array]:
        """The example with 0 for the entries that move, and the example."""
        return jnp.where(self._kept(x), x, 0), x

    def join(self, x: Array, moved: Array) -> Array:
        """An example with its moving part replaced.

        Args:
          x: The example.
          moved: New values for the whole shape.
        """
        return jnp.where(self._kept(x), x, moved)

    def total(self, log_slopes: Array) -> Array:
        """Σ over the entries that move, shape ()."""
        return jnp.sum(jnp.where(self._kept(log_slopes), 0, log_slopes))

    def _kept(self, x):
        shape = jnp.shape(x)
        needed = "an axis" if not shape else "at least 2 positions"
        message = f"x must have {needed} for a checkerboard mask, got shape {shape}"
        checks.require(math.prod(shape[:2]) >= 2, message)
        rows = (
            np.arange(shape[0])
            if len(shape) == 1
            else np.add.outer(np.arange(shape[0]), np.arange(shape[1]))
        )
        return ((rows % 2 == 0) != self.swap).reshape(
            rows.shape + (1,) * (len(shape) - rows.ndim)
        )


@checks.arguments(size=(checks.width, 2), swap=checks.boolean)
def half_mask(size: int, swap: bool = False) -> AxisMask:
    """Mask that keeps the first half of the last axis and moves the second.

    For images (H, W, C) this is a channel mask.

    Args:
      size: Entries of the last axis, at least 2. Of one entry nothing could
        stay.
      swap: True if the second half stays and the first moves.

    Returns:
      A mask for `coupling`.

    Raises:
      TypeError: If size is not an integer, or swap not a boolean.
      ValueError: If size is below 2.
    """
    first, second = tuple(range(size // 2)), tuple(range(size // 2, size))
    return AxisMask(second, first) if swap else AxisMask(first, second)


@checks.arguments(size=(checks.width, 2), swap=checks.boolean)
def alternate_mask(size: int, swap: bool = False) -> AxisMask:
    """Mask that keeps entries 0, 2, 4, … of the last axis and moves 1, 3, ….

    Args:
      size: Entries of the last axis, at least 2.
      swap: True if the odd entries stay and the even ones move.

    Returns:
      A mask for `coupling`.

    Raises:
      TypeError: If size is not an integer, or swap not a boolean.
      ValueError: If size is below 2.
    """
    first, second = tuple(range(0, size, 2)), tuple(range(1, size, 2))
    return AxisMask(second, first) if swap else AxisMask(first, second)


@checks.arguments(swap=checks.boolean)
def checkerboard_mask(swap: bool = False) -> CheckerboardMask:
    """Checkerboard mask (Dinh et al. 2017, figure 3) of (H, W, C), (H, W) or (D,).

    The colour of the first pixel stays and the other moves. swap=True
    exchanges them. There must be at least 2 positions.

    The conditioner sees the whole shape, with 0 for the entries that move, and
    returns parameters for the whole shape. Parameters of the entries that stay
    are ignored.
    """
    return CheckerboardMask(swap)


# ------------------------------------------------------------------------------ layer


@pytree
class Coupling(Bijector):
    """A coupling layer, with x_k the part that stays and x_m the part that moves.

        forward   y_m = τ(x_m, θ(x_k, c)),     log|det| = Σ log ∂τ/∂x_m
        inverse   x_m = τ⁻¹(y_m, θ(y_k, c)),   log|det| = Σ log ∂τ⁻¹/∂y_m

    See `coupling`.
    """

    conditioner: Any
    scalar_map: ScalarMap = static_field()
    mask: Any = static_field()

    def forward_and_log_det(
        self, x: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        return self._apply(self.scalar_map.forward, x, condition)

    def inverse_and_log_det(
        self, y: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        return self._apply(self.scalar_map.inverse, y, condition)

    def _apply(self, method, x, condition):
        kept, moved = self.mask.parts(x)
        parameters = self.conditioner(kept, condition)
        check_parameters(parameters, moved.shape, self.scalar_map)
        moved, log_slopes = method(moved, parameters)
        return self.mask.join(x, moved), self.mask.total(log_slopes)


@checks.arguments(
    scalar_map=SCALAR_MAP,
    conditioner=(checks.callable_, "conditioner(kept, condition) -> (*moved.shape, P)"),
    mask=(
        checks.instance,
        AxisMask | CheckerboardMask,
        "a half_mask, alternate_mask or checkerboard_mask",
    ),
)
def coupling(conditioner: Callable, scalar_map: ScalarMap, mask: Any) -> Coupling:
    """Coupling layer (Dinh et al. 2015, section 3.2).

        y_moved = τ(x_moved, θ(x_kept, c)),   y_kept = x_kept,
        log|det ∂y/∂x| = Σ log τ′ over the entries that move

    Either direction costs one call of the network.

    Args:
      conditioner: θ, a function (kept, condition) -> (*moved.shape, P). A
        pytree callable, whose arrays are trained: `perceptron`, or
        `functools.partial(module.apply, params)`.
      scalar_map: τ, for example `additive()`, `bounded_affine()` or
        `rational_quadratic()`.
      mask: Which entries stay: `half_mask(size)`, `alternate_mask(size)` or
        `checkerboard_mask()`.

    Returns:
      A bijector.

    Raises:
      TypeError: If an argument is of another kind.
      ValueError: When called, if the shape of the conditioner's result does
        not fit.

    Example:
      >>> scalar_map = dj.flows.bounded_affine()
      >>> network = dj.flows.perceptron(key, 1, (1, scalar_map.count), width=4)
      >>> layer = dj.flows.coupling(network, scalar_map, dj.flows.half_mask(2))
    """
    return Coupling(as_pytree_callable(conditioner), scalar_map, mask)


# ------------------------------------------------------------------------------ flows


@checks.arguments(
    **NETWORK,
    shape=checks.shape,
    scalar_map=SCALAR_MAP,
    layers=(checks.depth, 1),
    depth=(checks.depth, 0),
    mix=checks.boolean,
)
def coupling_flow(
    key: Key,
    shape: tuple,
    scalar_map: ScalarMap,
    *,
    layers: int = 8,
    width: int = 64,
    depth: int = 2,
    condition_size: int = 0,
    mix: bool = True,
) -> Flow:
    """Flow of coupling layers that move the two halves of a vector in turn.

    The identity at first. Pairs of layers run as one scan, and each pair ends
    with a learned linear map where mix=True. The last layer of an odd number
    follows alone. At the data's end there is an actnorm, for
    `initialise`.

    Args:
      key: Key of the conditioners' weights.
      shape: Shape of an example, of at least 2 entries, read in row-major
        order.
      scalar_map: The map of each entry, for example `bounded_affine()`.
      layers: Number of coupling layers, at least 1. A single one moves one
        half only.
      width: Units per hidden layer of the conditioners, see `perceptron`.
      depth: Number of hidden layers of the conditioners.
      condition_size: Entries of the condition, 0 for none.
      mix: True for a linear map after each pair of layers, see `lu_linear`.

    Returns:
      A flow whose base is the standard normal distribution.

    Raises:
      ValueError: If shape has a single entry, or a size is out of range.
      TypeError: If scalar_map is no scalar map.

    Example:
      >>> scalar_map = dj.flows.bounded_affine(1.0)
      >>> flow = dj.flows.coupling_flow(key, (3,), scalar_map, layers=2, width=4)
    """
    size = math.prod(shape)
    message = f"shape must have at least 2 entries for a coupling, got {shape}"
    checks.require(size >= 2, message)
    masks = half_mask(size), half_mask(size, swap=True)

    def sizes(mask):
        outputs = len(mask.moved), scalar_map.count
        return PerceptronSizes(len(mask.kept), outputs, width, depth, condition_size)

    *networks, last = networks_in_turn(
        key, layers, perceptron_of_sizes, sizes(masks[0]), second=sizes(masks[1])
    )
    bijectors = []
    if layers > 1:
        pair = [
            coupling(network, scalar_map, mask)
            for network, mask in zip(networks, masks, strict=True)
        ]
        mixing = (repeated(lu_linear(size), layers // 2),) if mix else ()
        bijectors.append(Stack(chain(*pair, *mixing)))
    if last is not None:
        bijectors.append(coupling(last, scalar_map, masks[0]))
    return vector_flow(shape, *bijectors, actnorm(size))


def repeated(tree: Any, count: int) -> Any:
    """A pytree with each leaf repeated along a new leading axis.

    Args:
      tree: A pytree of arrays.
      count: Length of the new axis.
    """

    def repeat(leaf):
        if checks.is_traced(leaf):
            return jnp.broadcast_to(leaf, (count, *leaf.shape))
        # On the host, where it takes no compiled program.
        return jax.device_put(np.repeat(np.asarray(leaf)[None], count, 0))

    return jax.tree.map(repeat, tree)


def vector_flow(shape: tuple, *bijectors: Bijector) -> Flow:
    """The flow of a standard normal vector through bijectors of vectors.

    Args:
      shape: Shape of the examples that the vectors become.
      *bijectors: From the base to the data.
    """
    size = math.prod(shape)
    last = () if shape == (size,) else (reshape((size,), shape),)
    return flow(standard_normal((size,)), chain(*bijectors, *last))


def real_nvp(
    key: Key,
    shape: tuple,
    *,
    layers: int = 8,
    width: int = 64,
    depth: int = 2,
    bound: float = 2.0,
    condition_size: int = 0,
    mix: bool = True,
) -> Flow:
    """RealNVP (Dinh et al. 2017): `coupling_flow` with the bounded affine map.

    Args:
      key: Key of the conditioners' weights.
      shape: Shape of an example, of at least 2 entries.
      layers: Number of coupling layers, at least 1.
      width: Units per hidden layer of the conditioners.
      depth: Number of hidden layers of the conditioners.
      bound: Bound of a layer's log scale, see `bounded_affine`.
      condition_size: Entries of the condition, 0 for none.
      mix: True for a linear map after each pair of layers.

    Returns:
      A flow, the identity at first.

    Example:
      >>> flow = dj.flows.real_nvp(key, (2,), layers=2, width=4)
      >>> log_prob = flow.log_prob(jnp.zeros(2))
    """
    return coupling_flow(
        key,
        shape,
        bounded_affine(bound),
        layers=layers,
        width=width,
        depth=depth,
        condition_size=condition_size,
        mix=mix,
    )


def nice(
    key: Key,
    shape: tuple,
    *,
    layers: int = 8,
    width: int = 64,
    depth: int = 2,
    condition_size: int = 0,
    mix: bool = True,
) -> Flow:
    """NICE (Dinh et al. 2015): `coupling_flow` with the additive map.

    |det ∂f/∂z| is the same everywhere, so that `sample` at temperature T has
    the distribution ∝ p^{1/T²}.

    Args:
      key: Key of the conditioners' weights.
      shape: Shape of an example, of at least 2 entries.
      layers: Number of coupling layers, at least 1.
      width: Units per hidden layer of the conditioners.
      depth: Number of hidden layers of the conditioners.
      condition_size: Entries of the condition, 0 for none.
      mix: True for a linear map after each pair of layers.

    Returns:
      A flow, the identity at first.

    Example:
      >>> flow = dj.flows.nice(key, (2,), layers=2, width=4)
      >>> x = flow.sample(key, temperature=0.5)
    """
    return coupling_flow(
        key,
        shape,
        additive(),
        layers=layers,
        width=width,
        depth=depth,
        condition_size=condition_size,
        mix=mix,
    )


def spline_coupling(
    key: Key,
    shape: tuple,
    *,
    layers: int = 4,
    width: int = 64,
    depth: int = 2,
    bins: int = 8,
    bound: float = 5.0,
    condition_size: int = 0,
    mix: bool = True,
) -> Flow:
    """Neural spline flow (Durkan et al. 2019): `coupling_flow` with splines.

    Args:
      key: Key of the conditioners' weights.
      shape: Shape of an example, of at least 2 entries.
      layers: Number of coupling layers, at least 1.
      width: Units per hidden layer of the conditioners.
      depth: Number of hidden layers of the conditioners.
      bins: Bins of a spline, see `rational_quadratic`.
      bound: The splines act on [−bound, bound] and are the identity beyond.
      condition_size: Entries of the condition, 0 for none.
      mix: True for a linear map after each pair of layers.

    Returns:
      A flow, the identity at first.

    Example:
      >>> flow = dj.flows.spline_coupling(key, (2,), layers=2, width=4, bins=3)
      >>> log_prob = flow.log_prob(jnp.zeros(2))
    """
    return coupling_flow(
        key,
        shape,
        rational_quadratic(bins, bound),
        layers=layers,
        width=width,
        depth=depth,
        condition_size=condition_size,
        mix=mix,
    )
