"""The diffusion transformer of the repositories DiT and SiT, with its weights."""

import functools
import math
import pathlib
import re
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ... import checks
from ...networks import attention
from ...networks.dit import unpatchify
from ...types import Array, ArrayLike, Scalar, pytree, static_field
from .. import files, state_dicts
from ..diffusers.layers import Table, sinusoids, timestep_array

__all__ = ["PUBLISHED", "Sizes", "Transformer"]

TIME_FEATURES = 256

SCALES = {
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
}
"""Width, depth and number of heads."""

PUBLISHED = {
    f"{scale}/{patch}": {"width": w, "depth": d, "heads": h, "patch": patch}
    for scale, (w, d, h) in SCALES.items()
    for patch in (2, 4, 8)
}
"""Sizes by name without the repository's (Peebles & Xie 2023, table 1)."""

HEADS = {width: heads for width, _, heads in SCALES.values()}
"""Number of heads of the published widths, which no tensor shows."""


class Sizes(NamedTuple):
    """Sizes of a transformer.

    Attributes:
      width: Features of a token.
      depth: Number of blocks.
      heads: Heads of attention, a divisor of the width.
      patch: Side of a patch.
      side: Side of the images in patches.
      channels: Channels of an image.
      outputs: Channels of the output.
      hidden: Features within the feed-forward layers.
      labels: Number of class indices, with the one that means no class.
    """

    width: int
    depth: int
    heads: int
    patch: int
    side: int
    channels: int
    outputs: int
    hidden: int
    labels: int


def _norm(h):
    norm = nn.LayerNorm(epsilon=1e-6, use_bias=False, use_scale=False, dtype=h.dtype)
    return norm(h)


def _dense(features, name, h):
    return nn.Dense(features, dtype=h.dtype, name=name)(h)


