"""Gaussian noise of one example, a function of its own key and a counter alone."""

import jax
import jax.numpy as jnp
from jax.extend.random import threefry_2x32

from .numerics import float_dtype
from .types import Array, Key

DRAWS_PER_STEP = 8
"""How many independent draws a solver may ask for in one step."""


def normal(key: Key, counter: Array | int, shape: tuple[int, ...], dtype=None) -> Array:
    """Standard normal noise of the given shape, independent for each (key, counter).

    counter: (), an integer below 2³². For threefry keys the pair (counter, index) is hashed with the key in one pass
    and mapped through the inverse error function: a `fold_in` and its second hash are saved, which counts for
    small examples. Other key types fold the counter in. float32 draws have a 2⁻²³ lattice before the map, float64 2⁻⁵².
    Salmon et al. 2011 (threefry).
    """
    dtype = jnp.dtype(dtype or float_dtype())
    if str(jax.random.key_impl(key)) != "threefry2x32":
        return jax.random.normal(jax.random.fold_in(key, counter), shape, dtype)
    size = 1
    for length in shape:
        size *= length
    wide = dtype == jnp.float64
    pairs = size if wide else (size + 1) // 2
    index = jnp.arange(pairs, dtype=jnp.uint32)
    counters = jnp.concatenate([jnp.full((pairs,), counter, jnp.uint32), index])
    words = threefry_2x32(jax.random.key_data(key), counters)  # (2 pairs,)
    if wide:
        bits = (words[:pairs].astype(jnp.uint64) << 32 | words[pairs:].astype(jnp.uint64)) >> 12
        centred = (bits.astype(dtype) + 0.5) * 2.0**-51 - 1
    else:
        bits = words[:size] >> 9
        centred = (bits.astype(jnp.float32) + 0.5) * jnp.float32(2.0**-22) - 1
    return (jnp.sqrt(2.0).astype(centred.dtype) * jax.lax.erf_inv(centred)).astype(dtype).reshape(shape)
