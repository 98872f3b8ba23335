"""Bijectors that only move entries: permutations, reshapes, squeeze; and multiscale latents. log|det| = 0."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks
from ..numerics import float_dtype
from ..types import Array, Key, pytree, static_field
from .bijectors import Bijector, check_bijector, check_channels
from .composition import initialised


@pytree
class Permutation(Bijector):
    """y_i = x_{order[i]} along the last axis. See `permutation`."""

    order: tuple = static_field()

    def forward_and_log_det(
        self, x: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        check_channels("x", x, len(self.order))
        return take(x, self.order), jnp.zeros((), float_dtype())

    def inverse_and_log_det(
        self, y: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        check_channels("y", y, len(self.order))
        return take(y, tuple(np.argsort(self.order).tolist())), jnp.zeros(
            (), float_dtype()
        )


def take(x: Array, indices: tuple) -> Array:
    """x[..., indices] by static indices; evenly spaced ones as a slice, two runs as two, faster than a gather."""
    if len(indices) == x.shape[-1] and indices == tuple(reversed(range(len(indices)))):
        return jnp.flip(x, -1)
    stride = indices[1] - indices[0] if len(indices) > 1 else 1
    if stride > 0 and indices == tuple(
        range(indices[0], indices[0] + stride * len(indices), stride)
    ):
        return x[..., indices[0] : indices[-1] + 1 : stride]
    breaks = np.flatnonzero(np.diff(indices) != 1) + 1
    if len(breaks) == 1:  # as two halves exchanged
        return jnp.concatenate(
            [take(x, indices[: breaks[0]]), take(x, indices[breaks[0] :])], -1
        )
    return x[..., np.asarray(indices)]


def permutation(order: Any) -> Permutation:
    """y_i = x_{order[i]} along the last axis. order: the integers 0 … C − 1, each once, concrete since they are static.

    Raises ValueError for what is no permutation, TypeError for what is no sequence of integers or is traced.
    """
    if checks.is_traced(order):
        raise TypeError(
            "order must be concrete, since it is static; make the permutation outside jit, got a tracer"
        )
    try:
        found = np.asarray(order)
    except ValueError:  # rows of several lengths
        found = np.asarray(None)
    if found.ndim != 1 or (found.size and not np.issubdtype(found.dtype, np.integer)):
        raise TypeError(f"order must be a sequence of integers, got {order!r}")
    indices = tuple(found.tolist())
    if not indices or sorted(indices) != list(range(len(indices))):
        raise ValueError(
            f"order must be a permutation of 0 … {max(len(indices) - 1, 0)}, got {indices}"
        )
    return Permutation(indices)


def shuffle(key: Key, size: int) -> Permutation:
    """A permutation of the last axis drawn at random, fixed from then on; log|det| = 0. size: its entries.

    The key must be concrete: under `jit` the order could not be static, which raises TypeError. Dinh et al. 2017,
    section 3.5, alternate instead; Kingma & Dhariwal 2018, section 3.2, compare the two.
    """
    checks.key("key", key)
    return permutation(jax.random.permutation(key, checks.width("size", size, 1)))


def reversal(size: int) -> Permutation:
    """The last axis in reversed order, the permutation between autoregressive layers."""
    return Permutation(tuple(reversed(range(checks.width("size", size, 1)))))


@pytree
class Reshape(Bijector):
    """Row-major reshape from one shape to another. See `reshape`."""

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


def reshape(source: tuple, target: tuple) -> Reshape:
    """Examples of shape `source` at the base as examples of shape `target`, in row-major order.

    Raises ValueError where the two differ in their number of entries.
    """
    source, target = checks.shape("source", source), checks.shape("target", target)
    if math.prod(source) != math.prod(target):
        raise ValueError(
            f"target must have the {math.prod(source)} entries of source={source}, got {target}"
        )
    return Reshape(source, target)


@pytree
class Squeeze(Bijector):
    """Blocks of pixels as channels. See `squeeze`."""

    factor: int = static_field()

    def forward_and_log_det(
        self, x: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        f, (height, width, channels) = self.factor, _image_shape("x", x)
        if height % f or width % f:
            raise ValueError(
                f"x must have sides divisible by factor={f} to be squeezed, got shape {jnp.shape(x)}"
            )
        x = jnp.reshape(
            x, (height // f, f, width // f, f, channels)
        )  # (rows, f, columns, f, C)
        x = x.transpose(0, 2, 1, 3, 4).reshape(
            height // f, width // f, f * f * channels
        )  # (rows, columns, f f C)
        return x, jnp.zeros((), float_dtype())

    def inverse_and_log_det(
        self, y: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        f, (rows, columns, channels) = self.factor, _image_shape("y", y)
        if channels % (f * f):
            raise ValueError(
                f"y must have channels divisible by factor²={f * f}, got shape {jnp.shape(y)}"
            )
        y = jnp.reshape(
            y, (rows, columns, f, f, channels // (f * f))
        )  # (rows, columns, f, f, C)
        y = y.transpose(0, 2, 1, 3, 4).reshape(
            rows * f, columns * f, channels // (f * f)
        )  # (H, W, C)
        return y, jnp.zeros((), float_dtype())


def squeeze(factor: int = 2) -> Squeeze:
    """(H, W, C) -> (H/f, W/f, f² C): each f × f block of pixels becomes the channels of one, row by row.

    A flow, read from the base to the data, undoes it: `inverse(squeeze())` comes after the layers that act on the
    squeezed image. Raises ValueError for sides that the factor does not divide. Dinh et al. 2017, section 3.6.
    """
    return Squeeze(checks.integer("factor", factor, 2))


def _image_shape(name, x):
    if jnp.ndim(x) != 3:
        raise ValueError(f"{name} must have shape (H, W, C), got {jnp.shape(x)}")
    return jnp.shape(x)


# -------------------------------------------------------------------------------------------------- multiscale latents


@pytree
class Multiscale(Bijector):
    """A tuple of latents to one example, each entering at its own scale. See `multiscale`."""

    scales: tuple
    shape: tuple = static_field()
    latent_shapes: tuple = static_field()

    def forward_and_log_det(
        self, x: tuple, condition: Any = None
    ) -> tuple[Array, Array]:
        """x: a tuple of latents, of `latent_shapes`, that of the deepest scale first."""
        latents = self._check(x)
        h, total = self.scales[0].forward_and_log_det(latents[0], condition)
        for scale, z in zip(self.scales[1:], latents[1:], strict=True):
            h, log_det = scale.forward_and_log_det(
                jnp.concatenate([z, h], -1), condition
            )
            total = total + log_det
        return h, total

    def inverse_and_log_det(
        self, y: Array, condition: Any = None
    ) -> tuple[tuple, Array]:
        """y: one example. The first result is the tuple of latents, that of the deepest scale first."""
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
        """The latents of one example, that of the deepest scale first."""
        checks.one_of_shapes("y", y, [self.shape])
        latents = []
        for scale in reversed(self.scales[1:]):
            z, y = halves(scale.inverse(y, condition))
            latents.append(z)
        return (self.scales[0].inverse(y, condition), *reversed(latents))

    def initialised(self, ys: Array, conditions: Any) -> tuple["Multiscale", tuple]:
        """Each scale initialised by what reaches it from the data, and the batch of latents."""
        scales, latents = [], []
        for scale in reversed(self.scales[1:]):
            scale, hs = initialised(scale, ys, conditions)
            zs, ys = halves(hs)
            scales.append(scale)
            latents.append(zs)
        scale, zs = initialised(self.scales[0], ys, conditions)
        return Multiscale((scale, *reversed(scales)), self.shape, self.latent_shapes), (
            zs,
            *reversed(latents),
        )

    def flatten(self, latents: tuple) -> Array:
        """The latents as one vector (D,), the deepest first."""
        return jnp.concatenate([jnp.ravel(z) for z in self._check(latents)])

    def unflatten(self, vector: Array) -> tuple:
        """The tuple of latents whose vector this is. Raises ValueError for another length."""
        checks.one_of_shapes("vector", vector, [(math.prod(self.shape),)])
        ends = np.cumsum([math.prod(shape) for shape in self.latent_shapes])[
            :-1
        ].tolist()
        parts = jnp.split(jnp.asarray(vector), ends)
        return tuple(
            part.reshape(shape)
            for part, shape in zip(parts, self.latent_shapes, strict=True)
        )

    def _check(self, latents):
        shapes = (
            tuple(map(jnp.shape, latents))
            if isinstance(latents, tuple | list)
            else jnp.shape(latents)
        )
        if shapes != self.latent_shapes:
            raise ValueError(
                f"latents must be a tuple of arrays of shapes {self.latent_shapes}, got {shapes}"
            )
        return latents


def halves(h: Array) -> tuple[Array, Array]:
    """The first and second half of the channels. Raises ValueError for an odd number, one channel included."""
    if jnp.ndim(h) == 0 or jnp.shape(h)[-1] % 2:
        raise ValueError(
            f"a split needs an even number of channels on the last axis, got shape {jnp.shape(h)}"
        )
    middle = h.shape[-1] // 2
    return h[..., :middle], h[..., middle:]


def multiscale(shape: tuple, *scales: Bijector, condition: Any = None) -> Multiscale:
    """Latents (z_1, …, z_L) to one example: h_1 = f_1(z_1), h_l = f_l([z_l, h_{l−1}]) along the channels.

    Towards the base, each scale but the deepest gives half of its channels away as a latent. scales: f_1, the deepest,
    to f_L, the data's; each ends, for images, with `inverse(squeeze())`. A latent whose law depends on the scales below
    it, z_l | h_{l−1}, is a coupling layer at the base's end of its scale. shape: of the example. condition: one example
    of the condition, where scales need one. The latents' shapes are `latent_shapes`, for `standard_normal`. Raises
    ValueError where a scale cannot take what reaches it: an odd squeeze, a split of one channel. Dinh et al. 2017,
    section 3.6; Kingma & Dhariwal 2018, figure 2b.
    """
    shape = checks.shape("shape", shape)
    if not scales:
        raise ValueError("scales must hold at least one bijector, got none")
    scales = tuple(
        check_bijector(f"scales[{i}]", scale) for i, scale in enumerate(scales)
    )
    unknown = Multiscale(scales, shape, ())
    latents = jax.eval_shape(
        unknown.inverse, jax.ShapeDtypeStruct(shape, float_dtype()), condition
    )
    return Multiscale(scales, shape, tuple(z.shape for z in latents))
