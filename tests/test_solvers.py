"""Solvers against exactly propagated moments, their orders and their contract."""

import dataclasses
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import schedules, solvers
from diffjax.solvers import driver, noise_source
from tests.families import SCHEDULES, every, quick
from tests.solver_members import (
    ALL,
    CONSTRUCTIONS,
    DETERMINISTIC,
    FIXED,
    MIXTURE,
    MULTISTEP,
    NOISE_SLOTS,
    STOCHASTIC,
    assert_moments,
    check_samples_are_propagated,
    gaussian,
    mixture,
    propagated_distribution,
)


@pytest.mark.parametrize(
    "name", every(FIXED, (*(set(CONSTRUCTIONS) & set(STOCHASTIC)), "heun", "unipc(2)"))
)
def test_samples_of_a_gaussian_have_the_moments_that_steps_propagate(name):
    check_samples_are_propagated(
        FIXED[name][0](), dj.schedules.vp_linear(), steps=12, count=20_000
    )


@pytest.mark.parametrize("name", every(SCHEDULES, ("edm", "rectified_flow", "own")))
def test_the_propagated_distribution_holds_on_every_schedule(name):
    check_samples_are_propagated(
        solvers.stochastic_heun(), SCHEDULES[name](), steps=12, count=20_000
    )


@pytest.mark.slow
@pytest.mark.parametrize("schedule_name", SCHEDULES)
@pytest.mark.parametrize("name", FIXED)
def test_every_solver_has_its_propagated_distribution_on_every_schedule(
    name, schedule_name
):
    check_samples_are_propagated(
        FIXED[name][0](), SCHEDULES[schedule_name](), steps=12, count=20_000
    )


@pytest.mark.slow
@pytest.mark.parametrize("schedule_name", SCHEDULES)
@pytest.mark.parametrize("name", FIXED)
def test_every_solver_converges_on_every_schedule(name, schedule_name, x64):
    """From 64 to 256 steps the bias of the propagated moments falls by half at
    least.

    Order 1 takes away three quarters.

    A chain's log-SNR has corners at its entries: to a method in t they are
    jumps of the field, whose error is of first order in the table's spacing
    1/T, with a sign of its own at each step.
    """
    schedule, target, biases = SCHEDULES[schedule_name](), gaussian(), []
    grids = [dj.grids.log_snr(schedule, steps) for steps in (64, 256)]
    exact, corners = (
        target.noised(schedule, schedule.t_min),
        1 / getattr(schedule, "steps", math.inf),
    )
    for grid in grids:
        mean, covariance = propagated_distribution(
            FIXED[name][0](), schedule, target, grid
        )
        biases.append(
            float(
                jnp.linalg.norm(covariance - exact.covariance())
                + jnp.linalg.norm(mean - exact.mean())
            )
        )
    assert biases[1] < max(0.5 * biases[0], corners), biases


# ------------------------------------------------------------------------------- orders


def measured_order(errors, factor=2.0):
    """The slope of log error against log step between the last two resolutions."""
    return math.log(errors[-2] / errors[-1]) / math.log(factor)


def end_points(solver, schedule, target, grid, starts):
    return _ends(
        solver,
        solvers.diffusion(schedule, dj.targets.denoiser(target, schedule)),
        starts,
        grid,
    )


@functools.partial(quick, static_argnums=0)
def _ends(solver, problem, starts, grid):
    return jax.vmap(lambda x: solvers.integrate(None, solver, problem, x=x, ts=grid))(
        starts
    )


def root_mean_square(difference):
    return float(np.sqrt(np.mean(np.square(difference))))


@pytest.fixture(scope="module")
def flow():
    """Schedule, target, 16 starts at t_max and the ends of their probability
    flow to a tolerance of 1e-12.
    """
    with jax.enable_x64(True):
        schedule, target = dj.schedules.vp_linear(), mixture()
        starts = jax.vmap(target.noised(schedule, schedule.t_max).sample)(
            jax.random.split(jax.random.key(0), 16)
        )
        exact = solvers.adaptive(1e-12, 1e-12, max_steps=100_000)
        return (
            schedule,
            target,
            starts,
            end_points(exact, schedule, target, dj.grids.log_snr(schedule, 1), starts),
        )


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_order(name, x64, flow):
    """Errors at the end of the flow of an overlapping mixture fall at the
    declared order, on a VP log-SNR grid.
    """
    factory, order, _, _ = DETERMINISTIC[name]
    solver, (schedule, target, starts, reference) = factory(), flow
    assert solver.order == order
    fine = dj.grids.log_snr(schedule, 512)
    half = end_points(solver, schedule, target, fine[:257], starts)
    # a step has no memory: the halves are the whole, but for heunpp
    last = (fine, starts) if name == "heunpp" else (fine[256:], half)
    ends = (
        end_points(solver, schedule, target, *of) for of in ((fine[::2], starts), last)
    )
    errors = [root_mean_square(end - reference) for end in ends]
    assert abs(measured_order(errors) - order) < 0.2, errors


def from_exact_history(solver, problem, ts, states):
    """The end of a multistep method at ts[-1] given the flow's own states at
    its first times.
    """
    inputs = solver.prepare(problem, ts)
    past = len(solver.init(problem, states[0], inputs)[0])
    at = lambda i: jax.tree.map(lambda leaf: leaf[i], inputs)
    outputs = tuple(
        at(i).remembered(states[i], problem.denoiser(states[i], at(i).t))
        for i in reversed(range(past))
    )
    predicted = (
        None
        if inputs.correction is None
        else states[past] - inputs.update.keep[past - 1] * states[past - 1]
    )

    def body(carry, step):
        return solver.step(problem, step, None, *carry), None

    rest = jax.tree.map(lambda leaf: leaf[past:], inputs)
    (end, _), _ = jax.lax.scan(body, (states[past], (outputs, predicted)), rest)
    return end


