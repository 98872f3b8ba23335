"""Dense layers by `product` against Flax's."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from diffjax.networks import cost
from diffjax.networks.products import Dense, product

KEY = jax.random.key(0)


def test_product_is_the_dense_layers_with_first_and_second_derivatives():
    with jax.enable_x64(True):
        x, kernel, dx, dkernel = (
            jax.random.normal(jax.random.fold_in(KEY, i), shape)
            for i, shape in enumerate(((2, 5, 3), (3, 4), (2, 5, 3), (3, 4)))
        )

        def derivatives(multiply):
            loss = lambda x, kernel: (multiply(x, kernel) ** 3).sum()
            gradient = jax.grad(loss, (0, 1))
            of_each = jax.vmap(jax.grad(loss, 1), (0, None))
            return (
                jax.jvp(multiply, (x, kernel), (dx, dkernel)),
                gradient(x, kernel),
                jax.jvp(gradient, (x, kernel), (dx, dkernel))[1],
                # One example at a time: gradients of the mean, then of each.
                jax.grad(lambda k: jax.vmap(loss, (0, None))(x, k).sum())(kernel),
                of_each(x, kernel),
                jax.vmap(multiply)(x, jnp.stack([kernel, dkernel])),
            )

        ours = jax.jit(lambda: derivatives(product))()
        theirs = jax.jit(lambda: derivatives(lambda x, kernel: x @ kernel))()
        chex.assert_trees_all_close(ours, theirs, rtol=1e-12)


def test_dense_has_the_parameters_of_flax():
    class Two(nn.Module):
        layer: type

        @nn.compact
        def __call__(self, x):
            return self.layer(2, use_bias=False)(jnp.sin(self.layer(5)(x)))

    x = jax.random.normal(KEY, (4, 3))
    ours, theirs = Two(Dense), Two(nn.Dense)
    params = ours.init(KEY, x)
    chex.assert_trees_all_equal(params, theirs.init(KEY, x))
    np.testing.assert_allclose(
        ours.apply(params, x), theirs.apply(params, x), rtol=1e-6
    )
    assert cost.flops(ours.apply, params, x) == cost.flops(theirs.apply, params, x)


def test_the_kernel_gradient_is_one_product_of_all_tokens():
    def loss(kernel, x):
        return jax.vmap(lambda x: product(x, kernel))(x).sum()

    program = jax.make_jaxpr(jax.grad(loss))(jnp.ones((3, 4)), jnp.ones((2, 5, 3)))
    dots = [e for e in program.eqns if e.primitive.name == "dot_general"]
    assert [e.params["dimension_numbers"][0] for e in dots] == [((0, 1), (0, 1))]