class Block(nn.Module):
    """Attention and a feed-forward layer with adaLN-zero (Peebles & Xie 2023).

    Args:
      heads: Number of heads.
      hidden: Features within the feed-forward layer.
    """

    heads: int
    hidden: int

    @nn.compact
    def __call__(self, h: Array, condition: Array) -> Array:
        """Map tokens (N, width) with a condition (width,) to (N, width)."""
        width = h.shape[-1]
        modulation = _dense(6 * width, "adaLN_modulation.1", nn.silu(condition))
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(modulation, 6)
        branch = _dense(3 * width, "attn.qkv", _norm(h) * (1 + scale1) + shift1)
        # (N, 3 width) -> (N, 3, heads, d)
        qkv = branch.reshape(-1, 3, self.heads, width // self.heads)
        mixed = attention(qkv[:, 0], qkv[:, 1], qkv[:, 2]).reshape(h.shape)
        h = h + gate1 * _dense(width, "attn.proj", mixed)
        branch = _dense(self.hidden, "mlp.fc1", _norm(h) * (1 + scale2) + shift2)
        return h + gate2 * _dense(width, "mlp.fc2", nn.gelu(branch))


class Network(nn.Module):
    """The transformer over patches (Peebles & Xie 2023).

    Args:
      sizes: Its sizes.
    """

    sizes: Sizes

    @nn.compact
    def __call__(self, x: Array, t: Scalar, label: Array) -> Array:
        """Evaluate the network at one image.

        Args:
          x: (H, W, channels).
          t: The time as the repository counts it, ().
          label: The class index, ().

        Returns:
          (H, W, outputs), in x's dtype.
        """
        s, dtype = self.sizes, x.dtype
        tile = (s.patch, s.patch)
        embed = nn.Conv(
            s.width, tile, tile, "VALID", dtype=dtype, name="x_embedder.proj"
        )
        shape = (1, s.side**2, s.width)
        code = self.param("pos_embed", nn.initializers.zeros, shape)[0].astype(dtype)
        h = embed(x).reshape(-1, s.width) + code  # (side², width)
        t = timestep_array(t, dtype)
        times = sinusoids(t, TIME_FEATURES, cosine_first=True, shift=0)
        hidden = nn.silu(_dense(s.width, "t_embedder.mlp.0", times.astype(dtype)))
        table = Table(s.labels, s.width, name="y_embedder.embedding_table")
        condition = _dense(s.width, "t_embedder.mlp.2", hidden)
        condition = condition + table(label).astype(dtype)
        for index in range(s.depth):
            h = Block(s.heads, s.hidden, name=f"blocks.{index}")(h, condition)
        name = "final_layer.adaLN_modulation.1"
        shift, scale = jnp.split(_dense(2 * s.width, name, nn.silu(condition)), 2)
        h = _norm(h) * (1 + scale) + shift
        out = _dense(s.patch**2 * s.outputs, "final_layer.linear", h)
        return unpatchify(out, (*x.shape[:2], s.outputs), s.patch)


@pytree
class Transformer:
    """A transformer with its parameters, of one example.

    A subclass carries the name of its repository, "DiT" or "SiT".

    Attributes:
      params: Parameters, a nested dict of arrays by the names of the torch
        modules.
      sizes: Its sizes.
    """

    params: Any
    sizes: Sizes = static_field()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (H, W, C) of an example."""
        side = self.sizes.patch * self.sizes.side
        return side, side, self.sizes.channels

    @classmethod
    def load(
        cls,
        path: str | pathlib.Path,
        *,
        name: str | None = None,
        heads: int | None = None,
        dtype: Any = None,
    ) -> Self:
        """Load a state dict of the repository.

        Args:
          path: A file .safetensors or .npz with the names of the repository.
          name: A published size, such as "DiT-XL/2" or "SiT-XL/2". None for the
            sizes that the tensors have.
          heads: Number of heads of attention. None for that of the name, or of the
            published size of this width.
          dtype: The dtype of the parameters. None for float32, or float64 where it
            is stored and enabled in JAX.

        Returns:
          The model, a pytree callable (x, t, label) of one example.

        Raises:
          FileNotFoundError: If there is no such file.
          TypeError: If `dtype` is not a floating type.
          ValueError: If it is a pickle or damaged, the name is not one of the
            repository, the number of heads is not known or does not divide the
            width, or a tensor is missing, unknown, misshapen or not finite.
        """
        published = {f"{cls.__name__}-{size}": v for size, v in PUBLISHED.items()}
        if name is not None:
            checks.choice("name", name, published)
        tensors = files.read(path)
        sizes = _sizes(path, tensors, published.get(name, {}), heads)
        network = f"{name or 'the transformer'} of {path}"
        like = _parameter_shapes(sizes)
        params = state_dicts.from_tensors(tensors, like, network, dtype)
        return cls(params, sizes=sizes)

    def output(self, x: ArrayLike, t: Scalar, label: ArrayLike) -> Array:
        """The output of the network at the time of the repository.

        Args:
          x: One example, of the shape `shape`.
          t: The time as the repository counts it, ().
          label: The class index, (), from 0. Index K of K classes means no class.

        Returns:
          (H, W, outputs), in x's dtype.

        Raises:
          TypeError: If x is not of a floating type, or label not an integer.
          ValueError: If x, t or label has another shape, or label is out of range.
        """
        x, label = jnp.asarray(x), jnp.asarray(label)
        checks.floating("the dtype of x", x.dtype)
        checks.one_of_shapes("x", x, [self.shape])
        checks.one_of_shapes("t", t, [()])
        checks.one_of_shapes("label", label, [()])
        network = Network(self.sizes)
        return network.apply({"params": self.params}, x, t, label)  # type: ignore


FIRST = {
    "x_embedder.proj.weight": 4,
    "pos_embed": 3,
    "blocks.0.mlp.fc1.weight": 2,
    "y_embedder.embedding_table.weight": 2,
    "final_layer.linear.weight": 2,
}
"""The tensors whose shapes determine all sizes, with their numbers of axes."""


def _sizes(path, tensors, published, heads):
    """The sizes that tensors have, or that are published."""
    faults = [
        f"{name} with {axes} axes"
        for name, axes in FIRST.items()
        if np.ndim(tensors.get(name)) != axes or not np.size(tensors[name])
    ]
    checks.require(
        not faults,
        f"{path} is not a state dict of DiT or SiT, it lacks {', '.join(faults)}. It "
        f"holds {', '.join(list(tensors)[:4]) or 'nothing'}",
    )
    patches, code, hidden, table, last = (tensors[name].shape for name in FIRST)
    matches = [re.match(r"blocks\.(\d+)\.", name) for name in tensors]
    blocks = {int(match[1]) for match in matches if match}
    width = published.get("width", patches[0])
    if heads is None:
        heads = published.get("heads", HEADS.get(width))
    checks.require(
        heads is not None,
        f"heads must be stated for a transformer of width {width}, since no tensor "
        "shows their number",
    )
    heads = checks.integer("heads", heads, 1)
    checks.divides("heads", heads, "the width", width)
    patch = published.get("patch", patches[2])
    return Sizes(
        width=width,
        # Counted, because the greatest index of a damaged file could mean millions
        # of blocks.
        depth=published.get("depth", len(blocks)),
        heads=heads,
        patch=patch,
        side=math.isqrt(code[1]),
        channels=patches[1],
        outputs=max(1, last[0] // patch**2),
        hidden=hidden[0],
        labels=table[0],
    )


@functools.cache
def _parameter_shapes(sizes):
    side = sizes.patch * sizes.side
    x = jax.ShapeDtypeStruct((side, side, sizes.channels), jnp.float32)
    t = jax.ShapeDtypeStruct((), jnp.float32)
    label = jax.ShapeDtypeStruct((), jnp.int32)
    return state_dicts.shapes(Network(sizes), (x, t, label))
