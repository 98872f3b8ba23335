"""Objectives of flow maps are stationary at the exact map, with known gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import flow_maps
from tests.families import every

SCHEDULES = {
    "flow": dj.schedules.rectified_flow(),
    "vp": dj.schedules.vp_linear(),
    "edm": dj.schedules.edm(0.01, 20.0),
}
MEAN, VARIANCE = 0.4, 0.3
TIMES = {"flow": (0.8, 0.5, 0.2), "vp": (0.7, 0.45, 0.1), "edm": (4.0, 1.5, 0.3)}
"""t, r and s, from the noise to the data."""


def exact_map(schedule):
    return dj.targets.flow_map(dj.targets.gaussian([MEAN], VARIANCE**0.5), schedule)


class Moments:
    """Variance C of a normal at time t, and A of its velocity α′ m + A (x − α m)."""

    def __init__(self, schedule, t):
        rates = dj.schedules.rates(schedule, jnp.float64(t))
        self.mean = rates.alpha * MEAN
        self.variance = rates.alpha**2 * VARIANCE + rates.sigma**2
        half = (
            rates.alpha * rates.alpha_rate * VARIANCE + rates.sigma * rates.sigma_rate
        )
        self.slope = half / self.variance
        self.rates = rates


def perturbed(schedule):
    """θ -> the exact map plus (s − t) (θ_0 + θ_1 (x − α_t m))."""
    exact = exact_map(schedule)

    def of(theta):
        def net(x, t, s):
            offset = theta[0] + theta[1] * (x - schedule.alpha(t) * MEAN)
            return exact.average_velocity(x, t, s) + offset

        return flow_maps.flow_map(schedule, net)

    return of


def pairs():
    """Gauss–Hermite nodes of x_0 and ε, (25, 1) each, and their weights."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    z, e = np.meshgrid(nodes, nodes, indexing="ij")
    w = np.outer(weights, weights) / np.sum(weights) ** 2
    return MEAN + VARIANCE**0.5 * z.reshape(-1, 1), e.reshape(-1, 1), w.ravel()


def expected(schedule, loss):
    """θ -> E of a loss (m, x_0, ε) over data and noise, exact for quadratics."""
    x0, noise, weights = pairs()
    of = perturbed(schedule)

    def value(theta):
        m = of(theta)
        return weights @ jax.vmap(functools.partial(loss, m))(x0, noise)

    return value


def gradients(schedule, loss, thetas):
    """Gradients at several θ, by one program."""
    run = jax.jit(jax.vmap(jax.grad(expected(schedule, loss))))
    return np.asarray(run(jnp.asarray(thetas, jnp.float64)))


THETAS = np.array([[0.0, 0.0], [0.3, 0.0], [0.0, -0.2], [0.1, 0.25]])


