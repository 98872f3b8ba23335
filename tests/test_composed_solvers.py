"""Solvers made of solvers, solvers that follow a given path, and the errors of
all solvers.
"""

import math
import os
import subprocess
import sys
import textwrap

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import noise, solvers
from diffjax.solvers import driver, noise_source
from tests.families import every
from tests.solver_members import ADAPTIVE, assert_moments, gaussian, mixture, network


def diffusion(schedule, target):
    return solvers.diffusion(schedule, dj.targets.denoiser(target, schedule))


# ----------------------------------------------------------------------- along one path


@pytest.mark.parametrize(
    ("name", "order"),
    [
        pytest.param("sra1", 1.5, marks=pytest.mark.slow),
        pytest.param("euler_maruyama", 1.0, marks=pytest.mark.slow),
        pytest.param("stochastic_heun", 1.0, marks=pytest.mark.slow),
    ],
)
def test_strong_order_along_brownian_paths(name, order, x64):
    """The error at the end of one Brownian path, root mean square over 64
    paths, falls at the strong order.
    """
    schedule = dj.schedules.vp_linear()
    problem, solver = diffusion(schedule, mixture()), getattr(solvers, name)()
    start, end, counts = 0.8, 0.2, (16, 32, 64)
    keys = jax.random.split(jax.random.key(0), 64)
    starts = jax.vmap(mixture().noised(schedule, start).sample)(
        jax.random.split(jax.random.key(1), 64)
    )

    def ends(solver, steps):
        def one(key, x):
            path = noise.brownian(key, start, end, shape=(2,), depth=16)
            return solvers.integrate(
                None,
                solver,
                problem,
                x=x,
                ts=jnp.linspace(start, end, steps + 1),
                noise=path,
            )

        return jax.vmap(one)(keys, starts)

    reference = ends(solvers.sra1(), 2048)
    errors = [
        float(jnp.sqrt(jnp.mean((ends(solver, n) - reference) ** 2))) for n in counts
    ]
    slope = math.log(errors[0] / errors[-1]) / math.log(counts[-1] / counts[0])
    assert slope > order - 0.2, errors


@pytest.mark.slow
def test_a_finer_grid_and_another_solver_follow_the_same_path():
    """Along one path two fine runs end together. Along another path elsewhere."""
    schedule = dj.schedules.vp_linear()
    problem, x = diffusion(schedule, gaussian()), jnp.array([0.5, -1.0])
    paths = [
        noise.brownian(jax.random.key(seed), 1.0, 0.1, shape=(2,)) for seed in (0, 1)
    ]
    run = lambda path, solver, n: solvers.integrate(
        None, solver, problem, x=x, ts=jnp.linspace(1.0, 0.1, n + 1), noise=path
    )
    base = run(paths[0], solvers.sra1(), 256)
    for other in (
        run(paths[0], solvers.sra1(), 512),
        run(paths[0], solvers.dpmpp_2m_sde(), 1024),
    ):
        assert float(jnp.max(jnp.abs(other - base))) < 0.05
    assert float(jnp.max(jnp.abs(run(paths[1], solvers.sra1(), 256) - base))) > 0.2


@pytest.mark.slow
def test_adaptive_sde_has_the_exact_distribution():
    """At a tolerance whose bias is small beside 4 standard errors of 4000
    samples, and with rejections on the way.
    """
    schedule, target, count = dj.schedules.vp_linear(), gaussian(), 4000
    start = jax.vmap(target.noised(schedule, schedule.t_max).sample)(
        jax.random.split(jax.random.key(0), count)
    )
    grid = dj.grids.log_snr(schedule, 1)
    denoiser = dj.targets.denoiser(target, schedule)
    samples, info = dj.sample_many(
        jax.random.key(1),
        count,
        denoiser,
        schedule,
        solver=solvers.adaptive_sde(5e-3, 5e-3),
        grid=grid,
        x_init=start,
        info=True,
    )
    exact = target.noised(schedule, schedule.t_min)
    assert int(jnp.sum(info.rejected)) > 0 and not bool(jnp.any(info.exhausted))
    assert_moments(samples, np.asarray(exact.mean()), np.asarray(exact.covariance()))


