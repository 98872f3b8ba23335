"""Random changes of training images, each with the label that undoes its leaking.

Functions take a key and one image, and return the changed image and its label.
They run on the device, under `jax.vmap`, ahead of the loss.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks
from ..numerics import keys_cubic
from ..types import Array, Key

__all__ = ["LABELS", "NonLeaking", "horizontal_flip", "resample"]

LABELS = 9
"""Entries of the label of `NonLeaking`."""

_STRENGTH = 0.2
"""Standard deviation of the binary logarithm of a scale."""

_SHIFT = 1 / 8
"""Standard deviation of a translation, in sides of the image."""

_RADIUS = 4
"""Taps on each side of a position: the filter's 2 pixels, stretched at most twice."""

_PROBABILITY = (checks.within, 0.0, 1.0)


def _image(name: str, value: Any) -> Array:
    value = jnp.asarray(value)
    checks.image(name, value.shape)
    return value


def _floating_image(name: str, value: Any) -> Array:
    value = _image(name, value)
    checks.require(
        jnp.issubdtype(value.dtype, jnp.floating),
        f"{name} must be of a floating type, got {value.dtype}: scale it first",
        TypeError,
    )
    return value


@checks.arguments(key=checks.key, image=_image, probability=_PROBABILITY)
def horizontal_flip(
    key: Key, image: Array, probability: float = 0.5
) -> tuple[Array, Array]:
    """An image, or its mirror image from left to right.

    Args:
      key: A typed key.
      image: (H, W, C), of any type.
      probability: Of the mirror image.

    Returns:
      (image, label), where the label, () float32, is 1 for a mirror image.

    Raises:
      ValueError: If the image has another rank, or the probability lies
        outside [0, 1].
      TypeError: If the key is not typed.

    Example:
      >>> image = jnp.arange(6.0).reshape(1, 6, 1)
      >>> flipped, label = dj.training.augmentation.horizontal_flip(key, image, 1.0)
      >>> flipped[0, :, 0].tolist(), float(label)
      ([5.0, 4.0, 3.0, 2.0, 1.0, 0.0], 1.0)
    """
    flipped = jax.random.bernoulli(key, probability)
    return jnp.where(flipped, image[:, ::-1], image), flipped.astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class NonLeaking:
    """The non-leaking augmentation of EDM, one example at a time.

        augmentation(key, image) -> (image, label)

    Each group of changes happens with a probability. Its parameters are the
    label, that the network is conditioned on in training. Sampling with the
    label 0 then draws unchanged images. The groups in their order, with their
    entries of the label (9,) and a ~ N(0, 1) unless stated:

        x_flip, y_flip   a₀ and a₁, each 0 or 1 evenly
        scaling          by 2^(a₂/5):                     a₂
        rotation         by a₃ ~ U(−π, π):                cos a₃ − 1, sin a₃
        anisotropy       2^(a₅/5) along a₄ ~ U(−π, π),
                         2^(−a₅/5) across it:             a₅ cos a₄, a₅ sin a₄
        translation      by (a₆, a₇)/8 of the sides:      a₆, a₇

    Stretchings by a₅ and by −a₅ may share a label, as in the paper. Flips move
    pixels exactly. The others are one affine map, computed by
    `resample`. The defaults are those of the authors' program for CIFAR-10,
    which draws x_flip for every image. That program stretches along a₄ = 0 in
    half of the anisotropies, and resamples with a wavelet of 12 taps.

    Attributes:
      x_flip: Probability that mirroring left to right is drawn, which half of
        the draws are.
      y_flip: Probability that mirroring top to bottom is drawn, likewise.
      scaling: Probability of a scaling.
      rotation: Probability of a rotation.
      anisotropy: Probability of a stretching.
      translation: Probability of a translation.

    Raises:
      ValueError: If a probability lies outside [0, 1].

    References:
      Karras et al. 2022, appendix F.2, table 6.

    Example:
      >>> augmentation = dj.training.augmentation.NonLeaking(translation=0.0)
      >>> images, labels = jax.vmap(augmentation)(
      ...     jax.random.split(key, 4), jnp.zeros((4, 8, 8, 3))
      ... )
      >>> images.shape, labels.shape
      ((4, 8, 8, 3), (4, 9))
    """

    x_flip: float = 1.0
    y_flip: float = 0.12
    scaling: float = 0.12
    rotation: float = 0.12
    anisotropy: float = 0.12
    translation: float = 0.12

    def __post_init__(self):
        names = [field.name for field in dataclasses.fields(self)]
        checks.attributes(self, **dict.fromkeys(names, _PROBABILITY))

    @checks.arguments(key=checks.key, image=_floating_image)
    def __call__(self, key: Key, image: Array) -> tuple[Array, Array]:
        """The changed image and its label.

        Args:
          key: A typed key.
          image: (H, W, C), real numbers of a floating type.

        Returns:
          (image, label (9,) float32). The image is unchanged bit for bit where
          the label is 0.
        """
        key_gates, key_flips, key_normal, key_angles = jax.random.split(key, 4)
        gates = jnp.array(dataclasses.astuple(self), jnp.float32)
        gates = jax.random.uniform(key_gates, (6,), jnp.float32) < gates
        flips = gates[:2] & jax.random.bernoulli(key_flips, shape=(2,))
        # Scaling, anisotropy, translation (2). Zeros leave an image unchanged.
        gated = jnp.where(
            gates[jnp.array([2, 4, 5, 5])],
            jax.random.normal(key_normal, (4,), jnp.float32),
            0.0,
        )
        angles = jax.random.uniform(key_angles, (2,), jnp.float32, -np.pi, np.pi)
        angles = jnp.where(gates[3:5], angles, 0.0)
        return _changed(image, flips, gated, angles)