def objectives(schedule, t, r, s):
    """name -> (loss of one pair, gradient at (p, q), whether it is zero at (0, 0))."""
    at = {time: Moments(schedule, time) for time in (t, r, s)}
    teacher = exact_map(schedule)
    perturb = functools.partial(dj.schedules.perturb, schedule)
    conditional = functools.partial(flow_maps.conditional_velocity, schedule)
    variance, h = at[t].variance, s - t
    # dy/dt is A y along the flow, so that (s − t) q y changes by −q y k.
    k = 1 - h * at[t].slope
    std = lambda time: jnp.sqrt(at[time].variance)
    shared = at[t].rates.alpha * at[r].rates.alpha * VARIANCE
    shared = shared + at[t].rates.sigma * at[r].rates.sigma
    stretch, first = std(s) / std(r), std(r) / std(t)

    def two_steps(p, q):
        # One step against two, both less the exact map: h (p + q y) and
        # stretch (r − t)(p + q y) + (s − r)(p + q y′), y′ = first y + (r − t)(p + q y).
        offset = h * p - stretch * (r - t) * p - (s - r) * (p + q * (r - t) * p)
        slope = h * q - stretch * (r - t) * q - (s - r) * q * (first + (r - t) * q)
        return 2 * np.array([offset, variance * slope]) / h

    return {
        "mean_flow": (
            lambda m, x0, e: flow_maps.mean_flow_loss(
                m, perturb(x0, t, e), t, velocity=conditional(x0, e, t), s=s
            ),
            lambda p, q: 2 * np.array([p, q * variance * k]),
        ),
        "continuous_consistency": (
            lambda m, x0, e: flow_maps.continuous_consistency_loss(
                m,
                perturb(x0, t, e),
                t,
                velocity=conditional(x0, e, t),
                s=s,
                normalise=None,
            ),
            lambda p, q: -2 * h * np.array([p, q * variance * k]),
        ),
        "consistency_distillation": (
            lambda m, x0, e: flow_maps.consistency_loss(
                m,
                perturb(x0, t, e),
                t,
                earlier=teacher(perturb(x0, t, e), t, r),
                r=r,
                s=s,
            ),
            # (s − t)(p + q y) − (s − r)(p + q y′), y′ = first y
            lambda p, q: (
                2
                * h
                * np.array(
                    [(h - s + r) * p, variance * q * (h - (s - r) * first)],
                )
            ),
        ),
        "consistency_training": (
            lambda m, x0, e: flow_maps.consistency_loss(
                m, perturb(x0, t, e), t, earlier=perturb(x0, r, e), r=r, s=s
            ),
            # E[y′ | x_t] is shared/variance · y, so that the exact map is no minimum.
            lambda p, q: (
                2
                * h
                * np.array(
                    [
                        (h - s + r) * p,
                        (h * q + std(s) / std(t)) * variance
                        - ((s - r) * q + stretch) * shared,
                    ],
                )
            ),
        ),
        "composition": (
            lambda m, x0, e: flow_maps.composition_loss(
                m, perturb(x0, t, e), t, r=r, s=s
            ),
            two_steps,
        ),
        "progressive_distillation": (
            lambda m, x0, e: flow_maps.composition_loss(
                m, perturb(x0, t, e), t, r=r, s=s, teacher=teacher
            ),
            lambda p, q: 2 * np.array([p, q * variance]),
        ),
        "lagrangian": (
            lambda m, x0, e: flow_maps.lagrangian_loss(
                m, perturb(x0, t, e), t, velocity=teacher.velocity, s=s
            ),
            lambda p, q: 2 * (1 - h * at[s].slope) ** 2 * np.array([p, q * variance]),
        ),
        "eulerian": (
            lambda m, x0, e: flow_maps.eulerian_loss(
                m,
                perturb(x0, t, e),
                t,
                velocity=teacher.velocity(perturb(x0, t, e), t),
                s=s,
            ),
            lambda p, q: 2 * np.array([p, q * variance * k**2]),
        ),
    }


NAMES = (
    "mean_flow",
    "continuous_consistency",
    "consistency_distillation",
    "consistency_training",
    "composition",
    "progressive_distillation",
    "lagrangian",
    "eulerian",
)


@pytest.mark.parametrize("schedule", every(SCHEDULES, ("flow",)))
@pytest.mark.parametrize("name", NAMES)
def test_gradients_on_a_normal_are_the_closed_ones(name, schedule, x64):
    """At θ = 0, the exact map, each but that of consistency training vanishes."""
    loss, gradient = objectives(SCHEDULES[schedule], *TIMES[schedule])[name]
    computed = gradients(SCHEDULES[schedule], loss, THETAS)
    exact = np.array([gradient(*theta) for theta in THETAS])
    np.testing.assert_allclose(computed, exact, rtol=1e-8, atol=1e-9)
    assert np.allclose(exact[0], 0) == (name != "consistency_training")


@pytest.mark.parametrize("schedule", every(SCHEDULES, ("flow",)))
def test_matching_maps_from_data_alone_is_least_at_the_exact_map(schedule, x64):
    """Its gradient at the exact map is 0, and no eigenvalue of its Hessian negative."""
    chosen, (t, _, s) = SCHEDULES[schedule], TIMES[schedule]

    def loss(m, x0, e):
        velocity = flow_maps.conditional_velocity(chosen, x0, e, s)
        x = dj.schedules.perturb(chosen, x0, s, e)
        return flow_maps.flow_map_matching_loss(m, x, s, velocity=velocity, t=t)

    value, theta = expected(chosen, loss), jnp.zeros(2)
    run = jax.jit(lambda theta: (jax.grad(value)(theta), jax.hessian(value)(theta)))
    gradient, hessian = run(theta)
    # Weights and nodes of the quadrature are rounded, as are three maps.
    np.testing.assert_allclose(gradient, 0, atol=1e-9)
    assert np.linalg.eigvalsh(hessian).min() > 0


