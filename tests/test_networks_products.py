"""Dense layers by `product` against Flax's."""

import os
import pathlib
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from diffjax.networks import cost, stored
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


@pytest.mark.parametrize(
    "dtypes", [(jnp.bfloat16, jnp.float32), (jnp.float32, jnp.bfloat16)]
)
def test_dtypes_promote_and_gradients_have_those_of_the_arguments(dtypes):
    x, kernel = jnp.ones((2, 3), dtypes[0]), jnp.ones((3, 4), dtypes[1])
    assert jax.jit(product)(x, kernel).dtype == jnp.float32
    gradients = jax.jit(jax.grad(lambda *args: product(*args).sum(), (0, 1)))(x, kernel)
    assert tuple(g.dtype for g in gradients) == dtypes
    batched = jax.jit(jax.vmap(product, (0, None)))(x[:, None], kernel)
    assert batched.dtype == jnp.float32


def test_settings_without_effect_are_named():
    with pytest.raises(ValueError, match="product takes no preferred_element_type"):
        product(jnp.ones(3), jnp.ones((3, 4)), preferred_element_type=jnp.float32)
    product(jnp.ones(3), jnp.ones((3, 4)), preferred_element_type=None)


def gradients(multiply, mesh):
    """Of a loss by the kernel, inside shard_map and through it."""

    def loss(kernel, x):
        h = jax.vmap(lambda x: multiply(x, kernel))(x)
        return (stored.residual_sum(h, h, factor=0.5) ** 2).sum()

    def mapped(function):
        specs = {"in_specs": (P(), P("d")), "out_specs": P()}
        return jax.shard_map(function, mesh=mesh, **specs)

    total = mapped(lambda *args: jax.lax.psum(loss(*args), "d"))
    both = lambda *args: (mapped(jax.grad(loss))(*args), jax.grad(total)(*args))
    return jax.jit(both)(jnp.arange(6.0).reshape(3, 2), rows(mesh))


def rows(mesh):
    """x (4, 3), whose rows are sharded."""
    x = jnp.arange(12.0).reshape(4, 3)
    return jax.device_put(x, jax.NamedSharding(mesh, P("d")))


def check_on_devices(count):
    """Gradients equal those of `@`, and a sum over a shard is none over all."""
    for axis_type in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((count,), ("d",), axis_types=(axis_type,))
        chex.assert_trees_all_close(
            gradients(product, mesh), gradients(jnp.matmul, mesh), rtol=1e-6
        )
        kernel = jnp.ones((3, 4))
        types = [jax.eval_shape(f, rows(mesh), kernel) for f in (product, jnp.matmul)]
        assert types[0].sharding == types[1].sharding
        one = lambda x: product(x, kernel).sum()
        with pytest.raises(ValueError, match="out_specs"):
            jax.shard_map(one, mesh=mesh, in_specs=P("d"), out_specs=P())(rows(mesh))


def test_gradients_under_shard_map_and_explicit_sharding_are_those_of_jax():
    check_on_devices(1)


@pytest.mark.slow
def test_gradients_on_two_devices_are_those_of_jax():
    flags = os.environ.get("XLA_FLAGS", "")
    environment = os.environ | {
        "XLA_FLAGS": flags + " --xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(pathlib.Path(__file__).parents[1]),
    }
    program = "from tests import test_networks_products as t; t.check_on_devices(2)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
