"""Solvers that are tables of weights, and their fit to a model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import solvers
from diffjax.tuning import optimised_solver
from tests.families import assert_raises, every
from tests.solver_members import MULTISTEP, mixture

VP = dj.schedules.vp_linear()
TABULAR = {"ddim": solvers.ddim} | {name: row[0] for name, row in MULTISTEP.items()}


@pytest.mark.parametrize("name", every(TABULAR, ("unipc(3)", "ipndm(4)")))
def test_the_weights_of_a_published_solver_are_that_solver(name, x64):
    """On a mixture, to rounding, predictors with correctors too."""
    grid = dj.grids.log_snr(VP, 5)
    weights = solvers.output_weights(TABULAR[name](), VP, grid)
    problem = solvers.diffusion(VP, dj.targets.denoiser(mixture(), VP))
    x = jnp.array([0.7, -1.1])
    ends = [
        solvers.integrate(None, solver, problem, x=x, ts=grid)
        for solver in (TABULAR[name](), solvers.tabulated(weights))
    ]
    # States of size 1, and weights of size 1 from differences of states over α.
    np.testing.assert_allclose(ends[1], ends[0], rtol=0, atol=1e-11)


def random_weights(steps, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(tuple(rng.normal(size=n).tolist()) for n in range(1, steps))


@pytest.mark.parametrize("schedule", [VP, dj.schedules.edm()])
def test_any_weights_follow_the_flow_to_one_point_exactly(schedule, x64):
    """D = c: y − c shrinks as ρ does, whatever the weights are."""
    point, x = jnp.array([1.5, -0.3]), jnp.array([0.7, -1.1])
    grid = dj.grids.log_snr(schedule, 6)
    problem = solvers.diffusion(schedule, lambda x, t: point)
    solver = solvers.tabulated(random_weights(6))
    end = solvers.integrate(None, solver, problem, x=x, ts=grid)
    alphas, sigmas = jax.vmap(schedule.alpha)(grid), jax.vmap(schedule.sigma)(grid)
    noise = (x - alphas[0] * point) / sigmas[0]
    exact = alphas[-1] * point + sigmas[-1] * noise
    np.testing.assert_allclose(end, exact, rtol=1e-10)


def test_a_table_is_one_object_and_a_step_to_zero_returns_the_output():
    weights = random_weights(3)
    solver = solvers.tabulated(weights)
    assert solver is solvers.tabulated(weights=weights)
    assert solver.evaluations(3) == 3
    problem = solvers.diffusion(dj.schedules.edm(), lambda x, t: x / (1 + t))
    ts, x = jnp.array([2.0, 1.0, 0.5, 0.0]), jnp.ones(2)
    states = solvers.integrate(None, solver, problem, x=x, ts=ts, path=True)
    np.testing.assert_allclose(states[-1], states[-2] / 1.5, rtol=1e-6)


# ----------------------------------------------------------------------- fits


@pytest.mark.slow
def test_two_steps_are_fitted_to_a_normal_exactly(x64):
    """Its flow is a multiple of x, and so is the end of any table.

    One number suffices to make both the same. Of errors e the descent leaves their
    squares in each iteration, until what is left is the reference's error: that of rk4
    on 256 steps, some 1e-8.
    """
    denoiser = dj.targets.denoiser(dj.targets.gaussian([0.0], 0.5), VP)
    fit = optimised_solver(
        VP, denoiser, 2, jax.random.key(0), shape=(1,), examples=4, iterations=12
    )
    x = jnp.array([1.3])
    end = dj.sample(
        jax.random.key(1), denoiser, VP, solver=fit.solver, grid=fit.grid, x_init=x
    )
    exact = dj.targets.flow_map(dj.targets.gaussian([0.0], 0.5), VP)
    np.testing.assert_allclose(end, exact(x, VP.t_max, VP.t_min), rtol=1e-6)
    assert fit.held_out["coefficients"] < 1e-7
    assert min(fit.held_out["grid"], fit.held_out["unipc(3)"]) > 1e-3


DENOISER = dj.targets.denoiser(mixture(), VP)


def starts(count, seed):
    return jax.random.normal(jax.random.key(seed), (count, 2))


@functools.cache
def of_mixture():
    x = starts(32, 3)
    return x, optimised_solver(
        VP, DENOISER, 3, x_init=x, iterations=8, solver=solvers.ddim()
    )


def run(solver, grid, x, **settings):
    settings |= {"solver": solver, "grid": grid, "x_init": x}
    return dj.sample_many(jax.random.key(0), len(x), DENOISER, VP, **settings)


@pytest.mark.slow
def test_errors_are_those_of_samples_and_the_best_is_returned():
    """The first quarter of x_init is fitted and the second half judges.

    Baselines are in the pool, so that none has a smaller held-out error.
    """
    x, fit = of_mixture()
    fine = dj.grids.log_snr(VP, 256)
    ends = np.asarray(run(solvers.rk4(), fine, x))

    def errors(solver, grid):
        squares = (np.asarray(run(solver, grid, x)) - ends) ** 2
        return [float(np.sqrt(np.mean(part))) for part in (squares[:8], squares[16:])]

    recommended = dj.grids.recommended(VP, solvers.unipc(3), 3)
    assert fit.held_out["coefficients"] == min(fit.held_out.values())
    for name, measured in (
        ("coefficients", errors(fit.solver, fit.grid)),
        ("unipc(3)", errors(solvers.unipc(3), recommended)),
    ):
        # ends of size 1 in float32, of a few dozen operations
        expected = pytest.approx(measured, abs=1e-5)
        assert [fit.fitted[name], fit.held_out[name]] == expected
    assert fit.solver is solvers.tabulated(fit.weights)


def test_a_fitted_solver_is_the_same_in_any_batch():
    x, fit = of_mixture()
    whole = np.asarray(run(fit.solver, fit.grid, x))
    apart = np.concatenate(
        [np.asarray(run(fit.solver, fit.grid, x[i : i + 8])) for i in range(0, 32, 8)]
    )
    chunked = np.asarray(run(fit.solver, fit.grid, x, chunk=8))
    problem = solvers.diffusion(VP, DENOISER)
    alone = jax.jit(
        lambda x: solvers.integrate(None, fit.solver, problem, x=x, ts=fit.grid)
    )(x[5])
    # rounding of matrix products may depend on the batch
    for part in (apart, chunked):
        np.testing.assert_allclose(part, whole, rtol=0, atol=2e-6)
    np.testing.assert_allclose(alone, whole[5], rtol=0, atol=2e-6)


@pytest.mark.slow
def test_what_fits_a_few_starts_only_is_not_returned():
    """Fitted starts are at rest, the judging ones far away from them.

    There the descent learns nothing of the flow, and one of the pool is returned
    whose held-out error is no greater than any other's.
    """
    schedule = dj.schedules.edm()
    spread = dj.targets.denoiser(dj.targets.gaussian([0.0, 0.0], 1.0), schedule)
    denoiser = lambda x, t: jnp.where(jnp.abs(x) < 1e-3, x, spread(x, t))
    x = np.concatenate([np.full((4, 2), 1e-9), 80 * np.asarray(starts(4, 1))])
    fit = optimised_solver(
        schedule, denoiser, 3, x_init=np.float32(x), iterations=3, solver=solvers.ddim()
    )
    assert set(fit.held_out) == {"coefficients", "grid", "recommended", "unipc(3)"}
    assert fit.held_out["coefficients"] > min(fit.held_out.values())
    winner = min(fit.held_out, key=fit.held_out.get)
    published = solvers.unipc(3) if winner == "unipc(3)" else solvers.ddim()
    weights = solvers.output_weights(published, schedule, fit.grid)
    for row, expected in zip(fit.weights, weights, strict=True):
        np.testing.assert_allclose(row, expected, rtol=0, atol=1e-6)
    x = x[4:]
    ends = dj.sample_many(
        jax.random.key(0),
        4,
        denoiser,
        schedule,
        solver=fit.solver,
        grid=fit.grid,
        x_init=x,
    )
    exact = x * np.sqrt((1 + schedule.t_min**2) / (1 + schedule.t_max**2))
    error = np.sqrt(np.mean((np.asarray(ends) - exact) ** 2))
    np.testing.assert_allclose(error, min(fit.held_out.values()), rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [4, 8])
def test_beats_the_fitted_grid_on_fresh_starts(steps):
    """The mean squared error falls by more than 5 standard errors of its difference."""
    fit = optimised_solver(VP, DENOISER, steps, jax.random.key(7), shape=(2,))
    grid = dj.tuning.optimised_grid(
        VP, DENOISER, steps, jax.random.key(7), shape=(2,), solver=solvers.unipc(3)
    )
    x = starts(4096, 99)
    ends = np.asarray(run(solvers.rk4(), dj.grids.log_snr(VP, 512), x))
    ours, theirs = (
        np.mean((np.asarray(run(*pair, x)) - ends) ** 2, -1)
        for pair in ((fit.solver, fit.grid), (solvers.unipc(3), grid))
    )
    gain = theirs - ours
    assert gain.mean() > 5 * gain.std() / np.sqrt(len(gain))


# ----------------------------------------------------------------------- errors

FIT = functools.partial(optimised_solver, VP, DENOISER)
BAD_ARGUMENTS = {
    "a row too long": (
        lambda: solvers.tabulated(((0.1, 0.2),)),
        ValueError,
        r"weights\[0\] must have 1 numbers",
    ),
    "lists": (
        lambda: solvers.tabulated([[0.1]]),
        TypeError,
        "weights must be a plain Python value",
    ),
    "no number": (
        lambda: solvers.tabulated((("a",),)),
        TypeError,
        r"weights\[0\] must be",
    ),
    "another number of steps": (
        lambda: run(
            solvers.tabulated(((0.1,),)), dj.grids.log_snr(VP, 3), starts(2, 0)
        ),
        ValueError,
        "grid must have 2 steps",
    ),
    "weights of stages": (
        lambda: solvers.output_weights(solvers.heun(), VP, dj.grids.log_snr(VP, 3)),
        TypeError,
        "solver must evaluate the denoiser once per step, heun",
    ),
    "weights to zero": (
        lambda: solvers.output_weights(
            solvers.ddim(), dj.schedules.edm(), [1.0, 0.5, 0.0]
        ),
        ValueError,
        "grid must",
    ),
    "a velocity's solver": (
        lambda: FIT(4, jax.random.key(0), shape=(2,), solver=solvers.euler()),
        TypeError,
        "solver must evaluate the denoiser once per step, euler",
    ),
    "stochastic": (
        lambda: FIT(4, jax.random.key(0), shape=(2,), solver=solvers.ddim(1.0)),
        TypeError,
        "solver must be deterministic",
    ),
    "one step": (
        lambda: FIT(1, jax.random.key(0), shape=(2,)),
        ValueError,
        "steps must be at least 2, got 1",
    ),
    "no shape": (lambda: FIT(4, jax.random.key(0)), ValueError, "shape must be given"),
    "no iterations": (
        lambda: FIT(4, jax.random.key(0), shape=(2,), iterations=-1),
        ValueError,
        "iterations must be at least 0, got -1",
    ),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_raises(name):
    assert_raises(*BAD_ARGUMENTS[name])