def test_training_without_a_teacher_tends_to_the_exact_map_as_steps_shrink(x64):
    """The linear map at which consistency training comes to rest, at two lengths."""
    schedule, (t, _, s) = SCHEDULES["flow"], TIMES["flow"]

    def rest(r):
        loss, gradient = objectives(schedule, t, r, s)["consistency_training"]
        at_zero, at_one = (float(gradient(0.0, q)[1]) for q in (0.0, 1.0))
        q = at_zero / (at_zero - at_one)
        np.testing.assert_allclose(gradients(schedule, loss, [[0.0, q]]), 0, atol=1e-9)
        return q

    # The bias is of order t − r. The next order is a tenth of it here.
    np.testing.assert_allclose(rest(t - 0.01) / rest(t - 0.005), 2.0, atol=0.2)


def test_the_eulerian_loss_needs_a_teacher(x64):
    """Of conditional velocities it is least at a map that shrinks too much."""
    schedule, (t, _, s) = SCHEDULES["flow"], TIMES["flow"]

    def loss(m, x0, e):
        x = dj.schedules.perturb(schedule, x0, t, e)
        velocity = flow_maps.conditional_velocity(schedule, x0, e, t)
        return flow_maps.eulerian_loss(m, x, t, velocity=velocity, s=s)

    start, end = Moments(schedule, t), Moments(schedule, s)
    slope = jnp.sqrt(end.variance / start.variance)
    rates, h = start.rates, s - t
    of_velocity = rates.alpha_rate**2 * VARIANCE + rates.sigma_rate**2
    left = of_velocity - start.slope**2 * start.variance  # Var(dx/dt | x)
    exact = 2 * h * slope * left
    np.testing.assert_allclose(
        gradients(schedule, loss, [[0.0, 0.0]]), [[0.0, exact]], rtol=1e-8, atol=1e-9
    )
    assert exact < 0  # A greater q, of a step h < 0, gives a smaller slope.


def test_a_normalised_tangent_has_bounded_gradients(x64):
    schedule, (t, _, s) = SCHEDULES["flow"], TIMES["flow"]

    def loss(m, x0, e, normalise):
        x = dj.schedules.perturb(schedule, x0, t, e)
        velocity = 1e6 * jnp.ones_like(x)
        settings = {"velocity": velocity, "s": s, "normalise": normalise}
        return flow_maps.continuous_consistency_loss(m, x, t, **settings)

    theta = [[0.3, 0.0]]
    bounded = gradients(schedule, functools.partial(loss, normalise=0.1), theta)
    # |∂F/∂p| = 1, and the normalised tangent is shorter than 1.
    assert 1.9 < abs(bounded[0, 0]) < 2
    free = gradients(schedule, functools.partial(loss, normalise=None), theta)
    assert abs(free[0, 0]) > 1e4


# ---------------------------------------------------------------------- maps


@pytest.mark.parametrize("kind", flow_maps.KINDS)
@pytest.mark.parametrize("schedule", every(SCHEDULES, ("flow",)))
def test_every_kind_is_the_identity_and_can_be_the_exact_map(schedule, kind, x64):
    chosen, (t, r, s) = SCHEDULES[schedule], TIMES[schedule]
    exact, x = exact_map(chosen), jnp.array([0.7])

    def output(x, t, s):
        """F of the exact map: (X − a x)/b."""
        a, b = flow_maps.KINDS[kind](chosen, 0.5, t, s)
        return (exact(x, t, s) - a * x) / b

    m = flow_maps.flow_map(chosen, output, kind)
    np.testing.assert_allclose(m(x, t, s), exact(x, t, s), rtol=1e-12)
    np.testing.assert_allclose(
        m.average_velocity(x, t, s), exact.average_velocity(x, t, s), rtol=1e-12
    )
    other = flow_maps.flow_map(chosen, lambda x, t, s: jnp.cos(x + t), kind)
    np.testing.assert_allclose(other(x, r, r), x, rtol=1e-15)
    near = other.average_velocity(x, r, r * (1 - 1e-6))
    # The difference quotient errs by 1e-16/1e-6, and by 1e-6 of a second derivative.
    np.testing.assert_allclose(other.velocity(x, r), near, rtol=1e-4)