@pytest.mark.parametrize("name", every(MULTISTEP, ("dpmpp_2m", "sa_solver(3, 4, 0)")))
def test_multistep_order_from_an_exact_history(name, x64, flow):
    """With the flow's own states at the first times the order is the one declared.

    The fast tests of solver limits measure it for every method on a linear problem.
    """
    factory, order, _, _ = MULTISTEP[name]
    solver, (schedule, target, starts, reference) = factory(), flow
    assert solver.order == order
    problem = solvers.diffusion(schedule, dj.targets.denoiser(target, schedule))
    exact, errors = solvers.adaptive(1e-12, 1e-12, max_steps=100_000), []
    for steps in (256, 512):
        grid = dj.grids.log_snr(schedule, steps)
        states = quick(
            jax.vmap(
                lambda x: solvers.integrate(
                    None,
                    exact,
                    problem,
                    x=x,
                    ts=grid[:5],
                    path=True,
                )
            )
        )(starts)
        ends = quick(jax.vmap(lambda x: from_exact_history(solver, problem, grid, x)))(
            states
        )
        errors.append(root_mean_square(ends - reference))
    assert abs(measured_order(errors) - order) < 0.2, errors


@pytest.mark.parametrize("name", every(MULTISTEP, CONSTRUCTIONS))
def test_multistep_order_from_its_own_start(name, x64, flow):
    """Lower orders at the first steps, in the middle of the flow where it is
    far from linear, leave 2 at the least.
    """
    factory, order, _, _ = MULTISTEP[name]
    schedule, target, starts, _ = flow
    middle = schedules.log_snr(schedule, jnp.array([0.4, schedule.t_min]))
    starts = 0.8 * starts
    grid = lambda steps: schedules.time_of_log_snr(
        schedule, jnp.linspace(*middle, steps + 1)
    )
    exact = solvers.adaptive(1e-12, 1e-12, max_steps=100_000)
    reference = end_points(exact, schedule, target, grid(1), starts)
    ends = [
        end_points(factory(), schedule, target, grid(steps), starts)
        for steps in (256, 512)
    ]
    measured = measured_order([root_mean_square(end - reference) for end in ends])
    assert measured > min(order, 2) - 0.2


@pytest.mark.parametrize("name", every(FIXED, set(CONSTRUCTIONS) & set(STOCHASTIC)))
def test_the_moments_of_a_gaussian_converge_at_the_order(name, x64):
    """The bias in mean and covariance falls at the weak order or faster."""
    factory, order, _, _ = FIXED[name]
    schedule, target = dj.schedules.vp_linear(), gaussian()
    exact = target.noised(schedule, schedule.t_min)
    biases = []
    for steps in (256, 512):
        mean, covariance = propagated_distribution(
            factory(), schedule, target, dj.grids.log_snr(schedule, steps)
        )
        biases.append(
            float(
                jnp.linalg.norm(covariance - exact.covariance())
                + jnp.linalg.norm(mean - exact.mean())
            )
        )
    measured = measured_order(biases)
    assert measured > order - 0.2, biases
    # on a Gaussian sa_solver is of order 3, unless its noise sets in within a step,
    # and er_sde's leading error changes its sign near these steps
    if name in STOCHASTIC and not name.startswith(("sa_solver", "er_sde")):
        assert abs(measured - order) < 0.2, biases


def test_reverse_diffusion_is_ddpm_on_its_own_chain(x64):
    """On a chain's consecutive indices the step is (2 − √(1 − β)) x + β s + √β
    z (Song et al. 2021, eq. 46 and E).
    """
    betas = np.linspace(1e-3, 0.2, 20)
    schedule = dj.schedules.from_betas(betas)
    denoiser = dj.targets.denoiser(mixture(), schedule)
    x, z = jnp.array([0.3, -0.7]), jnp.array([1.0, -0.5])
    ts = dj.grids.from_indices(schedule, [8, 7])
    problem = solvers.diffusion(schedule, denoiser)
    ours, _ = driver.run(
        noise_source.Source(lambda step, draw: z),
        solvers.reverse_diffusion(),
        problem,
        x=x,
        ts=ts,
        path=False,
    )
    score = dj.predictions.score(schedule, denoiser)(x, ts[0])
    beta = betas[7]
    chex.assert_trees_all_close(
        ours, (2 - np.sqrt(1 - beta)) * x + beta * score + np.sqrt(beta) * z, rtol=1e-12
    )


# ------------------------------------------------------------------ the common contract


@pytest.mark.parametrize("name", every(ALL, CONSTRUCTIONS))
def test_the_path_ends_where_the_run_ends_and_a_step_to_zero_in_the_denoiser(name):
    """The path starts at x and ends where the run does.

    From the last time before 0 that is D(x, t), whatever the solver.
    """
    schedule = dj.schedules.vp_linear()
    problem = solvers.diffusion(schedule, dj.targets.denoiser(mixture(), schedule))
    x, ts = (
        np.array([0.4, -0.2], np.float32),
        np.array([0.45, 0.4, 0.35, 0.3, 0.0], np.float32),
    )
    path, end, denoised = map(
        np.asarray, _path_and_end(ALL[name](), problem, jax.random.key(0), x, ts)
    )
    assert path.shape == (5, 2)
    np.testing.assert_array_equal(path[0], x)
    np.testing.assert_allclose(path[-1], end, rtol=1e-6)
    np.testing.assert_allclose(end, denoised, rtol=1e-5)


