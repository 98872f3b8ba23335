"""Samples depend on their own key only, encoding inverts sampling, bad
arguments are named.
"""

import dataclasses
import functools
import os
import pathlib
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import solvers


@functools.cache
def setting():
    schedule = dj.schedules.vp_linear()
    target = dj.targets.gaussian_mixture(
        [0.4, 0.6], [[1.5, 0.0], [-1.0, 0.5]], [0.4, 0.7]
    )
    return schedule, target, dj.targets.denoiser(target, schedule)


def test_the_default_sampler_draws_from_the_target():
    """Mean and covariance of 8000 default samples are the mixture's within 5
    standard errors (fourth moments measured), NFE 64.
    """
    schedule, target, denoiser = setting()
    n = 8000
    xs = np.asarray(
        dj.sample_many(jax.random.key(0), n, denoiser, schedule, shape=(2,))
    )
    mean, covariance = np.asarray(target.mean()), np.asarray(target.covariance())
    centred = xs - mean
    products = centred[:, :, None] * centred[:, None, :]
    assert np.all(np.abs(centred.mean(0)) < 5 * xs.std(0) / np.sqrt(n))
    assert np.all(
        np.abs(products.mean(0) - covariance) < 5 * products.std(0) / np.sqrt(n)
    )


@pytest.mark.parametrize(
    "solver",
    [
        pytest.param(solvers.heun(), marks=pytest.mark.slow),
        solvers.euler_maruyama(),
        pytest.param(solvers.adaptive(), marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_an_example_is_the_same_alone_in_any_batch_and_any_chunk(solver):
    schedule, _, denoiser = setting()
    key, grid = jax.random.key(3), dj.grids.karras(schedule, 8)
    draw = functools.partial(
        dj.sample_many,
        key,
        denoiser=denoiser,
        schedule=schedule,
        solver=solver,
        grid=grid,
        shape=(2,),
    )
    many = draw(11)
    for other in (draw(5), draw(11, chunk=4), draw(11, chunk=1), draw(11, chunk=100)):
        chex.assert_trees_all_close(other, many[: len(other)], atol=2e-5)
    for i in (0, 10):
        alone = dj.sample(
            jax.random.fold_in(key, i),
            denoiser,
            schedule,
            solver=solver,
            grid=grid,
            shape=(2,),
        )
        chex.assert_trees_all_close(alone, many[i], atol=2e-5)


def test_eight_devices_draw_the_same_samples_as_one():
    """Sharded over a mesh of 8 devices, of automatic or explicit axes, with
    and without chunks, for a count that 8 does not divide, by a solver with
    noise and one without.
    """
    program = """
import jax, jax.numpy as jnp, numpy as np, diffjax as dj
from jax.sharding import AxisType
assert jax.device_count() == 8
schedule, grid = dj.schedules.vp_linear(), dj.grids.karras(dj.schedules.vp_linear(), 8)
denoiser = dj.targets.denoiser(dj.targets.gaussian([0.3, -0.2], [0.5, 1.5]), schedule)
conditional = jax.tree_util.Partial(lambda d, x, t, c: d(x, t) + c, denoiser)
shift = 0.1 * jnp.linspace(-1, 1, 21)[:, None]
for solver in (dj.solvers.heun(), dj.solvers.euler_maruyama()):
    draw = lambda count, **kw: dj.sample_many(
        jax.random.key(0), count, conditional, schedule, solver=solver, grid=grid,
        shape=(2,), condition=shift[:count], **kw)
    one = draw(21)
    assert np.std(one) > 0.1
    for axis_type in (AxisType.Auto, AxisType.Explicit):
        for names, sizes in ((("data",), (8,)), (("data", "model"), (4, 2))):
            mesh = jax.make_mesh(sizes, names, axis_types=(axis_type,) * len(sizes))
            for chunk in (None, 2):
                many = draw(21, mesh=mesh, chunk=chunk)
                np.testing.assert_allclose(one, many, rtol=1e-6, atol=2e-5)
    batch = draw(16, mesh=mesh)
    assert len(batch.sharding.device_set) == 8, batch.sharding
print("same")
"""
    environment = os.environ | {
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "")
        + " --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(pathlib.Path(__file__).parents[1]),
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("same")


def test_a_condition_reaches_the_denoiser_of_its_own_example():
    """D(x, t, c) = c makes every sample its own condition at a grid that ends at 0."""
    schedule, _, _ = setting()
    conditions = {"mean": jnp.arange(6.0).reshape(3, 2)}
    denoiser = lambda x, t, c: c["mean"] + 0 * x
    grid = dj.grids.to_zero(dj.grids.karras(schedule, 4))
    xs = dj.sample_many(
        jax.random.key(0),
        3,
        denoiser,
        schedule,
        solver=solvers.ddim(),
        grid=grid,
        shape=(2,),
        condition=conditions,
    )
    np.testing.assert_allclose(xs, conditions["mean"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["ve", "edm", "vp_linear", "sub_vp"])
def test_the_start_has_the_standard_deviation_of_the_prior(name):
    """path=True shows x_T: its spread is σ(t_max), 50 for VE and 80 for EDM,
    within 4 standard errors.
    """
    schedule = {
        "ve": dj.schedules.ve,
        "edm": dj.schedules.edm,
        "sub_vp": dj.schedules.sub_vp,
    }.get(name, dj.schedules.vp_linear)()
    denoiser = dj.targets.denoiser(dj.targets.gaussian(jnp.zeros(4), 1.0), schedule)
    paths = dj.sample_many(
        jax.random.key(0),
        500,
        denoiser,
        schedule,
        solver=solvers.euler(),
        grid=dj.grids.karras(schedule, 2),
        shape=(4,),
        path=True,
    )
    assert paths.shape == (500, 3, 4)
    start = np.asarray(paths[:, 0]).reshape(-1)
    sigma = float(dj.schedules.prior_std(schedule))
    assert abs(start.var() / sigma**2 - 1) < 4 * np.sqrt(2 / start.size)


def test_initial_noise_and_step_noise_are_independent():
    """Where D = 0, one Euler–Maruyama step of VE is a x_T + c z: the
    correlation of x_T with what is added is 0 within 4 s.e.
    """
    schedule = dj.schedules.ve(0.01, 1.0)
    zero = lambda x, t: jnp.zeros_like(x)
    grid = [1.0, 0.6]
    paths = dj.sample_many(
        jax.random.key(0),
        4000,
        zero,
        schedule,
        solver=solvers.euler_maruyama(),
        grid=grid,
        shape=(2,),
        path=True,
    )
    start, end = (
        np.asarray(paths[:, 0]).reshape(-1),
        np.asarray(paths[:, 1]).reshape(-1),
    )
    slope = 1 - 0.4 * float(dj.sde.reverse(schedule, zero).drift.coefficients(1.0)[0])
    assert abs(np.corrcoef(start, end - slope * start)[0, 1]) < 4 / np.sqrt(start.size)


def test_encode_inverts_sampling(x64):
    """Encoding and decoding on one fine grid return to the start at RK4's error.

    The latents of N(m, s²) are its quantiles.
    """
    schedule, target, denoiser = setting()
    grid = dj.grids.log_snr(schedule, 300)
    x = target.sample(jax.random.key(0))
    z = dj.encode(denoiser, schedule, x, solver=solvers.rk4(), grid=grid)
    back = dj.sample(
        None, denoiser, schedule, solver=solvers.rk4(), grid=grid, x_init=z
    )
    np.testing.assert_allclose(back, x, atol=1e-6)
    target = dj.targets.gaussian([0.5, -1.0], 0.3)
    z = dj.encode(
        dj.targets.denoiser(target, schedule),
        schedule,
        [0.8, -1.0],
        solver=solvers.rk4(),
        grid=grid,
    )
    low, high = (
        target.noised(schedule, schedule.t_min),
        target.noised(schedule, schedule.t_max),
    )
    standard = (jnp.array([0.8, -1.0]) - low.mean()) / jnp.sqrt(
        jnp.diag(low.covariance())
    )
    np.testing.assert_allclose(
        z, high.mean() + standard * jnp.sqrt(jnp.diag(high.covariance())), atol=1e-6
    )


@pytest.mark.parametrize(
    ("factory", "order"), [(solvers.ddim, 1), (solvers.dpmpp_2m, 2), (solvers.dpm_2, 2)]
)
def test_solvers_of_denoisers_encode_at_their_order(factory, order, x64):
    """Upwards from 100 to 200 steps, against RK4 on 400: DDIM's is its inversion."""
    schedule, target, denoiser = setting()
    x = target.sample(jax.random.key(0))
    encode = lambda solver, steps: dj.encode(
        denoiser, schedule, x, solver=solver, grid=dj.grids.log_snr(schedule, steps)
    )
    exact = encode(solvers.rk4(), 400)
    coarse, fine = (
        float(jnp.linalg.norm(encode(factory(), steps) - exact)) for steps in (100, 200)
    )
    assert abs(np.log2(coarse / fine) - order) < 0.2, (coarse, fine)


def test_denoiser_solvers_do_not_encode_to_where_there_is_no_signal():
    schedule = dj.schedules.rectified_flow(t_max=1.0)
    denoiser = dj.targets.denoiser(setting()[1], schedule)
    assert bool(
        jnp.all(
            jnp.isfinite(
                dj.encode(denoiser, schedule, [0.3, 0.1], solver=solvers.heun())
            )
        )
    )
    with pytest.raises(ValueError, match="grid must end below t=1.0 upwards for ddim"):
        dj.encode(denoiser, schedule, [0.3, 0.1], solver=solvers.ddim())


def test_interpolation_starts_and_ends_at_its_ends(x64):
    schedule, _, denoiser = setting()
    start, end = jnp.array([1.4, 0.1]), jnp.array([-1.2, 0.6])
    grid = dj.grids.log_snr(schedule, 200)
    between = dj.interpolate(
        denoiser,
        schedule,
        start,
        end,
        weights=[0.0, 0.5, 1.0],
        solver=solvers.rk4(),
        grid=grid,
    )
    np.testing.assert_allclose(
        between[jnp.array([0, 2])], jnp.stack([start, end]), atol=1e-5
    )


def test_spherical_interpolation_keeps_the_norm():
    a, b = jnp.array([3.0, 0.0, 0.0]), jnp.array([0.0, 3.0, 0.0])
    for w in (0.0, 0.3, 1.0):
        z = dj.sampling.spherical(a, b, w)
        np.testing.assert_allclose(jnp.linalg.norm(z), 3.0, rtol=1e-5)
        np.testing.assert_allclose(jnp.arctan2(z[1], z[0]), w * np.pi / 2, atol=1e-5)


def test_memory_does_not_grow_with_steps_without_the_path():
    schedule, _, denoiser = setting()

    def temporary(steps, path):
        grid = dj.grids.uniform(schedule, steps)
        call = jax.jit(
            lambda key: dj.sample_many(
                key,
                512,
                denoiser,
                schedule,
                solver=solvers.euler(),
                grid=grid,
                shape=(2,),
                path=path,
            )
        )
        analysis = call.lower(jax.random.key(0)).compile().memory_analysis()
        return analysis.temp_size_in_bytes + analysis.output_size_in_bytes

    coefficients = 64 * 1000  # bytes of per-step scalars
    assert temporary(1000, False) - temporary(10, False) < coefficients
    assert temporary(1000, True) - temporary(10, True) > 900 * 512 * 2 * 4


def test_rectified_flow_samples_from_its_very_end():
    """t_max = 1, where α = 0: the probability flow of the exact denoiser is
    regular there and reaches N(0.5, 0.3²).
    """
    schedule = dj.schedules.rectified_flow(t_max=1.0)
    denoiser = dj.targets.denoiser(dj.targets.gaussian([0.5], 0.3), schedule)
    grid = dj.grids.uniform(schedule, 100)
    z = 1.3
    end = dj.sample(
        None, denoiser, schedule, solver=solvers.rk4(), grid=grid, x_init=[z]
    )
    t = float(grid[-1])
    std = np.sqrt(((1 - t) * 0.3) ** 2 + t**2)
    np.testing.assert_allclose(end, [(1 - t) * 0.5 + std * z], atol=2e-3)
    assert np.isfinite(
        dj.sample(jax.random.key(0), denoiser, schedule, shape=(1,))
    ).all()


def test_low_precision_and_integer_starts_are_promoted():
    schedule, _, denoiser = setting()
    for start in (np.array([1, -1]), jnp.ones(2, jnp.bfloat16), [0.5, 0.5]):
        assert (
            dj.sample(jax.random.key(0), denoiser, schedule, x_init=start).dtype
            == jnp.float32
        )


def test_bad_arguments_are_named():
    schedule, _, denoiser = setting()
    key = jax.random.key(0)
    cases = [
        (ValueError, "shape must be given", {}),
        (
            TypeError,
            "shape must be a tuple of positive integers, got \\(0,\\)",
            {"shape": (0,)},
        ),
        (ValueError, "grid must decrease", {"shape": (2,), "grid": [0.1, 0.9]}),
        (
            ValueError,
            "got 0.5 after 0.5 at index 2",
            {"shape": (2,), "grid": [0.9, 0.5, 0.5]},
        ),
        (
            ValueError,
            "x_init must have shape \\(3,\\), got \\(2,\\)",
            {"shape": (3,), "x_init": jnp.ones(2)},
        ),
        (ValueError, "x_init must be finite", {"x_init": [jnp.nan]}),
        (
            TypeError,
            "solver must be made by a factory",
            {"shape": (2,), "solver": "heun"},
        ),
    ]
    for error, match, arguments in cases:
        with pytest.raises(error, match=match):
            dj.sample(key, denoiser, schedule, **arguments)
    with pytest.raises(TypeError, match="schedule must have alpha"):
        dj.sample(key, denoiser, "vp", shape=(2,))
    with pytest.raises(TypeError, match="denoiser must be callable"):
        dj.sample(key, None, schedule, shape=(2,))
    with pytest.raises(TypeError, match="key must be a typed key"):
        dj.sample(0, denoiser, schedule, shape=(2,))
    with pytest.raises(ValueError, match="denoiser must return its example's shape"):
        dj.sample(key, lambda x, t: x.sum(), schedule, shape=(2,))
    straight = dj.schedules.rectified_flow(t_max=1.0)
    with pytest.raises(
        ValueError, match="grid must start below t=1.0 for euler_maruyama: α = 0 there"
    ):
        dj.sample(
            key,
            dj.targets.denoiser(setting()[1], straight),
            straight,
            solver=solvers.euler_maruyama(),
            shape=(2,),
        )
    many = functools.partial(
        dj.sample_many, key, denoiser=denoiser, schedule=schedule, shape=(2,)
    )
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        many(0)
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        many(4, chunk=0)
    with pytest.raises(
        ValueError,
        match="condition must have leading axis 4 as count, got shape \\(3,\\)",
    ):
        many(4, condition=jnp.zeros(3))
    with pytest.raises(TypeError, match="mesh must be a jax.sharding.Mesh"):
        many(4, mesh=8)
    with pytest.raises(
        TypeError,
        match=(
            "must be deterministic to follow the probability flow, euler_maruyama "
            "draws noise"
        ),
    ):
        dj.encode(denoiser, schedule, jnp.ones(2), solver=solvers.euler_maruyama())
    with pytest.raises(ValueError, match="grid must lie in the schedule's interval"):
        dj.encode(denoiser, schedule, jnp.ones(2), grid=[0.5, 0.0])


# ---------------------------------------------------------------- where sampling starts


@pytest.mark.parametrize("start", [14.6, 1.3])
def test_the_prior_belongs_to_the_first_time_of_the_grid(start):
    """From σ = 14.6 in place of 80: starts of that spread, and N((3, −1), ½²)
    at the end, within 5 standard errors.

    The flow takes x to m + (x − m) √(s² + σ_N²)/√(s² + σ_0²) exactly, from
    starts N(0, σ_0²).
    """
    schedule, mean, std, n = dj.schedules.edm(), np.array([3.0, -1.0]), 0.5, 2000
    denoiser = dj.targets.denoiser(dj.targets.gaussian(mean, std), schedule)
    grid = np.geomspace(start, 0.01, 25)
    paths = np.asarray(
        dj.sample_many(
            jax.random.key(0),
            n,
            denoiser,
            schedule,
            solver=solvers.dpmpp_2m(),
            grid=grid,
            shape=(2,),
            path=True,
        )
    )
    assert abs(paths[:, 0].var() / start**2 - 1) < 5 / np.sqrt(
        n
    )  # 2 n numbers: √(2 / 2n)
    shrink = np.hypot(std, 0.01) / np.hypot(std, start)
    error = 5 * start * shrink / np.sqrt(n)
    np.testing.assert_allclose(
        paths[:, -1].mean(0), mean * (1 - shrink), atol=error + 0.01
    )
    np.testing.assert_allclose(
        paths[:, -1].std(0), start * shrink, rtol=5 / np.sqrt(2 * n) + 0.02
    )


# --------------------------------------------------------- stopping, noise of one's own


def stoppable_solvers():
    """One of each kind of state in the fast set: history with correction and
    noise, step control, inner steps.
    """
    fast = [solvers.sa_solver(), solvers.adaptive(), solvers.annealed_langevin(2)]
    slow = [
        solvers.heun(),
        solvers.rk4(),
        solvers.unipc(3),
        solvers.dpmpp_3m_sde(),
        solvers.ipndm(),
        solvers.restart(),
    ]
    slow += [
        solvers.adaptive_sde(),
        solvers.edm_stochastic(),
        solvers.sra1(),
        solvers.predictor_corrector(),
    ]
    return [*fast, *(pytest.param(solver, marks=pytest.mark.slow) for solver in slow)]


@pytest.mark.parametrize("solver", stoppable_solvers(), ids=repr)
def test_parts_of_a_run_equal_the_whole_bit_for_bit(solver):
    """1 + 3 + 3 steps, the state saved and loaded between, end where `sample` does."""
    schedule, _, denoiser = setting()
    grid = np.asarray(dj.grids.to_zero(dj.grids.karras(schedule, 6)))
    key = jax.random.key(5)
    problem = solvers.diffusion(schedule, denoiser)
    key_run, x = dj.sampling.initial(key, schedule, grid, (2,))
    run = solvers.start(solver, problem, x=x, ts=grid)
    for steps in (1, 3, None):
        run = jax.tree.map(
            np.asarray,
            solvers.advance(key_run, solver, run, problem, ts=grid, steps=steps),
        )
    assert run.step == 7
    np.testing.assert_array_equal(
        run.x, dj.sample(key, denoiser, schedule, solver=solver, grid=grid, shape=(2,))
    )


def test_stopping_raises_by_name():
    schedule, _, denoiser = setting()
    problem, grid = solvers.diffusion(schedule, denoiser), np.linspace(0.9, 0.1, 4)
    with pytest.raises(
        TypeError,
        match=(
            r"solver must take one step after another to be stopped, "
            r"picard\(ddim\(0\)\)"
        ),
    ):
        solvers.start(solvers.picard(), problem, x=np.ones(2), ts=grid)
    run = solvers.start(solvers.ddim(), problem, x=np.ones(2), ts=grid)
    with pytest.raises(
        ValueError, match="steps must be at most those left .* got 4 where 0 of 3"
    ):
        solvers.advance(None, solvers.ddim(), run, problem, ts=grid, steps=4)
    done = solvers.advance(None, solvers.ddim(), run, problem, ts=grid)
    with pytest.raises(
        ValueError,
        match=(
            "those left of the whole run's ts, got None where 3 of 2 have been taken"
        ),
    ):
        solvers.advance(None, solvers.ddim(), done, problem, ts=grid[:3])
    with pytest.raises(
        TypeError,
        match=(
            r"progress must be made for ipndm\(4\), got that of "
            r"another"
        ),
    ):
        solvers.advance(None, solvers.ipndm(), run, problem, ts=grid)
    with pytest.raises(ValueError, match="grid must decrease, got 0.1"):
        dj.sampling.initial(jax.random.key(0), schedule, grid[::-1], (2,))
    with pytest.raises(
        TypeError, match="progress must be made by solvers.start, got tuple"
    ):
        solvers.advance(None, solvers.ddim(), (), problem, ts=grid)


def test_noise_of_ones_own():
    """DDPM's chain by hand from an array of normals, by `integrate`, `sample`
    and `sample_many`. A function gives the same.
    """
    schedule, _, _ = setting()
    denoiser, grid = (lambda x, t: 0.5 * x), np.array([0.9, 0.6, 0.3], np.float32)
    z = (
        np.random.default_rng(0).normal(size=(3, 2, 1, 2)).astype(np.float32)
    )  # (examples, steps, draws, 2)
    start = np.array([[0.3, -1.0], [1.0, 0.2], [0.0, 0.5]], np.float32)
    alpha, sigma = (
        np.asarray(f(grid), float) for f in (schedule.alpha, schedule.sigma)
    )
    x = start.astype(float)
    for i in range(2):
        kept = (alpha[i] / alpha[i + 1]) ** 2 * sigma[i + 1] ** 2 / sigma[i] ** 2
        d, eps = 0.5 * x, (x - alpha[i] * 0.5 * x) / sigma[i]
        noise = sigma[i + 1] * np.sqrt(1 - kept)
        x = (
            alpha[i + 1] * d
            + np.sqrt(sigma[i + 1] ** 2 - noise**2) * eps
            + noise * z[:, i, 0]
        )
    many = dj.sample_many(
        jax.random.key(0),
        3,
        denoiser,
        schedule,
        solver=solvers.ddpm(),
        grid=grid,
        x_init=start,
        noise=z,
        chunk=2,
    )
    np.testing.assert_allclose(many, x, rtol=1e-5, atol=1e-5)
    table = jnp.asarray(z[0])
    for noise in (z[0], lambda n, i: table[n, i]):
        one = dj.sample(
            None,
            denoiser,
            schedule,
            solver=solvers.ddpm(),
            grid=grid,
            x_init=start[0],
            noise=noise,
        )
        np.testing.assert_allclose(one, x[0], rtol=1e-5, atol=1e-5)
    for error, match, noise in (
        (
            ValueError,
            r"noise must have shape \(2, draws, 2\), got \(3, 1, 2\)",
            np.zeros((3, 1, 2)),
        ),
        (
            ValueError,
            "noise must have at least 2 draws per step, got 1",
            np.zeros((2, 1, 2)),
        ),
        (ValueError, "noise must be finite", np.full((2, 2, 2), np.nan)),
    ):
        with pytest.raises(error, match=match):
            dj.sample(
                None,
                denoiser,
                schedule,
                solver=solvers.sra1(),
                grid=grid,
                x_init=start[0],
                noise=noise,
            )


def test_a_plain_dataclass_serves_as_schedule_and_denoiser():
    @dataclasses.dataclass
    class Cosine:
        t_min: float = 1e-3
        t_max: float = 0.99

        def alpha(self, t):
            return jnp.cos(0.5 * jnp.pi * t)

        def sigma(self, t):
            return jnp.sin(0.5 * jnp.pi * t)

    @dataclasses.dataclass
    class Constant:
        value: jax.Array

        def __call__(self, x, t):
            return self.value + 0 * x

    denoiser = Constant(jnp.array([1.0, 2.0]))
    for _ in range(2):
        end = dj.sample(
            jax.random.key(0), denoiser, Cosine(), grid=[0.9, 0.5, 0.0], shape=(2,)
        )
        np.testing.assert_allclose(end, denoiser.value, rtol=1e-5)
        denoiser.value = jnp.array([-1.0, 3.0])
