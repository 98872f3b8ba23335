"""DiT: a transformer over the patches of an image."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from .. import checks
from ..types import Array, ArrayLike, Scalar
from .embeddings import (
    TIME_FREQUENCIES,
    Conditioning,
    OneProgram,
    fourier_inputs,
    sinusoidal,
)
from .layers import (
    AdaptiveLayerNorm,
    Attention,
    Modulation,
    check_network_fields,
    divides,
    image,
    layer_norm,
    modulate,
)


def patchify(x: Array, patch: int) -> Array:
    """The patches of an image, row by row, each a row-major vector: (H, W, C) -> (H W / patch², patch² C).

    Raises ValueError where patch does not divide H and W.
    """
    height, width, channels = x.shape
    divides("patch", patch, "H", height)
    divides("patch", patch, "W", width)
    x = x.reshape(
        height // patch, patch, width // patch, patch, channels
    )  # (rows, p, columns, p, C)
    return x.transpose(0, 2, 1, 3, 4).reshape(
        -1, patch * patch * channels
    )  # (rows columns, p p C)


def unpatchify(tokens: Array, shape: tuple[int, int, int], patch: int) -> Array:
    """The image of shape (H, W, C) whose patches are the tokens, the inverse of `patchify`."""
    height, width, channels = shape
    x = tokens.reshape(
        height // patch, width // patch, patch, patch, channels
    )  # (rows, columns, p, p, C)
    return x.transpose(0, 2, 1, 3, 4).reshape(
        shape
    )  # (rows, p, columns, p, C) -> (H, W, C)


def positions(rows: int, columns: int, width: int) -> Array:
    """2-D sine-cosine code of each patch, half of it for the row and half for the column: (rows columns, width).

    Dosovitskiy et al. 2021, appendix D.4, with angular frequencies from 0.01 to 1 per patch (there 10⁻⁴ to 1, most
    of them constant over an image). width: a multiple of 4.
    """
    code = sinusoidal(
        jnp.arange(max(rows, columns)), width // 2, 0.01, 1.0
    )  # (max, width/2)
    row = jnp.broadcast_to(code[:rows, None], (rows, columns, width // 2))
    column = jnp.broadcast_to(code[None, :columns], (rows, columns, width // 2))
    return jnp.concatenate([row, column], axis=-1).reshape(rows * columns, width)


class DiTBlock(nn.Module):
    """h + g₁ attention(adaLN₁(h)), then h + g₂ MLP(adaLN₂(h)), gates zero at first. h: (N, width). c: (dim,).

    Shifts, scales and gates are linear in c. Dropout comes before the last linear map, so that the mean over its
    masks is the block without dropout. Peebles & Xie 2023, figure 3 (adaLN-zero).
    """

    heads: int
    mlp_ratio: float = 4
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, h: Array, c: Array, train: bool = False) -> Array:
        width = h.shape[-1]
        shift1, scale1, gate1, shift2, scale2, gate2 = Modulation(6, width, self.dtype)(
            c
        )
        branch = modulate(layer_norm(self.dtype)(h), shift1, scale1)
        h = h + gate1 * Attention(self.heads, dtype=self.dtype)(branch)
        branch = modulate(layer_norm(self.dtype)(h), shift2, scale2)
        branch = nn.gelu(
            nn.Dense(round(self.mlp_ratio * width), dtype=self.dtype)(branch)
        )  # (N, ratio width)
        branch = nn.Dropout(self.dropout, deterministic=not train)(branch)
        return h + gate2 * nn.Dense(width, dtype=self.dtype)(branch)


class DiT(OneProgram, nn.Module):
    """Diffusion transformer F(x, t, condition) on patches, of x's shape; exactly 0 at initialisation.

    x: one image (H, W, C) or (H, W), both sides multiples of patch. t: (). condition: see `ConditionEmbedding`.
    train: whether dropout is on (then `apply` needs rngs={"dropout": key}).
    Returns x's shape, in float32 or x's dtype if wider. Batch with `jax.vmap`, which only adds an axis to each einsum.

    width, depth, heads: features a token (a multiple of 4 and of heads), blocks, attention heads.
    patch: side of a patch, in pixels. mlp_ratio: hidden features of a block's MLP, over width.
    learned_positions: whether the position code is trained, from the fixed one on; it then fixes the image's size.
    dropout: probability of a hidden feature of the MLPs to be dropped.
    num_classes, condition_dim: kind of condition, see `ConditionEmbedding`; both None for none.
    input_frequencies: Fourier features of x, see `fourier_inputs`.
    time_frequencies, time_features: see `TimeEmbedding`.
    dtype: of the computation (parameters and the last layer stay float32 at least); None for float32 or x's if wider.
    Raises ValueError or TypeError for fields or arguments other than these, by name.
    Peebles & Xie 2023; attention without biases of q, k and v (see `Attention`).
    """

    width: int = 96
    depth: int = 4
    heads: int = 4
    patch: int = 2
    mlp_ratio: float = 4
    learned_positions: bool = False
    dropout: float = 0.0
    num_classes: int | None = None
    condition_dim: int | None = None
    input_frequencies: int = 0
    time_frequencies: tuple[float, float] = TIME_FREQUENCIES
    time_features: Callable[[Array], Array] | None = None
    dtype: Any = None

    def __post_init__(self):
        check_network_fields(self)
        checks.depth("depth", self.depth, 0)
        for name in ("heads", "patch"):
            checks.width(name, getattr(self, name), 1)
        checks.positive("mlp_ratio", self.mlp_ratio)
        divides("heads", self.heads, "width", self.width)
        if self.width % 4:
            raise ValueError(
                f"width must be a multiple of 4 (sine and cosine of row and column), got {self.width}"
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: ArrayLike,
        t: Scalar,
        condition: ArrayLike | None = None,
        train: bool = False,
    ) -> Array:
        shape = jnp.shape(x)
        x = image(x)  # (H, W, C)
        dtype = self.dtype or x.dtype
        patches = patchify(
            fourier_inputs(x, self.input_frequencies), self.patch
        )  # (N, p p C')
        c = Conditioning(
            self.width,
            self.num_classes,
            self.condition_dim,
            self.time_frequencies,
            self.time_features,
            dtype,
        )(t, condition)  # (width,)
        code = positions(
            x.shape[0] // self.patch, x.shape[1] // self.patch, self.width
        )  # (N, width)
        if self.learned_positions:
            code = self.param("positions", lambda key: code)
        h = nn.Dense(self.width, dtype=dtype)(patches) + code.astype(
            dtype
        )  # (N, width)
        for _ in range(self.depth):
            h = DiTBlock(self.heads, self.mlp_ratio, self.dropout, dtype)(h, c, train)
        h = AdaptiveLayerNorm(dtype)(h, c)
        h = nn.Dense(
            self.patch**2 * x.shape[2], kernel_init=nn.initializers.zeros, dtype=x.dtype
        )(h)  # (N, p p C)
        return unpatchify(h, x.shape, self.patch).reshape(shape)