@functools.partial(quick, static_argnums=0)
def _path_and_end(solver, problem, key, x, ts):
    path = solvers.integrate(key, solver, problem, x=x, ts=ts, path=True)
    return (
        path,
        solvers.integrate(key, solver, problem, x=x, ts=ts),
        problem.denoiser(path[-2], ts[-2]),
    )


@pytest.mark.parametrize(
    "name",
    every(
        [name for name in FIXED if not FIXED[name][0]().traits.past],
        ("heun", "dpm_solver(3)", "ddpm"),
    ),
)
def test_gradients_of_a_last_step_to_zero_are_the_denoisers(name, x64):
    """By state, time and a parameter of the schedule: no 0/0 of the step to 0
    enters them.
    """
    point = (np.array([0.4, -0.2]), 0.3, 20.0)
    ours, exact = (_slopes(solver, *point) for solver in (FIXED[name][0](), None))
    chex.assert_trees_all_close(ours, exact, rtol=1e-8, atol=1e-10)


@functools.partial(quick, static_argnums=0)
def _slopes(solver, *point):
    """Derivatives by x, t and beta_max of the end of a step to 0, or of the
    denoiser where solver is None.
    """

    def end(x, t, beta_max):
        schedule = dj.schedules.vp_linear(beta_max=beta_max)
        denoiser = dj.targets.denoiser(mixture(), schedule)
        if solver is None:
            return denoiser(x, t)
        problem = solvers.diffusion(schedule, denoiser)
        return solvers.integrate(
            jax.random.key(0), solver, problem, x=x, ts=jnp.stack([t, 0.0 * t])
        )

    return jax.jacrev(end, argnums=(0, 1, 2))(*point)


@pytest.mark.parametrize("name", every(FIXED, CONSTRUCTIONS))
def test_evaluations_are_counted_truly(name):
    """solver.evaluations(steps, to_zero) is the number of denoiser calls that
    run, on grids that end above and at 0.
    """
    factory, _, plain, to_zero = FIXED[name]
    solver, schedule = factory(), dj.schedules.vp_linear()
    problem = solvers.diffusion(schedule, lambda x, t: jax.lax.lgamma(x))

    def calls(ts, zero_end, pick):
        source = noise_source.Source(lambda step, draw: jnp.ones(2))
        run = lambda x, ts: driver.run(
            source, solver, problem, x=x, ts=ts, path=False, zero_end=zero_end
        )[0]
        return primitives(
            jax.make_jaxpr(run)(np.ones(2, np.float32), ts).jaxpr, "lgamma", pick
        )

    uniform = np.linspace(0.9, 0.1, 5, dtype=np.float32)
    ending = np.append(np.linspace(0.9, 0.1, 4, dtype=np.float32), np.float32(0))
    assert calls(uniform, False, max) == plain == solver.evaluations(4)
    most, least = (
        calls(ending, True, pick) // 4 for pick in (max, min)
    )  # least: the branch of a step to 0
    assert 3 * most + least == to_zero == solver.evaluations(4, to_zero=True)


def primitives(jaxpr, name, pick):
    """Count a primitive in a jaxpr. pick chooses among the branches of a cond."""
    total = 0
    for eqn in jaxpr.eqns:
        inner = [
            getattr(v, "jaxpr", v)
            for v in eqn.params.values()
            if hasattr(getattr(v, "jaxpr", v), "eqns")
        ]
        if eqn.primitive.name == "cond":
            total += pick(
                primitives(branch.jaxpr, name, pick)
                for branch in eqn.params["branches"]
            )
        else:
            total += eqn.params.get("length", 1) * sum(
                primitives(j, name, pick) for j in inner
            )
        total += eqn.primitive.name == name
    return total


@pytest.mark.parametrize("name", ["heun", "dpm_solver(3)", "dpmpp_2m", "unipc(3)"])
def test_a_network_of_low_precision_leaves_state_and_count_alone(name):
    """bfloat16 outputs enter a float32 state, and `info` agrees with `evaluations`.

    The grid ends at 0.
    """
    schedule = dj.schedules.vp_linear()
    exact = dj.targets.denoiser(mixture(), schedule)
    grid = dj.grids.to_zero(dj.grids.uniform(schedule, 4))
    coarse = lambda x, t: exact(x, t).astype(jnp.bfloat16)
    x, info = dj.sample(
        jax.random.key(0),
        coarse,
        schedule,
        solver=ALL[name](),
        grid=grid,
        shape=(2,),
        info=True,
    )
    assert x.dtype == jnp.float32 and bool(jnp.all(jnp.isfinite(x)))
    assert int(info.evaluations) == ALL[name]().evaluations(5, to_zero=True)


@pytest.mark.parametrize(
    "name",
    every(
        ALL, ("heun", "ddim", "dpm_solver(3)", "unipc(2)", "euler_maruyama", "adaptive")
    ),
)
def test_jit_equals_eager_and_nothing_retraces(name):
    """Equal results under jit, and one trace for other keys, parameters,
    schedules and grid values.
    """
    traces = []

    def net(scale, x, t):
        traces.append(1)
        return scale * x / (1 + t)

    def run(key, scale, beta_max, grid):
        schedule = dj.schedules.vp_linear(beta_max=beta_max)
        denoiser = dj.predictions.denoiser(
            schedule, jax.tree_util.Partial(net, scale), "data"
        )
        return dj.sample(
            key, denoiser, schedule, solver=ALL[name](), grid=grid, shape=(3,)
        )

    schedule = dj.schedules.vp_linear()
    uniform, quadratic = dj.grids.uniform(schedule, 5), dj.grids.quadratic(schedule, 5)
    first = run(jax.random.key(0), jnp.array(0.9), 20.0, uniform)
    count = len(traces)
    run(jax.random.key(1), jnp.array(0.5), 15.0, quadratic)
    run(jax.random.key(1), jnp.array(0.5), 15.0, np.asarray(uniform))
    assert len(traces) == count
    compiled = jax.jit(lambda key, scale, grid: run(key, scale, 20.0, grid))(
        jax.random.key(0), jnp.array(0.9), uniform
    )
    chex.assert_trees_all_close(first, compiled, rtol=2e-5)


