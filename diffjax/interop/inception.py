"""Inception-v3 as FID uses it: 2048 features of the last average pool.

The network is that of 2015-12-05, with 1008 classes (Szegedy et al. 2016).
Heusel et al. 2017 compute FID from it. Its weights circulate as a state dict
for torch. Average pools leave padding out of their means. The last block pools
by maxima, where the paper has means.
"""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from .. import checks
from ..types import Array, ArrayLike
from . import weights
from .images import resized, signed

__all__ = [
    "FEATURES",
    "SIDE",
    "InceptionV3",
    "features",
    "from_state_dict",
    "load",
    "state_dict_shapes",
]

SIDE = 299
"""Side of the images that the network takes."""

FEATURES = 2048

SOURCE = (
    "The usual file is pt_inception-2015-12-05-6726825d.pth of "
    "https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights"
)

EPSILON = 1e-3
"""Added to the variances of batch normalisation."""


class Unit(nn.Module):
    """Convolution with the batch normalisation folded in, and ReLU.

    Args:
      features: Number of output channels.
      kernel: Height and width of the kernel.
      stride: Step between outputs.
      padding: Zeros on either side, of height and width.
    """

    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: tuple[int, int] = (0, 0)

    @nn.compact
    def __call__(self, h: Array) -> Array:
        """Map (B, H, W, C) to (B, H', W', features)."""
        sides = [(amount, amount) for amount in self.padding]
        convolution = nn.Conv(
            self.features,
            self.kernel,
            (self.stride, self.stride),
            padding=sides,
            precision=jax.lax.Precision.HIGHEST,
            name="conv",
        )
        return nn.relu(convolution(h))


def _average(h):
    """3 × 3 means of the entries inside the image."""
    sides = ((1, 1), (1, 1))
    return nn.avg_pool(h, (3, 3), padding=sides, count_include_pad=False)


def _maximum(h, stride=2):
    sides = ((1, 1), (1, 1)) if stride == 1 else "VALID"
    return nn.max_pool(h, (3, 3), (stride, stride), padding=sides)


class BlockA(nn.Module):
    """Mixed_5b to 5d: 1 × 1, 5 × 5, twice 3 × 3, and a pool.

    Args:
      pooled: Number of channels behind the pool.
    """

    pooled: int

    @nn.compact
    def __call__(self, h: Array) -> Array:
        """Map (B, H, W, C) to (B, H, W, 224 + pooled)."""
        one = Unit(64, name="branch1x1")(h)
        five = Unit(48, name="branch5x5_1")(h)
        five = Unit(64, (5, 5), padding=(2, 2), name="branch5x5_2")(five)
        three = Unit(64, name="branch3x3dbl_1")(h)
        three = Unit(96, (3, 3), padding=(1, 1), name="branch3x3dbl_2")(three)
        three = Unit(96, (3, 3), padding=(1, 1), name="branch3x3dbl_3")(three)
        pool = Unit(self.pooled, name="branch_pool")(_average(h))
        return jnp.concatenate([one, five, three, pool], -1)


class BlockB(nn.Module):
    """Mixed_6a: half the resolution."""

    @nn.compact
    def __call__(self, h: Array) -> Array:
        """Map (B, H, W, C) to (B, H', W', 480 + C)."""
        three = Unit(384, (3, 3), 2, name="branch3x3")(h)
        double = Unit(64, name="branch3x3dbl_1")(h)
        double = Unit(96, (3, 3), padding=(1, 1), name="branch3x3dbl_2")(double)
        double = Unit(96, (3, 3), 2, name="branch3x3dbl_3")(double)
        return jnp.concatenate([three, double, _maximum(h)], -1)


