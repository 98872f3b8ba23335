"""A residual multilayer perceptron for data of any shape."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from .. import checks
from ..types import Array, ArrayLike, Scalar
from .embeddings import TIME_FREQUENCIES, Conditioning, OneProgram, fourier_inputs
from .layers import AdaptiveLayerNorm, check_network_fields


class MLPBlock(nn.Module):
    """h + W₂ dropout(SiLU(W₁ adaLN(h, c))), the identity at first. h: (width,). c: (dim,).

    Dropout comes before the last linear map, so that the mean over its masks is the block without dropout.
    """

    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, h: Array, c: Array, train: bool = False) -> Array:
        width = h.shape[-1]
        branch = nn.silu(
            nn.Dense(width, dtype=self.dtype)(AdaptiveLayerNorm(self.dtype)(h, c))
        )
        branch = nn.Dropout(self.dropout, deterministic=not train)(branch)
        return h + nn.Dense(width, kernel_init=nn.initializers.zeros, dtype=self.dtype)(
            branch
        )


class MLP(OneProgram, nn.Module):
    """Residual MLP F(x, t, condition) with adaptive layer norm, of x's shape; exactly 0 at initialisation.

    x: one example of any shape, read and written in row-major order. t: (). condition: see `ConditionEmbedding`.
    train: whether dropout is on (then `apply` needs rngs={"dropout": key}).
    Returns x's shape, in float32 or x's dtype if wider. Batch with `jax.vmap`.

    width, depth: features, and residual blocks. dropout: probability of a hidden feature to be dropped.
    num_classes, condition_dim: kind of condition, see `ConditionEmbedding`; both None for none.
    input_frequencies: Fourier features of x, see `fourier_inputs`.
    time_frequencies, time_features: see `TimeEmbedding`.
    dtype: of the computation (parameters and the last layer stay float32 at least); None for float32 or x's if wider.
    Raises ValueError or TypeError for fields or arguments other than these, by name.
    Residual blocks of He et al. 2016, modulated as in Peebles & Xie 2023.
    """

    width: int = 512
    depth: int = 4
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
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: ArrayLike,
        t: Scalar,
        condition: ArrayLike | None = None,
        train: bool = False,
    ) -> Array:
        x = checks.real_array("x", x)
        dtype = self.dtype or x.dtype
        c = Conditioning(
            self.width,
            self.num_classes,
            self.condition_dim,
            self.time_frequencies,
            self.time_features,
            dtype,
        )(t, condition)  # (width,)
        h = nn.Dense(self.width, dtype=dtype)(
            fourier_inputs(jnp.ravel(x), self.input_frequencies)
        )  # (width,)
        for _ in range(self.depth):
            h = MLPBlock(self.dropout, dtype)(h, c, train)
        h = AdaptiveLayerNorm(dtype)(h, c)
        return nn.Dense(x.size, kernel_init=nn.initializers.zeros, dtype=x.dtype)(
            h
        ).reshape(x.shape)