@pytest.mark.parametrize("name", every(FIXED, CONSTRUCTIONS))
def test_float32_agrees_with_float64(name):
    """Over 16 steps the float32 path stays within 16 × 64 units of rounding of
    the float64 one, for the same noise.
    """
    noise = np.random.default_rng(0).normal(size=(16, NOISE_SLOTS, 2))

    def end(dtype):
        schedule, target = dj.schedules.vp_linear(), mixture()
        problem = solvers.diffusion(schedule, dj.targets.denoiser(target, schedule))
        grid = dj.grids.log_snr(schedule, 16)
        return _end_with_noise(
            FIXED[name][0](),
            problem,
            np.array([0.5, -1.5], dtype),
            grid,
            noise.astype(dtype),
        )

    single = end(np.float32)
    assert single.dtype == jnp.float32
    with jax.enable_x64(True):
        double = end(np.float64)
        assert double.dtype == jnp.float64
    np.testing.assert_allclose(
        single, double, rtol=0, atol=16 * 64 * np.finfo(np.float32).eps
    )


@functools.partial(quick, static_argnums=0)
def _end_with_noise(solver, problem, x, grid, noise):
    return driver.run(
        noise_source.Source(lambda step, draw: noise[step, draw]),
        solver,
        problem,
        x=x,
        ts=grid,
        path=False,
    )[0]


@pytest.mark.parametrize("name", every(DETERMINISTIC | MULTISTEP, CONSTRUCTIONS))
def test_gradients_by_start_and_parameters_match_finite_differences(name, x64):
    shift, x, h = 0.1, np.array([0.3, 1.0]), 1e-5
    points = [
        (shift, x),
        (shift + h, x),
        (shift - h, x),
        (shift, x + [h, 0]),
        (shift, x - [h, 0]),
    ]
    values, by_shift, by_x = map(
        np.asarray,
        _values_and_slopes(FIXED[name][0](), *map(np.stack, zip(*points, strict=True))),
    )
    np.testing.assert_allclose(
        by_shift[0], (values[1] - values[2]) / (2 * h), rtol=1e-8
    )
    np.testing.assert_allclose(by_x[0, 0], (values[3] - values[4]) / (2 * h), rtol=1e-8)


@functools.partial(quick, static_argnums=0)
def _values_and_slopes(solver, shifts, starts):
    schedule, grid = dj.schedules.vp_linear(), jnp.linspace(0.9, 0.1, 9)

    def end(shift, x):
        target = dj.targets.gaussian_mixture(
            MIXTURE[0], jnp.array(MIXTURE[1]) + shift, jnp.array([0.5, 0.7])
        )
        problem = solvers.diffusion(schedule, dj.targets.denoiser(target, schedule))
        return jnp.sum(solvers.integrate(None, solver, problem, x=x, ts=grid) ** 2)

    def of_one(shift, x):
        value, slopes = jax.value_and_grad(end, argnums=(0, 1))(shift, x)
        return value, *slopes

    return jax.vmap(of_one)(shifts, starts)


def test_factories_are_cached_whatever_the_spelling():
    assert solvers.heun() is solvers.heun()
    assert (
        solvers.adaptive()
        is solvers.adaptive(1e-5)
        is solvers.adaptive(rtol=np.float64(1e-5), atol=1e-5)
    )
    assert solvers.adaptive(1e-4) is not solvers.adaptive()


def test_compiled_size_does_not_grow_with_steps():
    schedule = dj.schedules.vp_linear()
    denoiser = dj.targets.denoiser(mixture(), schedule)

    def lines(steps):
        grid = dj.grids.uniform(schedule, steps)
        lowered = jax.jit(
            lambda key: dj.sample(
                key, denoiser, schedule, solver=solvers.heun(), grid=grid, shape=(2,)
            )
        )
        return len(lowered.lower(jax.random.key(0)).as_text().splitlines())

    assert lines(10) == lines(1000)


# ----------------------------------------------------------- any SDE, any ODE, any grid


def test_a_forward_sde_reaches_its_exact_distribution():
    """Euler–Maruyama upwards on the VP SDE from one point: N(α x_0, σ²) up to
    the scheme's own, exactly known, bias.
    """
    schedule, x0, count, steps = dj.schedules.vp_linear(), 1.5, 20_000, 50
    ts = jnp.linspace(schedule.t_min, 1.0, steps + 1)
    sde = dj.sde.forward(schedule)
    keys = jax.random.split(jax.random.key(0), count)
    ends = jax.vmap(
        lambda key: solvers.integrate(
            key, solvers.euler_maruyama(), sde, x=jnp.full((1,), x0), ts=ts
        )
    )(keys)
    mean, variance = x0, 0.0
    for t, dt in zip(np.asarray(ts[:-1]), np.diff(np.asarray(ts)), strict=True):
        beta = 0.1 + t * 19.9
        mean, variance = (
            mean * (1 - 0.5 * beta * dt),
            variance * (1 - 0.5 * beta * dt) ** 2 + beta * dt,
        )
    assert_moments(
        jnp.concatenate([ends, ends], 1), np.full(2, mean), np.full((2, 2), variance)
    )


