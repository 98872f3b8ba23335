"""Autoregressive layers and the flows made of them.

Each part of an example moves by a scalar map, whose parameters a network
computes from the parts before it.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .. import checks
from ..distributions.normal import standard_normal
from ..numerics import float_dtype
from ..types import Array, Key, as_pytree_callable, pytree, static_field
from .bijectors import Bijector, promoted
from .checks import NETWORK, check_parameters
from .composition import Stack, chain, inverse
from .conditioners.masked import (
    MASKED,
    MaskedSizes,
    masked_perceptron_of_sizes,
    masked_width,
)
from .conditioners.transformer import TransformerSizes, causal_transformer_of_sizes
from .conditioners.weights import networks_in_turn
from .coupling import vector_flow
from .density import Flow, flow
from .elementwise import actnorm
from .scalar_maps import SCALAR_MAP, ScalarMap, bounded_affine
from .shapes import Reshape, reversal, squeeze

__all__ = ["autoregressive", "iaf", "maf", "tarflow"]

# ------------------------------------------------------------------------------ layer


@pytree
class Autoregressive(Bijector):
    """An autoregressive layer along the first axis.

        forward   y_i = τ(x_i, θ_i(y_{<i}, c)),     log|det| = Σ log ∂τ/∂x_i
        inverse   x_i = τ⁻¹(y_i, θ_i(y_{<i}, c)),   log|det| = Σ log ∂τ⁻¹/∂y_i

    The inverse takes one pass, forward as many as there are parts. See
    `autoregressive`.
    """

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
        # Then it is a PartwiseConditioner.
        if hasattr(self.conditioner, "following"):
            return self._part_by_part(x, condition)

        def improve(y, _):
            return self.scalar_map.forward(x, self._parameters(y, condition))[0], None

        # After n passes the first n parts are exact, because θ_n needs only
        # the n − 1 parts before it.
        y, _ = jax.lax.scan(improve, x, None, length=x.shape[0] - 1)
        y, log_slopes = self.scalar_map.forward(x, self._parameters(y, condition))
        return y, jnp.sum(log_slopes)

    def _part_by_part(self, x, condition):
        def body(carry, entry):
            before, memory = carry
            i, x_i = entry
            parameters, memory = self.conditioner.following(
                memory, i, before, condition
            )
            check_parameters(parameters, x_i.shape, self.scalar_map)
            y_i, log_slopes = self.scalar_map.forward(x_i, parameters)
            return (y_i, memory), (y_i, jnp.sum(log_slopes))

        start = (jnp.zeros_like(x[0]), self.conditioner.memory(x))
        y, log_slopes = jax.lax.scan(body, start, (jnp.arange(x.shape[0]), x))[1]
        return y, jnp.sum(log_slopes)

    def _parameters(self, y, condition):
        parameters = self.conditioner(_with_axis(y), condition)
        return check_parameters(parameters, jnp.shape(y), self.scalar_map)


def _with_axis(x):
    message = "x must have an axis to be autoregressive along, got shape ()"
    checks.require(jnp.ndim(x) > 0, message)
    return x


@checks.arguments(
    conditioner=(checks.callable_, "conditioner(y, condition) -> (*y.shape, P)"),
    scalar_map=SCALAR_MAP,
)
def autoregressive(conditioner: Callable, scalar_map: ScalarMap) -> Autoregressive:
    """Autoregressive layer along the first axis (Papamakarios et al. 2017, equation 4).

        y_i = τ(x_i, θ_i(y_{<i}, c)),   log|det ∂y/∂x| = Σ log τ′

    The density of data takes one pass of the network, a sample as many passes
    as there are parts. They are a `lax.scan`, differentiable in both modes.
    With `inverse(autoregressive(…))` it is the other way round: a sample takes
    one pass (inverse autoregressive flow).

    Args:
      conditioner: θ, a function (y, condition) -> (*y.shape, P) whose i-th row
        depends on the rows before i alone. A pytree callable, whose arrays are
        trained: `masked_perceptron` for vectors, `causal_transformer` for rows
        of patches. It may also go part by part and remember those before, by
        the methods of `conditioners.PartwiseConditioner`. A sample of N parts
        then costs N such calls, as with the keys and values of
        `causal_transformer`.
      scalar_map: τ, for example `bounded_affine()` or `rational_quadratic()`.

    Returns:
      A bijector.

    Raises:
      TypeError: If an argument is of another kind.
      ValueError: When called, if the shape of the conditioner's result does
        not fit.

    References:
      Papamakarios et al. 2017 (MAF), equation 4. Kingma et al. 2016 (IAF),
      equation 10.

    Example:
      >>> scalar_map = dj.flows.bounded_affine()
      >>> network = dj.flows.masked_perceptron(key, 3, scalar_map.count, width=4)
      >>> layer = dj.flows.autoregressive(network, scalar_map)
    """
    return Autoregressive(as_pytree_callable(conditioner), scalar_map)


# ------------------------------------------------------------------------------ flows


def maf(
    key: Key,
    shape: tuple,
    *,
    layers: int = 4,
    width: int | None = None,
    depth: int = 2,
    scalar_map: ScalarMap | None = None,
    condition_size: int = 0,
) -> Flow:
    """Masked autoregressive flow (Papamakarios et al. 2017), the identity at first.

    The density takes one pass per layer, a sample D passes per layer. Every
    second layer acts on the entries in reversed order. Pairs of layers run as
    one scan, and the last layer of an odd number follows alone. At the data's
    end there is an actnorm, for `initialise`.

    Args:
      key: Key of the conditioners' weights.
      shape: Shape of an example of D entries, read in row-major order.
      layers: Number of layers, at least 1.
      width: Units per hidden layer of the conditioners, see
        `masked_perceptron`.
      depth: Number of hidden layers of the conditioners, at least 1.
      scalar_map: The map of each entry, default `bounded_affine()`. With
        `rational_quadratic()` this is a neural spline flow.
      condition_size: Entries of the condition, 0 for none.

    Returns:
      A flow whose base is the standard normal distribution.

    Raises:
      ValueError: If some entries would be independent of each other at this
        width, or a size is out of range.
      TypeError: If scalar_map is no scalar map.

    Example:
      >>> flow = dj.flows.maf(key, (3,), layers=2, width=4)
      >>> log_prob = flow.log_prob(jnp.zeros(3))
    """
    return _masked_flow(
        key,
        shape,
        direction=lambda layer: layer,
        layers=layers,
        width=width,
        depth=depth,
        scalar_map=scalar_map,
        condition_size=condition_size,
    )


def iaf(
    key: Key,
    shape: tuple,
    *,
    layers: int = 4,
    width: int | None = None,
    depth: int = 2,
    scalar_map: ScalarMap | None = None,
    condition_size: int = 0,
) -> Flow:
    """Inverse autoregressive flow (Kingma et al. 2016), the identity at first.

    The layers of `maf` with their directions exchanged,

        y_i = τ⁻¹(x_i, θ_i(x_{<i})).

    A sample, with its density, takes one pass per layer, the density of data D
    passes per layer. For variational fits, as by `reverse_kl`.

    Args:
      key: Key of the conditioners' weights.
      shape: Shape of an example of D entries, read in row-major order.
      layers: Number of layers, at least 1.
      width: Units per hidden layer of the conditioners, see
        `masked_perceptron`.
      depth: Number of hidden layers of the conditioners, at least 1.
      scalar_map: The map of each entry, default `bounded_affine()`.
      condition_size: Entries of the condition, 0 for none.

    Returns:
      A flow whose base is the standard normal distribution.

    Raises:
      ValueError: If some entries would be independent of each other at this
        width, or a size is out of range.
      TypeError: If scalar_map is no scalar map.

    Example:
      >>> flow = dj.flows.iaf(key, (3,), layers=2, width=4)
      >>> x, log_prob = flow.sample_and_log_prob(key)
    """
    return _masked_flow(
        key,
        shape,
        direction=inverse,
        layers=layers,
        width=width,
        depth=depth,
        scalar_map=scalar_map,
        condition_size=condition_size,
    )


@checks.arguments(
    **MASKED,
    shape=checks.shape,
    layers=(checks.depth, 1),
    scalar_map=checks.optional(*SCALAR_MAP),
)
def _masked_flow(
    key, shape, *, direction, layers, width, depth, scalar_map, condition_size
):
    scalar_map = bounded_affine() if scalar_map is None else scalar_map
    size = math.prod(shape)
    width = masked_width(width, size, condition_size)
    sizes = MaskedSizes(size, scalar_map.count, width, depth, condition_size)
    networks = networks_in_turn(key, layers, masked_perceptron_of_sizes, sizes)

    def layer(network):
        return direction(autoregressive(network, scalar_map))

    return vector_flow(shape, *_in_turn(networks, layer, reversal(size)), actnorm(size))


def _in_turn(networks, layer, turn):
    """Layers of the networks, of which every second one acts in reversed order.

    Pairs are in a stack. Without training all layers together are the
    identity.
    """
    first, second, last = networks
    pairs: tuple = ()
    if first is not None:
        pairs = (Stack(chain(layer(first), turn, layer(second), turn)),)
    return pairs if last is None else (*pairs, layer(last))


@checks.arguments(
    **NETWORK,
    shape=checks.shape,
    patch=(checks.width, 1),
    layers=(checks.depth, 1),
    depth=(checks.depth, 1),
    heads=(checks.width, 1),
)
def tarflow(
    key: Key,
    shape: tuple,
    *,
    patch: int = 2,
    layers: int = 4,
    width: int = 64,
    depth: int = 2,
    heads: int = 4,
    bound: float = 2.0,
    condition_size: int = 0,
) -> Flow:
    """Transformer autoregressive flow on patches of an image (Zhai et al. 2024).

    The identity at first. Each layer moves patch i by a bounded affine map,
    whose parameters a causal transformer makes from the patches before it.
    These are the patches in raster order, and for every second layer in
    reversed order. Entries of one patch see each other through other patches
    only.

    The density takes one pass per layer. A sample takes one call per patch and
    layer, which keeps the keys and values of the patches before it.

    Args:
      key: Key of the transformers' weights.
      shape: (H, W, C), sides multiples of patch, of two patches or more.
      patch: Side of a patch, in pixels.
      layers: Number of layers, at least 1.
      width: Features of a patch inside a transformer, a multiple of heads.
      depth: Number of blocks of each transformer.
      heads: Attention heads.
      bound: Bound of a layer's log scale, see `bounded_affine`.
      condition_size: Entries of the condition, 0 for none.

    Returns:
      A flow whose latents are the rows of patches, (patches, patch² C).

    Raises:
      ValueError: If patch does not divide the sides or leaves a single patch,
        or heads does not divide width.

    References:
      Zhai et al. 2024, without their noise augmentation and its denoising.

    Example:
      >>> flow = dj.flows.tarflow(key, (2, 2, 1), patch=1, layers=2, width=4, heads=2)
    """
    checks.image("shape", shape, "patch", patch)
    checks.divides("heads", heads, "width", width)
    rows, features = (shape[0] // patch) * (shape[1] // patch), patch * patch * shape[2]
    message = f"patch must leave two patches or more of shape={shape}, got {patch}"
    checks.require(rows >= 2, message)
    scalar_map = bounded_affine(bound)
    sizes = TransformerSizes(
        rows, features, scalar_map.count, width, depth, heads, condition_size
    )
    networks = networks_in_turn(key, layers, causal_transformer_of_sizes, sizes)
    bijectors = _in_turn(
        networks, lambda network: autoregressive(network, scalar_map), RowReversal()
    )
    squeezed = (shape[0] // patch, shape[1] // patch, features)
    image: tuple = (Reshape((rows, features), squeezed),)
    image = (*image, inverse(squeeze(patch))) if patch > 1 else image
    return flow(
        standard_normal((rows, features)),
        chain(*bijectors, actnorm(features), *image),
    )


@pytree
class RowReversal(Bijector):
    """y_i = x_{N−1−i} along the first axis, its own inverse. log|det| = 0 both ways."""

    def forward_and_log_det(
        self, x: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        return jnp.flip(x, 0), jnp.zeros((), float_dtype())

    def inverse_and_log_det(
        self, y: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        return jnp.flip(y, 0), jnp.zeros((), float_dtype())
