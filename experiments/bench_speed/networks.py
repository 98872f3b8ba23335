"""Rows of `bench_speed` on the loop, a guided step and a training step beside
the network that they call.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import optax

import diffjax as dj
from diffjax import grids, guidance, networks, predictions, solvers, training
from experiments.bench_speed.by_hand import BY_HAND, dpmpp_2m_by_hand, loop_by_hand
from experiments.bench_speed.ratios import Config, RatioRow, compare
from experiments.shared.timing import same


def network_loops(config: Config) -> Iterator[RatioRow]:
    """`sample_many` with a U-Net that predicts noise against the loop by hand.

    The network has 6.5 M parameters, the batch 16 images.
    """
    cpu = jax.default_backend() == "cpu"
    net, batch, side = unet(config)
    key = jax.random.key(config.seed)
    initial = jax.jit(net.init)(key, jnp.zeros((side, side, 3)), 0.5)
    leaves, treedef = jax.tree.flatten(initial)
    moved = [
        p + 0.02 * jax.random.normal(jax.random.fold_in(key, i), p.shape)
        for i, p in enumerate(leaves)
    ]
    # Initially the output is exactly 0, so that the two programs could not be
    # compared.
    params = jax.tree.unflatten(treedef, moved)
    schedule = dj.schedules.vp_linear()
    denoiser = predictions.denoiser(
        schedule, functools.partial(net.apply, params), "noise"
    )
    x = jax.random.normal(key, (batch, side, side, 3))
    count = sum(leaf.size for leaf in leaves) / 1e6
    alternations = max(1, config.alternations // 2) if cpu else config.alternations

    def by_network(params, x, at):
        predicted = jax.vmap(lambda x: net.apply(params, x, at.t))(x)
        return (x - at.sigma * predicted) / at.alpha

    for name, steps in {
        "heun": 1 if cpu else 16,
        "euler_maruyama": 2 if cpu else 32,
        "dpmpp_2m": 2 if cpu else 32,
    }.items():
        if config.quick and name != "euler_maruyama":
            continue
        solver, grid = getattr(solvers, name)(), jnp.linspace(0.6, 0.3, steps + 1)

        def library(solver=solver, grid=grid):
            return dj.sample_many(
                key, batch, denoiser, schedule, solver=solver, grid=grid, x_init=x
            )

        if name in BY_HAND:
            by_hand = functools.partial(
                loop_by_hand, name, by_network, params, schedule, key, x, grid
            )
        else:
            by_hand = functools.partial(
                dpmpp_2m_by_hand, by_network, params, schedule, key, x, grid
            )
        same(f"U-Net, {name}", library, by_hand, 1e-2)
        yield compare(
            f"sample_many, {name}, U-Net {count:.1f} M, {side}²",
            library,
            by_hand,
            alternations,
            1.05,
        )


def training_steps(config: Config) -> Iterator[RatioRow]:
    """Steps of `training.make_steps` against calls of a bare step.

    The bare step computes the loss, its gradient and the update of Adam. The
    library's also keeps the average of the parameters and checks for values
    that are not finite.
    """
    net, batch, side = unet(config)
    key, rule = jax.random.key(config.seed), training.optimiser(1e-4)
    # As `training.fit` chooses them.
    steps = 1 if jax.default_backend() == "cpu" else 32
    params = jax.jit(net.init)(key, jnp.zeros((side, side, 3)), 0.5)
    batches = jax.random.normal(key, (steps, batch, side, side, 3))
    count = sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6

    def loss(params, key, x):
        noise = jax.random.normal(key, x.shape)
        predicted = jax.vmap(lambda x: net.apply(params, x, 0.5))(x + noise)
        return jnp.mean((predicted - noise) ** 2), {}

    @functools.partial(jax.jit, donate_argnums=0)
    def bare_step(carry, x, key):
        params, moments = carry
        (value, _), gradient = jax.value_and_grad(loss, has_aux=True)(params, key, x)
        updates, moments = rule.update(gradient, moments, params)
        return (optax.apply_updates(params, updates), moments), value

    take = training.make_steps(training.make_step(loss, rule))
    held = {
        "state": training.init(key, params, rule),
        "bare": jax.tree.map(jnp.array, (params, rule.init(params))),
    }

    def library():
        held["state"], metrics = take(held["state"], batches)
        return metrics["loss"]

    def bare():
        for i in range(steps):
            now = jax.random.fold_in(key, i)
            held["bare"], value = bare_step(held["bare"], batches[i], now)
        return value

    yield compare(
        f"training step, U-Net {count:.1f} M, {batch} × {side}²",
        library,
        bare,
        config.alternations,
        1.05,
    )


def unet(config: Config) -> tuple[networks.UNet, int, int]:
    """The U-Net of these rows, its batch size, and the side of its images."""
    side = 16 if jax.default_backend() == "cpu" else 32
    if config.quick:
        small = networks.UNet(
            width=8, multipliers=(1,), blocks=1, attention_resolutions=()
        )
        return small, 2, 8
    net = networks.UNet(
        width=64, multipliers=(1, 2, 2), blocks=2, attention_resolutions=(2,)
    )
    return net, 16, side


def guided(config: Config) -> Iterator[RatioRow]:
    """A step of classifier-free guidance by one batched call against one of the
    conditional network alone.
    """
    key, schedule, steps = jax.random.key(config.seed), dj.schedules.vp_linear(), 4
    small, classes = config.quick, 10
    nets = {
        "DiT": (
            networks.DiT(
                width=16 if small else 96, depth=1 if small else 4, num_classes=classes
            ),
            (8, 8, 1),
            64,
        ),
        "U-Net": (
            networks.UNet(width=32, multipliers=(1, 2), num_classes=classes),
            (16, 16, 3),
            8,
        ),
    }
    for name, (net, shape, batch) in [*nets.items()][: 1 if small else 2]:
        params = jax.jit(net.init)(key, jnp.zeros(shape), 0.5, 0)
        denoiser = predictions.denoiser(
            schedule, functools.partial(net.apply, params), "v"
        )
        labels, null, grid = (
            jnp.arange(batch) % classes,
            jnp.asarray(classes),
            grids.log_snr(schedule, steps),
        )

        def run(
            scale,
            denoiser=denoiser,
            labels=labels,
            null=null,
            grid=grid,
            shape=shape,
            batch=batch,
        ):
            by = guidance.classifier_free_batched(denoiser, None, null, scale)
            return dj.sample_many(
                key,
                batch,
                by,
                schedule,
                solver=solvers.ddim(),
                grid=grid,
                shape=shape,
                condition=labels,
            )

        count = sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6
        label = (
            "guided by one batched call, against unguided, "
            f"{name} {count:.1f} M, {batch} × {shape[0]}²"
        )
        twice, once = functools.partial(run, 2.0), functools.partial(run, 1.0)
        yield compare(label, twice, once, config.alternations, 2.05)