def test_langevin_dynamics_keeps_its_stationary_distribution():
    """Euler–Maruyama on dx = ½∇log p dt + dw with step ε has variance
    1/(1 − ε/4) on N(0, 1).
    """
    step, count = 0.8, 20_000
    sde = dj.sde.langevin(lambda x: -0.5 * jnp.sum(x**2))
    ts = step * jnp.arange(60)
    keys = jax.random.split(jax.random.key(0), count)
    ends = jax.vmap(
        lambda key: solvers.integrate(
            key, solvers.euler_maruyama(), sde, x=jnp.zeros(2), ts=ts
        )
    )(keys)
    assert_moments(ends, np.zeros(2), np.eye(2) / (1 - step / 4))


@pytest.mark.parametrize("name", ["euler", "heun", "midpoint", "rk4", "adaptive"])
def test_an_ode_on_a_pytree_either_way(name):
    """A rotation and a decay, up and back again on the reversed grid: each
    returns to its start at the method's error.
    """
    field = lambda x, t: {
        "turn": jnp.array([-x["turn"][1], x["turn"][0]]),
        "decay": -x["decay"],
    }
    start = {"turn": jnp.array([1.0, 0.0]), "decay": jnp.array(2.0)}
    ts = jnp.linspace(0.0, 1.0, 201)
    there = solvers.integrate(None, ALL[name](), field, x=start, ts=ts)
    exact = {
        "turn": jnp.array([math.cos(1), math.sin(1)]),
        "decay": jnp.array(2 * math.exp(-1)),
    }
    tolerance = 1e-2 if name == "euler" else 1e-4
    chex.assert_trees_all_close(there, exact, atol=tolerance)
    back = solvers.integrate(None, ALL[name](), field, x=there, ts=ts[::-1])
    chex.assert_trees_all_close(back, start, atol=2 * tolerance)


def test_zero_is_a_time_like_any_other_for_a_field_of_ones_own():
    end = solvers.integrate(
        None,
        solvers.euler(),
        lambda x, t: jnp.ones_like(x),
        x=jnp.zeros(1),
        ts=[1.0, 0.5, 0.0],
    )
    np.testing.assert_allclose(end, [-1.0], rtol=1e-6)


# ----------------------------------------------------------------------------- adaptive


def test_adaptive_error_follows_the_tolerance(x64):
    schedule, target = dj.schedules.vp_linear(), mixture()
    starts = jax.vmap(target.noised(schedule, 1.0).sample)(
        jax.random.split(jax.random.key(0), 8)
    )
    reference = end_points(
        solvers.adaptive(1e-13, 1e-13, max_steps=100_000),
        schedule,
        target,
        dj.grids.log_snr(schedule, 1),
        starts,
    )
    for tolerance in (1e-4, 1e-6, 1e-8):
        ends = end_points(
            solvers.adaptive(tolerance, tolerance),
            schedule,
            target,
            dj.grids.log_snr(schedule, 1),
            starts,
        )
        assert float(jnp.max(jnp.abs(ends - reference))) < 100 * tolerance


def test_adaptive_agrees_with_diffrax():
    diffrax = pytest.importorskip("diffrax")
    schedule, target = dj.schedules.vp_linear(), mixture()
    flow = dj.sde.probability_flow(schedule, dj.targets.denoiser(target, schedule))
    with jax.enable_x64(True):
        x = jnp.array([0.7, -1.1], jnp.float64)
        theirs = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: flow(y, t)),
            diffrax.Dopri8(),
            1.0,
            1e-3,
            -1e-3,
            x,
            stepsize_controller=diffrax.PIDController(1e-11, 1e-11),
            max_steps=100_000,
        ).ys[0]
        ours = solvers.integrate(
            None,
            solvers.adaptive(1e-11, 1e-11, max_steps=50_000),
            flow,
            x=x,
            ts=[1.0, 1e-3],
        )
        np.testing.assert_allclose(ours, theirs, rtol=1e-8)


def test_adaptive_steps_are_each_examples_own():
    """Under vmap an example takes the steps that it takes alone, and a stiff
    one takes more than an easy one.
    """

    def run(rate):
        return solvers.integrate(
            None,
            solvers.adaptive(),
            lambda x, t: -rate * x,
            x=jnp.ones(1),
            ts=[0.0, 1.0],
            info=True,
        )

    rates = jnp.array([0.1, 30.0])
    ends, info = jax.vmap(run)(rates)
    alone = [run(rate) for rate in rates]
    assert [int(n) for n in info.accepted] == [
        int(report.accepted) for _, report in alone
    ]
    assert info.accepted[1] > info.accepted[0]
    assert int(info.evaluations[1]) == 1 + 6 * int(info.accepted[1] + info.rejected[1])
    np.testing.assert_allclose(ends[:, 0], np.exp(-np.asarray(rates)), atol=1e-4)


def test_a_step_limit_is_reported_and_gives_nan():
    solver = solvers.adaptive(rtol=1e-8, atol=1e-8, max_steps=3)
    field = lambda x, t: -50 * x
    with pytest.warns(
        RuntimeWarning, match="adaptive hit its step limit in 1 of 1 runs"
    ):
        end, info = solvers.integrate(
            None, solver, field, x=jnp.ones(1), ts=[0.0, 1.0], info=True
        )
    assert bool(info.exhausted) and int(info.accepted + info.rejected) == 3
    assert bool(jnp.isnan(end).all())