@pytest.mark.parametrize("name", every(ADAPTIVE, ("adaptive_sde",)))
def test_adaptive_steps_depend_continuously_on_the_state(name, x64):
    """A start moved by 1e-9 moves the sample by less than 1e-6.

    A step that were taken or not, as rounding has it, would move it by the
    tolerance, 1e-3 or 1e-2, in about one of the thousands of decisions of 128
    samples in every 1e5.
    """
    schedule, grid = dj.schedules.vp_linear(), [1.0, 1e-3]
    start = np.random.default_rng(1).normal(size=(128, 8))

    def ends(start):
        return dj.sample_many(
            jax.random.key(0),
            128,
            network(float),
            schedule,
            solver=ADAPTIVE[name](),
            grid=grid,
            x_init=start,
            info=True,
        )

    base, info = ends(start)
    assert np.sum(info.rejected) > 128
    for size in (1e-9, -1e-9, 1e-7):
        assert np.max(np.abs(ends(start * (1 + size))[0] - base)) < 1000 * abs(size)


@pytest.mark.parametrize("name", every(list(ADAPTIVE), ("adaptive_sde",)))
def test_adaptive_samples_are_the_same_in_any_batch(name):
    """Five at once and one by one: equal to rounding that is amplified a
    thousandfold at most, far below the tolerance of 1e-3 or 1e-2.
    """
    schedule, solver, denoiser, key = (
        dj.schedules.vp_linear(),
        ADAPTIVE[name](),
        network(np.float32),
        jax.random.key(0),
    )
    together, apart = (
        np.asarray(
            dj.sample_many(
                key,
                5,
                denoiser,
                schedule,
                solver=solver,
                grid=[1.0, 1e-3],
                shape=(8,),
                chunk=chunk,
            )
        )
        for chunk in (None, 1)
    )
    bound = 1000 * np.finfo(np.float32).eps * np.abs(together).max()
    np.testing.assert_allclose(apart, together, rtol=0, atol=bound)


@pytest.mark.slow
def test_adaptive_samples_are_the_same_on_any_number_of_devices():
    """On three devices as on one, in a process of its own."""
    program = textwrap.dedent("""
        import jax, numpy as np, diffjax as dj
        from tests.solver_members import ADAPTIVE, network
        mesh = jax.make_mesh((3,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
        for make in ADAPTIVE.values():
            many, one = (
                np.asarray(
                    dj.sample_many(
                        jax.random.key(0), 7, network(np.float32),
                        dj.schedules.vp_linear(), solver=make(), grid=[1.0, 1e-3],
                        shape=(8,), mesh=m,
                    )
                )
                for m in (mesh, None)
            )
            atol = 1000 * np.finfo(np.float32).eps * np.abs(one).max()
            np.testing.assert_allclose(many, one, rtol=0, atol=atol)
            print(np.abs(many - one).max())
    """)
    flags = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=3"
    )
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    subprocess.run(
        [sys.executable, "-c", program], env=environment, check=True, timeout=600
    )


@pytest.mark.slow
def test_without_jit_the_noise_is_the_same():
    """Under `jax.disable_jit` a path, an adaptive solver and one with inner
    steps return what they return compiled.
    """
    schedule = dj.schedules.vp_linear()
    problem, key = diffusion(schedule, gaussian()), jax.random.key(0)

    def values():
        path = noise.brownian(key, 0.0, 1.0, shape=(2,), depth=3)
        end = solvers.integrate(
            key,
            solvers.adaptive_sde(0.5, 0.5),
            problem,
            x=np.array([0.4, -0.2]),
            ts=[0.3, 0.29],
        )
        repeated = solvers.integrate(
            key,
            solvers.annealed_langevin(2),
            problem,
            x=np.array([0.4, -0.2]),
            ts=[0.3, 0.29],
        )
        return [*path(0.3), *path.increment(0.2, 0.7), end, repeated]

    compiled = values()
    with jax.disable_jit():
        eager = values()
    np.testing.assert_allclose(eager, compiled, atol=1e-5)


def test_adaptive_sde_ends_at_zero_in_the_denoiser():
    schedule = dj.schedules.vp_linear()
    problem, x = diffusion(schedule, mixture()), jnp.array([0.4, -0.2])
    end = solvers.integrate(
        jax.random.key(0), solvers.adaptive_sde(), problem, x=x, ts=[0.3, 0.0]
    )
    chex.assert_trees_all_close(end, problem.denoiser(x, 0.3), rtol=1e-5)


