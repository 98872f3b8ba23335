"""Causal transformer: the conditioner of autoregressive flows over rows of patches."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from ... import checks
from ...numerics import float_dtype
from ...types import Array, ArrayLike, Key, PyTree, pytree, static_field
from ..checks import NETWORK
from .weights import from_condition, normal_weights

__all__ = ["CausalTransformer", "causal_transformer"]


@pytree
class CausalTransformer:
    """A network (rows, condition) -> θ with θ_i a function of the rows before i.

    See `causal_transformer`.
    """

    embed: Array  # (p, width)
    positions: Array  # (N, width)
    condition_weight: Any  # (condition_size, width), or None
    blocks: Any  # a dictionary of weights, with a leading axis of blocks
    readout: Array  # (width, p P)
    heads: int = static_field()
    count: int = static_field()

    def __call__(self, y: Array, condition: Any = None) -> Array:
        """Parameters (N, p, P). Row i depends on rows 0 … i − 1 and the condition.

        Args:
          y: The rows, (N, p).
          condition: An array of condition_size entries, or None.
        """
        checks.one_of_shapes("x", y, [(self.positions.shape[0], self.embed.shape[0])])
        # Shifted by one, so that row i sees what comes before it.
        before = jnp.concatenate([jnp.zeros_like(y[:1]), y[:-1]])
        return self._outputs(before, 0, None, condition)[0]

    def memory(self, y: Array) -> tuple[Array, Array]:
        """Keys and values of no row yet, for rows like y (N, p).

        Two arrays (blocks, heads, N, width/heads) of 0.
        """
        n, width = self.positions.shape
        checks.one_of_shapes("x", y, [(n, self.embed.shape[0])])
        shape = (self.blocks["scale1"].shape[0], self.heads, n, width // self.heads)
        zeros = jnp.zeros(
            shape,
            jnp.result_type(
                y, *jax.tree.leaves((self.embed, self.positions, self.blocks))
            ),
        )
        return zeros, zeros

    def following(
        self, memory: PyTree, i: ArrayLike, before: Array, condition: Any = None
    ) -> tuple[Array, PyTree]:
        """Parameters of one row from the row before it.

        Args:
          memory: Keys and values at the positions before i.
          i: Index of the row.
          before: Row i − 1, of shape (p,). 0 for i = 0.
          condition: An array of condition_size entries, or None.

        Returns:
          (θ_i (p, P), memory with the keys and values at position i).
        """
        outputs, memory = self._outputs(before[None], i, memory, condition)
        return outputs[0], memory

    def _outputs(self, before, first, memory, condition):
        # Parameters of the rows from `first` on whose predecessors are
        # `before` (n, p), and the memory with these. Without memory, `before`
        # holds all rows. With it, keys and values at positions before `first`
        # come from there.
        n, rows = self.positions.shape[0], before.shape[0]
        h = before @ self.embed + jax.lax.dynamic_slice_in_dim(
            self.positions, first, rows
        )  # (rows, width)
        h = h + from_condition(condition, self.condition_weight, h)
        causal = first + jnp.arange(rows)[:, None] >= jnp.arange(n)  # (rows, N)

        def block(h, layer):
            weights, past = layer
            normalised = _normalised(h) * weights["scale1"]
            mixed, past = _causal_attention(
                normalised, weights, self.heads, causal, first, past
            )
            h = h + mixed
            hidden = jax.nn.gelu(
                (_normalised(h) * weights["scale2"]) @ weights["up"] + weights["bias"]
            )  # (rows, 4 width)
            return h + hidden @ weights["down"], past

        h, memory = jax.lax.scan(block, h, (self.blocks, memory))
        outputs = _normalised(h) @ self.readout  # (rows, p P)
        return outputs.reshape(*before.shape, self.count), memory


def _normalised(h):
    """Layer norm without parameters: mean 0 and variance 1 over the last axis."""
    h = h - jnp.mean(h, -1, keepdims=True)
    return h * jax.lax.rsqrt(jnp.mean(h**2, -1, keepdims=True) + 1e-6)


def _causal_attention(h, weights, heads, causal, first, past):
    """Σ_k softmax_k(q·k/√d) v over k ≤ q, for h of shape (n, width).

    `past` holds keys and values (heads, N, d), into which those of h go from
    row `first` on. It is None where h has all rows.
    """
    n, width = h.shape
    # (n, 3 heads d) -> (3, heads, n, d). Einsums, so that vmap only adds an axis.
    q, *present = (
        (h @ weights["qkv"]).reshape(n, 3, heads, width // heads).transpose(1, 2, 0, 3)
    )
    if past is not None:
        present = past = tuple(
            jax.lax.dynamic_update_slice_in_dim(a, b, first, 1)
            for a, b in zip(past, present, strict=True)
        )
    k, v = present
    logits = jnp.einsum("hqd,hkd->hqk", q, k) * (width // heads) ** -0.5
    mixed = jnp.einsum(
        "hqk,hkd->hqd", jax.nn.softmax(jnp.where(causal, logits, -jnp.inf), -1), v
    )
    # (heads, n, d) -> (n, width)
    return mixed.transpose(1, 0, 2).reshape(n, width) @ weights["out"], past


@checks.arguments(
    **NETWORK,
    rows=(checks.width, 1),
    features=(checks.width, 1),
    count=(checks.integer, 1),
    depth=(checks.depth, 1),
    heads=(checks.width, 1),
)
def causal_transformer(
    key: Key,
    rows: int,
    features: int,
    count: int,
    *,
    width: int = 64,
    depth: int = 2,
    heads: int = 4,
    condition_size: int = 0,
) -> CausalTransformer:
    """Causal transformer over rows (Zhai et al. 2024, TarFlow).

    All parameters θ (N, p, P) of rows y (N, p) come from one pass. θ_i is a
    function of the rows y_{<i} and of the condition. The output is 0 at first.

    A pre-norm transformer with causal attention and learned positions. Its
    input is shifted by one row, so that the parameters of the first row are a
    function of the condition alone.

    Args:
      key: Key of the weights, N(0, 1/fan-in).
      rows: N, number of rows.
      features: p, entries of a row.
      count: P, parameters per entry.
      width: Features of a row inside the network, a multiple of heads.
      depth: Number of blocks.
      heads: Attention heads.
      condition_size: Entries of the condition, 0 for none.

    Returns:
      A pytree callable (y, condition) -> (N, p, P). It also goes row by row,
      with `memory` and `following`, see `autoregressive`.

    Raises:
      ValueError: If heads does not divide width.

    Example:
      >>> network = dj.flows.causal_transformer(key, 3, 2, 2, width=4, heads=2)
      >>> layer = dj.flows.autoregressive(network, dj.flows.bounded_affine())
    """
    checks.divides("heads", heads, "width", width)
    return causal_transformer_of_sizes(
        key,
        TransformerSizes(rows, features, count, width, depth, heads, condition_size),
    )


@dataclasses.dataclass(frozen=True)
class TransformerSizes:
    """Sizes of a causal transformer, see `causal_transformer`."""

    rows: int
    features: int
    count: int
    width: int
    depth: int
    heads: int
    condition_size: int


@functools.partial(jax.jit, static_argnums=1)
def causal_transformer_of_sizes(key: Key, sizes: TransformerSizes) -> CausalTransformer:
    """`causal_transformer` of arguments that are checked already, as one program.

    Args:
      key: A typed key.
      sizes: Its sizes.
    """
    width, depth = sizes.width, sizes.depth
    matrices = {  # name -> (shape, fan-in)
        "qkv": ((depth, width, 3 * width), width),
        "out": ((depth, width, width), width * depth),
        "up": ((depth, width, 4 * width), width),
        "down": ((depth, 4 * width, width), 4 * width * depth),
        "embed": ((sizes.features, width), sizes.features),
        "positions": ((sizes.rows, width), width),
        "from_condition": ((sizes.condition_size, width), sizes.condition_size),
    }
    shapes, fans_in = zip(*matrices.values(), strict=True)
    drawn = dict(zip(matrices, normal_weights(key, shapes, fans_in), strict=True))
    blocks = {
        "scale1": jnp.ones((depth, width), float_dtype()),
        "qkv": drawn["qkv"],
        "out": drawn["out"],
        "scale2": jnp.ones((depth, width), float_dtype()),
        "up": drawn["up"],
        "bias": jnp.zeros((depth, 4 * width), float_dtype()),
        "down": drawn["down"],
    }
    return CausalTransformer(
        embed=drawn["embed"],
        positions=drawn["positions"],
        condition_weight=drawn["from_condition"] if sizes.condition_size else None,
        blocks=blocks,
        readout=jnp.zeros((width, sizes.features * sizes.count), float_dtype()),
        heads=sizes.heads,
        count=sizes.count,
    )
