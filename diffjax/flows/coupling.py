"""Coupling layers: one part of an example moves by a scalar map whose parameters a network computes from the rest."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks
from ..numerics import float_dtype
from ..types import Array, Key, as_pytree_callable, pytree, static_field
from .bijectors import Bijector, actnorm, full, promoted
from .composition import Stack, chain
from .density import Flow, flow, standard_normal
from .linear import lu_linear
from .scalar_maps import (
    ScalarMap,
    additive,
    bounded_affine,
    check_parameters,
    check_scalar_map,
)
from .shapes import reshape, take
from .splines import rational_quadratic

# --------------------------------------------------------------------------------------------------------------- masks


@dataclasses.dataclass(frozen=True)
class AxisMask:
    """Which entries of the last axis stay, and which move."""

    kept: tuple
    moved: tuple

    def parts(self, x: Array) -> tuple[Array, Array]:
        """What the conditioner sees, and what moves."""
        size = len(self.kept) + len(self.moved)
        if jnp.ndim(x) == 0 or jnp.shape(x)[-1] != size:
            raise ValueError(
                f"x must have {size} entries on its last axis for this mask, got shape {jnp.shape(x)}"
            )
        return take(x, self.kept), take(x, self.moved)

    def join(self, x: Array, moved: Array) -> Array:
        """x with its moving part replaced."""
        order = tuple(np.argsort(self.kept + self.moved).tolist())
        return take(jnp.concatenate([take(x, self.kept), moved], -1), order)

    def total(self, log_slopes: Array) -> Array:
        """Σ over the entries that move, shape ()."""
        return jnp.sum(log_slopes)


@dataclasses.dataclass(frozen=True)
class CheckerboardMask:
    """Entries whose row and column (or index) add up to an even number stay, those of the other colour move."""

    swap: bool

    def parts(self, x: Array) -> tuple[Array, Array]:
        """x with 0 for what moves, and x."""
        return jnp.where(self._kept(x), x, 0), x

    def join(self, x: Array, moved: Array) -> Array:
        """x with its moving part replaced."""
        return jnp.where(self._kept(x), x, moved)

    def total(self, log_slopes: Array) -> Array:
        """Σ over the entries that move, shape ()."""
        return jnp.sum(jnp.where(self._kept(log_slopes), 0, log_slopes))

    def _kept(self, x):
        shape = jnp.shape(x)
        if not shape:
            raise ValueError(
                "x must have an axis for a checkerboard mask, got shape ()"
            )
        if math.prod(shape[:2]) < 2:
            raise ValueError(
                f"x must have at least 2 positions for a checkerboard mask, got shape {shape}"
            )
        rows = (
            np.arange(shape[0])
            if len(shape) == 1
            else np.add.outer(np.arange(shape[0]), np.arange(shape[1]))
        )
        return ((rows % 2 == 0) != self.swap).reshape(
            rows.shape + (1,) * (len(shape) - rows.ndim)
        )


def half_mask(size: int, swap: bool = False) -> AxisMask:
    """The first half of the last axis stays and the second moves; swap exchanges them. For images, a channel mask.

    size: at least 2. Raises ValueError for one channel, of which nothing could stay.
    """
    size, swap = checks.width("size", size, 2), checks.boolean("swap", swap)
    first, second = tuple(range(size // 2)), tuple(range(size // 2, size))
    return AxisMask(second, first) if swap else AxisMask(first, second)


def alternate_mask(size: int, swap: bool = False) -> AxisMask:
    """Entries 0, 2, 4, … of the last axis stay and 1, 3, … move; swap exchanges them. size: at least 2."""
    size, swap = checks.width("size", size, 2), checks.boolean("swap", swap)
    first, second = tuple(range(0, size, 2)), tuple(range(1, size, 2))
    return AxisMask(second, first) if swap else AxisMask(first, second)


def checkerboard_mask(swap: bool = False) -> CheckerboardMask:
    """The first pixel's colour of a checkerboard stays and the other moves; swap exchanges them.

    For (H, W, C), (H, W) or (D,), of at least 2 positions. The conditioner sees the whole shape, with 0 for what moves,
    and returns parameters for the whole shape, of which the moving entries' count. Dinh et al. 2017, figure 3.
    """
    return CheckerboardMask(checks.boolean("swap", swap))


# --------------------------------------------------------------------------------------------------------------- layer


@pytree
class Coupling(Bijector):
    """y_moved = τ(x_moved; θ(x_kept, condition)), y_kept = x_kept. See `coupling`."""

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
        parameters = check_parameters(
            self.conditioner(kept, condition), moved.shape, self.scalar_map
        )
        moved, log_slopes = method(moved, parameters)
        return self.mask.join(x, moved), self.mask.total(log_slopes)


def coupling(conditioner: Callable, scalar_map: ScalarMap, mask: Any) -> Coupling:
    """y_moved = τ(x_moved; θ(x_kept, condition)), y_kept = x_kept: one network pass in either direction.

    log|det| = Σ log τ′ over the entries that move. conditioner: (kept, condition) -> (*moved.shape, P), a pytree
    callable, of any inner workings, whose arrays are trained: `perceptron`, or `functools.partial(module.apply,
    params)`. scalar_map: τ: `additive()`, `bounded_affine()`, `rational_quadratic()`. mask: `half_mask(size)`,
    `alternate_mask(size)`, `checkerboard_mask()`. Raises TypeError for anything else, ValueError when applied where the
    conditioner's shape does not fit. Dinh et al. 2015, section 3.2.
    """
    checks.callable_(
        "conditioner", conditioner, "conditioner(kept, condition) -> (*moved.shape, P)"
    )
    if not isinstance(mask, AxisMask | CheckerboardMask):
        raise TypeError(
            f"mask must be a half_mask, alternate_mask or checkerboard_mask, got {mask!r}"
        )
    return Coupling(
        as_pytree_callable(conditioner),
        check_scalar_map("scalar_map", scalar_map),
        mask,
    )


# ---------------------------------------------------------------------------------------------------------- conditioner


@pytree
class Perceptron:
    """(x, condition) -> outputs, a network of dense layers. See `perceptron`."""

    weights: tuple
    biases: tuple
    outputs: tuple = static_field()
    condition_size: int = static_field()

    def __call__(self, x: Array, condition: Any = None) -> Array:
        """Linear ∘ SiLU ∘ … ∘ linear of [x, condition], of shape `outputs`."""
        h = with_condition(x, condition, self.condition_size)
        if h.size != self.weights[0].shape[0]:
            raise ValueError(
                f"x must have {self.weights[0].shape[0] - self.condition_size} entries, got {jnp.size(x)}"
            )
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            h = jax.nn.silu(h @ weight + bias)  # (width,)
        return (h @ self.weights[-1] + self.biases[-1]).reshape(self.outputs)


def with_condition(x: Array, condition: Any, size: int) -> Array:
    """x and the condition in one vector. Raises ValueError where the condition does not have the size expected."""
    found = 0 if condition is None else jnp.size(condition)
    if found != size:
        raise ValueError(
            f"condition must have condition_size={size} entries, got {found}"
        )
    x = promoted(jnp.ravel(x))
    return (
        x
        if condition is None
        else jnp.concatenate([x, jnp.ravel(condition).astype(x.dtype)])
    )


def perceptron(
    key: Key,
    inputs: int,
    outputs: tuple,
    width: int = 64,
    depth: int = 2,
    condition_size: int = 0,
) -> Perceptron:
    """A conditioner of `depth` hidden layers with SiLU; its output is 0 at first, so that a layer starts as the
    identity.

    inputs: entries of what stays. outputs: shape of its result, (*moved.shape, P). condition_size: entries of the
    condition, 0 for none. Hidden weights are N(0, 1/fan-in).
    """
    checks.key("key", key)
    inputs, condition_size = (
        checks.width("inputs", inputs, 0),
        checks.width("condition_size", condition_size, 0),
    )
    outputs = checks.shape("outputs", outputs)
    width, depth = checks.width("width", width, 1), checks.depth("depth", depth, 0)
    return _perceptron(key, inputs, outputs, width, depth, condition_size)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4, 5))
def _perceptron(key, inputs, outputs, width, depth, condition_size):
    sizes = (inputs + condition_size, *[width] * depth, math.prod(outputs))
    weights, biases = dense_parameters(key, sizes)
    return Perceptron(weights, biases, outputs, condition_size)


@functools.partial(jax.jit, static_argnums=(1, 2), static_argnames="sizes")
def _networks_of_pairs(key, count, make, *, sizes):
    keys = jax.random.split(key, (count, 2))
    return tuple(
        jax.vmap(lambda key, size=size: make(key, *size))(keys[:, i])
        for i, size in enumerate(sizes)
    )


def networks_of_pairs(
    key: Key, layers: int, make: Callable, *sizes: Any, second: tuple | None = None
) -> tuple:
    """The networks of the first and of the second layer of each pair, with a leading axis of layers/2, as in a `Stack`.

    make(key, *sizes): a module-level function. second: sizes of the second of each pair, where they differ.
    """
    return _networks_of_pairs(
        key, layers // 2, make, sizes=(sizes, sizes if second is None else second)
    )


def dense_parameters(key: Key, sizes: tuple) -> tuple[tuple, tuple]:
    """(weights, biases) of dense layers of these sizes: N(0, 1/fan-in), the last layer and all biases 0."""
    hidden = normal_weights(key, list(zip(sizes[:-2], sizes[1:-1], strict=True)))
    return (*hidden, jnp.zeros(sizes[-2:], float_dtype())), tuple(
        full((size,)) for size in sizes[1:]
    )


def normal_weights(key: Key, shapes: list, fans_in: list | None = None) -> list[Array]:
    """Weights N(0, 1/fan-in) of these shapes, from one draw for all.

    A draw per shape would compile a generator per shape: half of what making a small flow costs.

    Args:
      key: A typed key.
      shapes: Shapes of the weights.
      fans_in: Their fan-ins, by default the product of all axes but the last.

    Returns:
      One array per shape.
    """
    fans_in = (
        [math.prod(shape[:-1]) for shape in shapes] if fans_in is None else fans_in
    )
    ends = np.cumsum([math.prod(shape) for shape in shapes]).tolist()
    draws = jax.random.normal(key, (ends[-1] if ends else 0,), float_dtype())
    return [
        draws[end - math.prod(shape) : end].reshape(shape) * max(fan_in, 1) ** -0.5
        for shape, fan_in, end in zip(shapes, fans_in, ends, strict=True)
    ]


# --------------------------------------------------------------------------------------------------------------- flows


def coupling_flow(
    key: Key,
    shape: tuple,
    scalar_map: ScalarMap,
    layers: int = 8,
    width: int = 64,
    depth: int = 2,
    condition_size: int = 0,
    mix: bool = True,
) -> Flow:
    """A flow of `layers` coupling layers on vectors, the two halves by turns, run as one scan; the identity at first.

    Each pair of layers ends with a learned linear map (mix=True), and the data's end has an actnorm, for `initialise`.
    shape: of an example, of at least 2 entries, read in row-major order. layers: even. width, depth, condition_size: of
    the conditioners, see `perceptron`. Raises ValueError for an odd number of layers or a single entry, TypeError for
    another scalar map.
    """
    checks.key("key", key)
    shape, layers = checks.shape("shape", shape), checks.depth("layers", layers, 2)
    size, mix = math.prod(shape), checks.boolean("mix", mix)
    check_scalar_map("scalar_map", scalar_map)
    if layers % 2:
        raise ValueError(
            f"layers must be even, since halves move by turns, got {layers}"
        )
    if size < 2:
        raise ValueError(
            f"shape must have at least 2 entries for a coupling, got {shape}"
        )

    width, depth = checks.width("width", width, 1), checks.depth("depth", depth, 0)
    condition_size = checks.width("condition_size", condition_size, 0)
    masks = half_mask(size), half_mask(size, swap=True)
    sizes = [
        (
            len(mask.kept),
            (len(mask.moved), scalar_map.count),
            width,
            depth,
            condition_size,
        )
        for mask in masks
    ]
    networks = networks_of_pairs(key, layers, _perceptron, *sizes[0], second=sizes[1])
    layer = [
        coupling(network, scalar_map, mask)
        for network, mask in zip(networks, masks, strict=True)
    ]
    mixing = (repeated(lu_linear(size), layers // 2),) if mix else ()
    return vector_flow(shape, Stack(chain(*layer, *mixing)), actnorm(size))


def repeated(tree: Any, count: int) -> Any:
    """Each leaf `count` times, along a new leading axis."""

    def repeat(leaf):
        if checks.is_traced(leaf):
            return jnp.broadcast_to(leaf, (count, *leaf.shape))
        return jax.device_put(
            np.repeat(np.asarray(leaf)[None], count, 0)
        )  # without a program

    return jax.tree.map(repeat, tree)


def vector_flow(shape: tuple, *bijectors: Bijector) -> Flow:
    """The flow of a standard normal vector through bijectors of vectors, as examples of the shape."""
    size = math.prod(shape)
    last = () if shape == (size,) else (reshape((size,), shape),)
    return flow(standard_normal((size,)), chain(*bijectors, *last))


def real_nvp(
    key: Key,
    shape: tuple,
    layers: int = 8,
    width: int = 64,
    depth: int = 2,
    bound: float = 2.0,
    condition_size: int = 0,
    mix: bool = True,
) -> Flow:
    """`coupling_flow` with the bounded affine map. bound: of a layer's log scale. Dinh et al. 2017."""
    scalar_map = bounded_affine(bound)
    return coupling_flow(
        key, shape, scalar_map, layers, width, depth, condition_size, mix
    )


def nice(
    key: Key,
    shape: tuple,
    layers: int = 8,
    width: int = 64,
    depth: int = 2,
    condition_size: int = 0,
    mix: bool = True,
) -> Flow:
    """`coupling_flow` with the additive map: |det ∂f/∂z| is the same everywhere, so that `sample` at temperature T has
    the law ∝ p^{1/T²}. Dinh et al. 2015.
    """
    return coupling_flow(
        key, shape, additive(), layers, width, depth, condition_size, mix
    )


def spline_coupling(
    key: Key,
    shape: tuple,
    layers: int = 4,
    width: int = 64,
    depth: int = 2,
    bins: int = 8,
    bound: float = 5.0,
    condition_size: int = 0,
    mix: bool = True,
) -> Flow:
    """`coupling_flow` with rational-quadratic splines. bins, bound: see `rational_quadratic`. Durkan et al. 2019."""
    scalar_map = rational_quadratic(bins, bound)
    return coupling_flow(
        key, shape, scalar_map, layers, width, depth, condition_size, mix
    )