def test_a_field_that_turns_nan_ends_the_run_soon():
    field = lambda x, t: jnp.where(t > 0.5, jnp.nan, 1.0) * x
    with pytest.warns(RuntimeWarning, match="check the denoiser for NaN"):
        _, info = solvers.integrate(
            None, solvers.adaptive(), field, x=jnp.ones(1), ts=[0.0, 1.0], info=True
        )
    assert bool(info.exhausted) and int(info.rejected) < 200


def test_adaptive_is_forward_differentiable_and_says_so_in_reverse(x64):
    def end(rate):
        field = jax.tree_util.Partial(lambda rate, x, t: -rate * x, rate)
        return solvers.integrate(
            None, solvers.adaptive(1e-10, 1e-10), field, x=jnp.ones(()), ts=[0.0, 1.0]
        )

    _, slope = jax.jvp(end, (jnp.array(2.0),), (jnp.array(1.0),))
    np.testing.assert_allclose(slope, -math.exp(-2), rtol=1e-7)
    np.testing.assert_allclose(jax.jacfwd(end)(jnp.array(2.0)), slope, rtol=1e-12)
    with pytest.raises(TypeError, match="no reverse-mode derivative: use jax.jvp"):
        jax.grad(end)(jnp.array(2.0))


# ---------------------------------------------------------------------------- bad input


def test_bad_arguments_are_named():
    schedule = dj.schedules.vp_linear()
    denoiser = dj.targets.denoiser(mixture(), schedule)
    problem, sde = solvers.diffusion(schedule, denoiser), dj.sde.forward(schedule)
    x, ts, key = jnp.ones(2), [0.9, 0.5], jax.random.key(0)
    cases = [
        (
            TypeError,
            "solver must be made by a factory.*call it: heun",
            (None, solvers.heun, problem, x, ts),
        ),
        (
            TypeError,
            "problem needs a velocity for euler, got .'sde'",
            (key, solvers.euler(), sde, x, ts),
        ),
        (
            TypeError,
            "problem needs a denoiser for reverse_diffusion",
            (key, solvers.reverse_diffusion(), sde, x, ts),
        ),
        (
            ValueError,
            "key must be given for the stochastic solver euler_maruyama",
            (None, solvers.euler_maruyama(), sde, x, ts),
        ),
        (
            TypeError,
            "key must be a typed key",
            (jax.random.PRNGKey(0), solvers.euler_maruyama(), sde, x, ts),
        ),
        (
            ValueError,
            "ts must be strictly monotone, got 0.5 after 0.5 at index 1",
            (None, solvers.euler(), problem, x, [0.5, 0.5]),
        ),
        (
            ValueError,
            "ts must lie in the schedule's interval",
            (None, solvers.euler(), problem, x, [1.5, 0.5]),
        ),
        (ValueError, "ts must have shape", (None, solvers.euler(), problem, x, [0.5])),
        (
            ValueError,
            "x must be finite, got 1 NaN",
            (None, solvers.euler(), problem, jnp.array([1.0, jnp.nan]), ts),
        ),
        (TypeError, "problem must be callable", (None, solvers.euler(), 3.0, x, ts)),
        (
            TypeError,
            "x must be one array for the stochastic solver",
            (key, solvers.euler_maruyama(), sde, {"a": x}, ts),
        ),
        (
            TypeError,
            "needs a denoiser for reverse_diffusion, got .'denoiser'",
            (
                key,
                solvers.reverse_diffusion(),
                solvers.Problem(denoiser=denoiser),
                x,
                ts,
            ),
        ),
    ]
    for error, match, arguments in cases:
        *leading, x, ts = arguments
        with pytest.raises(error, match=match):
            solvers.integrate(*leading, x=x, ts=ts)
    flow = solvers.diffusion(schedule, denoiser)
    with pytest.raises(TypeError, match="x must be one array for a denoiser, got {'a'"):
        solvers.integrate(None, solvers.ddim(), flow, x={"a": x}, ts=ts)
    with pytest.raises(
        TypeError, match="denoiser must return real numbers, got dtype complex64"
    ):
        solvers.integrate(
            None,
            solvers.heun(),
            solvers.diffusion(schedule, lambda x, t: x + 0j),
            x=x,
            ts=ts,
        )
    with pytest.raises(ValueError, match=r"grid must have shape \(steps \+ 1,\)"):
        dj.sample(key, denoiser, schedule, grid=[], shape=(2,))
    with pytest.raises(ValueError, match="max_steps must be at least 1, got 0"):
        solvers.adaptive(max_steps=0)
    with pytest.raises(ValueError, match="atol must be positive, got -1.0"):
        solvers.adaptive(atol=-1)


# ---------------------------------------------------------------------------- names


def end_with_noise(solver, schedule, ts, draws=3):
    """The end of a run of a non-linear denoiser, with fixed noise."""
    problem = solvers.diffusion(schedule, lambda x, t: jnp.tanh(x) * jnp.cos(t))
    noise = jax.random.normal(jax.random.key(0), (len(ts) - 1, draws, 2))
    return solvers.integrate(
        None,
        solver,
        problem,
        x=jnp.array([0.3, -1.2]),
        ts=ts,
        noise=noise if solver.stochastic else None,
    )


