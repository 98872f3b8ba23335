"""Counts of operations against closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.experimental import pallas as pl

from diffjax.networks import DiT, flops


def shaped(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_a_dense_layer_and_its_gradients():
    layer, h = nn.Dense(5), shaped(3, 7)
    variables = jax.eval_shape(layer.init, jax.random.key(0), h)
    assert flops(layer.apply, variables, h) == 2 * 3 * 7 * 5
    # both gradients are products of as many terms
    loss = lambda variables, h: jnp.sum(layer.apply(variables, h) ** 2)
    assert flops(jax.grad(loss, (0, 1)), variables, h) == 3 * 2 * 3 * 7 * 5


def test_a_convolution_a_batch_and_a_loop():
    layer, h = nn.Conv(5, (3, 3)), shaped(4, 6, 7)
    variables = jax.eval_shape(layer.init, jax.random.key(0), h)
    one = 2 * (4 * 6 * 5) * (3 * 3 * 7)
    assert flops(layer.apply, variables, h) == one
    batch = jax.vmap(layer.apply, (None, 0))
    assert flops(batch, variables, shaped(2, 4, 6, 7)) == 2 * one
    loop = lambda v, h: jax.lax.map(lambda h: layer.apply(v, h), h)
    assert flops(jax.jit(loop), variables, shaped(2, 4, 6, 7)) == 2 * one


@pytest.mark.parametrize("remat", ["none", "blocks"])
def test_a_transformer(remat):
    d, n, depth, patch = 16, 4, 3, 2
    model = DiT(width=d, depth=depth, heads=2, patch=patch, remat=remat)
    x = shaped(4, 4, 1)
    variables = jax.eval_shape(model.init, jax.random.key(0), x, 0.5)
    block = 6 * d * d + n * (3 + 1 + 8) * d * d + 2 * n * n * d
    ends = 128 * d + d * d + 2 * n * patch**2 * d + 2 * d * d
    count = functools.partial(flops, model.apply)
    assert count(variables, x, 0.5) == 2 * (depth * block + ends)


def test_a_conditional_is_its_most_expensive_branch_and_a_while_loop_raises():
    a = np.ones((3, 3), np.float32)
    branches = lambda a: jax.lax.cond(a[0, 0] > 0, lambda a: a @ a @ a, lambda a: a, a)
    assert flops(branches, a) == 2 * 2 * 27
    unknown = lambda a: jax.lax.while_loop(lambda a: a[0, 0] < 9, lambda a: a @ a, a)
    with pytest.raises(ValueError, match="function must have no products in a loop"):
        flops(unknown, a)


def tiled_product(a, b, rows=2):
    """a (8, 7) times b (7, 15), as a kernel over a grid of tiles (4, 5)."""

    def kernel(a, b, out):
        out[...] = a[...] @ b[...]

    return pl.pallas_call(
        kernel,
        grid=(rows, 3),
        in_specs=[
            pl.BlockSpec((4, 7), lambda i, j: (i, 0)),
            pl.BlockSpec((7, 5), lambda i, j: (0, j)),
        ],
        out_specs=pl.BlockSpec((4, 5), lambda i, j: (i, j)),
        out_shape=shaped(8, 15),
        interpret=True,
    )(a, b)


def test_a_pallas_kernel_counts_once_per_cell_of_its_grid():
    """As the product that it computes. `jax.vmap` adds an axis to the grid."""
    a, b = shaped(8, 7), shaped(7, 15)
    whole = 2 * 8 * 7 * 15
    assert flops(tiled_product, a, b) == flops(jnp.matmul, a, b) == whole
    batch = shaped(4, 8, 7), shaped(4, 7, 15)
    assert flops(jax.vmap(tiled_product), *batch) == 4 * whole
    with pytest.raises(ValueError, match="a grid of unknown length"):
        flops(tiled_product, a, b, jax.ShapeDtypeStruct((), jnp.int32))