class BlockC(nn.Module):
    """Mixed_6b to 6e: kernels of 7 × 7, as rows and columns.

    Args:
      width: Number of channels between them.
    """

    width: int

    @nn.compact
    def __call__(self, h: Array) -> Array:
        """Map (B, H, W, C) to (B, H, W, 768)."""
        row: dict[str, Any] = {"kernel": (1, 7), "padding": (0, 3)}
        column: dict[str, Any] = {"kernel": (7, 1), "padding": (3, 0)}
        width = self.width
        one = Unit(192, name="branch1x1")(h)
        seven = Unit(width, name="branch7x7_1")(h)
        seven = Unit(width, **row, name="branch7x7_2")(seven)
        seven = Unit(192, **column, name="branch7x7_3")(seven)
        double = Unit(width, name="branch7x7dbl_1")(h)
        double = Unit(width, **column, name="branch7x7dbl_2")(double)
        double = Unit(width, **row, name="branch7x7dbl_3")(double)
        double = Unit(width, **column, name="branch7x7dbl_4")(double)
        double = Unit(192, **row, name="branch7x7dbl_5")(double)
        pool = Unit(192, name="branch_pool")(_average(h))
        return jnp.concatenate([one, seven, double, pool], -1)


class BlockD(nn.Module):
    """Mixed_7a: half the resolution."""

    @nn.compact
    def __call__(self, h: Array) -> Array:
        """Map (B, H, W, C) to (B, H', W', 512 + C)."""
        three = Unit(192, name="branch3x3_1")(h)
        three = Unit(320, (3, 3), 2, name="branch3x3_2")(three)
        seven = Unit(192, name="branch7x7x3_1")(h)
        seven = Unit(192, (1, 7), padding=(0, 3), name="branch7x7x3_2")(seven)
        seven = Unit(192, (7, 1), padding=(3, 0), name="branch7x7x3_3")(seven)
        seven = Unit(192, (3, 3), 2, name="branch7x7x3_4")(seven)
        return jnp.concatenate([three, seven, _maximum(h)], -1)


class BlockE(nn.Module):
    """Mixed_7b and 7c: kernels of 3 × 3 that end in a row beside a column.

    Args:
      by_maxima: Whether the pool takes maxima, as in 7c, or means.
    """

    by_maxima: bool = False

    @nn.compact
    def __call__(self, h: Array) -> Array:
        """Map (B, H, W, C) to (B, H, W, 2048)."""
        row: dict[str, Any] = {"kernel": (1, 3), "padding": (0, 1)}
        column: dict[str, Any] = {"kernel": (3, 1), "padding": (1, 0)}
        one = Unit(320, name="branch1x1")(h)
        three = Unit(384, name="branch3x3_1")(h)
        three = [
            Unit(384, **row, name="branch3x3_2a")(three),
            Unit(384, **column, name="branch3x3_2b")(three),
        ]
        double = Unit(448, name="branch3x3dbl_1")(h)
        double = Unit(384, (3, 3), padding=(1, 1), name="branch3x3dbl_2")(double)
        double = [
            Unit(384, **row, name="branch3x3dbl_3a")(double),
            Unit(384, **column, name="branch3x3dbl_3b")(double),
        ]
        pool = _maximum(h, 1) if self.by_maxima else _average(h)
        pool = Unit(192, name="branch_pool")(pool)
        return jnp.concatenate([one, *three, *double, pool], -1)


