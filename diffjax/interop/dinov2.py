"""DINOv2's vision transformers ViT-S/14, B/14 and L/14 (Oquab et al. 2024).

Stein et al. 2023 find that distances of their features agree better with human
judgement than those of Inception's. The features are those of the class token
behind the last layer norm.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks
from ..numerics import keys_cubic
from ..types import Array, ArrayLike
from . import weights
from .images import resized, signed

__all__ = [
    "DEPTHS",
    "SIDE",
    "features",
    "from_state_dict",
    "load",
    "state_dict_shapes",
]

SIDE = 224
"""Side to which images are resized."""

PATCH, HEAD = 14, 64
"""Side of a patch, and features per head of attention."""

DEPTHS = {384: 12, 768: 12, 1024: 24}
"""Number of blocks of S, B and L by their width."""

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Of ImageNet's channels, for values in [0, 1]."""

SOURCE = (
    "The usual files are dinov2_vits14_pretrain.pth, dinov2_vitb14_pretrain.pth and "
    "dinov2_vitl14_pretrain.pth of https://github.com/facebookresearch/dinov2"
)

HIGHEST = jax.lax.Precision.HIGHEST


def state_dict_shapes(width: int, depth: int, side: int) -> dict[str, tuple[int, ...]]:
    """Shape of each array of a state dict.

    Args:
      width: Features per token.
      depth: Number of blocks.
      side: Patches along a side of the images of the pretraining, 37.

    Returns:
      Shapes by name.
    """
    block = {
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        "mlp.fc1": (4 * width, width),
        "mlp.fc2": (width, 4 * width),
        "norm1": (width,),
        "norm2": (width,),
    }
    layers = {f"blocks.{i}.{k}": v for i in range(depth) for k, v in block.items()}
    layers |= {"patch_embed.proj": (width, 3, PATCH, PATCH), "norm": (width,)}
    shapes = {f"{name}.weight": shape for name, shape in layers.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in layers.items()}
    scales = [f"blocks.{i}.ls{j}.gamma" for i in range(depth) for j in (1, 2)]
    shapes |= dict.fromkeys(scales, (width,))
    tokens = (1, 1 + side**2, width)
    return shapes | {"cls_token": (1, 1, width), "pos_embed": tokens}


