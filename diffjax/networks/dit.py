"""DiT: a transformer over the patches of an image."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from .. import checks
from ..types import Array, ArrayLike, Scalar
from . import fields
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
    as_image,
    layer_norm,
    modulate,
)
from .products import Dense
from .remat import rematerialised
from .stored import gelu

__all__ = ["DiT"]


def patchify(x: Array, patch: int) -> Array:
    """Cut an image into patches, row by row, each a row-major vector.

    Args:
      x: (H, W, C).
      patch: Side of a patch.

    Returns:
      The patches, (H W/patch², patch² C).

    Raises:
      ValueError: If `patch` does not divide H and W.
    """
    height, width, channels = x.shape
    checks.image("x", x.shape, "patch", patch)
    # (rows, p, columns, p, C)
    x = x.reshape(height // patch, patch, width // patch, patch, channels)
    # (rows, columns, p, p, C) -> (rows columns, p p C)
    return x.transpose(0, 2, 1, 3, 4).reshape(-1, patch * patch * channels)


def unpatchify(tokens: Array, shape: tuple[int, int, int], patch: int) -> Array:
    """Assemble an image from its patches, the inverse of `patchify`.

    Args:
      tokens: (H W/patch², patch² C).
      shape: (H, W, C).
      patch: Side of a patch.

    Returns:
      The image, (H, W, C).
    """
    height, width, channels = shape
    # (rows, columns, p, p, C)
    x = tokens.reshape(height // patch, width // patch, patch, patch, channels)
    # (rows, p, columns, p, C) -> (H, W, C)
    return x.transpose(0, 2, 1, 3, 4).reshape(shape)


def positions(rows: int, columns: int, width: int) -> Array:
    """2-D sine-cosine code of each patch (Peebles & Xie 2023, section 3.2).

    Half of it is for the row and half for the column. The angular frequencies
    go from 0.01 to 1 per patch. There they go from 10⁻⁴ to 1, and most are
    constant over an image.

    Args:
      rows: Number of rows of patches.
      columns: Number of columns.
      width: Length of the code, a multiple of 4.

    Returns:
      The code, (rows columns, width).
    """
    code = sinusoidal(jnp.arange(max(rows, columns)), width // 2, 0.01, 1.0)
    row = jnp.broadcast_to(code[:rows, None], (rows, columns, width // 2))
    column = jnp.broadcast_to(code[None, :columns], (rows, columns, width // 2))
    return jnp.concatenate([row, column], axis=-1).reshape(rows * columns, width)


class DiTBlock(nn.Module):
    """Transformer block with adaLN-zero (Peebles & Xie 2023, figure 3).

        h ← h + g₁ attention(adaLN₁(h))
        h ← h + g₂ MLP(adaLN₂(h))

    Shifts, scales and gates are linear in c. The gates are zero at initialisation.
    Dropout comes before the last linear map, so that the mean over its masks
    is the block without dropout.

    Args:
      heads: Number of attention heads.
      mlp_ratio: Number of hidden features of the MLP, over the width.
      dropout: Probability of a hidden feature of the MLP to be dropped.
      dtype: Of the computation.
      attention: See `attention`, `implementation`.
    """

    heads: int
    mlp_ratio: float = 4
    dropout: float = 0.0
    dtype: Any = None
    attention: str = "auto"

    @nn.compact
    def __call__(self, h: Array, c: Array, train: bool = False) -> Array:
        """Map tokens h (N, width), modulated by c (dim,), to (N, width)."""
        width = h.shape[-1]
        modulation = Modulation(6, width, self.dtype)(c)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation
        branch = modulate(layer_norm(self.dtype)(h), shift1, scale1)
        attend = Attention(self.heads, dtype=self.dtype, implementation=self.attention)
        h = h + gate1 * attend(branch)
        branch = modulate(layer_norm(self.dtype)(h), shift2, scale2)
        hidden = Dense(round(self.mlp_ratio * width), dtype=self.dtype)
        branch = gelu(hidden(branch))  # (N, ratio width)
        branch = nn.Dropout(self.dropout, deterministic=not train)(branch)
        return h + gate2 * Dense(width, dtype=self.dtype)(branch)


class DiT(OneProgram, nn.Module):
    """Diffusion transformer F(x, t, condition) on patches, exactly 0 at initialisation.

    It follows Peebles & Xie 2023, without biases of q, k and v (see
    `Attention`). The network is of one example. Batch it with `jax.vmap`,
    which only adds an axis to each einsum.

    Args:
      width: Features per token, a multiple of 4 and of `heads`.
      depth: Number of blocks.
      heads: Number of attention heads.
      patch: Side of a patch, in pixels.
      mlp_ratio: Number of hidden features of a block's MLP, over the width.
      learned_positions: Whether the position code is trained, from the fixed
        one on. It then fixes the image's size.
      dropout: Probability of a hidden feature of the MLPs to be dropped.
      num_classes: Number of classes of the condition, see
        `ConditionEmbedding`. None for no class.
      condition_dim: Entries of a condition that is a vector. None for no
        vector.
      input_frequencies: Number of Fourier features of x, see `fourier_inputs`.
      time_frequencies: See `TimeEmbedding`, `frequencies`.
      time_features: See `TimeEmbedding`, `features`.
      dtype: Of the computation. None for float32, or x's dtype if wider.
        Parameters, embeddings and the last layer stay float32 at least.
      attention: See `attention`, `implementation`.
      remat: What the backward pass computes again to save memory, see
        `rematerialised`. True is "blocks", False is "none".

    Raises:
      ValueError: If a field is out of range. The message has its name.
      TypeError: If a field has the wrong type.

    Example:
      >>> net = dj.networks.DiT(width=8, depth=1, heads=2)
      >>> params = net.init(key, jnp.zeros((4, 4, 1)), 0.5)
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
    attention: str = "auto"
    remat: bool | str = "none"

    def __post_init__(self):
        sizes = {"heads": (checks.width, 1), "patch": (checks.width, 1)}
        rules = {"depth": (checks.depth, 0), "mlp_ratio": checks.positive}
        fields.check_network(self, **sizes, **rules)
        fields.check_attention(self)
        checks.divides("heads", self.heads, "width", self.width)
        # Sine and cosine of row and column are four equal parts.
        message = f"width must be a multiple of 4, got {self.width}"
        checks.require(self.width % 4 == 0, message)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: ArrayLike,
        t: Scalar,
        condition: ArrayLike | None = None,
        train: bool = False,
    ) -> Array:
        """Evaluate the network at one image.

        Args:
          x: (H, W, C) or (H, W), both sides multiples of `patch`.
          t: Time, ().
          condition: See `ConditionEmbedding`.
          train: Whether dropout is on. Then `apply` needs rngs={"dropout":
            key}.

        Returns:
          F, of x's shape, in float32 or x's dtype if wider.

        Raises:
          ValueError: If x has another number of axes, or `patch` does not
            divide a side.
        """
        shape = jnp.shape(x)
        x = as_image(x)  # (H, W, C)
        dtype = self.dtype or x.dtype
        features = fourier_inputs(x, self.input_frequencies)  # (H, W, C')
        patches = patchify(features, self.patch)  # (N, p p C')
        c = Conditioning.of(self, self.width, x.dtype)(t, condition)  # (width,)
        rows, columns = x.shape[0] // self.patch, x.shape[1] // self.patch
        code = positions(rows, columns, self.width)  # (N, width)
        if self.learned_positions:
            code = self.param("positions", lambda key: code)
        h = Dense(self.width, dtype=dtype)(patches) + code.astype(dtype)  # (N, width)
        block = rematerialised(DiTBlock, self.remat)
        for _ in range(self.depth):
            h = block(self.heads, self.mlp_ratio, self.dropout, dtype, self.attention)(
                h, c, train
            )
        h = AdaptiveLayerNorm(dtype)(h, c)
        last = Dense(
            self.patch**2 * x.shape[2], kernel_init=nn.initializers.zeros, dtype=x.dtype
        )
        return unpatchify(last(h), x.shape, self.patch).reshape(shape)
