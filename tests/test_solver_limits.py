"""Solvers at the ends of what a schedule can be: no signal at the start,
little of it in float32, t_min near 0.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import schedules, solvers
from diffjax.grids.steps import steps_of
from diffjax.solvers import driver, noise_source, requirements
from diffjax.solvers.base import any_grid
from tests.families import Own, every, quick
from tests.solver_members import FIXED, MULTISTEP

EPS = float(np.finfo(np.float32).eps)


@functools.partial(quick, static_argnums=0)
def ends(solver, problem, x, ts, noise):
    """The ends of runs from x (B, D) with noise (B, N, 3, D), above time 0."""

    def end(x, noise):
        source = noise_source.Source(lambda step, draw: noise[step, draw])
        return driver.run(
            source, solver, problem, x=x, ts=ts, path=False, zero_end=False
        )[0]

    return jax.vmap(end)(x, noise)


def run(solver, schedule, x, ts, noise, mean=3.0, std=0.5):
    denoiser = dj.targets.denoiser(dj.targets.gaussian([mean], [[std**2]]), schedule)
    return ends(solver, solvers.diffusion(schedule, denoiser), x, ts, noise)


# ----------------------------------------------------------------------- float32, α → 0


def cosine_betas(count=1000):
    t = np.linspace(0, 1, count + 1)
    bars = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - bars[1:] / bars[:-1], 0.999)


SMALL_SIGNAL = {
    "rectified_flow": (
        lambda: schedules.rectified_flow(0.99999),
        np.linspace(0.99999, 1e-3, 21),
    ),
    "cosine chain": (
        lambda: schedules.from_betas(cosine_betas()),
        np.arange(1000, 0, -50) / 1000,
    ),
    "vp_cosine": (
        lambda: schedules.vp_cosine(t_max=0.99999),
        np.linspace(0.99999, 1e-3, 21),
    ),
    "vp_linear": (lambda: schedules.vp_linear(0.1, 46.0), np.linspace(1, 1e-3, 21)),
    "own": (lambda: Own(1.5, 1e-3, 0.99999), np.linspace(0.99999, 1e-3, 21)),
}
"""Schedules with α of about 1e-5 at the start of 20 steps that are even in t."""

CONDITIONED = [name for name in FIXED if FIXED[name][0]().consumes == "denoiser"]
"""A reverse SDE has coefficients of the size of 1/(1 − t) at such a start: its
methods diverge there in exact arithmetic.
"""


ALWAYS = {
    "dpm_solver(2)": ("rectified_flow",),
    "dpm_2_ancestral": ("rectified_flow", "vp_cosine"),
    "dpm_2": ("own",),
    "unipc(3)": ("cosine chain",),
}
"""Pairs that the fast tests keep: a method of each construction, and each
schedule once.
"""


def in_both_precisions(solver, make, ts, noise):
    """Ends (16, 1) in float32 and in float64, of the same starts of the
    schedule's noise level at ts[0].
    """
    x, ts, results = (
        np.random.default_rng(0).normal(size=(16, 1)),
        ts.astype(np.float32),
        [],
    )
    for dtype in (np.float32, np.float64):
        with jax.enable_x64(dtype == np.float64):
            schedule = make()
            arguments = (
                a.astype(dtype) for a in (float(schedule.sigma(ts[0])) * x, ts, noise)
            )
            results.append(np.asarray(run(solver, schedule, *arguments)))
    return results


@pytest.mark.parametrize(
    ("name", "of"),
    [
        pytest.param(
            name, of, marks=() if of in ALWAYS.get(name, ()) else pytest.mark.slow
        )
        for name in CONDITIONED
        for of in SMALL_SIGNAL
    ],
)
def test_float32_agrees_with_float64_from_a_start_of_little_signal(name, of):
    """The step's condition: what a rounding of the start or of a denoiser
    output can become in float64.

    An output may be multiplied by the sum of a step's |gains|, which float64's
    own coefficients give. Over 20 steps of up to 4 outputs and 64 units of
    rounding each the difference is below 20 · 64 · ε times the largest of
    these sums.
    """
    solver, (make, ts) = FIXED[name][0](), SMALL_SIGNAL[of]
    noise = np.random.default_rng(1).normal(size=(16, len(ts) - 1, 3, 1))
    results = in_both_precisions(solver, make, ts, noise)
    with jax.enable_x64(True):
        problem = solvers.Problem(make(), lambda x, t: x, zero_end=False)
        rows = jax.tree.leaves(solver.prepare(problem, ts.astype(np.float32))[1:])
    largest = max(1.0, *(float(np.abs(leaf).max()) for leaf in rows))
    np.testing.assert_allclose(
        results[0], results[1], rtol=0, atol=20 * 64 * EPS * largest
    )


def test_the_cosine_schedules_small_alpha_is_exact_to_rounding():
    """Near t = 1 the cosine of a rounded angle is off by half a percent.

    So is the drift α′/α of the reverse SDE.
    """
    schedule, t = (
        schedules.vp_cosine(t_max=0.99999),
        np.asarray([0.3, 0.5, 0.6, 0.9, 0.999, 0.99999], np.float32),
    )
    alpha = jax.jit(jax.vmap(jax.value_and_grad(schedule.alpha)))
    single = alpha(t)
    with jax.enable_x64(True):
        double = alpha(t.astype(np.float64))
    for ours, exact in zip(single, double, strict=True):
        np.testing.assert_allclose(ours, exact, rtol=8 * EPS)


FLOWS = [name for name in FIXED if FIXED[name][0]().consumes == "velocity"]


@pytest.mark.parametrize(
    ("name", "of"),
    [
        pytest.param(name, of, marks=() if of == "cosine chain" else pytest.mark.slow)
        for name in FLOWS
        for of in SMALL_SIGNAL
    ],
)
def test_the_flow_in_float32_agrees_with_float64_from_a_start_of_little_signal(
    name, of
):
    """Over 20 steps of up to 4 stages with 4 roundings each: 20 · 16 · ε times
    the largest state, which is 3 + 4 · 0.5.

    On a chain the slope of α jumps at its indices, where the grid's times are,
    and the middles of its steps.
    """
    solver, (make, ts) = FIXED[name][0](), SMALL_SIGNAL[of]
    results = in_both_precisions(solver, make, ts, np.zeros((16, len(ts) - 1, 3, 1)))
    np.testing.assert_allclose(results[0], results[1], rtol=0, atol=20 * 16 * EPS * 5.0)


@pytest.mark.parametrize("offset", (-1e-7, 0.0, 1e-7))
def test_the_slope_of_a_chain_at_an_index_is_the_mean_of_both_sides(offset, x64):
    """At the ends there is one side. A quarter of a cell away it is the cell's."""
    chain = schedules.from_betas(cosine_betas(100))
    cells = 100 * np.diff(chain.log_snrs)
    expected = np.concatenate([cells[:1], 0.5 * (cells[1:] + cells[:-1]), cells[-1:]])
    at_indices = chain.times * (1 + offset)
    rate = lambda t: np.asarray(jax.jit(jax.vmap(jax.grad(chain.log_snr)))(t))
    np.testing.assert_allclose(rate(at_indices), expected, rtol=1e-10)
    np.testing.assert_allclose(rate(chain.times[:-1] + 0.0025), cells, rtol=1e-10)
    np.testing.assert_allclose(
        schedules.log_snr_rate(chain, at_indices.astype(np.float32)),
        expected,
        rtol=1e-6,
    )