# ---------------------------------------------------------------------- made of solvers


@pytest.mark.parametrize(
    "inner",
    every(
        ["ddim", "euler_ancestral", "dpmpp_2s", "rk4"], ("euler_ancestral", "dpmpp_2s")
    ),
)
@pytest.mark.parametrize("window", every([5, 64], (5,)))
def test_picard_at_no_tolerance_is_its_solver(inner, window, x64):
    """Iterated to the end, the parallel run is the sequential one to rounding,
    with the same noise.
    """
    schedule = dj.schedules.vp_linear()
    problem, x, grid = (
        diffusion(schedule, mixture()),
        jnp.array([0.4, -0.2]),
        dj.grids.log_snr(schedule, 24),
    )
    solver, key = getattr(solvers, inner)(), jax.random.key(0)
    one_by_one = solvers.integrate(key, solver, problem, x=x, ts=grid, path=True)
    at_once, info = solvers.integrate(
        key,
        solvers.picard(solver, window, 0.0),
        problem,
        x=x,
        ts=grid,
        path=True,
        info=True,
    )
    chex.assert_trees_all_close(at_once, one_by_one, rtol=1e-10, atol=1e-12)
    assert int(info.accepted) <= 24 and int(info.evaluations) >= 24


def test_picard_takes_fewer_rounds_than_steps_and_stays_within_its_tolerance(x64):
    schedule = dj.schedules.vp_linear()
    problem, x, grid = (
        diffusion(schedule, mixture()),
        jnp.array([0.4, -0.2]),
        dj.grids.log_snr(schedule, 64),
    )
    exact = solvers.integrate(None, solvers.ddim(), problem, x=x, ts=grid)
    end, info = solvers.integrate(
        None,
        solvers.picard(window=64, tolerance=1e-3),
        problem,
        x=x,
        ts=grid,
        info=True,
    )
    assert int(info.accepted) <= 16
    assert float(jnp.max(jnp.abs(end - exact))) < 64 * 1e-3


def test_picard_of_examples_without_axes_has_the_variance_of_its_solver():
    """On N(0, 1) a DDIM step from angle θ_t to θ_s, σ = sin θ, multiplies x by
    cos(θ_t − θ_s): the standard deviation is their product, 0.91 at 32 steps,
    and so it is for examples of shape ().
    """
    schedule = dj.schedules.vp_linear()
    grid = np.asarray(dj.grids.log_snr(schedule, 32))
    angle = np.arctan2(
        *(np.asarray(f(grid), np.float64) for f in (schedule.sigma, schedule.alpha))
    )
    starts = np.array([-2.0, 0.1, 1.0])
    denoiser = lambda x, t: schedule.alpha(t) * x
    ends = dj.sample_many(
        jax.random.key(0),
        3,
        denoiser,
        schedule,
        solver=solvers.picard(),
        grid=grid,
        x_init=starts,
    )
    np.testing.assert_allclose(
        ends, starts * np.prod(np.cos(np.diff(angle))), atol=32 * 1e-3 * 0.1
    )


def test_picard_has_forward_derivatives_and_names_the_cure_in_reverse(x64):
    schedule = dj.schedules.vp_linear()
    problem, x, grid = (
        diffusion(schedule, gaussian()),
        jnp.array([0.4, -0.2]),
        dj.grids.log_snr(schedule, 8),
    )
    run = lambda solver: (
        lambda x: solvers.integrate(None, solver, problem, x=x, ts=grid)
    )
    slopes = [
        jax.jvp(run(s), (x,), (jnp.ones(2),))[1]
        for s in (solvers.picard(tolerance=0.0), solvers.ddim())
    ]
    np.testing.assert_allclose(*slopes, rtol=1e-10)
    with pytest.raises(
        TypeError,
        match=(
            r"the picard\(ddim\(0\)\) solver has no reverse-mode .* jax.jvp, or "
            r"ddim\(0\) itself"
        ),
    ):
        jax.grad(lambda x: jnp.sum(run(solvers.picard())(x)))(x)


