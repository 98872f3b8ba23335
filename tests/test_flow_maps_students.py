"""Maps that an affine student learns by the objectives, in closed form.

The target is a normal, whose exact map is affine, or two modes, whose map is not. The
student is

    m(x, t, s) = G(x, t, s) + (s − t)(p + q (x − α_t μ))

where G is the exact map of the normal with the target's mean and variance: G has the
slope b_ts = √(V_s/V_t), and with p = q = 0 the student's samples have the right mean
and variance. Teachers are exact.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import flow_maps
from tests.families import every

SCHEDULE = dj.schedules.rectified_flow()
T, R, S = 0.8, 0.6, 0.4
TARGETS = {
    "normal": ([1.0], [0.4], [0.55]),
    "modes": ([0.4, 0.6], [-0.8, 0.7], [0.4, 0.5]),
}
"""Weights, means and standard deviations."""


class Problem:
    """Moments, and nodes with weights, of a target in one dimension."""

    def __init__(self, name):
        weights, means, stds = map(np.array, TARGETS[name])
        self.target = dj.targets.gaussian_mixture(weights, means[:, None], stds)
        self.mean = weights @ means
        self.variance = weights @ (stds**2 + means**2) - self.mean**2
        equal = dj.targets.gaussian([self.mean], self.variance**0.5)
        self.equal = dj.targets.flow_map(equal, SCHEDULE)
        self.exact = dj.targets.flow_map(self.target, SCHEDULE)
        self.weights, self.means, self.stds = weights, means, stds

    def pairs(self):
        """x_0, ε and weights: exact for quadratics."""
        z, w = np.polynomial.hermite_e.hermegauss(3)
        w = w / w.sum()
        k, i, j = np.meshgrid(np.arange(len(self.means)), range(3), range(3))
        k, i, j = k.ravel(), i.ravel(), j.ravel()
        x0 = self.means[k] + self.stds[k] * z[i]
        return x0[:, None], z[j][:, None], self.weights[k] * w[i] * w[j]

    def states(self, nodes=100):
        """x at time T, and weights."""
        z, w = np.polynomial.hermite_e.hermegauss(nodes)
        alpha, sigma = float(SCHEDULE.alpha(T)), float(SCHEDULE.sigma(T))
        spread = np.sqrt((alpha * self.stds) ** 2 + sigma**2)
        x = alpha * self.means[:, None] + spread[:, None] * z
        return x.reshape(-1, 1), np.outer(self.weights, w / w.sum()).ravel()

    def variance_at(self, t):
        return (
            float(SCHEDULE.alpha(t)) ** 2 * self.variance
            + float(SCHEDULE.sigma(t)) ** 2
        )

    def slope(self, t, s):
        """b of the map that keeps mean and variance."""
        return np.sqrt(self.variance_at(s) / self.variance_at(t))

    def student(self, theta):
        def net(x, t, s):
            line = theta[0] + theta[1] * (x - SCHEDULE.alpha(t) * self.mean)
            return self.equal.average_velocity(x, t, s) + line

        return flow_maps.flow_map(SCHEDULE, net)

    @functools.cached_property
    def taught(self):
        """(x at T, weights, the exact states at R and S, the exact velocity at T)."""
        x, weights = self.states()
        x = jnp.asarray(x)
        to = jax.jit(jax.vmap(self.exact, (0, None, None)))
        velocity = jax.vmap(lambda x: self.exact.velocity(x, T))(x)
        return x, weights, to(x, T, R), to(x, T, S), velocity

    def regression(self, values):
        """The slope of the least-squares line through values at the states at T."""
        x, weights, *_ = self.taught
        y = np.asarray(x)[:, 0] - float(SCHEDULE.alpha(T)) * self.mean
        return weights @ (np.asarray(values)[:, 0] * y) / (weights @ y**2)


def of_data(loss):
    """(problem, θ) -> E over data and noise of a loss (m, x_0, ε)."""

    def value(problem, theta):
        x0, noise, weights = problem.pairs()
        m = problem.student(theta)
        return weights @ jax.vmap(functools.partial(loss, m))(x0, noise)

    return value


def of_teacher(loss):
    """(problem, θ) -> E of a loss (problem, m, x, x_R, x_S, velocity)."""

    def value(problem, theta):
        x, weights, *values = problem.taught
        m = problem.student(theta)
        losses = jax.vmap(functools.partial(loss, problem, m))(x, *values)
        return weights @ losses

    return value


def perturbed(x0, e, t):
    return dj.schedules.perturb(SCHEDULE, x0, t, e)


def conditional(x0, e, t):
    return flow_maps.conditional_velocity(SCHEDULE, x0, e, t)


OBJECTIVES = {
    "consistency_training": of_data(
        lambda m, x0, e: flow_maps.consistency_loss(
            m, perturbed(x0, e, T), T, earlier=perturbed(x0, e, R), r=R, s=S
        )
    ),
    "consistency_distillation": of_teacher(
        lambda problem, m, x, at_r, at_s, velocity: flow_maps.consistency_loss(
            m, x, T, earlier=at_r, r=R, s=S
        )
    ),
    "continuous_consistency": of_data(
        lambda m, x0, e: flow_maps.continuous_consistency_loss(
            m,
            perturbed(x0, e, T),
            T,
            velocity=conditional(x0, e, T),
            s=S,
            normalise=None,
        )
    ),
    "mean_flow": of_data(
        lambda m, x0, e: flow_maps.mean_flow_loss(
            m, perturbed(x0, e, T), T, velocity=conditional(x0, e, T), s=S
        )
    ),
    "shortcut": of_data(
        lambda m, x0, e: flow_maps.composition_loss(m, perturbed(x0, e, T), T, r=R, s=S)
    ),
    "progressive_distillation": of_teacher(
        lambda problem, m, x, at_r, at_s, velocity: flow_maps.composition_loss(
            m,
            x,
            T,
            r=R,
            s=S,
            # returns the exact states, whatever x is
            teacher=lambda x, t, end: at_r if end == R else at_s,
        )
    ),
    "lagrangian": of_teacher(
        lambda problem, m, x, at_r, at_s, velocity: flow_maps.lagrangian_loss(
            m, x, T, velocity=problem.exact.velocity, s=S
        )
    ),
    "eulerian": of_teacher(
        lambda problem, m, x, at_r, at_s, velocity: flow_maps.eulerian_loss(
            m, x, T, velocity=velocity, s=S
        )
    ),
    "flow_map_matching": of_data(
        lambda m, x0, e: flow_maps.flow_map_matching_loss(
            m, perturbed(x0, e, S), S, velocity=conditional(x0, e, S), t=T
        )
    ),
}


def consistent(problem, share):
    """q of h q + b_TS = share (b_RS + (S − R) q), where y_R is share y on average."""
    kept = share * problem.slope(R, S) - problem.slope(T, S)
    return kept / ((S - T) - (S - R) * share)


def shared_noise(problem):
    alpha = float(SCHEDULE.alpha(T)) * float(SCHEDULE.alpha(R))
    covariance = alpha * problem.variance
    covariance += float(SCHEDULE.sigma(T)) * float(SCHEDULE.sigma(R))
    return covariance / problem.variance_at(T)


def eulerian(problem):
    """−b h W/(V (1 − h A)² + h² W) with W = Var(v − A y), v = A y on average."""
    x, weights, *_, velocity = problem.taught
    rates = dj.schedules.rates(SCHEDULE, jnp.float64(T))
    h, variance, slope = S - T, problem.variance_at(T), problem.regression(velocity)
    centred = np.asarray(velocity)[:, 0] - float(rates.alpha_rate) * problem.mean
    rest = weights @ centred**2 - slope**2 * variance
    of_line = variance * (1 - h * slope) ** 2 + h**2 * rest
    return -problem.slope(T, S) * h * rest / of_line


def lagrangian(problem):
    """(p, q) of least E(∂_s m − v(m, S))², by Newton on a formula without the map.

    With l = p + q y the residual is α_s′ μ + b′ y + l − v(α_s μ + b y + h l), where
    b′ = b A_S: along the normal's flow a state moves by A_S of its distance.
    """
    x, weights, *_ = problem.taught
    y, h = x[:, 0] - SCHEDULE.alpha(T) * problem.mean, S - T
    rates, b = dj.schedules.rates(SCHEDULE, jnp.float64(S)), problem.slope(T, S)
    moved = rates.alpha * rates.alpha_rate * problem.variance
    moved = (moved + rates.sigma * rates.sigma_rate) / problem.variance_at(S)
    velocity = jax.vmap(lambda x: problem.exact.velocity(x[None], S)[0])

    def value(theta):
        line = theta[0] + theta[1] * y
        end = rates.alpha * problem.mean + b * y + h * line
        rate = rates.alpha_rate * problem.mean + b * moved * y + line
        return weights @ (rate - velocity(end)) ** 2

    gradient, hessian = jax.jit(jax.grad(value)), jax.jit(jax.hessian(value))
    theta = jnp.zeros(2)
    for _ in range(100):  # into the basin of the least value
        theta = theta - 0.05 * gradient(theta)
    for _ in range(8):
        theta = theta - jnp.linalg.solve(hessian(theta), gradient(theta))
    return np.asarray(theta)


STATIONARY = {
    "consistency_training": lambda p: (0, consistent(p, shared_noise(p))),
    "consistency_distillation": lambda p: (
        0,
        consistent(p, p.regression(p.taught[2])),
    ),
    "continuous_consistency": lambda p: (0, 0),
    "mean_flow": lambda p: (0, 0),
    "shortcut": lambda p: (0, 0),
    "progressive_distillation": lambda p: (
        0,
        (p.regression(p.taught[3]) - p.slope(T, S)) / (S - T),
    ),
    "lagrangian": lagrangian,
    "eulerian": lambda p: (0, eulerian(p)),
    "flow_map_matching": lambda p: (0, 0),
}
"""(p, q) at which each comes to rest."""


@functools.cache
def problem_of(name):
    return Problem(name)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("target", every(TARGETS, ("modes",)))
def test_an_affine_student_comes_to_rest_where_predicted(target, name, x64):
    """The gradient is zero there, and descent from elsewhere leads there.

    It is the exact map on a normal, but for consistency training. All eigenvalues of
    the gradient's Jacobian there are positive, so that it attracts. Descent starts
    nearby: the shortcut's map composes with itself at a second q as well, which
    repels, and Lagrange's loss of modes has saddles.
    """
    problem = problem_of(target)
    gradient = jax.jit(jax.grad(functools.partial(OBJECTIVES[name], problem)))
    rest = jnp.asarray(STATIONARY[name](problem), float)
    if target == "normal" and name != "consistency_training":
        np.testing.assert_allclose(rest, 0, atol=1e-9)
    # The quadrature's 100 nodes integrate the exact map of modes to some 1e-9.
    np.testing.assert_allclose(gradient(rest), 0, atol=1e-7)
    jacobian = jax.jit(jax.jacfwd(gradient))(rest)
    values = np.linalg.eigvals(jacobian)
    assert values.real.min() > 1e-3
    theta, rate = rest + 0.01, 1 / np.abs(values).max()
    for _ in range(4000):
        theta = theta - rate * gradient(theta)
        if np.abs(gradient(theta)).max() < 1e-9:
            break
    np.testing.assert_allclose(theta, rest, atol=1e-6)


DOCUMENTED = {
    "`continuous_consistency_loss`, `mean_flow_loss`": "continuous_consistency",
    "`composition_loss` (shortcut), beside flow matching": "shortcut",
    "`flow_map_matching_loss`": "flow_map_matching",
    "`composition_loss` (progressive distillation)": "progressive_distillation",
    "`consistency_loss`, distillation": "consistency_distillation",
    "`consistency_loss`, training": "consistency_training",
    "`eulerian_loss`": "eulerian",
    "`lagrangian_loss`": "lagrangian",
}
"""Names by the first cell of a row of the table "What each converges to" in
docs/pages/flow_maps.md.
"""


def documented():
    """The documentation's share of the variance by objective, as text."""
    text = (
        pathlib.Path(__file__).parents[1] / "docs" / "pages" / "flow_maps.md"
    ).read_text()
    table = text.split("| Variance kept, of two modes |\n|---|---|---|\n")[1]
    rows = (line.split(" | ") for line in table.split("\n\n")[0].splitlines())
    return {DOCUMENTED[row[0].strip("| ")]: row[-1].strip("| ") for row in rows}


def test_students_of_modes_differ_by_the_variance_that_they_leave(x64):
    """Of the variance V_S, which matched moments keep: less for a projection.

    A line through the exact ends, by least squares, has the variance that it explains.
    Consistency distillation projects from step to step, which loses less in each. The
    documentation has the shares to the digits that it states, and 1 is exact.
    """
    problem = problem_of("modes")

    def left(name):
        q = float(np.asarray(STATIONARY[name](problem))[1])
        slope = problem.slope(T, S) + (S - T) * q
        return slope**2 * problem.variance_at(T) / problem.variance_at(S)

    exact = problem.regression(problem.taught[3]) ** 2
    exact *= problem.variance_at(T) / problem.variance_at(S)
    np.testing.assert_allclose(left("progressive_distillation"), exact, rtol=1e-9)
    assert left("progressive_distillation") < left("consistency_distillation") < 1
    assert left("eulerian") < 1
    shares = documented()
    assert set(shares) == set(DOCUMENTED.values())
    for name, share in shares.items():
        digits = len(share.partition(".")[2]) or 12
        assert round(left(name), digits) == float(share), name