def test_steps_between_indices_follow_the_smooth_flow_to_second_order(x64):
    """RK4 over every tenth index of DDPM's chain, in the variance of N(0, 1/4).

    Slopes of one side only are off by λ″/2T at the ends of each step and leave
    a share of 3e-3 of the variance. Means leave the chords' own error of the
    order 1/T².
    """
    chain = schedules.from_betas(np.linspace(1e-4, 0.02, 1000))
    ts = np.arange(900, 0, -10) / 1000
    gain = float(
        run(
            solvers.rk4(), chain, np.ones((1, 1)), ts, np.zeros((1, 89, 3, 1)), mean=0.0
        )[0, 0]
    )
    variance = lambda t: float(0.25 * chain.alpha(t) ** 2 + chain.sigma(t) ** 2)
    assert abs(gain**2 * variance(ts[0]) / variance(ts[-1]) - 1) < 1e-4


# --------------------------------------------------------------------- no signal at all

STARTS_WITHOUT_SIGNAL = (
    "ddim",
    "ddim(1)",
    "ddpm",
    *MULTISTEP,
    "dpmpp_2m_sde",
    "dpmpp_3m_sde",
    "sa_solver",
    "er_sde",
)
WITHOUT_SIGNAL = {
    "zero terminal SNR": (
        lambda: schedules.rectified_flow(1.0),
        np.linspace(1, 1e-3, 33),
    ),
    "α negative by rounding": (lambda: Own(1.0, 1e-3, 1.0), np.linspace(1, 1e-3, 33)),
}


