"""Parts that more than one network is made of: modulation, attention, the image edge, the fields' checks."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from .. import checks
from ..types import Array, ArrayLike
from .embeddings import check_condition_fields, check_frequencies


class Modulation(nn.Module):
    """`count` vectors (width,), linear in the conditioning vector and zero at first: shifts, scales and gates.

    c: (dim,). Returns (count, width).
    Peebles & Xie 2023 (DiT), section 3.2, adaLN-zero.
    """

    count: int
    width: int
    dtype: Any = None

    @nn.compact
    def __call__(self, c: Array) -> Array:
        vectors = nn.Dense(
            self.count * self.width, kernel_init=nn.initializers.zeros, dtype=self.dtype
        )(c)
        return vectors.reshape(self.count, self.width)


def modulate(h: Array, shift: Array, scale: Array) -> Array:
    """(1 + scale) h + shift, feature by feature. h: (..., F). shift, scale: (F,)."""
    return h * (1 + scale) + shift


class AdaptiveLayerNorm(nn.Module):
    """modulate(LayerNorm(h), shift, scale), shift and scale linear in c and zero at first. h: (..., F). c: (dim,)."""

    dtype: Any = None

    @nn.compact
    def __call__(self, h: Array, c: Array) -> Array:
        shift, scale = Modulation(2, h.shape[-1], self.dtype)(c)
        return modulate(layer_norm(self.dtype)(h), shift, scale)


def layer_norm(dtype: Any) -> nn.LayerNorm:
    """Layer norm without parameters of its own: the modulation that follows holds them."""
    return nn.LayerNorm(epsilon=1e-6, use_bias=False, use_scale=False, dtype=dtype)


class Attention(nn.Module):
    """Multi-head self-attention, softmax_k(q·k/√d) v per head, projected: h (N, width) -> (N, width).

    Written as einsums over one sequence so that vmap adds a batch axis to each and nothing else
    (`jax.nn.dot_product_attention` under vmap takes up to twice its batched time on CPU). Logits and the softmax's sums
    are in float32 or wider.
    q, k and v have no bias: a bias of k cancels in the softmax, and one of v is the output's.
    zero_output: whether the projection starts at zero. Raises ValueError where heads does not divide width.
    Vaswani et al. 2017, section 3.2.
    """

    heads: int
    zero_output: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, h: Array) -> Array:
        n, width = h.shape
        divides("heads", self.heads, "width", width)
        d = width // self.heads
        qkv = nn.Dense(3 * width, use_bias=False, dtype=self.dtype)(h)  # (N, 3 width)
        q, k, v = qkv.reshape(n, 3, self.heads, d).transpose(
            1, 2, 0, 3
        )  # each (heads, N, d)
        wide = checks.promoted(q.dtype, jnp.float32)
        logits = jnp.einsum("hqd,hkd->hqk", q * d**-0.5, k, preferred_element_type=wide)
        weights = jnp.exp(
            logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True))
        )  # (heads, N, N), at most 1
        mixed = jnp.einsum(
            "hqk,hkd->hqd", weights.astype(v.dtype), v, preferred_element_type=wide
        )
        mixed /= weights.sum(
            -1, keepdims=True
        )  # (heads, N, d); dividing N d numbers, not N², saves half the time
        mixed = mixed.transpose(1, 0, 2).reshape(
            n, width
        )  # (N, heads, d) -> (N, width)
        kernel_init = (
            nn.initializers.zeros
            if self.zero_output
            else nn.initializers.lecun_normal()
        )
        return nn.Dense(width, kernel_init=kernel_init, dtype=self.dtype)(mixed)


def image(x: ArrayLike) -> Array:
    """x as (H, W, C), float32 or wider; (H, W) gains C = 1. Raises ValueError for any other number of axes."""
    x = checks.real_array("x", x)
    if x.ndim not in (2, 3):
        raise ValueError(
            f"x must have shape (H, W) or (H, W, C), got {x.shape}; jax.vmap over a batch"
        )
    return x if x.ndim == 3 else x[..., None]


def divides(name: str, value: int, whole_name: str, whole: int) -> None:
    """Refuse `value` unless it divides `whole`."""
    if whole % value:
        raise ValueError(f"{name} must divide {whole_name}={whole}, got {value}")


def check_network_fields(network: Any) -> None:
    """Refuse wrong values of the fields that all networks share, by name."""
    checks.width("width", network.width, 1)
    checks.within("dropout", network.dropout, 0.0, 1.0)
    checks.integer("input_frequencies", network.input_frequencies, 0)
    check_condition_fields(network.num_classes, network.condition_dim)
    check_frequencies("time_frequencies", network.time_frequencies)
    if network.time_features is not None:
        checks.callable_(
            "time_features", network.time_features, "time_features(t) -> (any,)"
        )
    if network.dtype is not None and not jnp.issubdtype(network.dtype, jnp.floating):
        raise TypeError(
            f"dtype must be a floating-point dtype or None, got {network.dtype!r}"
        )
