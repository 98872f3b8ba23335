"""Rows of `bench_speed` on the solvers' loops and their noise, on an exact
mixture.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from diffjax import grids, noise, schedules, solvers, targets
from diffjax.solvers import driver
from experiments.bench_speed.by_hand import (
    dpmpp_2m_by_hand,
    draw_by_hand,
    example_keys,
    loop_by_hand,
)
from experiments.bench_speed.ratios import Config, RatioRow, compare
from experiments.shared import solvers as solver_table
from experiments.shared.timing import same

COMPONENTS, DIMENSION = 8, 6
"""Components and dimension of the exact mixture."""

STEPS = {
    "euler": 64,
    "heun": 32,
    "rk4": 16,
    "euler_maruyama": 64,
    "stochastic_heun": 32,
    "reverse_diffusion": 64,
}
"""Steps of each solver on the mixture: about 64 evaluations."""

BUDGET = 64
"""Evaluations of each solver that is compared with a scan of its step."""


class MixtureTask(NamedTuple):
    """An exact mixture in six dimensions, its noise schedule, a key, and starts
    (samples, 6).
    """

    target: targets.Mixture
    schedule: schedules.VPLinear
    key: jax.Array
    x: jax.Array


def mixture(config: Config) -> MixtureTask:
    """Eight Gaussians under the linear VP schedule."""
    means, key, x = _drawn(jax.random.key(config.seed), config.samples)
    target = targets.gaussian_mixture(
        np.full(COMPONENTS, 1 / COMPONENTS), means, np.full(COMPONENTS, 0.4)
    )
    return MixtureTask(target, dj.schedules.vp_linear(), key, x)


@functools.partial(jax.jit, static_argnums=1)
def _drawn(key, samples):
    key_means, key, key_start = jax.random.split(key, 3)
    means = 2 * jax.random.normal(key_means, (COMPONENTS, DIMENSION))
    return means, key, jax.random.normal(key_start, (samples, DIMENSION))


def mixture_denoiser(target, x, at):
    """The exact D of a batch at known α and σ."""
    return jax.vmap(target.posterior_mean, (0, None, None))(x, at.alpha, at.sigma)


def loops(config: Config) -> Iterator[RatioRow]:
    """`sample_many` and `sample` against the loop by hand, after that loop
    against itself.
    """
    target, schedule, key, x = mixture(config)
    denoiser = targets.denoiser(target, schedule)

    def by_hand(name, grid):
        return lambda: loop_by_hand(
            name, mixture_denoiser, target, schedule, key, x, grid
        )

    grid = grids.log_snr(schedule, STEPS["euler"])
    yield compare(
        "loop by hand, against itself",
        *[by_hand("euler", grid)] * 2,
        config.alternations,
    )
    for name, steps in [*STEPS.items()][:: 3 if config.quick else 1]:
        solver, grid = getattr(solvers, name)(), grids.log_snr(schedule, steps)

        def library(solver=solver, grid=grid):
            return dj.sample_many(
                key, len(x), denoiser, schedule, solver=solver, grid=grid, x_init=x
            )

        same(name, library, by_hand(name, grid))
        yield compare(
            f"sample_many, {name}",
            library,
            by_hand(name, grid),
            config.alternations,
            1.05,
        )
    batched = functools.partial(batch_denoiser, target, schedule)
    grid = grids.log_snr(schedule, STEPS["heun"])

    def one():
        return dj.sample(
            key, batched, schedule, solver=solvers.heun(), grid=grid, x_init=x
        )

    same("sample", one, by_hand("heun", grid))
    yield compare(
        "sample of one large array, heun",
        one,
        by_hand("heun", grid),
        config.alternations,
        1.05,
    )
    by_hand_2m = functools.partial(
        dpmpp_2m_by_hand, mixture_denoiser, target, schedule, key, x, grid
    )
    same("dpmpp_2m", functools.partial(library, solvers.dpmpp_2m(), grid), by_hand_2m)
    yield compare(
        "sample_many, dpmpp_2m, by hand",
        functools.partial(library, solvers.dpmpp_2m(), grid),
        by_hand_2m,
        config.alternations,
        1.05,
    )


def bare_scans(config: Config) -> Iterator[RatioRow]:
    """`sample_many` by every other solver of fixed cost against a bare scan of
    its step.
    """
    target, schedule, key, x = mixture(config)
    denoiser = targets.denoiser(target, schedule)
    names = [
        name
        for name in solver_table.SOLVERS
        if solver_table.SOLVERS[name][0] not in (*STEPS, "restart")
    ]
    for name in names[:: 12 if config.quick else 1]:
        solver = solver_table.make(name)
        if solver.evaluations(1) is None:
            continue
        grid = grids.log_snr(schedule, solvers.steps_within(solver, BUDGET))

        def library(solver=solver, grid=grid):
            return dj.sample_many(
                key, len(x), denoiser, schedule, solver=solver, grid=grid, x_init=x
            )

        bare = functools.partial(bare_scan, solver, target, schedule, key, x, grid)
        same(name, library, bare)
        yield compare(f"sample_many, {name}", library, bare, config.alternations, 1.05)


@functools.partial(jax.jit, static_argnums=0)
def bare_scan(solver, target, schedule, key, x, ts):
    """The solver's steps for a batch x (B, ...) as one array, coefficients
    computed before the scan.
    """
    denoiser = functools.partial(batch_denoiser, target, schedule)
    problem = driver.derive(solver, solvers.Problem(schedule, denoiser, zero_end=False))
    inputs, keys = solver.prepare(problem, ts), example_keys(key, x)

    def body(carry, step):
        i, at = step
        return solver.step(
            problem, at, lambda j: draw_by_hand(keys, i, j, x), *carry
        ), None

    state = solver.init(problem, x, jax.tree.map(lambda leaf: leaf[0], inputs))
    return jax.lax.scan(
        body, (x, state), (jnp.arange(len(ts) - 1, dtype=jnp.uint32), inputs)
    )[0][0]


def batch_denoiser(target, schedule, x, t):
    """The exact D of a batch that a solver treats as one example."""
    return jax.vmap(targets.denoiser(target, schedule), (0, None))(x, t)


def noise_of_a_loop(config: Config) -> Iterator[RatioRow]:
    """The noise alone: a scan that adds one draw per step to every example."""
    key, shape, steps = (
        jax.random.key(config.seed),
        (config.samples, DIMENSION),
        STEPS["euler_maruyama"],
    )
    keys = jax.random.split(key, config.samples)

    def total(draw):
        add = lambda x, i: (x + draw(i), None)
        run = jax.jit(
            lambda: jax.lax.scan(
                add, jnp.zeros(shape), jnp.arange(steps, dtype=jnp.uint32)
            )[0]
        )
        return run

    per_example = total(
        lambda i: jax.vmap(lambda k: noise.normal(k, i, shape[1:]))(keys)
    )
    folded = total(
        lambda i: jax.vmap(
            lambda k: jax.random.normal(jax.random.fold_in(k, i), shape[1:])
        )(keys)
    )
    batch = total(lambda i: jax.random.normal(jax.random.fold_in(key, i), shape))
    yield compare(
        "noise.normal, against fold_in + normal",
        per_example,
        folded,
        config.alternations,
        1.0,
    )
    yield compare(
        "noise.normal, against one normal for the batch",
        per_example,
        batch,
        config.alternations,
    )


def peers(config: Config) -> Iterator[RatioRow]:
    """diffrax's loop over the same flow and the same grid against the loop by
    hand.
    """
    try:
        import diffrax
    except ImportError:
        print("diffrax is not installed: no row for it")
        return
    target, schedule, key, x = mixture(config)
    velocity = dj.sde.probability_flow(schedule, targets.denoiser(target, schedule))
    for name, solver in (("euler", diffrax.Euler()), ("heun", diffrax.Heun()))[
        : 1 if config.quick else 2
    ]:
        grid = grids.log_snr(schedule, STEPS[name])

        @jax.jit
        def peer(velocity, x, grid, solver=solver):
            term = diffrax.ODETerm(
                lambda t, y, args: jax.vmap(velocity, (0, None))(y, t)
            )
            controller = diffrax.StepTo(ts=grid)
            solution = diffrax.diffeqsolve(
                term,
                solver,
                grid[0],
                grid[-1],
                None,
                x,
                stepsize_controller=controller,
                max_steps=len(grid),
            )
            return jnp.reshape(solution.ys, x.shape)

        a = functools.partial(peer, velocity, x, grid)
        b = functools.partial(
            loop_by_hand, name, mixture_denoiser, target, schedule, key, x, grid
        )
        same(f"diffrax {name}", a, b)
        yield compare(
            f"diffrax {name}, against the loop by hand", a, b, config.alternations
        )