@pytest.mark.parametrize(
    "name",
    every(
        STARTS_WITHOUT_SIGNAL, ("ddim", "unipc(3)", "sa_solver", "adams_bashforth(4)")
    ),
)
def test_a_first_step_without_signal_is_ddims(name):
    """x ← α_s D + σ_s ε̂ with ε̂ = x/σ_t, or its stochastic share of fresh
    noise, and nothing later is infinite.
    """
    solver = FIXED[name][0]()
    x = np.full((1, 1), 0.7, np.float32)
    for make, ts in WITHOUT_SIGNAL.values():
        schedule, ts = make(), ts.astype(np.float32)
        noise_here = np.full((1, len(ts) - 1, 3, 1), -0.4, np.float32)
        alpha, sigma = float(schedule.alpha(ts[1])), float(schedule.sigma(ts[1]))
        one = ts[:3]
        row = jax.tree.map(
            np.asarray,
            solver.prepare(
                solvers.Problem(schedule, lambda x, t: x, zero_end=False), one
            ).update,
        )
        keep, gain = row.keep[0], row.gains[0][0]
        std = row.stds[0][0] if row.stds else 0.0
        if alpha > 1e-12:  # below, any split of the noise is exact to rounding
            np.testing.assert_allclose(gain, alpha, rtol=1e-5)
        np.testing.assert_allclose(
            np.hypot(keep * float(schedule.sigma(ts[0])), std), sigma, rtol=1e-5
        )
        end = np.asarray(run(solver, schedule, x, ts, noise_here))
        assert abs(float(end[0, 0]) - 3.0) < 5 * 0.5, (
            end
        )  # within five standard deviations of the data


@pytest.mark.parametrize(
    "name", [name for name in FIXED if name not in STARTS_WITHOUT_SIGNAL]
)
def test_a_solver_starts_without_signal_or_says_that_it_cannot(name):
    solver, schedule = FIXED[name][0](), schedules.rectified_flow(1.0)
    if (
        solver.traits.check_grid is any_grid
        or name
        in (
            "dpm_solver(1)",
            "ddim(0.5)",
            "ddim(between)",
            "ddpm(forward)",
            "euler_ancestral",
            "dpmpp_2m_sde(0.5)",
        )
        or name.startswith(("sa_", "er_sde"))
    ):
        return requirements.check_grid(
            "ts",
            solver,
            solvers.Problem(schedule, lambda x, t: x),
            np.linspace(1, 1e-3, 5),
        )
    with pytest.raises(ValueError, match="grid must start below t=1"):
        requirements.check_grid(
            "ts",
            solver,
            solvers.Problem(schedule, lambda x, t: x),
            np.linspace(1, 1e-3, 5),
        )


