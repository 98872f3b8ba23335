"""Attention of one sequence, by the implementation that suits the hardware."""

import functools
import math

import jax
import jax.numpy as jnp

from .. import checks
from ..types import Array, one_program

__all__ = ["IMPLEMENTATIONS", "attention"]

IMPLEMENTATIONS = ("auto", "einsum", "blocks", "fused")
"""Names of the implementations of `attention`."""

MOST_LOGITS = 2**20
"""Most logits per head that are held at once: those of 1024 queries and keys."""

FEWEST_FUSED_TOKENS = 64
"""Fewest queries, and keys, for which "auto" takes a GPU's fused kernel."""


@checks.arguments(implementation=(checks.choice, IMPLEMENTATIONS))
def attention(q: Array, k: Array, v: Array, implementation: str = "auto") -> Array:
    """Scaled dot-product attention of one sequence (Vaswani et al. 2017, equation 1).

        softmax_k(q·k/√d) v per head

    Logits and the sums of the softmax are in float32 or wider. Batch it with
    `jax.vmap`, which adds an axis to each product, or to the kernel, and no
    loop.

    Args:
      q: Queries (N, heads, d).
      k: Keys (M, heads, d).
      v: Values (M, heads, e).
      implementation: One of four.
        "einsum": two einsums with all N M logits of a head, the fastest for
        short sequences, above all on CPU.
        "blocks": as many queries at a time as have 2²⁰ logits per head. The
        backward pass computes the logits again, so that memory is linear in
        the number of tokens.
        "fused": the kernel of the accelerator, with linear memory. On a GPU it
        is cuDNN's by `jax.nn.dot_product_attention`, on a TPU JAX's Pallas
        kernel. It has first derivatives in reverse mode only.
        "auto": "fused" on a CUDA device of compute capability 8.0 or more if
        q, k and v are 16-bit, d = e is a multiple of 8 up to 128, and N and M
        are at least 64. Otherwise "einsum" for up to 2²⁰ logits per head, and
        "blocks" for more. On a TPU it never takes the Pallas kernel, which
        XLA cannot partition over a mesh outside of `jax.shard_map`.

    Returns:
      (N, heads, e), of v's dtype.

    Raises:
      ValueError: If q, k and v are not of these shapes, or implementation is
        another one.

    Example:
      >>> q = jnp.ones((16, 2, 8))  # 16 tokens, 2 heads of 8 channels
      >>> dj.networks.attention(q, q, q).shape
      (16, 2, 8)
    """
    got = f"got {jnp.shape(q)}, {jnp.shape(k)} and {jnp.shape(v)}"
    ranks = jnp.ndim(q) == jnp.ndim(k) == jnp.ndim(v) == 3
    accepted = "q, k and v must have shapes (N, heads, d), (M, heads, d), (M, heads, e)"
    checks.require(ranks, f"{accepted}, {got}; jax.vmap over a batch")
    alike = q.shape[1:] == k.shape[1:] and k.shape[:2] == v.shape[:2]
    checks.require(alike and k.size, f"{accepted}, M, heads and d at least 1, {got}")
    plain = _einsum if q.shape[0] * k.shape[0] <= MOST_LOGITS else _blocks
    if implementation == "auto":
        if not (suits_fused(q, k, v) and _modern_gpu()):
            return plain(q, k, v)
        # The platform is that of the lowering: a program for the CPU of a
        # machine with a GPU has no cuDNN. A checkpoint, because a conditional
        # keeps the residuals of all of its branches.
        other = jax.checkpoint(plain)
        return jax.lax.platform_dependent(q, k, v, cuda=_fused_gpu, default=other)
    if implementation == "fused":
        backend = jax.default_backend()
        message = f"implementation 'fused' needs a GPU or TPU, got {backend!r}"
        checks.require(backend in ("gpu", "tpu"), message)
        return (_fused_gpu if backend == "gpu" else _fused_tpu)(q, k, v)
    return (_einsum if implementation == "einsum" else _blocks)(q, k, v)