@pytest.mark.parametrize(
    "predictor",
    every(["reverse_diffusion", "dpmpp_2m", "heun"], ("reverse_diffusion", "dpmpp_2m")),
)
def test_a_corrector_is_one_langevin_step_of_the_stated_length(predictor, x64):
    """On one Gaussian x ← (1 − ε/2v) x + √ε z with ε = 4 r² σ², v the variance
    at the level reached.
    """
    schedule, snr = dj.schedules.vp_linear(), 0.2
    target = dj.targets.gaussian([0.0, 0.0], 0.8)
    problem, x, grid = (
        diffusion(schedule, target),
        jnp.array([0.4, -0.2]),
        jnp.array([0.5, 0.4, 0.3]),
    )
    z = np.random.default_rng(0).normal(size=(2, 8, 2))
    source = noise_source.Source(lambda step, draw: jnp.asarray(z)[step, draw])
    inner = getattr(solvers, predictor)()
    both, _ = driver.run(
        source,
        solvers.predictor_corrector(inner, 2, snr),
        problem,
        x=x,
        ts=grid,
        path=True,
    )
    alone, _ = driver.run(source, inner, problem, x=x, ts=grid, path=True)
    alpha, sigma = schedule.alpha(0.4), schedule.sigma(0.4)
    variance, size = alpha**2 * 0.64 + sigma**2, 4 * snr**2 * sigma**2
    expected = alone[1]
    for draw in (3, 4):
        expected = (1 - size / (2 * variance)) * expected + jnp.sqrt(size) * z[0, draw]
    chex.assert_trees_all_close(both[1], expected, rtol=1e-10)


@pytest.mark.parametrize("predictor", every(["dpmpp_2m", "unipc"], ("unipc",)))
def test_a_corrector_leaves_what_it_adds_to_solvers_that_remember(predictor):
    """After 24 steps with two Langevin steps at each, the start is forgotten
    and the distribution is the target's: 4 standard errors, and 3 % for the
    corrector's own bias r² = 0.026.
    """
    schedule, count = dj.schedules.vp_linear(), 4000
    target = dj.targets.gaussian([0.0, 0.0], 0.5)
    solver = solvers.predictor_corrector(getattr(solvers, predictor)(), corrections=2)
    start = jnp.ones((count, 2))
    samples = dj.sample_many(
        jax.random.key(0),
        count,
        dj.targets.denoiser(target, schedule),
        schedule,
        solver=solver,
        grid=dj.grids.log_snr(schedule, 24),
        x_init=start,
    )
    deviation = float(jnp.std(samples))
    assert abs(deviation - 0.5) < 0.5 * (4 / math.sqrt(4 * count) + 0.03)


def test_batch_norms_are_of_the_examples_mapped_together():
    schedule = dj.schedules.ve(0.01, 5.0)
    denoiser, grid = (
        dj.targets.denoiser(mixture(), schedule),
        dj.grids.karras(schedule, 8),
    )
    solver = solvers.predictor_corrector(norms="batch")
    four = dj.sample_many(
        jax.random.key(0), 4, denoiser, schedule, solver=solver, grid=grid, shape=(2,)
    )
    eight = dj.sample_many(
        jax.random.key(0), 8, denoiser, schedule, solver=solver, grid=grid, shape=(2,)
    )
    assert float(jnp.max(jnp.abs(four - eight[:4]))) > 1e-3
    for setting, value in (
        ("chunk", 2),
        ("mesh", jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))),
    ):
        with pytest.raises(
            ValueError, match="chunk and mesh must be None for predictor_corrector"
        ):
            dj.sample_many(
                jax.random.key(0),
                4,
                denoiser,
                schedule,
                solver=solver,
                grid=grid,
                shape=(2,),
                **{setting: value},
            )
    with pytest.raises(ValueError, match='use norms="expected" here'):
        dj.sample(
            jax.random.key(0), denoiser, schedule, solver=solver, grid=grid, shape=(2,)
        )