def _changed(image, flips, normal, angles):
    """The image and its label for drawn parameters (2,), (4,) and (2,)."""
    scaling, stretching, shift = normal[0], normal[1], normal[2:]
    angle, direction = angles
    image = jnp.where(flips[0], image[:, ::-1], image)
    image = jnp.where(flips[1], image[::-1], image)
    # From positions (x, y) in the result to those in the image.
    stretch = jnp.exp2(_STRENGTH * stretching)
    matrix = jnp.exp2(-_STRENGTH * scaling) * _rotation(angle)
    matrix = (
        matrix @ _rotation(-direction) @ jnp.diag(jnp.array([1 / stretch, stretch]))
    )
    matrix = matrix @ _rotation(direction)
    sides = np.array([image.shape[1], image.shape[0]], np.float32)
    offset = -matrix @ (_SHIFT * sides * shift)
    label = jnp.stack(
        [
            *flips.astype(jnp.float32),
            scaling,
            jnp.cos(angle) - 1.0,
            jnp.sin(angle),
            stretching * jnp.cos(direction),
            stretching * jnp.sin(direction),
            *shift,
        ]
    )
    # Rows come before columns in an image.
    resampled = resample(image, matrix[::-1, ::-1], offset[::-1])
    return jnp.where(jnp.any(label[2:] != 0), resampled, image), label


def _rotation(angle):
    c, s = jnp.cos(angle), jnp.sin(angle)
    return jnp.array([[c, -s], [s, c]])


@checks.arguments(
    image=_floating_image,
    matrix=(checks.real_shaped, (2, 2)),
    offset=(checks.real_shaped, (2,)),
)
def resample(image: Array, matrix: Array, offset: Array) -> Array:
    """An image under an affine map of its pixels' positions.

        result(u) = image(matrix u + offset),    u = (row, column) − centre

    Between pixels the image is interpolated by the cubic of Keys 1981 (a =
    −1/2), which reproduces quadratic polynomials and the pixels themselves.
    Quarter turns and integer offsets are exact. Beyond its edges the image is
    reflected about its first and last pixels.

    In directions in which the map shrinks the image, the filter is stretched
    as much, at most twice, against aliasing.

    Args:
      image: (H, W, C), of a floating type.
      matrix: (2, 2).
      offset: (2,), rows and columns in pixels.

    Returns:
      The result (H, W, C), of the image's type.

    Raises:
      ValueError: If an argument has another shape.

    Example:
      >>> turned = dj.training.augmentation.resample(
      ...     jnp.arange(4.0).reshape(2, 2, 1), [[0, 1], [-1, 0]], [0, 0]
      ... )
      >>> turned[..., 0].tolist()
      [[1.0, 3.0], [0.0, 2.0]]
    """
    matrix, offset = (jnp.asarray(value, jnp.float32) for value in (matrix, offset))
    sides = image.shape[:2]
    grid = np.moveaxis(np.indices(sides, np.float32), 0, -1)  # (H, W, 2)
    centre = (np.array(sides, np.float32) - 1) / 2
    highest = jax.lax.Precision.HIGHEST
    source = jnp.matmul(grid - centre, matrix.T, precision=highest) + offset + centre
    first = jnp.floor(source)
    filter_map = _stretch(matrix)

    def add(total, tap):
        position = first + tap
        distance = jnp.matmul(position - source, filter_map, precision=highest)
        weight = jnp.prod(keys_cubic(distance), -1, keepdims=True)  # (H, W, 1)
        rows, columns = jnp.moveaxis(_reflected(position, sides), -1, 0)
        pixels = image[rows, columns].astype(jnp.float32)
        return (total[0] + weight * pixels, total[1] + weight), None

    taps = np.stack(np.meshgrid(*[np.arange(1 - _RADIUS, _RADIUS + 1)] * 2), -1)
    zeros = jnp.zeros(image.shape, jnp.float32), jnp.zeros((*sides, 1), jnp.float32)
    # One tap after another: all at once would take 64 times the image's memory.
    (total, weights), _ = jax.lax.scan(
        add, zeros, jnp.asarray(taps.reshape(-1, 2), jnp.float32)
    )
    return (total / weights).astype(image.dtype)


def _stretch(matrix):
    """The symmetric map of distances in the image to those in the filter.

    It divides by the singular values of `matrix` above 1, in their directions:
    f(S) with S = matrix matrixᵀ and f(λ) = 1/√λ between 1 and 1/2.
    """
    s = matrix @ matrix.T
    middle = 0.5 * (s[0, 0] + s[1, 1])
    radius = jnp.hypot(0.5 * (s[0, 0] - s[1, 1]), s[0, 1])
    f = lambda square: jnp.clip(square, 1.0, (_RADIUS / 2) ** 2) ** -0.5
    high, low = f(middle + radius), f(middle - radius)
    # Where both are one number, so is the map.
    slope = jnp.where(high == low, 0.0, 0.5 * (high - low) / jnp.maximum(radius, 1e-30))
    identity = jnp.eye(2, dtype=jnp.float32)
    return 0.5 * (high + low) * identity + slope * (s - middle * identity)


def _reflected(position, sides):
    """Integer positions (..., 2), reflected into an image of some sides."""
    last = np.array(sides, np.float32) - 1
    # Both ends count once in a period. A side of one pixel has the period 1.
    folded = jnp.mod(position, np.maximum(2 * last, 1))
    return jnp.minimum(folded, 2 * last - jnp.minimum(folded, 2 * last)).astype(int)
