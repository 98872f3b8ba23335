"""Rematerialisation changes memory alone: no parameter, output or gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import diffjax as dj
from diffjax.networks import ADM, EDM2, DiT, UNet
from diffjax.networks.dit import DiTBlock
from diffjax.networks.edm2 import EDM2Block
from diffjax.networks.remat import POLICIES, rematerialised
from diffjax.networks.resampling import ResamplingBlock
from diffjax.networks.unet import AttentionBlock, ResidualBlock
from tests.families import normal32, quick

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


def kept(model, remat, batch=7):
    """Numbers per example that the backward pass of a loss keeps from the forward
    pass: those with the axis of the batch, which no other axis is as long as.

    XLA's scheduler for CPU may move the second computation to the first, so
    that its own report of memory shows no gain there.
    """
    model = model.clone(remat=remat)
    x = jax.ShapeDtypeStruct((batch, 8, 8, 1), jnp.float32)

    def loss(variables, x):
        rngs = {"dropout": jax.random.key(1)}
        one = lambda x: model.apply(variables, x, 0.5, None, True, rngs=rngs)
        return jnp.mean((jax.vmap(one)(x) - 1) ** 2)

    forward = lambda *arguments: jax.vjp(loss, *arguments)[1]
    leaves = jax.tree.leaves(jax.eval_shape(forward, shapes(model), x))
    return sum(leaf.size for leaf in leaves if batch in leaf.shape) // batch


def shapes(model):
    init = lambda key: model.init(key, jnp.zeros((8, 8, 1)), 0.5)
    return jax.eval_shape(init, jax.random.key(0))


@networks
def test_parameters_have_the_same_names_and_shapes(name):
    trees = [shapes(NETWORKS[name].clone(remat=r)) for r in (False, True, "dots")]
    assert trees[0] == trees[1] == trees[2]


PIXELS, TOKENS = 8 * 8, 4 * 4
GROWTH = {
    # 16 tokens of 8 features: qkv, their projection, and the two layers of the MLP
    "dit": ({"depth": 3}, TOKENS * 8, TOKENS * 8 * (3 + 1 + 4 + 1)),
    # A residual and an attention block on the way down, and one of each on the way
    # up, which reads 16 channels. Two convolutions, qkv and their projection, and
    # a dense layer in the skip of the way up.
    "unet": ({"blocks": 2}, PIXELS * 8 * 5, PIXELS * 8 * (2 * (2 + 4) + 1)),
    # One block down and one up at each resolution, the lower of which has attention.
    **dict.fromkeys(
        ("adm", "edm2"),
        (
            {"blocks": 2},
            (PIXELS + TOKENS) * 8 * 3,
            PIXELS * 8 * (2 * 2 + 1) + TOKENS * 8 * (2 * (2 + 4) + 1),
        ),
    ),
}
"""New fields of a larger network, and the sizes of the inputs of its new blocks and of
the results of their products with parameters.
"""


@networks
def test_a_block_keeps_its_input_alone_or_its_products_too(name):
    """By the growth of what is kept with the number of blocks."""
    larger, inputs, products = GROWTH[name]
    smaller, larger = NETWORKS[name], NETWORKS[name].clone(**larger)
    none, blocks, dots = (kept(larger, r) - kept(smaller, r) for r in POLICIES)
    assert blocks == inputs
    # Results that no derivative needs are not kept.
    assert inputs < dots <= inputs + products < none


BLOCKS = {
    "dit": [(DiTBlock, {"heads": 2, "dropout": 0.5})],
    "unet": [(ResidualBlock, {"channels": 8, "dropout": 0.5}), (AttentionBlock, {})],
    "adm": [
        (ResamplingBlock, {"channels": 8, "heads": 1, "dropout": 0.5}),
        (ResamplingBlock, {"channels": 4, "change": "down"}),
        (ResamplingBlock, {"channels": 4, "change": "up"}),
    ],
    "edm2": [
        (EDM2Block, {"channels": 8, "encoder": True, "heads": 1, "dropout": 0.5}),
        (EDM2Block, {"channels": 4, "encoder": True, "change": "down"}),
        (EDM2Block, {"channels": 4, "encoder": False, "change": "up"}),
    ],
}
"""The kinds of blocks of each network."""

SHARED = {AttentionBlock: {"heads": 1}, ResamplingBlock: {"style": ADM.style}}


class Chain(nn.Module):
    """One block of each kind, one after the other."""

    network: str
    remat: str

    @nn.compact
    def __call__(self, h, c):
        """Map h by blocks that c modulates, with dropout."""
        for kind, settings in BLOCKS[self.network]:
            block = rematerialised(kind, self.remat)
            block = block(**settings, **SHARED.get(kind, {}))
            h = block(h) if kind is AttentionBlock else block(h, c, True)
        return h


@networks
def test_loss_and_gradients_are_the_same(name):
    h = normal32(0, 2, 4, 4) if name == "dit" else normal32(0, 2, 4, 4, 4)
    c, rngs = normal32(1, 3), {"dropout": jax.random.key(1)}
    init = lambda rngs: Chain(name, "none").init(rngs, h[0], c)
    forms = jax.eval_shape(init, {"params": jax.random.key(0), **rngs})
    draw = lambda leaf: 0.3 * normal32(leaf.size, *leaf.shape)
    variables = jax.tree.map(draw, forms)

    def gradients(remat):
        one = lambda v, h: Chain(name, remat).apply(v, h, c, rngs=rngs)
        loss = lambda v, h: jnp.mean((jax.vmap(one, (None, 0))(v, h) - 1) ** 2)
        return jax.tree.leaves(quick(jax.value_and_grad(loss, (0, 1)))(variables, h))

    expected = gradients("none")
    # The same operations, of which XLA may fuse others: forward and backward some 20
    # products of up to 72 terms, each of which errs by √72 ε/2.
    atol = 20 * 72**0.5 / 2 * EPS * max(np.abs(leaf).max() for leaf in expected)
    for remat in ("blocks", "dots"):
        for a, b in zip(gradients(remat), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=atol)


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


def sampled(remat, solver, many, steps=12):
    schedule = dj.schedules.vp_linear()
    grid = dj.grids.uniform(schedule, steps)

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
    steps, width = 64, 4096

    def hidden_layers(remat):
        """Memory, in units of one hidden layer."""
        solver = dj.solvers.ddim(1.0)
        program = quick(sampled(remat, solver, many=False, steps=steps))
        compiled = program.lower(weights(width)).compile()
        return compiled.memory_analysis().temp_size_in_bytes / (4 * width)

    # Each step keeps its hidden layer and the sine's argument at least. Of one step
    # there are four such arrays and their cotangents, beside the gradients of the
    # weights, of 2 · 3 layers.
    assert hidden_layers(False) > 2 * steps
    assert hidden_layers(True) < 4 + 4 + 2 * 3


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
