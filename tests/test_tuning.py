"""A fitted grid has a smaller end error than the fixed families.

The errors are measured on starts that the descent never saw.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import solvers
from diffjax.tuning import FAMILIES, optimised_grid
from tests.families import SCHEDULES, assert_raises, every

TARGET = dj.targets.gaussian_mixture([0.4, 0.6], [[1.5, 0.0], [-1.0, 0.5]], [0.4, 0.7])
QUICK = {"examples": 128, "iterations": 60}


def starts_and_ends(schedule, denoiser, count, seed=99):
    """Prior draws, and where the flow carries them.

    By rk4 on 512 steps, whose error is that of rounding.
    """
    x = dj.schedules.prior_std(schedule) * jax.random.normal(
        jax.random.key(seed), (count, 2)
    )
    return x, run(solvers.rk4(), schedule, denoiser, dj.grids.log_snr(schedule, 512), x)


def run(solver, schedule, denoiser, grid, x):
    return dj.sample_many(
        jax.random.key(0),
        len(x),
        denoiser,
        schedule,
        solver=solver,
        grid=grid,
        x_init=x,
    )


def end_errors(solver, schedule, denoiser, grid, data):
    """Root mean square over components of each start's end error, (count,)."""
    x, ends = data
    return np.sqrt(
        np.mean((np.asarray(run(solver, schedule, denoiser, grid, x)) - ends) ** 2, -1)
    )


def root_mean_square(errors):
    return float(np.sqrt(np.mean(errors**2)))


@functools.cache
def fitted(schedule_name, solver, steps):
    schedule = SCHEDULES[schedule_name]()
    denoiser = dj.targets.denoiser(TARGET, schedule)
    return (
        schedule,
        denoiser,
        optimised_grid(
            schedule,
            denoiser,
            steps,
            jax.random.key(5),
            solver=solver,
            shape=(2,),
            **QUICK,
        ),
    )