class InceptionV3(nn.Module):
    """The network up to the last pool. Names are those of the state dict."""

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Map images (B, 299, 299, 3) in [−1, 1] to features (B, 2048)."""
        h = Unit(32, (3, 3), 2, name="Conv2d_1a_3x3")(images)  # (B, 149, 149, 32)
        h = Unit(32, (3, 3), name="Conv2d_2a_3x3")(h)  # 147
        h = Unit(64, (3, 3), padding=(1, 1), name="Conv2d_2b_3x3")(h)
        h = _maximum(h)  # 73
        h = Unit(80, name="Conv2d_3b_1x1")(h)
        h = Unit(192, (3, 3), name="Conv2d_4a_3x3")(h)  # 71
        h = _maximum(h)  # (B, 35, 35, 192)
        for letter, pooled in zip("bcd", (32, 64, 64), strict=True):
            h = BlockA(pooled, name=f"Mixed_5{letter}")(h)
        h = BlockB(name="Mixed_6a")(h)  # (B, 17, 17, 768)
        for letter, width in zip("bcde", (128, 160, 160, 192), strict=True):
            h = BlockC(width, name=f"Mixed_6{letter}")(h)
        h = BlockD(name="Mixed_7a")(h)  # (B, 8, 8, 1280)
        h = BlockE(name="Mixed_7b")(h)
        h = BlockE(by_maxima=True, name="Mixed_7c")(h)
        return h.mean((1, 2))


def features(params: Any, images: ArrayLike) -> Array:
    """Features of a batch of images.

    Images are resized to 299 × 299 by bilinear interpolation between the
    centres of pixels, without anti-aliasing, in floating point. So does the
    usual FID for torch. TensorFlow's, with which the first ones were computed,
    has the coordinates of pixels half a pixel off, and gives other numbers.

    Args:
      params: As `from_state_dict` returns them.
      images: (B, H, W, C), uint8 or floats in [−1, 1].

    Returns:
      (B, 2048), float32.
    """
    return InceptionV3().apply(params, resized(signed(images), SIDE, "bilinear", False))


@functools.cache
def _shapes():
    """Shape of the folded kernel of each unit, by the unit's path."""
    images = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
    tree = jax.eval_shape(InceptionV3().init, jax.random.key(0), images)["params"]
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    paths = {tuple(entry.key for entry in path): leaf.shape for path, leaf in leaves}
    return {path[:-2]: shape for path, shape in paths.items() if path[-1] == "kernel"}


def state_dict_shapes() -> dict[str, tuple[int, ...]]:
    """Shape of each array of the state dict that the features depend on."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path, (height, width, inputs, outputs) in _shapes().items():
        unit = ".".join(path)
        shapes[f"{unit}.conv.weight"] = (outputs, inputs, height, width)
        for name in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{unit}.bn.{name}"] = (outputs,)
    return shapes


def from_state_dict(arrays: Mapping[str, np.ndarray]) -> Any:
    """Parameters of `InceptionV3` from a state dict.

        kernel = γ w / √(variance + 0.001),    bias = β − γ mean / √(variance + 0.001)

    Args:
      arrays: Arrays by their names in torch, with convolutions (out, in, height,
        width).

    Returns:
      The parameters.

    Raises:
      ValueError: If an array is missing or of another shape, or a variance is
        negative. The classifier of 1008 classes must be there, as it shows that
        the network is not that of ImageNet's 1000 classes.
    """
    shapes = state_dict_shapes() | {"fc.weight": (1008, FEATURES)}
    checks.state_dict("FID's Inception-v3", arrays, shapes, SOURCE)
    params: dict[str, Any] = {}
    for path in _shapes():
        unit = ".".join(path)
        w = np.asarray(arrays[f"{unit}.conv.weight"], np.float64)
        gamma, beta, mean, variance = (
            np.asarray(arrays[f"{unit}.bn.{name}"], np.float64)
            for name in ("weight", "bias", "running_mean", "running_var")
        )
        message = f"weights must have variances of 0 or more in {unit}. {SOURCE}"
        checks.require((variance >= 0).all(), message)
        gain = gamma / np.sqrt(variance + EPSILON)
        kernel = w.transpose(2, 3, 1, 0) * gain  # (height, width, in, out)
        folded = {"kernel": kernel, "bias": beta - gain * mean}
        inner = params
        for name in path:
            inner = inner.setdefault(name, {})
        inner["conv"] = {k: jnp.asarray(v, jnp.float32) for k, v in folded.items()}
    return {"params": params}


def load(path: str | pathlib.Path) -> Any:
    """Load the feature extractor from a file of weights.

    Args:
      path: The usual file, pt_inception-2015-12-05-6726825d.pth, or the same
        state dict as .safetensors or .npz.

    Returns:
      A callable pytree, images (B, H, W, C) -> features (B, 2048).

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If it holds other weights. The message says what was there.
      ModuleNotFoundError: If the file is torch's and torch is not installed.

    Example:
      >>> from diffjax.interop import inception
      >>> def distance(path, images, reference):
      ...     extract = jax.jit(inception.load(path))
      ...     return dj.metrics.frechet_distance(extract(images), extract(reference))
    """
    arrays = weights.read(path, SOURCE)
    return jax.tree_util.Partial(features, from_state_dict(arrays))
