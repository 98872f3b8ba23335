"""log p by the probability flow against exact densities."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import solvers
from tests.families import SCHEDULES, every

WEIGHTS, MEANS = [0.3, 0.7], [[1.0, 0.5], [-0.5, 0.0]]
COVARIANCES = [[[0.6, 0.2], [0.2, 0.4]], [[0.5, 0.0], [0.0, 0.8]]]


def setting(schedule):
    target = dj.targets.gaussian_mixture(WEIGHTS, MEANS, COVARIANCES)
    return target, dj.targets.denoiser(target, schedule)


@pytest.mark.parametrize(
    "name", every(SCHEDULES, ("vp_linear", "ve", "rectified_flow", "own"))
)
def test_log_prob_of_a_mixture_is_exact(name, x64):
    """With the exact p_T as base, log p equals noised(t_min).log_prob to 1e-4
    nats on a fine grid, on every schedule.
    """
    schedule = SCHEDULES[name]()
    target, denoiser = setting(schedule)
    x = jax.vmap(target.sample)(jax.random.split(jax.random.key(0), 6))
    base, grid = (
        target.noised(schedule, schedule.t_max),
        dj.grids.log_snr(schedule, 400),
    )
    ours = jax.vmap(lambda x: dj.log_prob(denoiser, schedule, x, grid=grid, base=base))(
        x
    )
    exact = jax.vmap(target.noised(schedule, schedule.t_min).log_prob)(x)
    np.testing.assert_allclose(ours, exact, atol=1e-4)


def test_the_default_solver_and_grid_are_good_to_a_hundredth_of_a_nat():
    for name in ("vp_linear", "ve", "edm", "rectified_flow"):
        schedule = SCHEDULES[name]()
        target, denoiser = setting(schedule)
        x = target.sample(jax.random.key(1))
        ours = dj.log_prob(
            denoiser, schedule, x, base=target.noised(schedule, schedule.t_max)
        )
        assert (
            abs(float(ours - target.noised(schedule, schedule.t_min).log_prob(x)))
            < 1e-2
        ), name


def test_the_default_base_is_the_prior_of_the_schedule(x64):
    """N(0, σ(t_max)²): variance σ², not σ⁴ or 1.

    With VE and a wide prior the flow of N(0, s²) shows each of these.
    """
    schedule, std = dj.schedules.ve(0.01, 50.0), 0.7
    denoiser = dj.targets.denoiser(dj.targets.gaussian(jnp.zeros(2), std), schedule)
    x = jnp.array([0.4, -0.3])
    lp, info = dj.log_prob(
        denoiser, schedule, x, grid=dj.grids.log_snr(schedule, 200), info=True
    )
    sigma = 50.0
    expected = (
        jnp.sum(
            -0.5 * (info.latent / sigma) ** 2
            - jnp.log(sigma)
            - 0.5 * jnp.log(2 * jnp.pi)
        )
        + info.log_det
    )
    np.testing.assert_allclose(lp, expected, rtol=1e-12)
    stretch = np.sqrt(
        (std**2 + sigma**2) / (std**2 + 0.01**2 * 5000 ** (2 * schedule.t_min))
    )
    np.testing.assert_allclose(info.latent, stretch * x, rtol=1e-5)
    np.testing.assert_allclose(info.log_det, 2 * np.log(stretch), rtol=1e-5)


def test_hutchinson_is_unbiased_and_its_error_is_reported(x64):
    """Over 400 keys the mean of one-probe estimates is the exact value within
    4 standard errors, and the reported standard error of 64 probes is the
    spread of one over 8 to 30 % (its own relative error is 1/√126).
    """
    schedule = dj.schedules.vp_linear()
    _, denoiser = setting(schedule)
    x, grid = jnp.array([0.8, 0.4]), dj.grids.log_snr(schedule, 24)
    exact = dj.log_prob(denoiser, schedule, x, grid=grid)
    keys = jax.random.split(jax.random.key(0), 400)
    single = jax.vmap(
        lambda k: dj.log_prob(
            denoiser, schedule, x, key=k, divergence="hutchinson", grid=grid
        )
    )(keys)
    spread = jnp.std(single, ddof=1)
    assert spread > 1e-3
    assert abs(jnp.mean(single) - exact) < 4 * spread / 20
    _, info = dj.log_prob(
        denoiser,
        schedule,
        x,
        key=keys[0],
        divergence="hutchinson",
        probes=64,
        grid=grid,
        info=True,
    )
    np.testing.assert_allclose(info.standard_error, spread / 8, rtol=0.3)


def test_hutchinson_is_exact_where_the_jacobian_is_diagonal(x64):
    schedule = dj.schedules.vp_linear()
    denoiser = dj.targets.denoiser(
        dj.targets.gaussian([0.3, -0.2, 0.0], [0.5, 1.0, 2.0]), schedule
    )
    x = jnp.array([0.1, 0.2, -0.3])
    exact = dj.log_prob(denoiser, schedule, x)
    lp, info = dj.log_prob(
        denoiser,
        schedule,
        x,
        key=jax.random.key(0),
        divergence="hutchinson",
        probes=3,
        info=True,
    )
    np.testing.assert_allclose(lp, exact, rtol=1e-10)
    assert float(info.standard_error) < 1e-10


def test_forward_mode_is_the_same_estimate_of_the_divergence(x64):
    """Probe by probe, εᵀ(Jε) = (εᵀJ)ε, of a Jacobian that is not symmetric."""
    schedule = dj.schedules.vp_linear(t_min=0.1)
    w = np.random.default_rng(0).normal(size=(5, 5))
    net = lambda x, t: jnp.tanh(w @ x + t)
    denoiser = dj.predictions.denoiser(schedule, net, "data")
    settings = {"key": jax.random.key(0), "probes": 3, "info": True}
    settings["grid"] = dj.grids.log_snr(schedule, 6)
    values = [
        dj.log_prob(denoiser, schedule, 0.1 * w[0], divergence=name, **settings)
        for name in ("hutchinson", "hutchinson_forward")
    ]
    chex.assert_trees_all_close(*values, rtol=1e-12)
    assert values[0][1].standard_error > 1e-3


def test_an_example_of_any_shape_and_the_adaptive_solver():
    """A (2, 1) image has the log-density of its ravel, and dopri5 at 1e-6
    agrees with the fixed grid.
    """
    schedule = dj.schedules.vp_linear()
    target, flat = setting(schedule)
    image = lambda x, t: flat(x.reshape(-1), t).reshape(x.shape)
    x = jnp.array([0.2, 0.9])
    expected = dj.log_prob(flat, schedule, x)
    chex.assert_trees_all_close(
        dj.log_prob(image, schedule, x.reshape(2, 1)), expected, rtol=1e-5
    )
    adaptive = dj.log_prob(flat, schedule, x, solver=solvers.adaptive(1e-6, 1e-6))
    chex.assert_trees_all_close(adaptive, expected, atol=2e-3)


def test_log_prob_integrates_to_one(x64):
    """A density that is not exact is a density all the same: quadrature of
    e^{log p} over the plane gives 1.
    """
    schedule = dj.schedules.vp_linear(
        t_min=0.2
    )  # σ there is 0.65: the trapezoid rule at 0.13 is exact to rounding
    denoiser = dj.predictions.denoiser(
        schedule, lambda x, t: 0.8 * jnp.tanh(x[::-1] + t), "data"
    )
    points = jnp.linspace(-4, 4, 61)
    grid = jnp.stack(jnp.meshgrid(points, points), -1).reshape(-1, 2)
    ts = dj.grids.log_snr(schedule, 60)
    lp = jax.jit(jax.vmap(lambda x: dj.log_prob(denoiser, schedule, x, grid=ts)))(grid)
    np.testing.assert_allclose(jnp.sum(jnp.exp(lp)) * (8 / 60) ** 2, 1.0, atol=1e-5)


def test_the_lattice_bound_is_below_the_exact_mass_and_nearly_tight(x64):
    """For two independent entries of distribution (0.2, 0.3, 0.5) on (−1, 0,
    1) the exact denoiser's bound, meaned over 200 draws, lies below log P(x)
    within 4 standard errors and, at σ/α a twelfth of the spacing, less than
    1e-3 nats below: a level is then mistaken with probability 2e-9.
    """
    levels, probabilities = jnp.array([-1.0, 0.0, 1.0]), np.array([0.2, 0.3, 0.5])
    schedule = dj.schedules.vp_linear(
        t_min=float(
            dj.schedules.time_of_log_snr(dj.schedules.vp_linear(), 2 * np.log(12))
        )
    )
    denoiser = dj.predictions.categorical(
        schedule, lambda features, c: jnp.tile(jnp.log(probabilities), 2), levels
    )
    grid, x = dj.grids.log_snr(schedule, 200), jnp.array([1.0, -1.0])
    atoms = dj.targets.gaussian_mixture(
        np.outer(probabilities, probabilities).ravel(),
        np.stack(np.meshgrid(levels, levels, indexing="ij"), -1).reshape(-1, 2),
        np.full(9, 1e-6),
    )
    base = atoms.noised(
        schedule, schedule.t_max
    )  # N(0, σ²) would be off by α E[x] z, 1e-3 nats here
    draw = jax.jit(
        lambda key: dj.likelihood.lattice_log_prob(
            key,
            denoiser,
            schedule,
            x,
            levels=levels,
            divergence="exact",
            grid=grid,
            base=base,
        )
    )
    bounds = jax.vmap(draw)(jax.random.split(jax.random.key(0), 200))
    exact, error = np.log(0.5 * 0.2), float(jnp.std(bounds) / np.sqrt(200))
    flow_error = 1e-5  # of 200 Runge-Kutta steps
    assert bounds.mean() < exact + 4 * error + flow_error
    assert bounds.mean() > exact - 4 * error - flow_error - 1e-3
    with pytest.raises(
        ValueError, match="x must take values among the 3 levels, got an entry 0.5"
    ):
        dj.likelihood.lattice_log_prob(
            jax.random.key(0), denoiser, schedule, jnp.array([0.5, 0.0]), levels=levels
        )
    with pytest.raises(ValueError, match="levels must increase"):
        dj.likelihood.lattice_log_prob(
            jax.random.key(0), denoiser, schedule, x, levels=levels[::-1]
        )


def test_both_bounds_of_eight_bits_are_its_probability(x64):
    """Over 256 levels with two bumps, with the exact denoiser, which is no
    softmax, down to a sixth of the spacing.

    The flow's value at x ~ P is −log P(x) for every draw, up to H(x | x_t) and
    the steps. The variational bound has a variance, and its mean is H(P).
    """
    levels = np.linspace(-1, 1, 256)
    bumps = np.array([[-0.4, 0.1, 1.0], [0.5, 0.2, 0.3]])
    p = sum(w * np.exp(-0.5 * ((levels - m) / s) ** 2) for m, s, w in bumps)
    p /= p.sum()
    least = dj.schedules.time_of_log_snr(
        dj.schedules.vp_linear(t_min=1e-7), 2 * np.log(6 * 255 / 2)
    )
    schedule = dj.schedules.vp_linear(t_min=float(least))
    atoms = dj.targets.gaussian_mixture(p, levels[:, None], np.full(256, 1e-9))
    denoiser = dj.targets.denoiser(atoms, schedule)
    settings = {"levels": levels, "chunk": 1}
    flow = settings | {
        "divergence": "exact",
        "grid": dj.grids.log_snr(schedule, 64),
        "base": atoms.noised(schedule, schedule.t_max),
    }
    elbo = settings | {"count": 16, "times": "log_snr", "decoder": "evidence"}

    @jax.jit
    def values(keys, xs):
        of_flow = lambda key, x: dj.likelihood.lattice_log_prob(
            key, denoiser, schedule, x, **flow
        )
        of_elbo = lambda key, x: (
            dj.ddpm.continuous_elbo(key, denoiser, schedule, x, **elbo).total
        )
        return jax.vmap(of_flow)(keys[:20], xs[:20]), jax.vmap(of_elbo)(keys, xs)

    index = np.random.default_rng(0).choice(256, 800, p=p)
    keys = jax.random.split(jax.random.key(0), len(index))
    log_probs, bounds = values(keys, levels[index][:, None])
    gaps = bounds + np.log(p[index])
    np.testing.assert_allclose(log_probs, np.log(p[index[:20]]), atol=0.02)
    # Neighbours a spacing apart overlap by less than 0.02 nats at a sixth of it.
    assert abs(gaps.mean()) < 4 * gaps.std() / np.sqrt(len(index)) + 0.02


@pytest.mark.parametrize("levels_are_traced", [False, True])
def test_the_lattice_bound_of_what_is_no_level_is_minus_infinity_where_traced(
    levels_are_traced,
):
    """Entries of which one is no level have probability 0, as for every
    decoder of levels. Others keep their value.

    An entry within 1e-4 of the range counts as its level. NaN stays NaN.
    """
    levels, schedule = np.float32([-1.0, 0.0, 1.0]), dj.schedules.vp_linear(t_min=1e-3)
    denoiser = dj.targets.denoiser(dj.targets.gaussian([0.0, 0.0], 0.7), schedule)
    xs = np.float32(
        [[1, -1], [1 + 1.9e-4, -1], [1 + 2.1e-4, -1], [0.5, 0], [0, 255], [np.nan, 0]]
    )
    grid, key = dj.grids.log_snr(schedule, 4), jax.random.key(0)

    def bound(x, levels=levels):
        return dj.likelihood.lattice_log_prob(
            key, denoiser, schedule, x, levels=levels, divergence="exact", grid=grid
        )

    if levels_are_traced:
        result = np.asarray(jax.jit(jax.vmap(bound, (0, None)))(xs, levels))
    else:
        result = np.asarray(jax.jit(jax.vmap(bound))(xs))
    np.testing.assert_allclose(result[:2], [bound(x) for x in xs[:2]], rtol=1e-5)
    assert np.all(np.isneginf(result[2:5])) and np.isnan(result[5])
    for x, away in ((xs[2], "0.0002"), (xs[3], "0.5"), (xs[4], "254.0")):
        with pytest.raises(
            ValueError,
            match=f"among the 3 levels, got an entry {away}[0-9]* away from all",
        ):
            bound(x)


def test_bad_arguments_are_named():
    schedule = dj.schedules.vp_linear()
    _, denoiser = setting(schedule)
    x, key = jnp.ones(2), jax.random.key(0)
    cases = [
        (
            ValueError,
            "divergence must be one of 'exact', 'hutchinson', 'hutch.*; got 'trace'",
            {"divergence": "trace"},
        ),
        (
            ValueError,
            "key must be given for divergence='hutchinson'",
            {"divergence": "hutchinson"},
        ),
        (
            ValueError,
            "probes must be at least 1, got 0",
            {"divergence": "hutchinson", "key": key, "probes": 0},
        ),
        (
            TypeError,
            "solver must consume a velocity",
            {"solver": solvers.euler_maruyama()},
        ),
        (
            ValueError,
            "grid must lie in the schedule's interval",
            {"grid": [1.0, 0.5, 0.0]},
        ),
        (TypeError, "base must have log_prob", {"base": 3.0}),
        (ValueError, "grid must decrease", {"grid": [0.1, 0.9]}),
        (TypeError, "key must be a typed key", {"key": 0}),
    ]
    for error, match, arguments in cases:
        with pytest.raises(error, match=match):
            dj.log_prob(denoiser, schedule, x, **arguments)
    with pytest.raises(ValueError, match="x must be finite"):
        dj.log_prob(denoiser, schedule, jnp.array([jnp.inf, 0.0]))


def test_the_base_belongs_to_the_first_time_of_the_grid(x64):
    """From σ = 10 in place of 80: N(0, s²) under the flow from N(0, 100) is
    N(0, v), v = 100 (s² + σ_N²)/(s² + 100).
    """
    schedule, std = dj.schedules.edm(), 0.5
    denoiser = dj.targets.denoiser(dj.targets.gaussian(jnp.zeros(2), std), schedule)
    x, grid = np.array([0.4, -0.3]), np.geomspace(10.0, 0.01, 120)
    v = 100 * (std**2 + 0.01**2) / (std**2 + 100)
    exact = -0.5 * np.sum(x**2) / v - np.log(2 * np.pi * v)
    assert abs(float(dj.log_prob(denoiser, schedule, x, grid=grid)) - exact) < 1e-5


@pytest.mark.parametrize("chunk", [1, 4, 7, 12])
def test_the_exact_divergence_in_chunks_is_the_trace(chunk):
    """tr ∂(W tanh(Ax))/∂x of a full Jacobian, and its gradient, whatever
    divides what.
    """
    rng = np.random.default_rng(0)
    a, w, x = (
        rng.normal(size=(10, 10)),
        rng.normal(size=(10, 10)),
        rng.normal(size=(5, 2)),
    )
    field = lambda x: (w @ jnp.tanh(a @ x.reshape(10))).reshape(5, 2)
    with jax.enable_x64(True):
        value, trace = dj.numerics.divergence(field, jnp.asarray(x), chunk)
        slope = 1 - np.tanh(a @ x.reshape(10)) ** 2
        np.testing.assert_allclose(
            trace, np.einsum("ij,j,ji->", w, slope, a), rtol=1e-12
        )
        np.testing.assert_allclose(
            value.reshape(10), w @ np.tanh(a @ x.reshape(10)), rtol=1e-12
        )


def test_the_exact_divergence_of_an_image_fits():
    """128 × 128 × 3: less than 100 MB of temporary memory, where all
    directions at once would be 9.7 GB each way.
    """
    x = jax.ShapeDtypeStruct((128, 128, 3), jnp.float32)
    lowered = jax.jit(lambda x: dj.numerics.divergence(jnp.tanh, x)).lower(x)
    assert lowered.compile().memory_analysis().temp_size_in_bytes < 1e8