CASES = [
    ("edm", solvers.heun(), 8),
    pytest.param("vp_linear", solvers.dpmpp_2m(), 8, marks=pytest.mark.slow),
    pytest.param("edm", solvers.heun(), 16, marks=pytest.mark.slow),
    pytest.param("vp_linear", solvers.heun(), 8, marks=pytest.mark.slow),
    pytest.param("vp_linear", solvers.heun(), 16, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("schedule_name, solver, steps", CASES)
def test_beats_every_fixed_family_on_unseen_starts(schedule_name, solver, steps):
    """Paired over 1024 starts, the mean error falls by more than 5 standard
    errors.

    It falls to half of that of all but the default family.
    """
    schedule, denoiser, grid = fitted(schedule_name, solver, steps)
    data = starts_and_ends(schedule, denoiser, 1024)
    ours = end_errors(solver, schedule, denoiser, grid, data)
    for name, family in FAMILIES.items():
        theirs = end_errors(solver, schedule, denoiser, family(schedule, steps), data)
        gain = theirs - ours
        assert gain.mean() > 5 * gain.std() / np.sqrt(len(gain))
        assert name == "angular" or ours.mean() < 0.5 * theirs.mean()


def test_one_interior_time_is_the_scanned_minimum(x64):
    """The best middle time of two Euler steps on N(0, 1) is that of a scan.

    Under EDM x_σ/√(1 + σ²) is constant, and one step is the factor 1 + (s −
    t)t/(1 + t²). Every start errs by |gain − exact| |x|, so that the best
    middle time is that of the gain. 2001 of them are tried. Descent comes
    within the scan's spacing δ in log σ, which costs ½ (d²log e/du²) δ²
    relatively: under 1e-4.
    """
    schedule = dj.schedules.edm()
    denoiser = dj.targets.denoiser(dj.targets.gaussian([0.0, 0.0], 1.0), schedule)
    first, last = schedule.t_max, schedule.t_min

    def error(middle):
        gain = (1 + (middle - first) * first / (1 + first**2)) * (
            1 + (last - middle) * middle / (1 + middle**2)
        )
        return np.abs(gain - np.sqrt((1 + last**2) / (1 + first**2)))

    grid = optimised_grid(
        schedule,
        denoiser,
        2,
        jax.random.key(0),
        solver=solvers.euler(),
        shape=(2,),
        examples=8,
        iterations=200,
    )
    scanned = error(np.geomspace(first, last, 2003)[1:-1])
    assert error(float(grid[1])) < scanned.min() * (1 + 1e-4)


def test_depends_on_its_key_alone():
    schedule, denoiser, grid = fitted(*CASES[0])
    solver, steps = CASES[0][1:]
    fit = functools.partial(
        optimised_grid, schedule, denoiser, steps, solver=solver, shape=(2,), **QUICK
    )
    np.testing.assert_array_equal(fit(jax.random.key(5)), grid)
    assert np.any(np.asarray(fit(jax.random.key(6))) != grid)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULES)
def test_is_a_grid_between_exact_ends_on_every_schedule(name):
    schedule = SCHEDULES[name]()
    denoiser = dj.targets.denoiser(TARGET, schedule)
    grid = optimised_grid(
        schedule, denoiser, 4, jax.random.key(0), shape=(2,), examples=8, iterations=3
    )
    assert grid.shape == (5,) and grid.dtype == jnp.float32
    assert float(grid[0]) == np.float32(schedule.t_max) and float(
        grid[-1]
    ) == np.float32(schedule.t_min)
    np.testing.assert_array_equal(dj.grids.check("grid", grid, schedule), grid)


def test_reports_errors_measured_on_the_held_out_half():
    """Errors reported are those of `sample_many` from the second half of
    x_init.

    They agree within float32 rounding of ends of size 1.
    """
    schedule = dj.schedules.vp_linear()
    denoiser = dj.targets.denoiser(TARGET, schedule)
    x, ends = starts_and_ends(schedule, denoiser, 32)
    grid, fit = optimised_grid(
        schedule,
        denoiser,
        8,
        x_init=x,
        iterations=20,
        info=True,
        solver=solvers.dpmpp_2m(),
    )
    grids = dict(grids_of(schedule, 8)) | {"fitted": grid}
    measured = {
        name: root_mean_square(
            end_errors(solvers.dpmpp_2m(), schedule, denoiser, g, (x[16:], ends[16:]))
        )
        for name, g in grids.items()
    }
    assert fit.error == pytest.approx(measured.pop("fitted"), abs=1e-4)
    assert fit.baselines == pytest.approx(measured, abs=1e-4)
    assert fit.error == min(fit.descended, fit.equidistributed, *fit.baselines.values())


def test_the_fitted_part_of_the_starts_does_not_decide_what_is_returned():
    """The judge sees only the starts that were not fitted.

    Fitted starts are at rest, D = x, so that each of their errors is 0: the
    descent can fit them at will. The judged ones flow to N(0, 1), where it
    cannot.
    """
    schedule = dj.schedules.edm()
    spread = dj.targets.denoiser(dj.targets.gaussian([0.0, 0.0], 1.0), schedule)
    denoiser = lambda x, t: jnp.where(jnp.abs(x) < 1e-3, x, spread(x, t))
    x = np.concatenate(
        [np.full((4, 2), 1e-9), 80 * np.random.default_rng(0).normal(size=(4, 2))]
    )
    _, fit = optimised_grid(
        schedule,
        denoiser,
        4,
        x_init=np.float32(x),
        iterations=0,
        info=True,
        solver=solvers.euler(),
    )
    assert min(fit.baselines.values()) > 0.01 and fit.error <= min(
        fit.baselines.values()
    )


@pytest.mark.slow
@pytest.mark.parametrize("unit", [1e-10, 1e10])
def test_the_fit_knows_no_unit(unit):
    """Data, noise levels and times in another unit have the same error in that
    unit.

    It agrees to the descent's rounding, but for `angular`, whose angle is that
    of data of unit scale.
    """
    errors = []
    for scale in (1.0, unit):
        schedule = dj.schedules.edm(0.002 * scale, 80 * scale)
        target = dj.targets.gaussian_mixture(
            TARGET.weights,
            np.asarray(TARGET.means) * scale,
            np.array([0.4, 0.7]) * scale,
        )
        denoiser = dj.targets.denoiser(target, schedule)
        _, fit = optimised_grid(
            schedule, denoiser, 6, KEY, shape=(2,), examples=16, iterations=5, info=True
        )
        fixed = [error for name, error in fit.baselines.items() if name != "angular"]
        errors.append(np.array([fit.descended, fit.equidistributed, *fixed]) / scale)
    np.testing.assert_allclose(errors[1], errors[0], rtol=0.02)


def test_without_descent_local_errors_are_equidistributed():
    """0 iterations need no gradient.

    They still halve the mean error of every family but the default on unseen
    starts.
    """
    schedule, steps = dj.schedules.edm(), 16
    exact = dj.targets.denoiser(TARGET, schedule)

    @jax.custom_vjp
    def denoiser(x, t):
        return exact(x, t)

    def backward(*_):
        raise AssertionError("differentiated")

    denoiser.defvjp(lambda x, t: (denoiser(x, t), None), backward)
    grid, fit = optimised_grid(
        schedule, denoiser, steps, KEY, shape=(2,), examples=64, iterations=0, info=True
    )
    assert fit.error == fit.equidistributed <= fit.descended
    data = starts_and_ends(schedule, exact, 512)
    ours = end_errors(solvers.heun(), schedule, exact, grid, data).mean()
    for name, family in FAMILIES.items():
        theirs = end_errors(
            solvers.heun(), schedule, exact, family(schedule, steps), data
        ).mean()
        assert ours < (1.0 if name == "angular" else 0.5) * theirs


def grids_of(schedule, steps):
    return [(name, family(schedule, steps)) for name, family in FAMILIES.items()]


@pytest.mark.parametrize("learning_rate", every([1e-6, 100.0], (100.0,)))
def test_is_never_worse_than_a_family_however_bad_the_descent(learning_rate):
    """Steps that lead nowhere, or far away, return the best family or better."""
    schedule = dj.schedules.vp_linear()
    denoiser = dj.targets.denoiser(TARGET, schedule)
    _, fit = optimised_grid(
        schedule,
        denoiser,
        8,
        jax.random.key(0),
        shape=(2,),
        examples=16,
        iterations=4,
        learning_rate=learning_rate,
        info=True,
    )
    assert fit.error <= min(fit.baselines.values())


VP, KEY = dj.schedules.vp_linear(), jax.random.key(0)
DENOISER = dj.targets.denoiser(TARGET, VP)
BAD_ARGUMENTS = {
    "no shape": (
        lambda: optimised_grid(VP, DENOISER, 4, KEY),
        ValueError,
        "shape must be given",
    ),
    "a number for a shape": (
        lambda: optimised_grid(VP, DENOISER, 4, KEY, shape=2),
        TypeError,
        "shape must be a tuple of positive integers, got 2",
    ),
    "no key": (
        lambda: optimised_grid(VP, DENOISER, 4, shape=(2,)),
        TypeError,
        "key must be a typed key",
    ),
    "no steps": (
        lambda: optimised_grid(VP, DENOISER, 0, KEY, shape=(2,)),
        ValueError,
        "steps must be at least 1, got 0",
    ),
    "no denoiser": (
        lambda: optimised_grid(VP, 3, 4, KEY, shape=(2,)),
        TypeError,
        "denoiser must be callable",
    ),
    "no schedule": (
        lambda: optimised_grid(3, DENOISER, 4, KEY, shape=(2,)),
        TypeError,
        "schedule must have alpha",
    ),
    "no signal": (
        lambda: optimised_grid(
            dj.schedules.rectified_flow(t_max=1.0), DENOISER, 4, KEY, shape=(2,)
        ),
        ValueError,
        "schedule must have a finite log-SNR",
    ),
    "stochastic": (
        lambda: optimised_grid(
            VP, DENOISER, 4, KEY, shape=(2,), solver=solvers.euler_maruyama()
        ),
        TypeError,
        "solver must be deterministic .*, euler_maruyama draws noise",
    ),
    "adaptive": (
        lambda: optimised_grid(
            VP, DENOISER, 4, KEY, shape=(2,), solver=solvers.adaptive()
        ),
        TypeError,
        "solver must take one fixed step after another, got adaptive",
    ),
    "a factory": (
        lambda: optimised_grid(VP, DENOISER, 4, KEY, shape=(2,), solver=solvers.heun),
        TypeError,
        "solver must be made by a factory",
    ),
    "one start": (
        lambda: optimised_grid(VP, DENOISER, 4, x_init=np.ones((1, 2))),
        ValueError,
        r"x_init must have shape \(N, ...\) with N at least 2, got \(1, 2\)",
    ),
    "other shape": (
        lambda: optimised_grid(VP, DENOISER, 4, x_init=np.ones((4, 2)), shape=(3,)),
        ValueError,
        r"x_init must have shape \(4, 3\), got \(4, 2\)",
    ),
    "one example": (
        lambda: optimised_grid(VP, DENOISER, 4, KEY, shape=(2,), examples=1),
        ValueError,
        "examples must be at least 2, got 1",
    ),
    "no rate": (
        lambda: optimised_grid(VP, DENOISER, 4, KEY, shape=(2,), learning_rate=0.0),
        ValueError,
        "learning_rate must be positive, got 0",
    ),
    "NaN": (
        lambda: optimised_grid(
            VP, lambda x, t: x * jnp.nan, 4, KEY, shape=(2,), examples=2, iterations=1
        ),
        ValueError,
        "denoiser must be finite along the probability flow",
    ),
    "other output": (
        lambda: optimised_grid(VP, lambda x, t: x[:1], 4, KEY, shape=(2,)),
        ValueError,
        r"denoiser must return its example's shape \(2,\), got \(1,\)",
    ),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_raises(name):
    assert_raises(*BAD_ARGUMENTS[name])