@pytest.mark.parametrize(
    "one, other",
    [
        (solvers.gradient_estimation(1.0), solvers.ddim()),
        (solvers.gradient_estimation(1.5), solvers.ipndm(2, guarded=False)),
        (solvers.euler_ancestral(), solvers.ddim(1.0)),
        (solvers.er_sde(1, 0.0), solvers.ddim()),
        (solvers.er_sde(1, 1.0), solvers.ddim(1.0)),
        (solvers.seeds(2), solvers.dpmpp_sde()),
        (solvers.seeds(2, 0.0), solvers.dpmpp_2s()),
    ],
)
def test_solvers_of_two_names_are_one_method(one, other, x64):
    schedule, ts = dj.schedules.vp_linear(), jnp.linspace(1.0, 0.1, 7)
    ends = [end_with_noise(solver, schedule, ts) for solver in (one, other)]
    # Six steps of some ten roundings each.
    np.testing.assert_allclose(*ends, rtol=1e-13)


def test_res_2s_has_the_published_weights(x64):
    """φ_1(z) − φ_2(z)/c_2 and φ_2(z)/c_2 at z = −h, with c_2 = 1/2."""
    schedule = dj.schedules.edm()
    h = np.log(4.0)
    # D is 1 at the start and 3 half-way, at σ = 2.
    denoiser = lambda x, t: jnp.where(t > 3, 1.0, 3.0) + 0 * x
    problem = solvers.diffusion(schedule, denoiser)
    solver = solvers.exponential_runge_kutta(2)
    ts = jnp.array([4.0, 1.0])
    end = solvers.integrate(None, solver, problem, x=jnp.array([2.0]), ts=ts)
    phi_1 = -np.expm1(-h) / h
    phi_2 = (1 - phi_1) / h
    expected = 2.0 * np.exp(-h) + h * ((phi_1 - 2 * phi_2) * 1.0 + 2 * phi_2 * 3.0)
    np.testing.assert_allclose(end, [expected], rtol=1e-12)


# ------------------------------------------------------------ noise by the noise level


ETA_SOLVERS = {
    "ddim": solvers.ddim,
    "dpm_2_ancestral": solvers.dpm_2_ancestral,
    "dpmpp_2s": solvers.dpmpp_2s,
    "dpmpp_sde": solvers.dpmpp_sde,
    "dpmpp_2m_sde": solvers.dpmpp_2m_sde,
    "dpmpp_3m_sde": solvers.dpmpp_3m_sde,
    "sa_solver": lambda eta: solvers.sa_solver(eta=eta),
    "er_sde": lambda eta: solvers.er_sde(eta=eta),
    "seeds(2)": lambda eta: solvers.seeds(2, eta),
    "seeds(3)": lambda eta: solvers.seeds(3, eta),
}


@pytest.mark.parametrize("name", every(ETA_SOLVERS, ("ddim", "dpmpp_2m_sde")))
def test_noise_at_all_levels_is_the_constant_and_at_none_is_the_flow(name, x64):
    """An interval around the grid gives the constant η, one above it η = 0."""
    schedule, make = dj.schedules.vp_linear(), ETA_SOLVERS[name]
    ts = jnp.linspace(0.9, 0.1, 7)
    end = lambda eta: end_with_noise(make(eta), schedule, ts)
    # Six steps of some twenty roundings each.
    everywhere = solvers.eta_between(0, 1e6, 0.5)
    np.testing.assert_allclose(end(everywhere), end(0.5), rtol=1e-13)
    nowhere = solvers.eta_between(1e3, 1e4)
    np.testing.assert_allclose(end(nowhere), end(0.0), rtol=1e-13)


@pytest.mark.parametrize("name", every(ETA_SOLVERS, ("dpmpp_2m_sde",)))
@pytest.mark.parametrize(
    "eta", [solvers.eta_between(0.3, 1.7), solvers.eta_er_sde(), 0.5], ids=repr
)
def test_the_variance_is_exact_for_a_constant_denoiser(name, eta, x64):
    """x_t = α D + σ ε keeps its variance σ² in steps of any length, also where
    the noise sets in within one: y − D has variance ρ² at every time.
    """
    schedule = dj.schedules.edm(0.01, 100.0)
    ts = np.array([20.0, 2.5, 0.4, 0.05])
    problem = solvers.diffusion(schedule, lambda x, t: 0.7 * jnp.ones_like(x))
    solver = ETA_SOLVERS[name](eta)
    # one entry for the start and one for each draw: the run is linear in them
    units = np.eye(1 + 9)
    noise = units[1:].reshape(3, 3, 10)
    source = noise_source.Source(lambda step, draw: jnp.asarray(noise)[step, draw])
    run = lambda x: driver.run(source, solver, problem, x=x, ts=ts, path=False)[0]
    end = quick(run)(0.7 + 20.0 * units[0])
    np.testing.assert_allclose(jnp.sum((end - 0.7) ** 2), 0.05**2, rtol=1e-12)


@pytest.mark.parametrize(
    "eta", [solvers.eta_between(0.3, 1.7), solvers.eta_er_sde()], ids=repr
)
def test_the_integral_of_eta_squared_is_that_of_its_square(eta, x64):
    """Against the trapezoidal rule in log ρ, and E = log φ_t/φ_s − h for ER-SDE."""
    nodes = jnp.linspace(np.log(20.0), np.log(0.05), 2_000_001)
    squares = eta.squared(jnp.exp(nodes))
    sums = (jnp.sum(squares) - 0.5 * (squares[0] + squares[-1])) * (nodes[0] - nodes[1])
    exact = eta.integral(jnp.array(20.0), jnp.array(0.05))
    np.testing.assert_allclose(exact, sums, atol=2 * float(nodes[0] - nodes[1]))
    if eta == solvers.eta_er_sde():
        phi = lambda rho: rho * (np.exp(rho**0.3) + 10)
        expected = np.log(phi(20.0) / phi(0.05)) - np.log(20.0 / 0.05)
        np.testing.assert_allclose(exact, expected, rtol=1e-14)