def suits_fused(q: Array, k: Array, v: Array) -> bool:
    """Whether the fused kernel of a GPU takes arrays of these types and shapes.

    Args:
      q: (N, heads, d).
      k: (M, heads, d).
      v: (M, heads, e).

    Returns:
      True if it does, and has enough tokens to gain from it.
    """
    half = q.dtype == k.dtype == v.dtype and q.dtype in (jnp.bfloat16, jnp.float16)
    d = q.shape[2]
    aligned = d == v.shape[2] and d % 8 == 0 and d <= 128
    return half and aligned and min(q.shape[0], k.shape[0]) >= FEWEST_FUSED_TOKENS


@functools.cache
def _modern_gpu():
    """Whether the default device is a CUDA GPU of compute capability 8.0 or more."""
    if jax.default_backend() != "gpu":
        return False
    # "8.9" on CUDA, a name such as "gfx90a" on ROCm
    capability = getattr(jax.local_devices()[0], "compute_capability", "")
    major = str(capability).partition(".")[0]
    return major.isdigit() and int(major) >= 8


@one_program
def _einsum(q, k, v):
    """All logits at once."""
    # (N, heads, d) -> (heads, N, d)
    q, k, v = (leaf.transpose(1, 0, 2) for leaf in (q, k, v))
    mixed = _mix(q, k, v)
    return mixed.transpose(1, 0, 2).astype(v.dtype)


def _mix(q, k, v):
    """Attention of queries (heads, N, d), (heads, N, e) in float32 or wider."""
    wide = checks.promoted(q.dtype, jnp.float32)
    q = q * q.shape[-1] ** -0.5
    logits = jnp.einsum("hqd,hkd->hqk", q, k, preferred_element_type=wide)
    # (heads, N, M), at most 1
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    mixed = jnp.einsum(
        "hqk,hkd->hqd", weights.astype(v.dtype), v, preferred_element_type=wide
    )
    # Dividing the N e numbers of the result, not N M weights, saves half the
    # time.
    return mixed / weights.sum(-1, keepdims=True)


@one_program
def _blocks(q, k, v):
    """As many queries at a time as have MOST_LOGITS logits, which are not kept."""
    n, heads, d = q.shape
    most = max(1, MOST_LOGITS // k.shape[0])
    count = max(1, math.ceil(n / most))
    size = math.ceil(n / count)
    padded = jnp.pad(q, ((0, count * size - n), (0, 0), (0, 0)))
    # (count, size, heads, d) -> (count, heads, size, d)
    blocks = padded.reshape(count, size, heads, d).transpose(0, 2, 1, 3)
    # (M, heads, d) -> (heads, M, d)
    k, v = k.transpose(1, 0, 2), v.transpose(1, 0, 2)

    # A scan may not be unrolled, so nothing needs protection from merging the
    # two computations of the logits.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def one(block):
        return _mix(block, k, v).astype(v.dtype)

    mixed = jax.lax.map(one, blocks)  # (count, heads, size, e)
    mixed = mixed.transpose(0, 2, 1, 3)  # (count, size, heads, e)
    return mixed.reshape(count * size, heads, v.shape[-1])[:n]


def _fused_gpu(q, k, v):
    """cuDNN's kernel, which takes and returns (batch, N, heads, d)."""
    mixed = jax.nn.dot_product_attention(
        q[None], k[None], v[None], implementation="cudnn"
    )
    return mixed[0]


def _fused_tpu(q, k, v):
    """The Pallas kernel, which takes and returns (batch, heads, N, d)."""
    # Imported here, because it loads the compiler of kernels.
    from jax.experimental.pallas.ops.tpu.flash_attention import flash_attention

    leaves = (leaf.transpose(1, 0, 2)[None] for leaf in (q, k, v))
    mixed = flash_attention(*leaves, sm_scale=q.shape[-1] ** -0.5)
    return mixed[0].transpose(1, 0, 2)
