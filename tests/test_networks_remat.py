"""Rematerialisation changes memory alone: no parameter, output or gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax.networks import ADM, EDM2, DiT, UNet
from diffjax.networks.dit import DiTBlock
from diffjax.networks.remat import POLICIES, rematerialised
from tests.families import quick

EPS = float(np.finfo(np.float32).eps)
PYRAMID = {
    "width": 8,
    "multipliers": (1, 1),
    "blocks": 1,
    "attention_resolutions": (1,),
    "head_channels": 4,
}
NETWORKS = {
    "dit": DiT(width=8, depth=2, heads=2, dropout=0.5),
    "unet": UNet(
        width=8, multipliers=(1,), blocks=1, attention_resolutions=(0,), heads=2
    ),
    "adm": ADM(**PYRAMID),
    "edm2": EDM2(**PYRAMID),
}
networks = pytest.mark.parametrize(
    "name",
    ["dit", *(pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS if n != "dit")],
)


def programs(name, remat, size, batch=2):
    """(variables, gradients of a loss) as functions, and shapes of arguments."""
    model = NETWORKS[name].clone(remat=remat)
    x = jax.ShapeDtypeStruct((batch, size, size, 1), jnp.float32)
    init = lambda key: model.init(key, jnp.zeros(x.shape[1:]), 0.5)

    def loss(variables, x):
        rngs = {"dropout": jax.random.key(1)}
        one = lambda x: model.apply(variables, x, 0.5, None, True, rngs=rngs)
        return jnp.mean((jax.vmap(one)(x) - 1) ** 2)

    variables = jax.eval_shape(init, jax.random.key(0))
    return init, loss, variables, x


@networks
def test_parameters_have_the_same_names_and_shapes(name):
    trees = [programs(name, remat, 4)[2] for remat in (False, True, "dots")]
    assert trees[0] == trees[1] == trees[2]


@networks
@pytest.mark.parametrize("remat", ["blocks", "dots"])
def test_loss_and_gradients_are_the_same(name, remat):
    rng = np.random.default_rng(0)
    _, plain, variables, x = programs(name, "none", 4)
    _, other, _, _ = programs(name, remat, 4)
    draw = lambda leaf: np.float32(0.3 * rng.standard_normal(leaf.shape))
    arguments = jax.tree.map(draw, (variables, x))
    expected, actual = (
        quick(jax.value_and_grad(loss))(*arguments) for loss in (plain, other)
    )
    # the same operations, of which XLA may fuse others
    for a, b in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        np.testing.assert_allclose(a, b, atol=200 * EPS * np.abs(b).max() + EPS)


def kept(name, remat):
    """Bytes that the backward pass of a loss keeps from the forward pass.

    XLA's scheduler for CPU may move the second computation to the first, so
    that its own report of memory shows no gain there.
    """
    loss, variables, x = programs(name, remat, 8)[1:]
    forward = lambda *arguments: jax.vjp(loss, *arguments)
    _, pullback = jax.eval_shape(forward, variables, x)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pullback))


@networks
def test_memory_falls_with_the_policy(name):
    none, blocks, dots = (kept(name, remat) for remat in ("none", "blocks", "dots"))
    assert blocks < 0.6 * none and blocks < dots < 0.9 * none


def test_no_policy_is_the_class_itself():
    assert rematerialised(DiTBlock, "none") is DiTBlock
    assert rematerialised(DiTBlock, "blocks").__name__ == "DiTBlock"
    assert DiT(remat=True) == DiT(remat="blocks") and DiT(remat=False) == DiT()


@pytest.mark.parametrize("value", ["all", 2, None])
def test_another_policy_raises_by_name(value):
    with pytest.raises(ValueError, match=f"remat must be one of .*{POLICIES[2]}"):
        DiT(remat=value)


# Gradients through a sampler


def wide_denoiser(weights, x, t):
    """A denoiser with many activations: (x, t) -> D, of one hidden layer."""
    hidden = jnp.tanh(weights[0] @ x + t)  # (width,)
    return jnp.tanh(weights[1] @ jnp.sin(weights[1].T @ (weights[1] @ hidden)))


def sampled(remat, solver, many):
    schedule = dj.schedules.vp_linear()
    grid = dj.grids.uniform(schedule, 12)

    def loss(weights):
        denoiser = jax.tree_util.Partial(wide_denoiser, weights)
        settings = dict(solver=solver, grid=grid, shape=(3,), remat=remat)
        draw = functools.partial(dj.sample_many, count=4) if many else dj.sample
        return jnp.sum(
            draw(jax.random.key(0), denoiser=denoiser, schedule=schedule, **settings)
            ** 2
        )

    return jax.grad(loss)


def weights(width):
    rng = np.random.default_rng(0)
    draw = lambda *shape: np.float32(0.1 * rng.standard_normal(shape))
    return draw(width, 3), draw(3, width)


@pytest.mark.parametrize(
    ("solver", "many"),
    [(dj.solvers.ddim(1.0), True), (dj.solvers.dpmpp_2m(), False)],
)
def test_gradient_through_a_sampler_is_the_same(solver, many):
    plain, other = (quick(sampled(r, solver, many))(weights(8)) for r in (False, True))
    for a, b in zip(plain, other, strict=True):
        np.testing.assert_allclose(a, b, atol=50 * EPS * np.abs(a).max())


def test_gradient_through_a_sampler_keeps_one_step_at_a_time():
    def memory(remat, width):
        program = quick(sampled(remat, dj.solvers.ddim(1.0), many=False))
        compiled = program.lower(weights(width)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    # Of 12 steps all keep their hidden layer otherwise.
    width, hidden = 4096, 4096 * 4
    assert memory(False, width) - memory(True, width) > 11 * hidden


def test_integrate_takes_remat():
    problem = lambda x, t: jnp.sin(x) * t
    ts = np.linspace(0.0, 1.0, 5, dtype=np.float32)

    @quick
    @jax.grad
    def gradient(x, remat=False):
        solver = dj.solvers.heun()
        run = lambda remat: dj.solvers.integrate(
            None, solver, problem, x=x, ts=ts, remat=remat
        )
        return run(False) - run(True)

    assert abs(gradient(jnp.float32(0.7))) <= 4 * EPS
    for remat, error in ((1, TypeError), ("blocks", TypeError)):
        with pytest.raises(error, match="remat must be True or False"):
            dj.solvers.integrate(
                None, dj.solvers.heun(), problem, x=1.0, ts=ts, remat=remat
            )
    with pytest.raises(TypeError, match="solver must take one step .* where remat"):
        dj.solvers.integrate(
            None,
            dj.solvers.picard(),
            dj.solvers.diffusion(dj.schedules.vp_linear(), lambda x, t: 0 * x),
            x=jnp.ones(2),
            ts=np.linspace(1.0, 0.5, 5, dtype=np.float32),
            remat=True,
        )