def test_restart_keeps_the_distribution_and_counts_its_evaluations():
    """Twice back from 0.05 to 0.3 on a Gaussian: the exact distribution within
    4 standard errors, and the evaluations reported.
    """
    schedule, target, count = dj.schedules.edm(sigma_max=10.0), gaussian(), 4000
    solver = solvers.restart(solvers.rk4(), t_low=0.05, t_high=0.3, repeats=2, steps=6)
    grid = dj.grids.karras(schedule, 24)
    start = jax.vmap(target.noised(schedule, schedule.t_max).sample)(
        jax.random.split(jax.random.key(0), count)
    )
    denoiser = dj.targets.denoiser(target, schedule)
    samples, info = dj.sample_many(
        jax.random.key(1),
        count,
        denoiser,
        schedule,
        solver=solver,
        grid=grid,
        x_init=start,
        info=True,
    )
    exact = target.noised(schedule, schedule.t_min)
    assert_moments(samples, np.asarray(exact.mean()), np.asarray(exact.covariance()))
    assert solver.evaluations(24) == int(info.evaluations[0]) == 4 * 24 + 2 * 4 * 6
    plain = dj.sample_many(
        jax.random.key(1),
        count,
        denoiser,
        schedule,
        solver=solvers.rk4(),
        grid=grid,
        x_init=start,
    )
    assert float(jnp.mean(jnp.abs(samples - plain))) > 0.01  # fresh noise did come in


# ---------------------------------------------------------------------------- bad input


def test_hyperparameters_out_of_range_are_named():
    cases = [
        (
            ValueError,
            "order must be between 1 and 4, got 5",
            lambda: solvers.adams_bashforth(5),
        ),
        (
            ValueError,
            "order must be between 1 and 3, got 4",
            lambda: solvers.dpm_solver(4),
        ),
        (
            ValueError,
            "order must be between 2 and 4, got 1",
            lambda: solvers.exponential_runge_kutta(1),
        ),
        (ValueError, "order must be between 1 and 3, got 0", lambda: solvers.unipc(0)),
        (
            ValueError,
            "variant must be one of 'bh1', 'bh2'",
            lambda: solvers.unipc(2, "bh3"),
        ),
        (
            ValueError,
            "coordinate must be one of 't', 'rho', 'log_rho'",
            lambda: solvers.deis(2, "x"),
        ),
        (ValueError, r"eta must lie in \[0, 1\], got 1.5", lambda: solvers.ddim(1.5)),
        (
            TypeError,
            "eta must be a number or an EtaFunction, .*, got <class .*_Exponential",
            lambda: solvers.ddim(type(solvers.eta_er_sde())),
        ),
        (
            TypeError,
            "eta must be a number or an EtaFunction, .*, got <built-in .*abs",
            lambda: solvers.er_sde(2, abs),
        ),
        (ValueError, "order must be between 2 and 3, got 4", lambda: solvers.seeds(4)),
        (ValueError, r"eta must lie in \[0, 1\]", lambda: solvers.er_sde(2, 1.5)),
        (
            ValueError,
            "high must be greater than low=1.0, got 0.5",
            lambda: solvers.eta_between(1.0, 0.5),
        ),
        (
            ValueError,
            r"eta must lie in \(0, 1\], got 0",
            lambda: solvers.eta_between(0.1, 1.0, 0.0),
        ),
        (
            TypeError,
            "gamma must be a real number",
            lambda: solvers.gradient_estimation(solvers.eta_between(0.1, 1.0)),
        ),
        (
            ValueError,
            r"eta must lie in \[0, 1\], got -0.1",
            lambda: solvers.dpmpp_2m_sde(-0.1),
        ),
        (
            ValueError,
            r"variance must lie in \[0, 1\], got 2",
            lambda: solvers.ddpm(2.0),
        ),
        (
            ValueError,
            "variance must be one of 'posterior', 'forward'",
            lambda: solvers.ddpm("beta"),
        ),
        (
            ValueError,
            "churn must be 0 or more, got -1.0",
            lambda: solvers.edm_stochastic(-1),
        ),
        (
            ValueError,
            "noise_max must be greater than noise_min=3.0, got 2.0",
            lambda: solvers.edm_stochastic(1, 3, 2),
        ),
        (
            TypeError,
            "corrected must be True or False, got 1",
            lambda: solvers.dpmpp_3m(1),
        ),
        (
            TypeError,
            "solver must not remember earlier steps, as dpmpp_2m does",
            lambda: solvers.picard(solvers.dpmpp_2m()),
        ),
        (
            TypeError,
            "solver must take one fixed step after another, got adaptive",
            lambda: solvers.restart(solvers.adaptive()),
        ),
        (
            TypeError,
            "solver must be deterministic to follow the probability flow, ddpm",
            lambda: solvers.restart(solvers.ddpm()),
        ),
        (
            TypeError,
            "must not itself be made of solvers",
            lambda: solvers.picard(solvers.predictor_corrector()),
        ),
        (
            TypeError,
            "must not itself be made of solvers",
            lambda: solvers.predictor_corrector(solvers.predictor_corrector()),
        ),
        (
            ValueError,
            "t_high must be greater than t_low=0.3, got 0.2",
            lambda: solvers.restart(t_low=0.3, t_high=0.2),
        ),
        (
            ValueError,
            "corrections must be between 1 and 5, got 6",
            lambda: solvers.predictor_corrector(corrections=6),
        ),
        (
            ValueError,
            "snr must be positive, got 0.0",
            lambda: solvers.predictor_corrector(snr=0),
        ),
    ]
    for error, match, make in cases:
        with pytest.raises(error, match=match):
            make()


