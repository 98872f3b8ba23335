"""Autoregressive flows: each part of an example moves by a scalar map with parameters made from the parts before it."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks
from ..numerics import float_dtype
from ..types import (
    Array,
    ArrayLike,
    Key,
    PyTree,
    as_pytree_callable,
    pytree,
    static_field,
)
from .bijectors import Bijector, actnorm, promoted
from .composition import Stack, chain, inverse
from .coupling import dense_parameters, networks_of_pairs, normal_weights, vector_flow
from .density import Flow, flow, standard_normal
from .scalar_maps import ScalarMap, bounded_affine, check_parameters, check_scalar_map
from .shapes import Reshape, reversal, squeeze

# --------------------------------------------------------------------------------------------------------------- layer


@pytree
class Autoregressive(Bijector):
    """y_i = τ(x_i; θ_i(y_{<i}, condition)) along the first axis. See `autoregressive`."""

    conditioner: Any
    scalar_map: ScalarMap = static_field()

    def inverse_and_log_det(
        self, y: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        x, log_slopes = self.scalar_map.inverse(y, self._parameters(y, condition))
        return x, jnp.sum(log_slopes)

    def forward_and_log_det(
        self, x: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        x = _with_axis(promoted(x, self.conditioner, condition))
        if hasattr(self.conditioner, "following"):
            return self._entry_by_entry(x, condition)

        def improve(y, _):
            return self.scalar_map.forward(x, self._parameters(y, condition))[0], None

        # after n passes the first n parts are exact: θ_n needs only the n − 1 parts before it
        y, _ = jax.lax.scan(improve, x, None, length=x.shape[0] - 1)
        y, log_slopes = self.scalar_map.forward(x, self._parameters(y, condition))
        return y, jnp.sum(log_slopes)

    def _entry_by_entry(self, x, condition):
        def body(carry, entry):
            before, memory = carry
            i, x_i = entry
            parameters, memory = self.conditioner.following(
                memory, i, before, condition
            )
            y_i, log_slopes = self.scalar_map.forward(
                x_i, check_parameters(parameters, x_i.shape, self.scalar_map)
            )
            return (y_i, memory), (y_i, jnp.sum(log_slopes))

        start = (jnp.zeros_like(x[0]), self.conditioner.memory(x))
        y, log_slopes = jax.lax.scan(body, start, (jnp.arange(x.shape[0]), x))[1]
        return y, jnp.sum(log_slopes)

    def _parameters(self, y, condition):
        return check_parameters(
            self.conditioner(_with_axis(y), condition), jnp.shape(y), self.scalar_map
        )


def _with_axis(x):
    if jnp.ndim(x) == 0:
        raise ValueError("x must have an axis to be autoregressive along, got shape ()")
    return x


def autoregressive(conditioner: Callable, scalar_map: ScalarMap) -> Autoregressive:
    """y_i = τ(x_i; θ_i(y_{<i}, condition)), i along the first axis: the density in one pass, a sample in n.

    log|det| = Σ log τ′, since the Jacobian is triangular in blocks. conditioner: (y, condition) -> (*y.shape, P), whose
    i-th row depends on rows before i alone: `masked_perceptron` for vectors, `causal_transformer` for rows of patches.
    Its inverse, `inverse(autoregressive(…))`, samples in one pass and has its density in n (IAF). scalar_map: τ. The n
    passes are a `lax.scan`, differentiable both ways. A conditioner may also go part by part and remember what it saw:
    `memory(y)` -> its state before the first part, `following(memory, i, y_{i−1}, condition)` -> (θ_i, memory); then a
    sample costs n such calls, as with the keys and values of `causal_transformer`. Papamakarios et al. 2017 (MAF), eq.
    4; Kingma et al. 2016 (IAF), eq. 10.
    """
    checks.callable_(
        "conditioner", conditioner, "conditioner(y, condition) -> (*y.shape, P)"
    )
    return Autoregressive(
        as_pytree_callable(conditioner), check_scalar_map("scalar_map", scalar_map)
    )


# --------------------------------------------------------------------------------------------- masked dense conditioner


@pytree
class MaskedPerceptron:
    """(y, condition) -> θ with θ_i a function of y_{<i}. See `masked_perceptron`."""

    weights: tuple
    biases: tuple
    condition_weight: Any  # (condition_size, width), or None
    count: int = static_field()

    def __call__(self, y: Array, condition: Any = None) -> Array:
        """(D, P), of which row i depends on y_0 … y_{i−1} and the condition."""
        size = self.weights[0].shape[0]
        checks.one_of_shapes("x", y, [(size,)])
        widths = tuple(weight.shape[1] for weight in self.weights[:-1])
        masks = autoregressive_masks(
            size, widths, self.count, self.condition_weight is not None
        )
        h = y
        for i, (weight, bias, mask) in enumerate(
            zip(self.weights, self.biases, masks, strict=True)
        ):
            h = h @ jnp.where(mask, weight, 0) + bias
            if i == 0:
                h = h + self._from_condition(condition, h)
            h = jax.nn.silu(h) if i < len(masks) - 1 else h
        return h.reshape(size, self.count)

    def _from_condition(self, condition, h):
        size = 0 if self.condition_weight is None else self.condition_weight.shape[0]
        found = 0 if condition is None else jnp.size(condition)
        if found != size:
            raise ValueError(
                f"condition must have condition_size={size} entries, got {found}"
            )
        return (
            jnp.ravel(condition).astype(h.dtype) @ self.condition_weight
            if size
            else jnp.zeros_like(h)
        )


def autoregressive_masks(
    size: int, widths: tuple, count: int, conditional: bool = False
) -> list[np.ndarray]:
    """The weights that may be non-zero, for each layer (fan-in, fan-out) of a network D -> D P.

    Input i has degree i + 1, hidden units the degrees 1 … D − 1 by turns, and 0 too where there is a condition, which
    those units carry alone; a unit sees degrees up to its own, and the P outputs for entry i see hidden degrees up to
    i. So every path from y_j to θ_i has j < i. Germain et al. 2015 (MADE), eq. 12–13.
    """
    lowest = 0 if conditional or size == 1 else 1
    degrees = [
        np.arange(1, size + 1),
        *(lowest + np.arange(width) % (size - lowest) for width in widths),
    ]
    masks = [
        before[:, None] <= after[None, :]
        for before, after in zip(degrees[:-1], degrees[1:], strict=True)
    ]
    outputs = np.repeat(np.arange(size), count)  # entry i sees degrees up to i
    return [*masks, degrees[-1][:, None] <= outputs[None, :]]


def masked_perceptron(
    key: Key,
    size: int,
    count: int,
    width: int | None = None,
    depth: int = 2,
    condition_size: int = 0,
) -> MaskedPerceptron:
    """Masked dense conditioner (Germain et al. 2015, MADE): all parameters of a vector in one pass.

    θ (D, P) of y (D,), θ_i a function of every y_j with j < i and of the condition. Dense layers with SiLU whose
    weights are masked; 0 at first.

    Args:
      key: Key of the hidden weights, N(0, 1/fan-in).
      size: D, entries of y.
      count: P, parameters per entry.
      width: Units per hidden layer. Each of the D − 1 degrees needs one, and the condition another: with fewer, some
        entries would be independent of each other. Default max(64, the least width).
      depth: Hidden layers, at least 1.
      condition_size: Entries of the condition, 0 for none.

    Returns:
      A pytree callable (y, condition) -> (D, P).

    Raises:
      ValueError: If width is less than D − 1, or than D with a condition.

    Example:
      >>> network = dj.flows.masked_perceptron(key, size=3, count=2)
      >>> layer = dj.flows.autoregressive(network, dj.flows.bounded_affine())
    """
    checks.key("key", key)
    size, count = checks.width("size", size, 1), checks.integer("count", count, 1)
    depth, condition_size = (
        checks.depth("depth", depth, 1),
        checks.width("condition_size", condition_size, 0),
    )
    return _masked_perceptron(
        key,
        size,
        count,
        _masked_width(width, size, condition_size),
        depth,
        condition_size,
    )


def _masked_width(width, size, condition_size):
    """The width, checked: one unit for each degree 1 … D − 1, and for degree 0 where there is a condition."""
    least = max(size - 1, 1) + (condition_size > 0 and size > 1)
    if width is None:
        return max(64, least)
    width = checks.width("width", width, 1)
    if width < least:
        raise ValueError(
            f"width must be at least {least} for {size} entries to see all before them, got {width}"
        )
    return width


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4, 5))
def _masked_perceptron(key, size, count, width, depth, condition_size):
    first, second = jax.random.split(key)
    weights, biases = dense_parameters(first, (size, *[width] * depth, size * count))
    from_condition = (
        normal_weights(second, [(condition_size, width)])[0] if condition_size else None
    )
    return MaskedPerceptron(weights, biases, from_condition, count)


def maf(
    key: Key,
    shape: tuple,
    layers: int = 4,
    width: int | None = None,
    depth: int = 2,
    scalar_map: ScalarMap | None = None,
    condition_size: int = 0,
) -> Flow:
    """Masked autoregressive flow: density in one pass a layer, a sample in D; the identity at first.

    `layers` layers, the order reversed after each, run as one scan of pairs, and an actnorm at the data's end for
    `initialise`. shape: of an example, read in row-major order. layers: even. scalar_map: default `bounded_affine()`;
    `rational_quadratic()` makes a neural spline flow. width, depth, condition_size: see `masked_perceptron`. Raises
    ValueError for an odd number of layers, or a width at which entries would be independent of each other.
    Papamakarios et al. 2017.
    """
    return _masked_flow(
        key,
        shape,
        layers,
        width,
        depth,
        scalar_map,
        condition_size,
        lambda layer: layer,
    )


def iaf(
    key: Key,
    shape: tuple,
    layers: int = 4,
    width: int | None = None,
    depth: int = 2,
    scalar_map: ScalarMap | None = None,
    condition_size: int = 0,
) -> Flow:
    """Inverse autoregressive flow: a sample, with its density, in one pass a layer; the density of data in D.

    The layers of `maf` with directions exchanged: y_i = τ⁻¹(x_i; θ_i(x_{<i})). For variational fits, as by
    `reverse_kl`. Kingma et al. 2016.
    """
    return _masked_flow(
        key, shape, layers, width, depth, scalar_map, condition_size, inverse
    )


def _masked_flow(
    key, shape, layers, width, depth, scalar_map, condition_size, direction
):
    checks.key("key", key)
    scalar_map = (
        bounded_affine()
        if scalar_map is None
        else check_scalar_map("scalar_map", scalar_map)
    )
    shape, layers = checks.shape("shape", shape), _check_layers(layers)
    depth, condition_size = (
        checks.depth("depth", depth, 1),
        checks.width("condition_size", condition_size, 0),
    )
    size = math.prod(shape)
    width = _masked_width(width, size, condition_size)
    networks = networks_of_pairs(
        key,
        layers,
        _masked_perceptron,
        size,
        scalar_map.count,
        width,
        depth,
        condition_size,
    )
    turn = reversal(size)
    first, second = (
        direction(autoregressive(network, scalar_map)) for network in networks
    )
    return vector_flow(shape, Stack(chain(first, turn, second, turn)), actnorm(size))


def _check_layers(layers):
    layers = checks.depth("layers", layers, 2)
    if layers % 2:
        raise ValueError(
            f"layers must be even, since the order turns after each, got {layers}"
        )
    return layers


# ---------------------------------------------------------------------------------------------- transformer conditioner


@pytree
class CausalTransformer:
    """(rows, condition) -> θ with θ_i a function of rows before i. See `causal_transformer`."""

    embed: Array  # (p, width)
    positions: Array  # (N, width)
    condition_weight: Any  # (condition_size, width), or None
    blocks: Any  # a dictionary of weights, with a leading axis of blocks
    readout: Array  # (width, p P)
    heads: int = static_field()
    count: int = static_field()

    def __call__(self, y: Array, condition: Any = None) -> Array:
        """y: (N, p). Returns (N, p, P), of which row i depends on rows 0 … i − 1 and the condition."""
        checks.one_of_shapes("x", y, [(self.positions.shape[0], self.embed.shape[0])])
        before = jnp.concatenate(
            [jnp.zeros_like(y[:1]), y[:-1]]
        )  # row i sees what comes before it
        return self._outputs(before, 0, None, condition)[0]

    def memory(self, y: Array) -> tuple[Array, Array]:
        """Keys and values of no row yet: two arrays (blocks, heads, N, width/heads) of 0, for rows like y (N, p)."""
        n, width = self.positions.shape
        checks.one_of_shapes("x", y, [(n, self.embed.shape[0])])
        shape = (self.blocks["scale1"].shape[0], self.heads, n, width // self.heads)
        zeros = jnp.zeros(
            shape,
            jnp.result_type(
                y, *jax.tree.leaves((self.embed, self.positions, self.blocks))
            ),
        )
        return zeros, zeros

    def following(
        self, memory: PyTree, i: ArrayLike, before: Array, condition: Any = None
    ) -> tuple[Array, PyTree]:
        """(θ_i (p, P), memory with row i's keys and values) from row i − 1, `before` (p,), of 0 for i = 0."""
        outputs, memory = self._outputs(before[None], i, memory, condition)
        return outputs[0], memory

    def _outputs(self, before, first, memory, condition):
        """θ of the rows from `first` on whose predecessors are `before` (n, p), and the memory with them.

        Without memory these are all rows; with it, those before `first` are in it.
        """
        n, rows = self.positions.shape[0], before.shape[0]
        h = before @ self.embed + jax.lax.dynamic_slice_in_dim(
            self.positions, first, rows
        )  # (rows, width)
        size = 0 if self.condition_weight is None else self.condition_weight.shape[0]
        found = 0 if condition is None else jnp.size(condition)
        if found != size:
            raise ValueError(
                f"condition must have condition_size={size} entries, got {found}"
            )
        if size:
            h = h + jnp.ravel(condition).astype(h.dtype) @ self.condition_weight
        causal = first + jnp.arange(rows)[:, None] >= jnp.arange(n)  # (rows, N)

        def block(h, layer):
            weights, past = layer
            normalised = _normalised(h) * weights["scale1"]
            mixed, past = _causal_attention(
                normalised, weights, self.heads, causal, first, past
            )
            h = h + mixed
            hidden = jax.nn.gelu(
                (_normalised(h) * weights["scale2"]) @ weights["up"] + weights["bias"]
            )  # (·, 4 width)
            return h + hidden @ weights["down"], past

        h, memory = jax.lax.scan(block, h, (self.blocks, memory))
        return (_normalised(h) @ self.readout).reshape(
            *before.shape, self.count
        ), memory


def _normalised(h):
    """Layer norm without parameters: mean 0 and variance 1 over the last axis."""
    h = h - jnp.mean(h, -1, keepdims=True)
    return h * jax.lax.rsqrt(jnp.mean(h**2, -1, keepdims=True) + 1e-6)


def _causal_attention(h, weights, heads, causal, first, past):
    """softmax_k(q·k/√d) v over k ≤ q, in einsums to which vmap only adds an axis; h: (n, width).

    past: keys and values (heads, N, d) into which those of h go from row `first` on, or None where h has all rows.
    """
    n, width = h.shape
    q, *own = (
        (h @ weights["qkv"]).reshape(n, 3, heads, width // heads).transpose(1, 2, 0, 3)
    )  # each (heads, n, d)
    if past is not None:
        own = past = tuple(
            jax.lax.dynamic_update_slice_in_dim(a, b, first, 1)
            for a, b in zip(past, own, strict=True)
        )
    k, v = own
    logits = jnp.einsum("hqd,hkd->hqk", q, k) * (width // heads) ** -0.5
    mixed = jnp.einsum(
        "hqk,hkd->hqd", jax.nn.softmax(jnp.where(causal, logits, -jnp.inf), -1), v
    )
    return mixed.transpose(1, 0, 2).reshape(n, width) @ weights[
        "out"
    ], past  # (heads, n, d) -> (n, width)


def causal_transformer(
    key: Key,
    rows: int,
    features: int,
    count: int,
    width: int = 64,
    depth: int = 2,
    heads: int = 4,
    condition_size: int = 0,
) -> CausalTransformer:
    """A conditioner θ (N, p, P) of rows y (N, p), θ_i a function of rows y_{<i} and the condition; 0 at first.

    A pre-norm transformer whose input is shifted by one row, so that the first row's parameters are the condition's
    alone, with causal attention and learned positions. rows: N. features: p. count: P. width: a multiple of heads.
    Raises ValueError where it is not.
    """
    checks.key("key", key)
    rows, features = (
        checks.width("rows", rows, 1),
        checks.width("features", features, 1),
    )
    count = checks.integer("count", count, 1)
    width, depth, heads, condition_size = _check_transformer(
        width, depth, heads, condition_size
    )
    return _causal_transformer(
        key, rows, features, count, width, depth, heads, condition_size
    )


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4, 5, 6, 7))
def _causal_transformer(
    key, rows, features, count, width, depth, heads, condition_size
):
    matrices = {  # name -> (shape, fan-in)
        "qkv": ((depth, width, 3 * width), width),
        "out": ((depth, width, width), width * depth),
        "up": ((depth, width, 4 * width), width),
        "down": ((depth, 4 * width, width), 4 * width * depth),
        "embed": ((features, width), features),
        "positions": ((rows, width), width),
        "from_condition": ((condition_size, width), condition_size),
    }
    shapes, fans_in = zip(*matrices.values(), strict=True)
    drawn = dict(zip(matrices, normal_weights(key, shapes, fans_in), strict=True))
    blocks = {
        "scale1": jnp.ones((depth, width), float_dtype()),
        "qkv": drawn["qkv"],
        "out": drawn["out"],
        "scale2": jnp.ones((depth, width), float_dtype()),
        "up": drawn["up"],
        "bias": jnp.zeros((depth, 4 * width), float_dtype()),
        "down": drawn["down"],
    }
    embed, positions = drawn["embed"], drawn["positions"]
    from_condition = drawn["from_condition"] if condition_size else None
    readout = jnp.zeros((width, features * count), float_dtype())
    return CausalTransformer(
        embed, positions, from_condition, blocks, readout, heads, count
    )


def tarflow(
    key: Key,
    shape: tuple,
    patch: int = 2,
    layers: int = 4,
    width: int = 64,
    depth: int = 2,
    heads: int = 4,
    bound: float = 2.0,
    condition_size: int = 0,
) -> Flow:
    """Transformer autoregressive flow on patches of an image: density in one pass a layer, a sample in N passes of
    one patch each, with the keys and values of those before it kept; the identity at first.

    Each layer moves patch i by a bounded affine map whose parameters a causal transformer makes from the patches before
    it, in raster order and in reversed order by turns. Entries of one patch see each other through other patches only.
    shape: (H, W, C), sides multiples of patch, of two patches or more. layers: even. width, depth, heads: of each
    layer's transformer. bound: of the log scale. condition_size: entries of the condition. Zhai
    et al. 2024, without their noise augmentation and its denoising.
    """
    checks.key("key", key)
    shape, patch = checks.shape("shape", shape), checks.width("patch", patch, 1)
    if len(shape) != 3 or shape[0] % patch or shape[1] % patch:
        raise ValueError(
            f"shape must be (H, W, C) with sides divisible by patch={patch}, got {shape}"
        )
    rows, features = (shape[0] // patch) * (shape[1] // patch), patch * patch * shape[2]
    if rows < 2:
        raise ValueError(
            f"patch must be less than a side of shape={shape}, for a second patch to see, got {patch}"
        )
    scalar_map, turn, layers = (
        bounded_affine(bound),
        RowReversal(),
        _check_layers(layers),
    )
    width, depth, heads, condition_size = _check_transformer(
        width, depth, heads, condition_size
    )
    sizes = (rows, features, scalar_map.count, width, depth, heads, condition_size)
    networks = networks_of_pairs(key, layers, _causal_transformer, *sizes)
    first, second = (autoregressive(network, scalar_map) for network in networks)
    squeezed = (shape[0] // patch, shape[1] // patch, features)
    image: tuple = (Reshape((rows, features), squeezed),)
    image = (*image, inverse(squeeze(patch))) if patch > 1 else image
    pairs = Stack(chain(first, turn, second, turn))
    return flow(
        standard_normal((rows, features)), chain(pairs, actnorm(features), *image)
    )


def _check_transformer(width, depth, heads, condition_size):
    width, depth = checks.width("width", width, 1), checks.depth("depth", depth, 1)
    heads, condition_size = (
        checks.width("heads", heads, 1),
        checks.width("condition_size", condition_size, 0),
    )
    if width % heads:
        raise ValueError(f"heads must divide width={width}, got {heads}")
    return width, depth, heads, condition_size


@pytree
class RowReversal(Bijector):
    """y_i = x_{N−1−i} along the first axis; log|det| = 0."""

    def forward_and_log_det(
        self, x: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        return jnp.flip(x, 0), jnp.zeros((), float_dtype())

    def inverse_and_log_det(
        self, y: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        return jnp.flip(y, 0), jnp.zeros((), float_dtype())