def test_scaled_inputs_have_unit_variance_and_log_noise_levels():
    schedule, seen = dj.schedules.edm(), []

    def net(x, t, s):
        seen.append((x, t, s))
        return x

    m = flow_maps.flow_map(schedule, net, "denoised", inputs="scaled")
    m(jnp.array([3.0]), 4.0, 0.5)
    expected = 3 / np.hypot(4, 0.5), np.log(4) / 4, np.log(0.5) / 4
    for value, exact in zip(seen[0], expected, strict=True):
        np.testing.assert_allclose(value, exact, rtol=1e-5)


@pytest.mark.parametrize(
    "arguments, named",
    [
        ({"kind": "score"}, "kind"),
        ({"inputs": "log"}, "inputs"),
        ({"sigma_data": 0.0}, "sigma_data"),
    ],
)
def test_wrong_settings_of_a_map_raise_by_name(arguments, named):
    with pytest.raises(ValueError, match=rf"^{named} must"):
        flow_maps.flow_map(dj.schedules.edm(), lambda x, t, s: x, **arguments)


def test_numbers_of_consistency_steps_double_up_to_the_most():
    """As in the paper: 8 stages of 10 … 1280 in equal parts of the training."""
    steps = flow_maps.consistency_steps(np.arange(8000), 8000)
    values, counts = np.unique(steps, return_counts=True)
    assert values.tolist() == [10 * 2**i for i in range(8)]
    assert set(counts) == {1000}


# ------------------------------------------------------------------- samplers


@pytest.mark.parametrize("gamma", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("schedule", every(SCHEDULES, ("flow",)))
def test_the_exact_map_samples_the_exact_distribution(schedule, gamma, x64):
    """A run is affine in its start and noise. So its variance is a sum of squares."""
    chosen, ts = SCHEDULES[schedule], jnp.array(TIMES[schedule])
    m = exact_map(chosen)
    solver, noise = dj.solvers.flow_map(gamma), jnp.zeros((2, 1, 1))

    def end(x, noise):
        settings = {"x": x, "ts": ts, "noise": noise if gamma else None}
        problem = dj.solvers.diffusion(chosen, m)
        return dj.solvers.integrate(None, solver, problem, **settings)[0]

    first, last = Moments(chosen, ts[0]), Moments(chosen, ts[-1])
    x = jnp.array([first.rates.alpha * MEAN])
    value, (by_x, by_noise) = jax.value_and_grad(end, (0, 1))(x, noise)
    np.testing.assert_allclose(value, last.rates.alpha * MEAN, rtol=1e-9)
    variance = by_x**2 * first.variance + jnp.sum(by_noise**2)
    np.testing.assert_allclose(variance[0], last.variance, rtol=1e-9)
    assert (jnp.sum(by_noise**2) > 0) == (gamma > 0)


def test_sampling_with_a_map_counts_and_conditions():
    schedule, calls = dj.schedules.edm(), []

    def m(x, t, s, condition):
        jax.debug.callback(lambda t: calls.append(float(t)), t)
        return condition * jnp.ones_like(x)

    solver = dj.solvers.flow_map(1.0)
    grid, key = [80.0, 1.0, 0.0], jax.random.key(0)
    settings = {"solver": solver, "grid": grid, "shape": (2,)}
    samples = dj.sample_many(key, 3, m, schedule, condition=jnp.arange(3.0), **settings)
    jax.effects_barrier()
    # The last step is of the map alone, without noise.
    np.testing.assert_array_equal(samples, np.repeat([[0.0], [1.0], [2.0]], 2, axis=1))
    assert solver.evaluations(2, to_zero=True) == 2
    assert calls == [80.0, 1.0]  # one call per step for the whole batch