@pytest.mark.parametrize(
    "name",
    [
        "dpmpp_2m",
        "dpm_solver",
        "euler_maruyama",
        "edm_stochastic",
        "euler_ancestral",
        "ddim",
    ],
)
def test_a_schedule_without_signal_at_its_end_raises_or_is_solved(name):
    """From α = 0 the solvers that divide by α raise by name.

    DDIM, its kin and multistep methods start there.

    They end as they do from t = 1 − h: the first step's coefficients and the
    denoiser move by O(h), h = 1e-5, and by float32's rounding.
    """
    schedule = dj.schedules.rectified_flow(t_max=1.0)
    denoiser, solver = (
        dj.targets.denoiser(mixture(), schedule),
        getattr(solvers, name)(),
    )
    grid, x = jnp.linspace(1, 0.01, 9), jnp.array([0.5, -1.0])
    run = lambda grid: dj.sample(
        jax.random.key(0), denoiser, schedule, solver=solver, grid=grid, x_init=x
    )
    if name in ("dpmpp_2m", "ddim", "euler_ancestral"):
        np.testing.assert_allclose(
            run(grid), run(grid.at[0].add(-1e-5)), atol=20 * 1e-5
        )
        return
    with pytest.raises(
        ValueError, match=r"grid must start below t=1.0 for .*α = 0 there"
    ):
        run(grid)


def test_steps_within_a_number_of_evaluations():
    """As many as the budget pays for.

    Too few for one step, or no number at all, raise by name.
    """
    heun = solvers.heun()
    assert [solvers.steps_within(heun, n) for n in (2, 3, 16)] == [1, 1, 8]
    assert (
        solvers.steps_within(solvers.annealed_langevin(1000), 10**6) == 1000
    )  # by bisection, not one by one
    assert (
        solvers.steps_within(heun, 15, to_zero=True) == 8
        and heun.evaluations(8, to_zero=True) == 15
    )
    with pytest.raises(
        ValueError,
        match="evaluations for dpm_solver\\(3\\) must be at least 3, got 2",
    ):
        solvers.steps_within(solvers.dpm_solver(3), 2)
    assert solvers.steps_within(solvers.restart(), 64) == 24  # 2·24 + 2·2·4
    for solver in (solvers.adaptive(), solvers.picard()):
        with pytest.raises(TypeError, match="solver must take one fixed step after"):
            solvers.steps_within(solver, 16)


def test_grids_and_paths_that_do_not_fit_raise():
    schedule = dj.schedules.vp_linear()
    problem, x, key = diffusion(schedule, mixture()), jnp.ones(2), jax.random.key(0)
    path = noise.brownian(key, 0.9, 0.5, shape=(2,))
    cases = [
        (
            "steps of the grid for dpmpp_2m must be at least 2, got 1",
            None,
            solvers.dpmpp_2m(),
            [0.9, 0.5],
        ),
        ("ts must decrease for ddpm", None, solvers.ddpm(), [0.5, 0.9]),
        (
            "Brownian path of x's shape",
            noise.brownian(key, 0.9, 0.5),
            solvers.sra1(),
            [0.9, 0.5],
        ),
        ("Brownian path that covers the grid", path, solvers.sra1(), [0.95, 0.5]),
        (
            "t_high must lie in the schedule's interval",
            None,
            solvers.restart(t_high=2.0),
            [0.9, 0.5],
        ),
        (
            "grid must pass t_low=0.06 at a time above 0",
            None,
            solvers.restart(),
            [0.9, 0.5, 0.0],
        ),
    ]
    for match, path, solver, ts in cases:
        with pytest.raises(ValueError, match=match):
            solvers.integrate(key, solver, problem, x=x, ts=ts, noise=path)