def test_a_drift_of_alpha_at_rounding_raises():
    schedule = Own(1.0, 1e-3, 1.0)  # cos(π/2) = −4e-8 in float32, 6e-17 in float64
    for x64 in (False, True):
        with (
            jax.enable_x64(x64),
            pytest.raises(ValueError, match="grid must start below t=1"),
        ):
            solvers.euler_maruyama().traits.check_grid(schedule, np.asarray([1.0, 0.5]))


def test_a_small_signal_that_is_known_exactly_is_no_zero():
    """α = e^{−20} of `vp_linear` has all its digits, and a drift.

    A cos(t π/2) of the same size near t = 1 is rounding.
    """
    exact, rounded = (
        schedules.vp_linear(0.1, 80.0),
        Own(1.0, 1e-3, np.nextafter(np.float32(1), np.float32(0))),
    )
    assert 0 < float(exact.alpha(1.0)) < float(rounded.alpha(rounded.t_max)) < 1e-7
    for solver in (
        solvers.euler_maruyama(),
        solvers.adaptive_sde(),
        solvers.edm_stochastic(),
        solvers.dpm_solver(),
    ):
        solver.traits.check_grid(exact, np.float32([1.0, 0.5]))
        with pytest.raises(ValueError, match="grid must start below t=0.99999"):
            solver.traits.check_grid(rounded, np.float32([rounded.t_max, 0.5]))


# --------------------------------------------------------------------------- tiny t_min


LAST_STAGES = ("heun", "rk4", "midpoint", "stochastic_heun", "sra1")
TINY_ENDS = (
    lambda: schedules.edm(1e-7),
    lambda: schedules.vp_linear(t_min=1e-12),
    lambda: schedules.sub_vp(t_min=1e-9),
)


def to_tiny_end(schedule):
    """32 even steps in float32 down to the schedule's t_min."""
    ts = np.linspace(schedule.t_max, schedule.t_min, 33).astype(np.float32)
    ts[-1] = schedule.t_min
    return ts


def within(least, x, t):
    """A field of ones, NaN below the time `least`."""
    return jnp.where(t < least, jnp.nan, jnp.ones_like(x))


@pytest.mark.parametrize("name", LAST_STAGES)
def test_no_stage_stands_below_the_end_of_the_grid(name):
    """t + (s − t) rounds to 0 for s below the rounding of t.

    A constant field is then integrated exactly.
    """
    solver = FIXED[name][0]()
    for make in TINY_ENDS:
        ts = to_tiny_end(make())
        field = jax.tree_util.Partial(within, ts[-1])
        if solver.consumes == "velocity":
            problem = solvers.Problem(velocity=field, zero_end=False)
        else:
            problem = solvers.Problem(sde=dj.sde.SDE(field, field), zero_end=False)
        end = ends(
            solver,
            problem,
            np.zeros((1, 1), np.float32),
            ts,
            np.zeros((1, 32, 3, 1), np.float32),
        )
        np.testing.assert_allclose(end[0, 0], ts[-1] - ts[0], rtol=32 * EPS)


@pytest.mark.parametrize("name", every(LAST_STAGES, ("heun", "stochastic_heun")))
def test_a_last_stage_at_a_tiny_time_errs_by_its_rounding(name):
    """The last stage multiplies x − αD by at most h g²/σ² = 2h σ′/σ ≤ 2h/t,
    half of it in a Heun step.

    There x − αD is far below x, whose few roundings are within 8ε of the size
    that x and D have.
    """
    for make in TINY_ENDS:
        schedule = make()
        ts = to_tiny_end(schedule)
        x = np.full((1, 1), 0.3 * float(schedule.sigma(ts[0])), np.float32)
        end = np.asarray(
            run(FIXED[name][0](), schedule, x, ts, np.zeros((1, 32, 3, 1), np.float32))
        )
        size = 3.0 + 5 * 0.5 + float(schedule.sigma(ts[-2]))
        rounding = 8 * EPS * size * float((ts[-2] - ts[-1]) / ts[-1])
        assert abs(float(end[0, 0]) - 3.0) < 5 * 0.5 + rounding, end


