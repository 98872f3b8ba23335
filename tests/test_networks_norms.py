"""Group norm against Flax's, and functions whose results are stored."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from diffjax import networks
from diffjax.networks import stored

KEY = jax.random.key(0)


def pair(silu=False, affine=True):
    """Ours and Flax's, as functions (h, scale, bias) -> h of one example."""
    ours = networks.GroupNorm(4, silu=silu, use_bias=affine, use_scale=affine)
    theirs = nn.GroupNorm(
        4, epsilon=1e-6, reduction_axes=(0, 1, 2), use_bias=affine, use_scale=affine
    )

    def run(module, activation, h, scale, bias):
        params = {"params": {"scale": scale, "bias": bias} if affine else {}}
        return activation(module.apply(params, h))

    identity = lambda y: y
    after = jax.nn.silu if silu else identity
    return functools.partial(run, ours, identity), functools.partial(run, theirs, after)


@pytest.mark.parametrize("silu", [False, True])
def test_group_norm_is_flaxs_with_first_and_second_derivatives(silu):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        args = [jnp.asarray(rng.normal(size=s)) for s in ((3, 5, 8), (8,), (8,))]
        moved = [jnp.asarray(rng.normal(size=a.shape)) for a in args]

        @functools.partial(jax.jit, static_argnums=0)
        def derivatives(function, args, moved):
            loss = lambda *args: (function(*args) ** 3).sum()
            gradient = jax.grad(loss, (0, 1, 2))
            # Forward mode, reverse mode, and forward over reverse.
            return (
                jax.jvp(function, args, moved),
                gradient(*args),
                jax.jvp(gradient, args, moved)[1],
            )

        ours, theirs = (derivatives(f, tuple(args), tuple(moved)) for f in pair(silu))
        chex.assert_trees_all_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_a_large_mean_costs_no_accuracy():
    """Flax's own variance in float32 would be wrong by a factor."""
    h = 1e4 + jax.random.normal(KEY, (16, 16, 8))
    with jax.enable_x64(True):
        exact = pair()[1](jnp.asarray(np.asarray(h), float), jnp.ones(8), jnp.zeros(8))
    ours = pair()[0](h, jnp.ones(8), jnp.zeros(8))
    # Steps of float32 at 10⁴ are 10⁻³.
    np.testing.assert_allclose(ours, exact, atol=2e-3)


def test_modulation_follows_the_norm():
    h, (shift, scale) = jax.random.normal(KEY, (3, 3, 8)), jnp.ones((2, 8)) * 0.5
    norm = networks.GroupNorm(2)
    params = norm.init(KEY, h)
    assert jax.tree.map(jnp.shape, params) == {"params": {"bias": (8,), "scale": (8,)}}
    params = jax.tree.map(lambda p: p + 0.3, params)
    expected = (1 + scale) * norm.apply(params, h) + shift
    np.testing.assert_allclose(norm.apply(params, h, shift, scale), expected, atol=1e-5)


def test_an_example_does_not_depend_on_its_batch():
    h = jax.random.normal(KEY, (5, 4, 4, 8))
    run = jax.jit(jax.vmap(lambda h: pair(True)[0](h, jnp.ones(8), jnp.ones(8))))
    np.testing.assert_array_equal(run(h)[:2], run(h[:2]))


def test_16_bit_activations_have_wide_statistics():
    h = (100 + jax.random.normal(KEY, (16, 16, 8))).astype(jnp.bfloat16)
    normed = networks.GroupNorm(2).apply(
        {"params": {"bias": jnp.zeros(8), "scale": jnp.ones(8)}}, h
    )
    assert normed.dtype == jnp.bfloat16
    np.testing.assert_allclose(normed.astype(jnp.float32).std(), 1, atol=2e-3)


def test_groups_that_do_not_divide_the_channels_are_named():
    with pytest.raises(ValueError, match="num_groups must divide channels=8, got 3"):
        networks.GroupNorm(3).init(KEY, jnp.ones((2, 2, 8)))


def test_a_stored_function_is_a_call_of_its_own_with_all_derivatives():
    double = stored.stored(lambda h: jnp.sin(h) * 2)
    chain = lambda h: double(double(h)).sum()
    x = jnp.arange(3.0)
    program = jax.jit(jax.grad(chain)).lower(x).compile().as_text()
    if jax.default_backend() == "cpu":
        assert program.count(" call(") >= 3
    plain = lambda h: (2 * jnp.sin(2 * jnp.sin(h))).sum()
    chex.assert_trees_all_close(
        jax.grad(chain)(x), jax.jit(jax.grad(plain))(x), rtol=1e-6
    )
    hessians = [jax.jit(jax.hessian(f))(x) for f in (chain, plain)]
    chex.assert_trees_all_close(*hessians, rtol=1e-5, atol=1e-6)
    for total in (
        stored.residual_sum(x, x, 0.5),
        stored.residual_sum(h=x, branch=x, factor=0.5),
    ):
        np.testing.assert_array_equal(total, x)
