"""Exact flow maps carry densities, invert each other and satisfy their equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax.targets import flow_maps
from tests.families import every

SCHEDULES = {
    "vp": dj.schedules.vp_linear(),
    "edm": dj.schedules.edm(),
    "flow": dj.schedules.rectified_flow(),
}
SPREAD = [[1.0, 0.3], [0.3, 0.5]]


def mixture():
    means = [[1.0, 0.0], [-1.0, 0.5], [0.0, -1.2]]
    return dj.targets.gaussian_mixture([0.3, 0.3, 0.4], means, [0.2, 0.3, 0.1])


TARGETS = {
    "normal": lambda: dj.targets.gaussian([0.3, -1.0], SPREAD),
    "mixture": mixture,
}


def start(schedule):
    """A state and times from the noise to the data, the last not at the end."""
    x = float(schedule.sigma(schedule.t_max)) * jnp.array([0.7, -1.3])
    return x, schedule.t_max, 0.98 * schedule.t_min + 0.02 * schedule.t_max


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", every(SCHEDULES, ("flow",)))
def test_the_map_carries_the_density(name, target, x64):
    """log p_t(x) = log p_s(X) + log|det ∂X/∂x|, with both densities exact."""
    schedule, target = SCHEDULES[name], TARGETS[target]()
    x, t, s = start(schedule)
    m = dj.targets.flow_map(target, schedule)
    end, jacobian = m(x, t, s), m.jacobian(x, t, s)
    before = target.noised(schedule, t).log_prob(x)
    after = target.noised(schedule, s).log_prob(end)
    log_det = jnp.linalg.slogdet(jacobian)[1]
    # A local tolerance of 1e-12 over some hundred steps, and derivatives of log p.
    np.testing.assert_allclose(before, after + log_det, atol=1e-9)
    # The way back ends where it began, up to the stretching of errors.
    np.testing.assert_allclose(m(end, s, t), x, rtol=1e-9)


@pytest.mark.parametrize("name", every(SCHEDULES, ("flow",)))
def test_the_solver_agrees_with_the_closed_form(name, x64):
    schedule, target = SCHEDULES[name], TARGETS["normal"]()
    x, t, s = start(schedule)
    ends = jnp.asarray(t, jnp.float64), jnp.asarray(s, jnp.float64)
    solved = jax.jit(flow_maps._average_by_solver)(target, schedule, x, *ends)
    exact = dj.targets.flow_map(target, schedule).average_velocity(x, t, s)
    np.testing.assert_allclose(solved, exact, rtol=1e-10)


@pytest.mark.parametrize("span", [0.5, 1e-3, 1e-7, 0.0])
@pytest.mark.parametrize("target", every(TARGETS, ("normal",)))
def test_derivatives_satisfy_the_equations_of_a_flow_map(target, span, x64):
    """Also where s is near t, and at s = t."""
    schedule, target = SCHEDULES["flow"], TARGETS[target]()
    m = dj.targets.flow_map(target, schedule)
    x, t = jnp.array([0.4, -0.2]), 0.8
    s = t - span
    v, end, u = m.velocity(x, t), m(x, t, s), m.average_velocity(x, t, s)
    of_map, of_mean = m.derivatives(x, t, s), m.average_velocity_derivatives(x, t, s)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
    close(of_map.s, m.velocity(end, s))
    close(of_map.t, -of_map.x @ v)
    close(u, v + (s - t) * (of_mean.t + of_mean.x @ v))
    close(end, x + (s - t) * u)
    reverse = jax.grad(lambda x: m(x, t, s) @ jnp.array([1.0, 2.0]))(x)
    close(reverse, jnp.array([1.0, 2.0]) @ of_map.x)


@pytest.mark.slow
def test_maps_of_parts_compose_to_the_map(x64):
    schedule = SCHEDULES["vp"]
    m = dj.targets.flow_map(mixture(), schedule)
    x, t, s = start(schedule)
    np.testing.assert_allclose(m(m(x, t, 0.4), 0.4, s), m(x, t, s), rtol=1e-9)


@pytest.mark.slow
def test_a_batch_runs_as_one_program_and_in_float32():
    schedule = SCHEDULES["flow"]
    m = dj.targets.flow_map(mixture(), schedule)
    x = jax.random.normal(jax.random.key(0), (16, 2))
    ends = jax.jit(jax.vmap(lambda m, x: m(x, schedule.t_max, 0.1), (None, 0)))(m, x)
    assert ends.dtype == jnp.float32
    with jax.enable_x64(True):
        wide = jnp.asarray(x, jnp.float64)
        exact = jax.jit(jax.vmap(lambda x: m(x, schedule.t_max, 0.1)))(wide)
    # A tolerance of 1e-6 and some hundred roundings of 6e-8.
    np.testing.assert_allclose(ends, exact, atol=3e-5)


def test_the_target_has_no_derivative():
    schedule = SCHEDULES["flow"]

    def end(mean):
        target = dj.targets.gaussian(mean, 1.0)
        return dj.targets.flow_map(target, schedule)(jnp.ones(2), 0.9, 0.1).sum()

    with pytest.raises(TypeError, match="derivatives by x, t and s"):
        jax.grad(end)(jnp.zeros(2))


@pytest.mark.parametrize(
    "named, arguments",
    [("t", (jnp.ones(2), jnp.ones(2), 0.1)), ("s", (jnp.ones(2), 0.1, jnp.ones(2)))],
)
def test_wrong_arguments_raise_by_name(named, arguments):
    m = dj.targets.flow_map(mixture(), SCHEDULES["flow"])
    with pytest.raises(ValueError, match=rf"^{named} must have shape"):
        m(*arguments)