def test_stage_times_are_exact():
    ts = np.asarray([1.0, 0.5, 1e-12], np.float32)
    steps = steps_of(ts)
    np.testing.assert_array_equal(solvers.base.inner_times(steps, 1), ts[1:])
    steps = steps_of(np.asarray([1.0, 0.5, 0.0], np.float32))
    np.testing.assert_array_equal(solvers.base.inner_times(steps, 1), [0.5, 0.5])


def test_a_chain_captured_by_a_program_still_has_values():
    """JAX keeps a float32 copy of an array that a float32 program captured,
    and takes it for the array in float64.
    """
    schedule = schedules.from_betas(np.linspace(1e-4, 0.02, 1000))
    ts = np.asarray([0.98, 0.5, 0.1], np.float32)
    inside = jax.jit(lambda x: x * schedule.alpha(ts[0]) + schedule.sigma(ts[1]))(ts)
    np.testing.assert_allclose(
        inside, ts * schedule.alpha(ts)[0] + schedule.sigma(ts)[1], rtol=64 * EPS
    )


# ---------------------------------------------------------------------- declared orders


ORDERS = (
    {
        name: make()
        for name, (make, *_) in MULTISTEP.items()
        if not name.startswith(("sa_", "ipndm"))
    }
    | {
        f"sa_solver({p}, {c}, 0)": solvers.sa_solver(p, c, 0.0)
        for p in (1, 2, 3)
        for c in range(5)
    }
    | {
        f"unipc({p}, {b})": solvers.unipc(p, b)
        for p in (1, 2, 3)
        for b in ("bh1", "bh2")
    }
    | {
        f"deis({p}, {c})": solvers.deis(p, c)
        for p in (1, 2, 3)
        for c in ("t", "rho", "log_rho")
    }
    | {f"dpmpp_3m({c})": solvers.dpmpp_3m(c) for c in (True, False)}
)
"""Every combination of arguments that a factory of deterministic multistep
methods accepts.
"""


def order_from_exact_history(solver, eta=0.0, resolutions=(128, 256)):
    """The measured order on y′ = −(1 + η²)(y − D) in λ, D = sin λ + 0.3 y, a
    mean of the reverse SDE.

    The exact solution starts the method, so that no starting step has a share
    in the error. Run in numpy: no program.
    """
    errors, twice = [], 1 + eta**2
    rate = 0.7 * twice
    exact = lambda u: (
        np.exp(-rate * u) + twice * (rate * np.sin(u) - np.cos(u)) / (rate**2 + 1)
    )
    denoiser = lambda x, t: np.sin(-np.log(t)) + 0.3 * x
    problem = solvers.Problem(schedules.edm(0.1, 2.0), denoiser, zero_end=False)
    for steps in resolutions:
        levels = np.linspace(0.0, 1.0, steps + 1)
        inputs = jax.tree.map(
            np.asarray, solver.prepare(problem, jnp.asarray(np.exp(-levels)))
        )
        at = lambda i, inputs=inputs: jax.tree.map(lambda leaf: leaf[i], inputs)
        past = len(solver.init(problem, np.zeros(()), at(0))[0])
        earlier = tuple(
            at(i).remembered(exact(levels[i]), denoiser(exact(levels[i]), at(i).t))
            for i in reversed(range(past))
        )
        x = exact(levels[past])
        predicted = (
            0.0
            if not past
            else None
            if inputs.correction is None
            else x - inputs.update.keep[past - 1] * exact(levels[past - 1])
        )
        state = earlier, predicted
        for i in range(past, steps):
            x, state = solver.step(problem, at(i), lambda i: 0.0, x, state)
        errors.append(abs(x - exact(1.0)))
    return np.log(errors[0] / errors[1]) / np.log(resolutions[1] / resolutions[0])


