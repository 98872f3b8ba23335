"""Bijectors that only move entries, log|det| = 0, and those of multiscale latents."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks
from ..numerics import float_dtype
from ..types import Array, Key, pytree, static_field
from .bijectors import Bijector
from .checks import BIJECTOR, check_latent_shapes, check_order
from .composition import initialised

__all__ = ["multiscale", "permutation", "reshape", "reversal", "shuffle", "squeeze"]


@pytree
class Permutation(Bijector):
    """A permutation of the last axis.

        forward   y_i = x_{order[i]},   log|det| = 0
        inverse   x_{order[i]} = y_i,   log|det| = 0

    See `permutation`.
    """

    order: tuple = static_field()

    def forward_and_log_det(
        self, x: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        checks.last_axis("x", x, len(self.order))
        return take(x, self.order), jnp.zeros((), float_dtype())

    def inverse_and_log_det(
        self, y: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        checks.last_axis("y", y, len(self.order))
        return take(y, tuple(np.argsort(self.order).tolist())), jnp.zeros(
            (), float_dtype()
        )


def take(x: Array, indices: tuple) -> Array:
    """x[..., indices] by static indices.

    Args:
      x: An array.
      indices: Integers.
    """
    # Slices are faster than a gather. Evenly spaced indices are one slice, and
    # two runs are two slices.
    if len(indices) == x.shape[-1] and indices == tuple(reversed(range(len(indices)))):
        return jnp.flip(x, -1)
    stride = indices[1] - indices[0] if len(indices) > 1 else 1
    if stride > 0 and indices == tuple(
        range(indices[0], indices[0] + stride * len(indices), stride)
    ):
        return x[..., indices[0] : indices[-1] + 1 : stride]
    breaks = np.flatnonzero(np.diff(indices) != 1) + 1
    if len(breaks) == 1:  # two halves exchanged
        return jnp.concatenate(
            [take(x, indices[: breaks[0]]), take(x, indices[breaks[0] :])], -1
        )
    return x[..., np.asarray(indices)]


@checks.arguments(order=check_order)
def permutation(order: Any) -> Permutation:
    """Permutation of the last axis, y_i = x_{order[i]}.

    Args:
      order: The integers 0 … C − 1, each once. Concrete, since they are
        static.

    Returns:
      A bijector.

    Raises:
      ValueError: If order is no permutation.
      TypeError: If order is no sequence of integers, or is traced.

    Example:
      >>> y = dj.flows.permutation([2, 0, 1]).forward(jnp.arange(3.0))
    """
    return Permutation(order)


@checks.arguments(key=checks.key, size=(checks.width, 1))
def shuffle(key: Key, size: int) -> Permutation:
    """Permutation of the last axis that is drawn at random and fixed from then on.

    Args:
      key: A concrete key. Under `jit` the order could not be static.
      size: C, the length of the last axis.

    Returns:
      A bijector.

    Raises:
      TypeError: If key is traced.

    References:
      Dinh et al. 2017, section 3.5, alternate instead. Kingma & Dhariwal 2018,
      section 3.2, compare the two.
    """
    return permutation(jax.random.permutation(key, size))


@checks.arguments(size=(checks.width, 1))
def reversal(size: int) -> Permutation:
    """The last axis, of `size` entries, in reversed order. For autoregressive flows."""
    return Permutation(tuple(reversed(range(size))))


@pytree
class Reshape(Bijector):
    """Row-major reshape.

        forward   from shape source to shape target,   log|det| = 0
        inverse   from shape target to shape source,   log|det| = 0

    See `reshape`.
    """

    source: tuple = static_field()
    target: tuple = static_field()

    def forward_and_log_det(
        self, x: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        checks.one_of_shapes("x", x, [self.source])
        return jnp.reshape(x, self.target), jnp.zeros((), float_dtype())

    def inverse_and_log_det(
        self, y: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        checks.one_of_shapes("y", y, [self.target])
        return jnp.reshape(y, self.source), jnp.zeros((), float_dtype())


@checks.arguments(source=checks.shape, target=checks.shape)
def reshape(source: tuple, target: tuple) -> Reshape:
    """Reshape of an example in row-major order.

    Args:
      source: Shape at the base.
      target: Shape of the data.

    Returns:
      A bijector.

    Raises:
      ValueError: If the two shapes differ in their number of entries.

    Example:
      >>> image = dj.flows.reshape((4,), (2, 2, 1)).forward(jnp.arange(4.0))
    """
    size = math.prod(source)
    message = f"target must have the {size} entries of source={source}, got {target}"
    checks.require(math.prod(target) == size, message)
    return Reshape(source, target)


@pytree
class Squeeze(Bijector):
    """Blocks of f × f pixels as channels.

        forward   (H, W, C) -> (H/f, W/f, f² C),   log|det| = 0
        inverse   (H/f, W/f, f² C) -> (H, W, C),   log|det| = 0

    See `squeeze`.
    """

    factor: int = static_field()

    def forward_and_log_det(
        self, x: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        f = self.factor
        checks.image("x", jnp.shape(x), "factor", f)
        height, width, channels = jnp.shape(x)
        # (rows, f, columns, f, C) -> (rows, columns, f f C)
        x = jnp.reshape(x, (height // f, f, width // f, f, channels))
        x = x.transpose(0, 2, 1, 3, 4).reshape(
            height // f, width // f, f * f * channels
        )
        return x, jnp.zeros((), float_dtype())

    def inverse_and_log_det(
        self, y: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        f = self.factor
        checks.image("y", jnp.shape(y))
        rows, columns, channels = jnp.shape(y)
        message = f"y must have channels divisible by factor²={f * f}, got {channels}"
        checks.require(channels % (f * f) == 0, message)
        # (rows, columns, f, f, C) -> (H, W, C)
        y = jnp.reshape(y, (rows, columns, f, f, channels // (f * f)))
        y = y.transpose(0, 2, 1, 3, 4).reshape(
            rows * f, columns * f, channels // (f * f)
        )
        return y, jnp.zeros((), float_dtype())


@checks.arguments(factor=(checks.integer, 2))
def squeeze(factor: int = 2) -> Squeeze:
    """Blocks of pixels as channels (Dinh et al. 2017, section 3.6).

        (H, W, C) -> (H/f, W/f, f² C)

    Each f × f block of pixels becomes the channels of one, row by row. A flow,
    read from the base to the data, undoes it: `inverse(squeeze())` comes after
    the layers that act on the squeezed image. The factor f is at least 2. When
    called, a bijector raises ValueError for sides that f does not divide.

    Example:
      >>> dj.flows.squeeze(2).forward(jnp.zeros((4, 4, 3))).shape
      (2, 2, 12)
    """
    return Squeeze(factor)


# ------------------------------------------------------------------ multiscale latents


@pytree
class Multiscale(Bijector):
    """A tuple of latents (z_1, …, z_L) to one example, each entering at its own scale.

        forward   h_1 = f_1(z_1),   h_l = f_l([z_l, h_{l−1}]),   y = h_L
        inverse   [z_l, h_{l−1}] = f_l⁻¹(h_l),   z_1 = f_1⁻¹(h_1)

    In both directions log|det| is the sum of those of the scales. See
    `multiscale`.
    """

    scales: tuple
    shape: tuple = static_field()
    latent_shapes: tuple = static_field()

    def forward_and_log_det(
        self, x: tuple, condition: Any = None
    ) -> tuple[Array, Array]:
        """One example from its latents, with the log-determinant.

        Args:
          x: A tuple of latents, of `latent_shapes`, that of the deepest scale
            first.
          condition: One example of the condition, or None.
        """
        check_latent_shapes(x, self.latent_shapes)
        h, total = self.scales[0].forward_and_log_det(x[0], condition)
        for scale, z in zip(self.scales[1:], x[1:], strict=True):
            h, log_det = scale.forward_and_log_det(
                jnp.concatenate([z, h], -1), condition
            )
            total = total + log_det
        return h, total

    def inverse_and_log_det(
        self, y: Array, condition: Any = None
    ) -> tuple[tuple, Array]:
        """The latents of one example, with the log-determinant.

        Args:
          y: One example.
          condition: One example of the condition, or None.

        Returns:
          (tuple of latents, that of the deepest scale first, log-determinant).
        """
        checks.one_of_shapes("y", y, [self.shape])
        latents, total = [], jnp.zeros((), float_dtype())
        for scale in reversed(self.scales[1:]):
            h, log_det = scale.inverse_and_log_det(y, condition)
            z, y = halves(h)
            latents.append(z)
            total = total + log_det
        z, log_det = self.scales[0].inverse_and_log_det(y, condition)
        return (z, *reversed(latents)), total + log_det

    def inverse(self, y: Array, condition: Any = None) -> tuple:
        """The latents of one example, that of the deepest scale first.

        Args:
          y: One example.
          condition: One example of the condition, or None.
        """
        checks.one_of_shapes("y", y, [self.shape])
        latents = []
        for scale in reversed(self.scales[1:]):
            z, y = halves(scale.inverse(y, condition))
            latents.append(z)
        return (self.scales[0].inverse(y, condition), *reversed(latents))

    def initialised(self, ys: Array, conditions: Any) -> tuple["Multiscale", tuple]:
        """Each scale set by the batch that reaches it, and the batch of latents.

        Args:
          ys: A batch (N, *shape) of what reaches it from the data.
          conditions: A pytree with leading axis N, or None.
        """
        scales, latents = [], []
        for scale in reversed(self.scales[1:]):
            scale, hs = initialised(scale, ys, conditions)
            zs, ys = halves(hs)
            scales.append(scale)
            latents.append(zs)
        scale, zs = initialised(self.scales[0], ys, conditions)
        made = Multiscale((scale, *reversed(scales)), self.shape, self.latent_shapes)
        return made, (zs, *reversed(latents))

    def flatten(self, latents: tuple) -> Array:
        """The latents as one vector (D,), the deepest first."""
        check_latent_shapes(latents, self.latent_shapes)
        return jnp.concatenate([jnp.ravel(z) for z in latents])

    def unflatten(self, vector: Array) -> tuple:
        """The tuple of latents of a vector (D,). ValueError for another length."""
        checks.one_of_shapes("vector", vector, [(math.prod(self.shape),)])
        sizes = [math.prod(shape) for shape in self.latent_shapes]
        ends = np.cumsum(sizes)[:-1].tolist()
        parts = jnp.split(jnp.asarray(vector), ends)
        return tuple(
            part.reshape(shape)
            for part, shape in zip(parts, self.latent_shapes, strict=True)
        )


def halves(h: Array) -> tuple[Array, Array]:
    """The first and second half of the channels.

    Raises ValueError for an odd number, one channel included.
    """
    message = f"a split needs an even number of channels, got shape {jnp.shape(h)}"
    checks.require(jnp.ndim(h) and h.shape[-1] % 2 == 0, message)
    middle = h.shape[-1] // 2
    return h[..., :middle], h[..., middle:]


@checks.arguments(shape=checks.shape)
def multiscale(shape: tuple, *scales: Bijector, condition: Any = None) -> Multiscale:
    """Multiscale architecture: latents (z_1, …, z_L) to one example.

        h_1 = f_1(z_1),   h_l = f_l([z_l, h_{l−1}]) along the channels,   x = h_L

    Towards the base, each scale but the deepest gives half of its channels
    away as a latent. A latent whose distribution depends on the deeper ones,
    z_l | h_{l−1}, is a coupling layer at the base's end of its scale.

    Args:
      shape: Shape of an example.
      *scales: f_1, the deepest, to f_L, that of the data. For images each ends
        with `inverse(squeeze())`.
      condition: One example of the condition, where the scales need one.

    Returns:
      A bijector. Its `latent_shapes` are those for `standard_normal`.

    Raises:
      ValueError: If a scale cannot take what reaches it, as by an odd squeeze
        or a split of one channel, or if there are no scales.
      TypeError: If a scale is no bijector.

    References:
      Dinh et al. 2017, section 3.6. Kingma & Dhariwal 2018, figure 2b.

    Example:
      >>> unsqueeze = dj.flows.inverse(dj.flows.squeeze())
      >>> bijector = dj.flows.multiscale((4, 4, 2), unsqueeze, unsqueeze)
      >>> bijector.latent_shapes
      ((1, 1, 16), (2, 2, 4))
    """
    scales = checks.each("scales", scales, *BIJECTOR, least=1)
    unknown = Multiscale(scales, shape, ())
    latents = jax.eval_shape(
        unknown.inverse, jax.ShapeDtypeStruct(shape, float_dtype()), condition
    )
    return Multiscale(scales, shape, tuple(z.shape for z in latents))