def test_eta_of_equal_settings_is_one_solver():
    eta = solvers.eta_between(0.05, 1)
    assert eta == solvers.eta_between(0.05, 1.0, eta=1)
    assert solvers.sa_solver(eta=eta) is solvers.sa_solver(
        2, eta=solvers.eta_between(0.05, 1.0)
    )
    assert solvers.ddim() is solvers.ddim(0.0) is solvers.ddim(eta=0)
    assert solvers.er_sde() is solvers.er_sde(eta=solvers.eta_er_sde())
    assert solvers.er_sde(2, 1) is solvers.er_sde(2, 1.0)
    assert not solvers.er_sde(2, 0).stochastic and solvers.ddim(eta).stochastic


def test_gradients_pass_steps_without_noise(x64):
    """The square root of a variance of 0 has no gradient by the schedule."""
    ts, h = jnp.linspace(0.9, 0.1, 5), 1e-4
    for name in ("ddim", "dpmpp_2m_sde"):
        solver = ETA_SOLVERS[name](solvers.eta_between(0.3, 1.7))
        end = lambda beta, solver=solver: jnp.sum(
            end_with_noise(solver, dj.schedules.vp_linear(beta_max=beta), ts)
        )
        at = jnp.array([20.0, 20.0 + h, 20.0 - h])
        values, slopes = quick(jax.vmap(jax.value_and_grad(end)))(at)
        difference = (values[1] - values[2]) / (2 * h)
        np.testing.assert_allclose(slopes[0], difference, rtol=1e-6)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_er_sde_is_exact_where_the_denoiser_is_a_polynomial_in_rho(order, x64):
    """For η = 0 and D = Σ_k c_k ρ^k the flow dy = (y − D)/ρ dρ is solved by

        y = C ρ + c_0 − c_1 ρ log ρ − Σ_{k≥2} c_k ρ^k/(k − 1).

    From exact outputs, in steps of any length.
    """
    c = np.array([0.7, -0.4, 0.3])[:order]
    solver = solvers.er_sde(order, 0.0, guarded=False)
    ts = np.array([3.0, 2.0, 1.2, 0.5])
    exact = lambda rho: (
        0.5 * rho
        + c[0]
        - sum(c[1:2]) * rho * np.log(rho)
        - sum(c[k] * rho**k / (k - 1) for k in range(2, order))
    )
    denoiser = lambda x, t: sum(c[k] * t**k for k in range(order)) + 0 * x
    problem = solvers.diffusion(dj.schedules.edm(0.1, 10.0), denoiser)
    inputs = solver.prepare(problem, jnp.asarray(ts))
    last = jax.tree.map(lambda leaf: leaf[2], inputs)
    outputs = tuple(denoiser(0.0, t) for t in ts[1::-1][: order - 1])
    x, _ = solver.step(problem, last, None, exact(ts[2]), (outputs, None))
    np.testing.assert_allclose(x, exact(ts[3]), rtol=1e-13)


@pytest.mark.parametrize("order", [2, 3])
def test_the_stages_of_seeds_lie_on_one_path(order, x64):
    """For a constant D the stages and the end have the covariance of the reverse
    SDE, Cov(y_i, y_j) = ρ_i² e^{−a_j + a_i} for ρ_i ≥ ρ_j, from a start at ρ = 2.
    """
    eta, states, units = solvers.eta_between(0.7, 1.5), [], np.eye(4)
    problem = solvers.diffusion(
        dj.schedules.edm(0.01, 100.0), lambda x, t: states.append((t, x)) or 0 * x
    )
    solver = solvers.seeds(order, eta)
    problem = dataclasses.replace(problem, zero_end=False)
    inputs = solver.prepare(problem, jnp.array([2.0, 0.5]))
    first = jax.tree.map(lambda leaf: leaf[0], inputs)
    end, _ = solver.step(problem, first, lambda i: units[1 + i], 2.0 * units[0], ())
    rho, y = (np.array(v) for v in zip(*states, (0.5, end), strict=True))
    decay = np.array([r * np.exp(-eta.integral(2.0, r)) for r in rho])
    exact = rho[:, None] ** 2 * decay / decay[:, None]
    upper = np.triu_indices(order + 1)
    np.testing.assert_allclose((y @ y.T)[upper], exact[upper], rtol=1e-12)


def test_heunpp_has_the_published_weights(x64):
    """(1 − w_1 − w_2, w_1, w_2) of three slopes, of two, then of one."""
    s = np.array([4.0, 2.0, 1.0, 0.5])
    slope = lambda y, rho: (y - np.tanh(y)) / rho
    y = 3.0
    for i in range(3):
        h, slopes = s[i + 1] - s[i], [slope(y, s[i])]
        # s_1 and s_2 over 3 s_0, s_2 over 2 s_0, none
        ahead, weights = y, s[i + 1 : 3] / ((3 - i) * s[0])
        for j in range(i, min(i + 2, 2)):
            ahead = ahead + (s[j + 1] - s[j]) * slopes[-1]
            slopes.append(slope(ahead, s[j + 1]))
        weights = np.array([1 - sum(weights), *weights])
        y = y + h * (weights @ slopes)
    problem = solvers.diffusion(dj.schedules.edm(), lambda x, t: jnp.tanh(x))
    end = solvers.integrate(None, solvers.heunpp(), problem, x=jnp.array(3.0), ts=s)
    np.testing.assert_allclose(end, y, rtol=1e-13)