@pytest.mark.parametrize("name", ORDERS)
def test_every_combination_has_its_declared_order(name, x64):
    assert abs(order_from_exact_history(ORDERS[name]) - ORDERS[name].order) < 0.25


@pytest.mark.parametrize("predictor", (1, 2, 3))
def test_sa_solver_with_noise_has_its_declared_order_in_the_mean(predictor, x64):
    """The mean of a linear problem has the order without noise, and the
    declared one is at most 2.
    """
    for corrector in range(5):
        for eta in (0.5, 1.0):
            solver = solvers.sa_solver(predictor, corrector, eta)
            without = solvers.sa_solver(predictor, corrector, 0.0).order
            assert solver.order == min(2, without)
            assert (
                abs(order_from_exact_history(solver, eta, (256, 512)) - without) < 0.25
            )


STOCHASTIC = (
    {
        f"sa_solver({p}, {c}, {eta})": solvers.sa_solver(p, c, eta)
        for p in (1, 2, 3)
        for c in range(5)
        for eta in (0.3, 1.0)
    }
    | {
        f"{make.__name__}({eta})": make(eta)
        for make in (
            solvers.ddim,
            solvers.dpm_2_ancestral,
            solvers.dpmpp_2m_sde,
            solvers.dpmpp_2s,
            solvers.dpmpp_3m_sde,
            solvers.dpmpp_sde,
        )
        for eta in (0.3, 1.0)
    }
    | {
        f"{make.__name__}({order}, {eta})": make(order, eta)
        for make, orders in ((solvers.er_sde, (1, 2, 3)), (solvers.seeds, (2, 3)))
        for order in orders
        for eta in (0.3, 1.0, solvers.eta_er_sde())
    }
    | {
        f"dpmpp_3m_sde({eta}, False)": solvers.dpmpp_3m_sde(eta, False)
        for eta in (0.3, 1.0)
    }
    | {
        f"ddpm({variance})": solvers.ddpm(variance)
        for variance in ("posterior", "forward", 0.5)
    }
    | {
        make.__name__: make()
        for make in (
            solvers.euler_maruyama,
            solvers.reverse_diffusion,
            solvers.stochastic_heun,
            solvers.sra1,
        )
    }
    | {
        "edm_stochastic": solvers.edm_stochastic(
            churn=5.0, noise_min=0.0, noise_max=1e3, noise_scale=1.0
        )
    }
)
"""Every way to make a stochastic solver of a declared weak order, at a low and
the full noise level.
"""


def variance_error(solver, steps, start, end):
    """Error of a solver in the variance of N(0, 1/4) + t² noise at the end of
    geometric steps, exact up to rounding.

    Every step is linear in the start and in all noise: x holds its
    coefficients by them.
    """
    problem = solvers.diffusion(
        schedules.edm(0.01, 100.0), lambda x, t: 0.25 / (0.25 + t**2) * x
    )
    problem = dataclasses.replace(driver.derive(solver, problem), zero_end=False)
    ts = np.geomspace(start, end, steps + 1)
    inputs = jax.tree.map(np.asarray, solver.prepare(problem, jnp.asarray(ts)))
    x, units = np.zeros(1 + 3 * steps), np.eye(3 * steps)
    x[0] = np.sqrt(0.25 + start**2)
    state = solver.init(problem, x, None)
    for i in range(steps):
        step = jax.tree.map(lambda leaf, i=i: leaf[i], inputs)
        x, state = solver.step(
            problem, step, lambda k, i=i: np.append(0.0, units[3 * i + k]), x, state
        )
    return float(x @ x) - 0.25 - end**2


