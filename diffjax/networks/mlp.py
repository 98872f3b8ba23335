"""A residual multilayer perceptron for data of any shape."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from .. import checks
from ..types import Array, ArrayLike, Scalar
from . import fields
from .embeddings import TIME_FREQUENCIES, Conditioning, OneProgram, fourier_inputs
from .layers import AdaptiveLayerNorm

__all__ = ["MLP"]


class MLPBlock(nn.Module):
    """Residual block of an MLP, the identity at initialisation.

        h + W₂ dropout(SiLU(W₁ adaLN(h, c)))

    Dropout comes before the last linear map, so that the mean over its masks
    is the block without dropout.

    Args:
      dropout: Probability of a hidden feature to be dropped.
      dtype: Of the computation.
    """

    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, h: Array, c: Array, train: bool = False) -> Array:
        """Map features h (width,), modulated by c (dim,), to (width,)."""
        width = h.shape[-1]
        normed = AdaptiveLayerNorm(self.dtype)(h, c)
        branch = nn.silu(nn.Dense(width, dtype=self.dtype)(normed))
        branch = nn.Dropout(self.dropout, deterministic=not train)(branch)
        last = nn.Dense(width, kernel_init=nn.initializers.zeros, dtype=self.dtype)
        return h + last(branch)


class MLP(OneProgram, nn.Module):
    """Residual MLP F(x, t, condition), exactly 0 at initialisation.

    Residual blocks are those of He et al. 2016, with the adaptive layer norm of
    Peebles & Xie 2023. The network is of one example. Batch it with `jax.vmap`.

    Args:
      width: Number of features.
      depth: Number of residual blocks.
      dropout: Probability of a hidden feature to be dropped.
      num_classes: Number of classes of the condition, see
        `ConditionEmbedding`. None for no class.
      condition_dim: Entries of a condition that is a vector. None for no
        vector.
      input_frequencies: Number of Fourier features of x, see `fourier_inputs`.
      time_frequencies: See `TimeEmbedding`, `frequencies`.
      time_features: See `TimeEmbedding`, `features`.
      dtype: Of the computation. None for float32, or x's dtype if wider.
        Parameters, embeddings and the last layer stay float32 at least.

    Raises:
      ValueError: If a field is out of range. The message has its name.
      TypeError: If a field has the wrong type.

    Example:
      >>> net = dj.networks.MLP(width=8, depth=1)
      >>> params = net.init(key, jnp.zeros(2), 0.5)
      >>> denoised = net.apply(params, jnp.ones(2), 0.5)
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
        fields.check_network(self, depth=(checks.depth, 0))
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: ArrayLike,
        t: Scalar,
        condition: ArrayLike | None = None,
        train: bool = False,
    ) -> Array:
        """Evaluate the network at one example.

        Args:
          x: One example of any shape, read and written in row-major order.
          t: Time, ().
          condition: See `ConditionEmbedding`.
          train: Whether dropout is on. Then `apply` needs rngs={"dropout":
            key}.

        Returns:
          F, of x's shape, in float32 or x's dtype if wider.
        """
        x = checks.real_array("x", x)
        dtype = self.dtype or x.dtype
        c = Conditioning.of(self, self.width, x.dtype)(t, condition)  # (width,)
        h = nn.Dense(self.width, dtype=dtype)(
            fourier_inputs(jnp.ravel(x), self.input_frequencies)
        )  # (width,)
        for _ in range(self.depth):
            h = MLPBlock(self.dropout, dtype)(h, c, train)
        h = AdaptiveLayerNorm(dtype)(h, c)
        last = nn.Dense(x.size, kernel_init=nn.initializers.zeros, dtype=x.dtype)
        return last(h).reshape(x.shape)