def from_state_dict(arrays: Mapping[str, np.ndarray]) -> dict[str, Array]:
    """Parameters of `features` from a state dict, under the same names.

    The position code is interpolated from 37 × 37 to 16 × 16 patches, see
    `interpolated`.

    Args:
      arrays: Arrays by their names in torch.

    Returns:
      The parameters.

    Raises:
      ValueError: If an array is missing or of another shape, or the network
        has registers.
    """
    has_registers = "register_tokens" in arrays
    checks.require(not has_registers, f"weights must have no register_tokens. {SOURCE}")
    token = np.shape(arrays.get("cls_token", np.zeros(384)))
    width = token[-1] if token and token[-1] in DEPTHS else 384
    shapes = state_dict_shapes(width, DEPTHS[width], 37)
    checks.state_dict("a DINOv2 ViT-S/14, B/14 or L/14", arrays, shapes, SOURCE)
    return prepared({name: arrays[name] for name in shapes}, SIDE // PATCH)


def prepared(arrays: Mapping[str, np.ndarray], side: int) -> dict[str, Array]:
    """Checked arrays as parameters for images of one size.

    Args:
      arrays: Arrays by name, of any width and depth.
      side: Patches along a side of the images.

    Returns:
      The parameters.
    """
    params = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    params["pos_embed"] = interpolated(params["pos_embed"], side)
    return {name: jnp.asarray(array) for name, array in params.items()}


def interpolated(code: np.ndarray, side: int) -> np.ndarray:
    """A position code for another number of patches, by bicubic interpolation.

    It follows the network's authors to rounding: the kernel has a = −3/4, ends
    are repeated, and the scale is (side + 0.1)/37, not side/37.

    Args:
      code: (1, 1 + S², width), that of the class token first.
      side: Patches along a side.

    Returns:
      (1, 1 + side², width), unchanged where S = side.
    """
    width, source = code.shape[-1], round((code.shape[1] - 1) ** 0.5)
    if source == side:
        return code
    matrix = _bicubic(source, side)
    grid = code[0, 1:].reshape(source, source, width)
    grid = np.einsum("ia,jb,abw->ijw", matrix, matrix, grid, optimize=True)
    tokens = [code[0, :1], grid.reshape(side**2, width)]
    return np.concatenate(tokens)[None].astype(np.float32)


def _bicubic(source, side):
    """Weights (side, source) of `keys_cubic` with a = −3/4."""
    position = (np.arange(side) + 0.5) * source / (side + 0.1) - 0.5
    nearest = np.floor(position).astype(int)
    matrix = np.zeros((side, source))
    for offset in (-1, 0, 1, 2):
        kernel = keys_cubic(position - nearest - offset, -0.75)
        column = np.clip(nearest + offset, 0, source - 1)
        np.add.at(matrix, (np.arange(side), column), kernel)
    return matrix


def features(params: Mapping[str, Array], images: ArrayLike) -> Array:
    """Features of a batch of images.

    Images are resized to 224 × 224 by bicubic interpolation with anti-aliasing
    (a = −1/2, as in Pillow), and normalised by ImageNet's means and deviations.

    Args:
      params: As `from_state_dict` returns them.
      images: (B, H, W, C), uint8 or floats in [−1, 1].

    Returns:
      (B, width), float32: 384, 768 or 1024 features.
    """
    colours = 0.5 * (resized(signed(images), SIDE, "cubic", True) + 1)
    return transformer(params, (colours - jnp.array(MEAN)) / jnp.array(STD))


def transformer(params: Mapping[str, Array], x: Array) -> Array:
    """The network on normalised images.

    Args:
      params: As `prepared` returns them.
      x: (B, H, W, 3), with H and W multiples of 14.

    Returns:
      The class token behind the last layer norm, (B, width).
    """
    kernel = params["patch_embed.proj.weight"].transpose(2, 3, 1, 0)
    patches = jax.lax.conv_general_dilated(
        x,
        kernel,
        (PATCH, PATCH),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=HIGHEST,
    )
    batch, width = len(x), kernel.shape[-1]
    tokens = patches.reshape(batch, -1, width) + params["patch_embed.proj.bias"]
    first = jnp.broadcast_to(params["cls_token"], (batch, 1, width))
    h = jnp.concatenate([first, tokens], 1) + params["pos_embed"]
    depth = sum(name.endswith("attn.qkv.weight") for name in params)
    for i in range(depth):
        block = f"blocks.{i}."
        branch = _attention(params, block, _norm(params, f"{block}norm1", h))
        h = h + params[f"{block}ls1.gamma"] * branch
        branch = _linear(params, f"{block}mlp.fc1", _norm(params, f"{block}norm2", h))
        branch = jax.nn.gelu(branch, approximate=False)
        branch = _linear(params, f"{block}mlp.fc2", branch)
        h = h + params[f"{block}ls2.gamma"] * branch
    return _norm(params, "norm", h[:, 0])


def _attention(params, block, h):
    batch, n, width = h.shape
    qkv = _linear(params, f"{block}attn.qkv", h)
    q, k, v = jnp.moveaxis(qkv.reshape(batch, n, 3, width // HEAD, HEAD), 2, 0)
    logits = jnp.einsum("bqhd,bkhd->bhqk", q * HEAD**-0.5, k, precision=HIGHEST)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits), v, precision=HIGHEST)
    return _linear(params, f"{block}attn.proj", mixed.reshape(batch, n, width))


def _linear(params, name, h):
    product = jnp.matmul(h, params[f"{name}.weight"].T, precision=HIGHEST)
    return product + params[f"{name}.bias"]


def _norm(params, name, h):
    centred = h - h.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    scaled = centred * jax.lax.rsqrt(variance + 1e-6)
    return scaled * params[f"{name}.weight"] + params[f"{name}.bias"]


def load(path: str | pathlib.Path) -> Any:
    """Load the feature extractor from a file of weights.

    Args:
      path: One of the usual files, such as dinov2_vitb14_pretrain.pth, or the
        same state dict as .safetensors or .npz.

    Returns:
      A callable pytree, images (B, H, W, C) -> features (B, width).

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If it holds other weights. The message says what was there.
      ModuleNotFoundError: If the file is torch's and torch is not installed.

    Example:
      >>> from diffjax.interop import dinov2
      >>> def distance(path, images, reference):
      ...     extract = jax.jit(dinov2.load(path))
      ...     return dj.metrics.frechet_distance(extract(images), extract(reference))
    """
    arrays = weights.read(path, SOURCE)
    return jax.tree_util.Partial(features, from_state_dict(arrays))