@pytest.mark.parametrize(
    "name",
    every(
        STOCHASTIC,
        [
            name
            for name in STOCHASTIC
            if name.startswith(("sa_solver", "er_sde(3", "seeds(3"))
        ],
    ),
)
def test_the_variance_has_the_declared_weak_order(name, x64):
    """Errors a h^p + b h^{p+1} + … at three resolutions, of which differences
    leave a h^p.

    For sa_solver(2, 2, 1) and (3, 2, 1) a is so small that what is measured
    lies between p and p + 1.
    """
    solver, p = STOCHASTIC[name], STOCHASTIC[name].order
    errors = [variance_error(solver, steps, 1.0, 0.1) for steps in (64, 128, 256)]
    first, second = (
        2 ** (p + 1) * fine - coarse
        for coarse, fine in zip(errors, errors[1:], strict=False)
    )
    measured = np.log2(first / second)
    assert (
        p - 0.1
        < measured
        < (
            p + 1
            if name in ("sa_solver(2, 2, 1.0)", "sa_solver(3, 2, 1.0)")
            else p + 0.1
        )
    )


def test_churn_is_of_order_two_where_it_is_fixed_and_of_none_where_it_grows(x64):
    def slope(per_step, fixed):
        errors = []
        for steps in (256, 512):
            churn = per_step * steps + fixed
            solver = solvers.edm_stochastic(
                churn=churn, noise_min=0.0, noise_max=1e3, noise_scale=1.0
            )
            errors.append(variance_error(solver, steps, 10.0, 0.1))
        return np.log2(errors[0] / errors[1])

    assert abs(slope(0.0, 5.0) - 2) < 0.25
    assert (
        slope(0.4, 0.0) < 0.6
    )  # a step down never gets shorter than the noise that it undoes
    assert solvers.edm_stochastic(noise_scale=0.0).order is None


def test_churn_without_noise_is_accepted():
    """noise_scale = 0 raises the level without noise: for D = 0 the state
    stays, and Heun's step carries it down.
    """
    solver = solvers.edm_stochastic(
        churn=4.0, noise_min=0.0, noise_max=1e3, noise_scale=0.0
    )
    problem = solvers.diffusion(schedules.edm(0.01, 100.0), lambda x, t: 0.0 * x)
    ts = np.asarray([10.0, 5.0], np.float32)
    raised = 1 + np.sqrt(2) - 1
    end = ends(
        solver,
        problem,
        np.ones((1, 1), np.float32),
        ts,
        np.ones((1, 1, 3, 1), np.float32),
    )
    np.testing.assert_allclose(end[0, 0], 5.0 / (10.0 * raised), rtol=1e-5)


ETAS = (0.5, 1.0, solvers.eta_er_sde(), solvers.eta_between(0.05, 20.0))
FEW_ULPS = {
    f"{make.__name__}{arguments}": make(*arguments)
    for make, choices in (
        (solvers.seeds, [(order, eta) for order in (2, 3) for eta in (0.0, *ETAS)]),
        (solvers.dpmpp_sde, [(eta,) for eta in ETAS]),
        (solvers.dpmpp_2s, [(eta,) for eta in (0.0, *ETAS)]),
        (solvers.dpm_solver, [(2,), (3,)]),
        (solvers.exponential_runge_kutta, [(2,), (3,), (4,)]),
    )
    for arguments in choices
}


@pytest.mark.parametrize("name", FEW_ULPS)
def test_steps_of_few_ulps_hardly_move_the_state(name):
    """Their stages round to the start or to the end of the step.

    The standard deviation of all draws is 10 √(2 · 11 · 1e-7), of which 0.08 is five.
    """
    ulps = np.cumsum([0, 1, 1, 1, 1, 2, 2, 3], dtype=np.float32)
    ts = np.float32(10) - ulps * np.spacing(np.float32(9.9))
    noise = np.asarray(jax.random.normal(jax.random.key(0), (4, 7, 3, 1)))
    x = np.full((4, 1), 10.0, np.float32)
    end = run(FEW_ULPS[name], schedules.edm(0.01, 10.0), x, ts, noise)
    np.testing.assert_allclose(end, x, rtol=0, atol=0.08)
