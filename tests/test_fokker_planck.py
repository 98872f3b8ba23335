"""Densities under an SDE: the equation's residual falls at second order, and
so does the error of its solver.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import schedules, sde, solvers, targets
from diffjax.numerics import divergence
from tests.families import SCHEDULES, TARGETS, assert_raises, every, times_at_noise

STEPS = np.array([1 / 16, 1 / 32, 1 / 64])
"""Of dx in units of σ(t) and of dt in units of 1/|λ′(t)|, the scales on which
p_t varies.

The residual's truncation is some step², at least 2e-4. Its rounding is about 4
eps/step², at most 4e-12. The terms of fourth order bend the slope between the
last two by some step², within 0.1.
"""


def log_density(target, schedule):
    """(x, t) -> log p_t(x), exact."""
    return lambda x, t: target.noised(schedule, t).log_prob(x)


def order(errors):
    """log2 of the last two errors' ratio, along the first axis, as the step is
    halved.
    """
    return np.log2(errors[-2] / errors[-1])


def states(schedule):
    """Times at σ/α = 0.3, 1 and 3, far from t_min.

    Four points of each distribution's bulk. The scales of x and t there.

    Between two indices of a chain or ladder p_t is smooth, at an index its
    rate jumps: there t is the middle of the interval, and the largest dt, 1/16
    of the scale, 0.4 of the interval.
    """
    t = times_at_noise(schedule, (0.3, 1.0, 3.0))
    time_scale = -1 / schedules.derived.log_snr_rate(schedule, t)
    if isinstance(schedule, schedules.Indexed):
        t = (jnp.floor(t * schedule.steps) + 0.5) / schedule.steps
        time_scale = jnp.full_like(t, 16 * 0.4 / schedule.steps)
    places = jnp.array([[0.4, -0.3], [-1.0, 0.4], [0.8, 0.6], [0.0, -1.0]])
    x = (
        schedule.alpha(t)[:, None, None] + 0.5 * schedule.sigma(t)[:, None, None]
    ) * places  # (3, 4, 2)
    return (
        x.reshape(-1, 2),
        *(jnp.repeat(a, len(places)) for a in (t, schedule.sigma(t), time_scale)),
    )


def still(velocity):
    """A flow as an SDE without noise."""
    return sde.SDE(velocity, lambda x, t: jnp.zeros(()))


@pytest.mark.parametrize("schedule", every(SCHEDULES, ("vp_linear", "edm")))
def test_residual_of_every_sde_falls_at_second_order(schedule, x64):
    """Forward SDE, probability flow and, downwards, the reverse SDE at three
    noise levels carry the exact p_t.

    The flow with the sign of its score reversed, f + ½g²∇log p, does not:
    ∂p/∂t + div((f + ½g²∇log p) p) = g²Δp, and its residual falls on g²Δp/p =
    g²(Δlog p + ‖∇log p‖²) at second order.
    """
    schedule = SCHEDULES[schedule]()
    target = TARGETS["diagonal"]()
    log_p, denoiser = log_density(target, schedule), targets.denoiser(target, schedule)
    forward, flow = sde.forward(schedule), sde.probability_flow(schedule, denoiser)
    wrong = still(lambda x, t: 2 * forward.drift(x, t) - flow(x, t))

    def residuals(step, x, t, length, duration):
        def residual(process, direction=1):
            scale = direction * step * duration
            return sde.fokker_planck_residual(process, log_p, step * length, scale)(
                x, t
            )

        reverse = jax.vmap(
            lambda noise: residual(sde.reverse(schedule, denoiser, noise=noise), -1)
        )(jnp.array([0.5, 1, 2]))
        gradient, laplacian = divergence(lambda y: jax.grad(log_p)(y, t), x)
        limit = forward.diffusion(x, t) ** 2 * (laplacian + jnp.sum(gradient**2))
        rows = jnp.stack(
            [
                residual(forward),
                residual(still(flow)),
                *reverse,
                residual(wrong) - limit,
                limit,
            ]
        )
        unit = (
            forward.diffusion(x, t) / length
        ) ** 2  # what the terms of the equation are of
        return rows / unit

    over_steps = jax.vmap(residuals, in_axes=(0, None, None, None, None))
    computed = jax.jit(jax.vmap(over_steps, in_axes=(None, 0, 0, 0, 0)))(
        STEPS, *states(schedule)
    )  # (12, 3, 7)
    size = np.sqrt(np.mean(np.square(computed), 0))  # (3, 7)
    np.testing.assert_allclose(order(size[:, :-1]), 2, atol=0.1)
    assert np.all(size[-1, :-1] < 20 * STEPS[-1] ** 2)
    assert np.all(size[:, -1] > 0.1)


@pytest.mark.parametrize("schedule", every(SCHEDULES, ("vp_linear",)))
def test_current_velocity_of_the_forward_sde_is_the_probability_flow(schedule, x64):
    """f − ½g²∇log p_t = α′D + σ′ε̂."""
    schedule = SCHEDULES[schedule]()
    target = TARGETS["full"]()
    flow = sde.probability_flow(schedule, targets.denoiser(target, schedule))
    current = sde.current_velocity(sde.forward(schedule), log_density(target, schedule))
    x, t, length, duration = states(schedule)
    computed, expected = jax.jit(jax.vmap(lambda x, t: (current(x, t), flow(x, t))))(
        x, t
    )
    scale = (
        schedules.diffusion_coefficient(schedule, t)[:, None] ** 2 / length[:, None]
    ).max(1, keepdims=True)
    np.testing.assert_allclose(computed / scale, expected / scale, atol=1e-11)


def test_langevin_at_its_stationary_distribution_has_no_current(x64):
    """v = 0, and the residual falls at second order to 0.

    At the density √p, up to a constant, v = ¼∇log p.
    """
    target = TARGETS["full"]()
    process = sde.langevin(target.log_prob)
    log_p = lambda x, t: target.log_prob(x)
    points = jnp.array([[0.4, -0.3], [-1.0, 0.5], [1.5, 1.0]])

    def everything(x):
        residual = jax.vmap(
            lambda step: sde.fokker_planck_residual(process, log_p, step, 1.0)(x, 0.0)
        )
        wider = sde.current_velocity(process, lambda x, t: 0.5 * target.log_prob(x))
        gap = wider(x, 0.0) - 0.25 * jax.grad(target.log_prob)(x)
        return sde.current_velocity(process, log_p)(x, 0.0), residual(0.5 * STEPS), gap

    current, residual, gap = jax.jit(jax.vmap(everything))(points)
    np.testing.assert_array_equal(current, 0.0)  # ½∇log p − ½∇log p
    np.testing.assert_allclose(
        order(np.sqrt(np.mean(np.square(residual), 0))), 2, atol=0.1
    )
    np.testing.assert_allclose(gap, 0.0, atol=1e-14)


def geometric_brownian(x, t, rate=0.3, volatility=0.5, mean=0.2, variance=0.04):
    """log p_t(x), shape (), of dx = rate x dt + volatility x dw with log x_0 ~
    N(mean, variance).
    """
    variance = variance + volatility**2 * t
    residual = jnp.log(x) - mean - (rate - 0.5 * volatility**2) * t
    return jnp.sum(
        -0.5 * residual**2 / variance
        - 0.5 * jnp.log(2 * jnp.pi * variance)
        - jnp.log(x)
    )


GEOMETRIC = sde.SDE(lambda x, t: 0.3 * x, lambda x, t: 0.5 * x)


def test_residual_and_rate_where_the_diffusion_depends_on_x(x64):
    """Geometric Brownian motion in two dimensions, Itô: its log-normal
    distribution, at second order. Its rate by autodiff.
    """
    steps, x = 0.2 * STEPS, jnp.array([1.1, 1.6])
    rate = sde.fokker_planck(GEOMETRIC, geometric_brownian)(x, 0.3)
    np.testing.assert_allclose(
        rate, jax.grad(geometric_brownian, 1)(x, 0.3), rtol=1e-12
    )

    def residual(step):
        return sde.fokker_planck_residual(GEOMETRIC, geometric_brownian, step, step)(
            jnp.array([1.1, 1.6]), 0.3
        )

    assert order(np.abs(jax.jit(jax.vmap(residual))(steps))) == pytest.approx(
        2, abs=0.1
    )


def test_residual_takes_examples_of_any_shape_and_small_densities(x64):
    """p / p_t(x) is what is differenced: e^{−1e4} times the density has the
    same residual.
    """
    log_p, schedule = (
        lambda x, t: -0.25 * jnp.sum(x**4) * (1 + t),
        schedules.vp_linear(),
    )
    small = sde.fokker_planck_residual(
        sde.forward(schedule), lambda x, t: log_p(x, t) - 1e4, 0.1, 0.01
    )
    plain = sde.fokker_planck_residual(sde.forward(schedule), log_p, 0.1, 0.01)
    x = jnp.arange(6.0) / 5
    shapes = ((6,), (2, 3))
    computed = jax.jit(
        lambda x: jnp.stack(
            [f(x.reshape(s), 0.4) for f in (small, plain) for s in shapes]
        )
    )(x)
    np.testing.assert_allclose(
        computed, computed[-1], rtol=1e-7
    )  # eps · 1e4 · the second differences' 100


def test_log_prob_along_a_path_of_the_flow(x64):
    """d log p_t(x(t))/dt = −tr ∂v/∂x by central differences along a solved
    path, at second order. At a fixed point ∂log p_t/∂t = −tr ∂v/∂x − v·∇log p.
    """
    schedule, target = schedules.vp_linear(), TARGETS["diagonal"]()
    log_p, flow = (
        log_density(target, schedule),
        sde.probability_flow(schedule, targets.denoiser(target, schedule)),
    )
    ts = jnp.linspace(0.1, 0.5, 129)

    def everything(x):
        xs = solvers.integrate(None, solvers.rk4(), flow, x=x, ts=ts, path=True)
        along = jax.vmap(sde.rate_along_flow(flow))(xs, ts)
        transport = jax.vmap(lambda x, t: jnp.sum(flow(x, t) * jax.grad(log_p)(x, t)))(
            xs, ts
        )
        return (
            jax.vmap(log_p)(xs, ts),
            along,
            along - transport,
            jax.vmap(jax.grad(log_p, 1))(xs, ts),
        )

    along_path, along, fixed, exact = jax.jit(everything)(jnp.array([0.4, -0.3]))
    np.testing.assert_allclose(fixed, exact, rtol=1e-9, atol=1e-9 * np.abs(along).max())
    errors, at = [], np.arange(8, 121, 8)
    for stride in (4, 2, 1):
        rise = along_path[at + stride] - along_path[at - stride]
        errors.append(
            np.linalg.norm(rise / (ts[at + stride] - ts[at - stride]) - along[at])
        )
    assert order(errors) == pytest.approx(2, abs=0.1)
    assert (
        np.abs(along - exact).max() > 0.1 * np.abs(along).max()
    )  # the two are not the same


# ------------------------------------------------------------------------------- solver


def line_mixture():
    """A mixture on the line."""
    return targets.gaussian_mixture([0.3, 0.7], [[-1.2], [0.8]], [0.35, 0.5])


def of_mixture(make_schedule, make_process, ts, reach):
    """A row of PROCESSES from a schedule and (schedule, denoiser) -> SDE."""

    def row():
        schedule, target = make_schedule(), line_mixture()
        process = make_process(schedule, targets.denoiser(target, schedule))
        return process, log_density(target, schedule), (-reach, reach), ts

    return row


def ornstein_uhlenbeck():
    """dx = −2x dt + 1.5 dw from N(0.7, 0.3²)."""

    def log_p(x, t):
        variance = 1.5**2 / 4 + (0.3**2 - 1.5**2 / 4) * jnp.exp(-4 * t)
        return targets.gaussian(
            0.7 * jnp.exp(-2 * t)[None], jnp.sqrt(variance)
        ).log_prob(x)

    return sde.SDE(lambda x, t: -2 * x, lambda x, t: 1.5), log_p, (-7, 7), (0.0, 0.4)


PROCESSES = {
    "vp_linear": of_mixture(
        schedules.vp_linear, lambda schedule, _: sde.forward(schedule), (0.1, 0.6), 7
    ),
    "ve": of_mixture(
        lambda: schedules.ve(sigma_max=5.0),
        lambda schedule, _: sde.forward(schedule),
        (0.3, 0.7),
        9,
    ),
    "reverse": of_mixture(schedules.vp_linear, sde.reverse, (0.6, 0.1), 6),
    "ornstein_uhlenbeck": ornstein_uhlenbeck,
    "geometric": lambda: (GEOMETRIC, geometric_brownian, (0, 16), (0.0, 0.4)),
}
"""name -> () -> SDE, exact log p_t, the ends of the line (beyond which p is
below 1e-9), the ends of time.
"""


def solved(process, log_p, ends, ts, cells, steps):
    """Edges, the solver's density (cells,) at ts[1] from the exact one at
    ts[0], and the exact ones at both.
    """
    edges = jnp.linspace(*ends, cells + 1)
    centres = 0.5 * (edges[1:] + edges[:-1])
    start, exact = jax.vmap(
        lambda t: jax.vmap(lambda x: jnp.exp(log_p(x[None], t)))(centres)
    )(jnp.array(ts))
    computed = sde.solve_fokker_planck(
        process, start, edges, jnp.linspace(*ts, steps + 1)
    )
    return edges, computed[-1], start, exact


def solver_order(row, *settings):
    """Measured order and the last error: the L1 distance to the exact density
    at the end, at (cells, steps).
    """

    def error(cells, steps):
        edges, computed, _, exact = solved(*row, cells, steps)
        return jnp.sum(jnp.abs(computed - exact)) * (edges[1] - edges[0])

    errors = jax.jit(lambda: jnp.stack([error(*setting) for setting in settings]))()
    return order(errors), errors[-1]


@pytest.mark.parametrize(
    "name", every(PROCESSES, ("vp_linear", "reverse", "ornstein_uhlenbeck"))
)
def test_solver_is_of_second_order_in_cells_and_steps_together(name, x64):
    """Against exact densities, up and down in t."""
    measured, error = solver_order(PROCESSES[name](), (160, 24), (320, 48))
    assert measured == pytest.approx(2, abs=0.1)
    assert error < 5e-3


@pytest.mark.slow
def test_solver_of_a_flow_is_of_first_order(x64):
    """Where g = 0 the fit is upwind: the probability flow carries the density
    at first order in Δx.
    """
    row = of_mixture(
        schedules.vp_linear,
        lambda *problem: sde.reverse(*problem, noise=0.0),
        (0.6, 0.1),
        6,
    )()
    measured, _ = solver_order(row, (400, 100), (800, 200))
    assert measured == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_solver_keeps_the_mass_within_its_walls(dtype):
    """Drift presses on a wall: each of N steps rounds each cell once, so that
    the mass is kept within N eps.
    """
    with jax.enable_x64(dtype == "float64"):
        steps, process = (
            200,
            sde.SDE(lambda x, t: 3 * (1 + t) + 0 * x, lambda x, t: 0.8),
        )
        edges = jnp.linspace(-1, 1, 81)
        computed = sde.solve_fokker_planck(
            process, jnp.full(80, 0.5), edges, jnp.linspace(0, 2, steps + 1)
        )
        assert computed.dtype == dtype
        mass = np.asarray(computed, np.float64).sum(1) * (2 / 80)
        assert np.abs(mass - 1).max() <= steps * np.finfo(dtype).eps
        assert computed[-1, -1] > 10 * computed[-1, 40]


def double_well(x):
    """−(x² − 1)², shape ()."""
    return -jnp.sum((x**2 - 1) ** 2)


def test_solver_keeps_and_finds_the_stationary_distribution_of_langevin(x64):
    """Its discrete one, p_{i+1}/p_i = exp(f Δx/D) at the face between, is kept
    to rounding on any grid. From one well e^{score}/Z is computed at second
    order.
    """
    process, errors = sde.langevin(double_well), []
    for cells in (20, 40):
        edges = np.linspace(-2.5, 2.5, cells + 1)
        faces, centres = edges[1:-1], 0.5 * (edges[1:] + edges[:-1])
        width = edges[1] - edges[0]
        ratios = (
            -2 * faces * (faces**2 - 1) * width / 0.5
        )  # f = ½ d(score)/dx = −2x(x² − 1), D = ½
        discrete = np.exp(np.concatenate([[0.0], np.cumsum(ratios)]))
        discrete /= discrete.sum() * width
        exact = np.exp(-((centres**2 - 1) ** 2))
        exact /= exact.sum() * width
        start = np.exp(-0.5 * ((centres - 1) / 0.4) ** 2)
        start /= start.sum() * width
        ts = np.linspace(
            0, 60, 601
        )  # the slowest mode of these wells decays as e^{−0.37 t}
        solve = jax.jit(
            jax.vmap(
                lambda p, edges=edges, ts=ts: sde.solve_fokker_planck(
                    process, p, edges, ts
                )[-1]
            )
        )
        kept, computed = solve(np.stack([discrete, start]))
        np.testing.assert_allclose(kept, discrete, atol=1e-12)
        np.testing.assert_allclose(computed, discrete, atol=1e-8)
        errors.append(np.abs(computed - exact).sum() * width)
    assert order(errors) == pytest.approx(2, abs=0.15)


def test_simulated_paths_have_the_solved_density(x64):
    """χ² of Euler–Maruyama paths in equally likely bins of the solved density,
    against its distribution: mean k, variance 2k.

    The scheme's own bias, a relative variance error below 1 %, adds n·1e-4/2 =
    0.2 to χ². The starting density fails.
    """
    row = PROCESSES["vp_linear"]()
    process, _, _, (start, end) = row
    count, steps, bins = 4096, 256, 24

    def simulate(key):
        key_start, key_path = jax.random.split(key)
        x = line_mixture().noised(schedules.vp_linear(), start).sample(key_start)
        return solvers.integrate(
            key_path,
            solvers.euler_maruyama(),
            process,
            x=x,
            ts=jnp.linspace(start, end, steps + 1),
        )[0]

    keys = jax.random.split(jax.random.key(0), count)
    walked, (edges, computed, before, _) = jax.jit(
        lambda keys: (jax.vmap(simulate)(keys), solved(*row, 320, 48))
    )(keys)

    def chi_squared(density):
        below = np.concatenate([[0.0], np.cumsum(density) * (edges[1] - edges[0])])
        cuts = np.interp(
            np.arange(1, bins) / bins, below / below[-1], edges
        )  # inner quantiles, (bins − 1,)
        counts = np.bincount(np.searchsorted(cuts, walked), minlength=bins)
        return np.sum((counts - count / bins) ** 2) / (count / bins)

    degrees = bins - 1
    assert abs(chi_squared(computed) - degrees) < 4 * np.sqrt(2 * degrees)
    assert chi_squared(before) > 2 * count / bins


def test_solver_compiles_once_for_an_equal_process():
    """New densities, grid values and an equal rebuilt schedule trace nothing anew."""
    traced = []

    def drift(x, t):
        traced.append(1)
        return -x

    edges, ts = np.linspace(-3, 3, 31), np.linspace(0, 1, 5)
    counts = []
    for scale in (1.0, 2.0):
        process = sde.SDE(
            drift, sde.forward(schedules.vp_linear(beta_max=10 * scale)).diffusion
        )
        sde.solve_fokker_planck(
            process, np.full(30, scale), scale * edges, scale * ts / 2
        )
        counts.append(len(traced))
    assert counts[0] == counts[1] > 0


FORWARD = sde.forward(schedules.vp_linear())
EDGES, TIMES, LEVEL = np.linspace(-1, 1, 9), np.linspace(0.1, 1, 5), np.full(8, 0.5)


def flat(x, t):
    """log p = 0."""
    return jnp.zeros(())


ERRORS = {
    "rate of no SDE": (
        lambda: sde.fokker_planck(flat, flat),
        TypeError,
        r"sde must be an SDE\(drift, diffusion\), got",
    ),
    "current of no density": (
        lambda: sde.current_velocity(FORWARD, 2.0),
        TypeError,
        r"log_prob must be callable as log_prob\(x, t\), got 2.0",
    ),
    "residual of no SDE": (
        lambda: sde.fokker_planck_residual(None, flat, 0.1, 0.1),
        TypeError,
        "sde must be an SDE",
    ),
    "dx": (
        lambda: sde.fokker_planck_residual(FORWARD, flat, 0.0, 0.1),
        ValueError,
        "dx must be positive, got 0.0",
    ),
    "dt": (
        lambda: sde.fokker_planck_residual(FORWARD, flat, 0.1, 0.0),
        ValueError,
        "dt must not be 0, got 0.0",
    ),
    "velocity": (
        lambda: sde.rate_along_flow(1.0),
        TypeError,
        r"velocity must be callable as velocity\(x, t\), got 1.0",
    ),
    "solve no SDE": (
        lambda: sde.solve_fokker_planck(flat, LEVEL, EDGES, TIMES),
        TypeError,
        "sde must be an SDE",
    ),
    "few cells": (
        lambda: sde.solve_fokker_planck(FORWARD, LEVEL[:2], EDGES[:3], TIMES),
        ValueError,
        r"edges must have shape \(cells \+ 1,\) with cells \+ 1 at least 4, got \(3,\)",
    ),
    "unequal cells": (
        lambda: sde.solve_fokker_planck(FORWARD, LEVEL, EDGES**3, TIMES),
        ValueError,
        "edges must be uniform, got cells of width",
    ),
    "falling edges": (
        lambda: sde.solve_fokker_planck(FORWARD, LEVEL, EDGES[::-1], TIMES),
        ValueError,
        "edges must increase, got 0.75 after 1.0 at index 1",
    ),
    "edges not finite": (
        lambda: sde.solve_fokker_planck(FORWARD, LEVEL[:3], [-1, 0, 1, np.inf], TIMES),
        ValueError,
        "edges must be finite",
    ),
    "negative density": (
        lambda: sde.solve_fokker_planck(FORWARD, LEVEL - np.eye(8)[3], EDGES, TIMES),
        ValueError,
        "p must be 0 or more, got -0.5 in entry 3",
    ),
    "density not finite": (
        lambda: sde.solve_fokker_planck(FORWARD, LEVEL * np.nan, EDGES, TIMES),
        ValueError,
        "p must be finite, got 8 NaN",
    ),
    "shape of density": (
        lambda: sde.solve_fokker_planck(FORWARD, LEVEL[1:], EDGES, TIMES),
        ValueError,
        r"p must have shape \(8,\), got \(7,\)",
    ),
    "times": (
        lambda: sde.solve_fokker_planck(FORWARD, LEVEL, EDGES, [0.1, 0.5, 0.4]),
        ValueError,
        "ts must be strictly monotone, got 0.4 after 0.5 at index 2",
    ),
    "drift's shape": (
        lambda: sde.solve_fokker_planck(sde.SDE(flat, flat), LEVEL, EDGES, TIMES),
        ValueError,
        r"drift's value must have shape \(1,\), got \(\)",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_raises(name):
    assert_raises(*ERRORS[name])


@pytest.mark.parametrize("unit", [1e-20, 1e20])
def test_the_equation_does_not_depend_on_the_unit(unit):
    """Spreading of N(0, u²) by dx = u dw: on cells, densities are those at u =
    1 over u. A current is that at u = 1.
    """

    def solved(unit):
        unit = np.float32(unit)
        process = sde.SDE(lambda x, t: jnp.zeros_like(x), lambda x, t: unit)
        edges = np.linspace(-6, 6, 33, dtype=np.float32)
        p = np.exp(-0.5 * (0.5 * (edges[1:] + edges[:-1])) ** 2)
        density = sde.solve_fokker_planck(
            process, p, edges * unit, np.linspace(0, 1, 5, dtype=np.float32)
        )
        velocity = sde.current_velocity(
            process, lambda x, t: -0.5 * jnp.sum((x / unit) ** 2)
        )(np.ones(1, np.float32) * unit, 0.0)
        return np.asarray(density), np.asarray(velocity) / unit

    for scaled, plain in zip(solved(unit), solved(1.0), strict=True):
        np.testing.assert_allclose(scaled, plain, rtol=1e-4, atol=1e-6)
