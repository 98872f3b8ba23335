"""Inverse problems: adjoints, the exact posterior, what is exact on Gaussians,
and by how much the rest is off.
"""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special

import diffjax as dj
from diffjax import inverse, predictions, schedules, solvers, targets
from diffjax.solvers import driver, noise_source
from tests.families import (
    DISTINCT,
    EPS64,
    SCHEDULES,
    TARGETS,
    assert_raises,
    every,
    interior,
)

KEY = jax.random.key(0)
MATRIX = [[1.0, -0.5, 0.2], [0.3, 0.8, -1.0]]
MASK = np.array([[True, False, True], [False, False, True]])

OPERATORS = {
    "inpainting": lambda: inverse.inpainting(MASK),
    "matrix": lambda: inverse.matrix(MATRIX),
    "rank one": lambda: inverse.matrix([[1.0, 2.0, -1.0], [2.0, 4.0, -2.0]]),
    "colourisation": lambda: inverse.colourisation((2, 3, 3)),
    "downsampling": lambda: inverse.downsampling((4, 6, 2), 2),
    "downsampling of grey": lambda: inverse.downsampling((3, 6), 3),
    "differences": lambda: inverse.linear_operator(
        functools.partial(jnp.diff, axis=0), (4, 2)
    ),
    "channel blur": lambda: inverse.linear_operator(
        lambda x: x[1:] + 0.5 * x[:-1], (5,)
    ),
}
"""A row an operator."""


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_obey_their_identities(name, x64):
    """⟨Ax, y⟩ = ⟨x, Aᵀy⟩, A linear, `dense` the same map, `solve` the inverse
    of cAAᵀ + dI and at d = 0 AA⁺A = A.
    """
    operator, rng = OPERATORS[name](), np.random.default_rng(0)
    x, z, y = (
        rng.normal(size=shape)
        for shape in (operator.shape, operator.shape, operator.measured)
    )
    single = jax.tree.map(
        lambda leaf: (
            np.asarray(leaf, np.float32) if np.asarray(leaf).dtype.kind == "f" else leaf
        ),
        operator,
    )

    @jax.jit
    def all_of(x, z, y):
        forward = operator.forward(x)
        again = operator.forward(operator.transpose(operator.solve(forward, 1.0, 0.0)))
        moved = operator.forward(2 * x - z), operator.forward(z)
        return (
            forward,
            operator.transpose(y),
            operator.dense(),
            operator.solve(y, 0.7, 0.3),
            again,
            moved,
        )

    forward, transposed, a, solved, again, (both, other) = jax.tree.map(
        np.asarray, all_of(x, z, y)
    )
    assert forward.shape == operator.measured and transposed.shape == operator.shape
    scale = float(np.sqrt(np.sum(x**2) * np.sum(y**2)))
    assert (
        abs(float(np.sum(forward * y) - np.sum(x * transposed))) < 100 * EPS64 * scale
    )
    np.testing.assert_allclose(both, 2 * forward - other, atol=1e-13)
    np.testing.assert_allclose(a @ x.ravel(), forward.ravel(), atol=1e-13)
    exact = np.linalg.solve(0.7 * a @ a.T + 0.3 * np.eye(len(a)), y.ravel()).reshape(
        y.shape
    )
    np.testing.assert_allclose(solved, exact, atol=1e-12)
    np.testing.assert_allclose(again, forward, atol=1e-12)
    dtypes = jax.eval_shape(
        lambda x, y: (single.forward(x), single.transpose(y)),
        np.float32(x),
        np.float32(y),
    )
    assert all(value.dtype == np.float32 for value in dtypes)


# ---------------------------------------------------------------------- exact posterior


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("isotropic", [[1.0, 0.0]]),
        ("diagonal", [[0.6, -1.2]]),
        ("full", [[1.0, 0.3], [-0.4, 0.8], [0.5, 0.5]]),
    ],
)
def test_the_posterior_of_a_mixture_is_bayes_rule(name, entries, x64):
    """p(x | y) ∝ p(x) N(y | Ax, τ²I): its density, mean and covariance by the
    trapezoid rule on a fine grid in 2-D.

    The rule's error is beyond all orders for a density this smooth (spacing
    0.03, least scale 0.15).
    """
    target, tau = TARGETS[name](), 0.4
    operator = inverse.matrix(entries)
    y = operator.forward(jnp.array([0.6, -0.3])) + 0.2
    posterior = inverse.exact_posterior(target, operator, y, tau)
    axis = np.arange(-6, 6, 0.03)
    points = jnp.stack(jnp.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    log_likelihood = -0.5 * jnp.sum((y - points @ operator.dense().T) ** 2, -1) / tau**2
    log_joint = jax.vmap(target.log_prob)(points) + log_likelihood
    mass = np.asarray(jnp.exp(log_joint - jnp.max(log_joint)))
    density = mass / (mass.sum() * 0.03**2)
    result = np.exp(np.asarray(jax.vmap(posterior.log_prob)(points)))
    np.testing.assert_allclose(result, density, atol=1e-9 * density.max())
    mean = density @ np.asarray(points) * 0.03**2
    np.testing.assert_allclose(posterior.mean(), mean, atol=1e-9)
    centred = np.asarray(points) - mean
    np.testing.assert_allclose(
        posterior.covariance(), (centred.T * density) @ centred * 0.03**2, atol=1e-9
    )
    traced = jax.jit(inverse.exact_posterior)(target, operator, y, tau)
    for one, other in zip(
        (traced.mean(), traced.covariance()),
        (posterior.mean(), posterior.covariance()),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, atol=1e-12)


def test_a_noiseless_observation_is_kept_by_the_exact_posterior(x64):
    """τ = 0: A x = y with variance 0 and the conditional distribution beside
    it, N(ρ y, 1 − ρ²) for correlation ρ.
    """
    target = targets.gaussian([0.0, 0.0], [[1.0, 0.8], [0.8, 1.0]])
    posterior = inverse.exact_posterior(
        target, inverse.inpainting([True, False]), [1.5], 0.0
    )
    np.testing.assert_allclose(posterior.mean(), [1.5, 1.2], rtol=1e-14)
    np.testing.assert_allclose(posterior.covariance(), [[0, 0], [0, 0.36]], atol=1e-15)
    denoiser = targets.denoiser(posterior, schedules.edm())
    x = dj.sample(
        KEY, denoiser, schedules.edm(), grid=[80.0, 10.0, 1.0, 0.1, 0.0], shape=(2,)
    )
    assert float(x[0]) == pytest.approx(1.5, abs=1e-12)


def test_sampling_with_the_exact_posteriors_denoiser_gives_its_moments():
    """2000 samples of the flow agree with the posterior's mean and covariance
    within 4.5 standard errors.
    """
    schedule, count = schedules.vp_linear(t_min=1e-3), 2000
    target = targets.gaussian_mixture(
        [0.3, 0.7],
        [[1.0, 0.5], [-0.5, 0.0]],
        [[[0.6, 0.2], [0.2, 0.4]], [[0.5, 0.0], [0.0, 0.8]]],
    )
    posterior = inverse.exact_posterior(
        target, inverse.matrix([[1.0, 0.5]]), [0.8], 0.5
    )
    xs = dj.sample_many(
        KEY,
        count,
        targets.denoiser(posterior, schedule),
        schedule,
        grid=dj.grids.karras(schedule, 24),
        shape=(2,),
    )
    exact = posterior.noised(schedule, schedule.t_min)
    covariance = np.asarray(exact.covariance())
    assert np.all(
        np.abs(xs.mean(0) - exact.mean()) < 4.5 * np.sqrt(np.diag(covariance) / count)
    )
    # Var of a sample covariance of near-Gaussian entries: (C_ii C_jj + C_ij²)/n; a
    # mixture's kurtosis is below 1.5 of it
    spread = np.sqrt(
        1.5
        * (np.outer(np.diag(covariance), np.diag(covariance)) + covariance**2)
        / count
    )
    assert np.all(np.abs(np.cov(np.asarray(xs).T) - covariance) < 4.5 * spread)
    assert float(jnp.max(jnp.abs(posterior.mean() - target.mean()))) > 0.3


@jax.jit
def posterior_along_line(points, rates, step):
    """(log p(x | y), A's pseudo-inverse of a vector) moved along a line in
    every argument, and the slope in reverse.
    """

    def value(e, weights):
        c, a, y, tau = (p + e * r for p, r in zip(points, rates, strict=True))
        target = targets.gaussian_mixture(
            [0.4, 0.6], jnp.array([[0.1, 0.4], [1.0, 0.0]]), jnp.stack([c, 2 * c])
        )
        posterior = inverse.exact_posterior(target, inverse.matrix(a), y, tau)
        solved = inverse.matrix(jnp.stack([a[0], a[1], a[0] - 2 * a[1]])).solve(
            jnp.arange(3.0), 1.0, 0.0
        )
        return weights @ jnp.stack(
            [posterior.log_prob(jnp.array([0.3, -0.5])), jnp.sum(jnp.sin(solved))]
        )

    both = jnp.eye(2)
    return jax.vmap(lambda w: value(step, w))(both), jax.vmap(
        lambda w: jax.grad(value)(step, w)
    )(both)


@pytest.mark.parametrize("gap", [0.0, 1e-9, 0.3])
def test_derivatives_of_the_posterior_are_those_of_differences(gap, x64):
    """By V, A, y and τ at repeated, nearly repeated and distinct eigenvalues
    of V and A Aᵀ, and of a singular A A ᵀ's pseudo-inverse. Central
    differences with h = 1e-5 err by 1e-6 at most.
    """
    h, points = (
        1e-5,
        (
            np.diag([0.64, 0.64 + gap]),
            np.diag([0.8, 0.8 + gap]),
            np.array([0.7, 0.2]),
            np.array([0.3, 0.5]),
        ),
    )
    rates = (
        np.array([[0.1, 0.2], [0.2, -0.3]]),
        np.array([[0.3, -0.5], [0.2, 0.4]]),
        np.array([1.0, -0.4]),
        np.array([0.1, -0.2]),
    )
    (low, _), (_, slope), (high, _) = (
        posterior_along_line(points, rates, e) for e in (-h, 0.0, h)
    )
    np.testing.assert_allclose(slope, (high - low) / (2 * h), rtol=1e-6, atol=1e-6)


def test_small_singular_values_of_a_concrete_matrix_are_kept():
    """Condition 1e5 in float32: A⁺ of (0, 1e-5) is 1, where a threshold on A
    Aᵀ in float32 would give 0.
    """
    operator = inverse.matrix([[1.0, 0.0], [0.0, 1e-5]])
    solved = operator.transpose(operator.solve(jnp.array([0.0, 1e-5]), 1.0, 0.0))
    np.testing.assert_allclose(solved, [0.0, 1.0], rtol=1e-5)


# ------------------------------------------------------ noise per entry, and soft masks


def test_noise_of_each_entry_is_that_of_whitened_measurements(x64):
    """y_i with τ_i is y_i/τ_i of row A_i/τ_i with τ = 1: the same posterior,
    ΠGDM and DPS, for any A A ᵀ.
    """
    schedule, y, tau, x = (
        schedules.vp_linear(),
        np.array([0.7, -0.2]),
        np.array([0.3, 0.9]),
        np.array([0.4, -0.9, 1.3]),
    )
    target = targets.gaussian([0.5, -0.3, 0.1], 0.7)
    prior, variance = (
        targets.denoiser(target, schedule),
        inverse.gaussian_variance(schedule, 0.7),
    )
    for operator, rows in (
        (inverse.matrix(MATRIX), np.array(MATRIX)),
        (inverse.inpainting([True, False, True]), np.eye(3)[[0, 2]]),
    ):
        white = inverse.matrix(rows / tau[:, None])
        one = inverse.exact_posterior(target, operator, y, tau)
        other = inverse.exact_posterior(target, white, y / tau, 1.0)
        np.testing.assert_allclose(one.mean(), other.mean(), rtol=1e-12)
        np.testing.assert_allclose(
            one.covariance(), other.covariance(), rtol=1e-11, atol=1e-14
        )
        exact, white_dps = (
            targets.denoiser(one, schedule),
            inverse.dps(schedule, prior, white, y / tau, noise_std=1.0),
        )
        pigdm, dps = (
            inverse.pigdm(
                schedule, prior, operator, y, noise_std=tau, variance=variance
            ),
            inverse.dps(schedule, prior, operator, y, noise_std=tau),
        )
        result = jax.jit(
            lambda x, t: [d(x, t) for d in (pigdm, exact, dps, white_dps)]
        )(x, 0.4)
        np.testing.assert_allclose(result[0], result[1], rtol=1e-9)
        np.testing.assert_allclose(result[2], result[3], rtol=1e-9)


@pytest.mark.parametrize("schedule", ["vp_linear", "edm", "rectified_flow"])
def test_a_trust_mask_is_exact_for_independent_gaussians(schedule, x64):
    """D + m (y − D) is the denoiser of `exact_posterior` with noise per entry,
    τ_i = 0 too, at every noise level.
    """
    schedule, x = SCHEDULES[schedule](), np.array([0.4, -0.9, 1.3])
    std, tau, y = (
        np.array([0.7, 1.1, 0.4]),
        np.array([0.0, 0.5, 3.0]),
        np.array([1.0, -0.5, 2.0]),
    )
    target = targets.gaussian([0.5, -0.3, 0.1], std)
    exact = targets.denoiser(
        inverse.exact_posterior(target, inverse.inpainting([True] * 3), y, tau),
        schedule,
    )
    soft = inverse.soft_inpainting(
        targets.denoiser(target, schedule), y, inverse.trust_mask(schedule, tau, std)
    )
    result, truth = jax.jit(jax.vmap(lambda t: (soft(x, t), exact(x, t))))(
        interior(schedule, (0.0, 0.1, 0.5, 1.0))
    )
    np.testing.assert_allclose(
        result, truth, rtol=0, atol=1e4 * EPS64
    )  # as of ΠGDM: x/α carries its rounding


def test_the_bias_of_a_trust_mask_on_correlated_gaussians(x64):
    """N(0, [[1, ρ], [ρ, 1]]) with x_1 observed at τ: the mask passes nothing
    to x_2, ΠGDM and the truth do.

    At high noise, x = 0 and α = 1: E[x_2 | y] → ρ y/(1 + τ²), where the mask
    leaves 0.
    """
    schedule, tau, y = (
        schedules.edm(0.002, 1e5),
        np.array([0.5, 1e6]),
        np.array([1.5, 0.0]),
    )
    target = targets.gaussian([0.0, 0.0], [[1.0, CORRELATION], [CORRELATION, 1.0]])
    soft = inverse.soft_inpainting(
        targets.denoiser(target, schedule), y, inverse.trust_mask(schedule, tau)
    )
    exact = targets.denoiser(
        inverse.exact_posterior(target, inverse.inpainting([True, True]), y, tau),
        schedule,
    )
    truth = 1.5 / 1.25
    np.testing.assert_allclose(
        exact(np.zeros(2), 1e5), [truth, CORRELATION * truth], rtol=1e-6
    )
    np.testing.assert_allclose(
        soft(np.zeros(2), 1e5), [truth, 0.0], rtol=1e-6, atol=1e-9
    )


def test_a_mask_of_zeros_and_ones_is_replacement():
    denoiser, x = (
        lambda x, t: jnp.tanh(x + t),
        np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3),
    )
    y = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    hard = inverse.replacement(denoiser, inverse.inpainting(MASK), y[MASK])(x, 0.3)
    np.testing.assert_allclose(
        inverse.soft_inpainting(denoiser, y, MASK)(x, 0.3), hard, rtol=4 * EPS64 * 2**29
    )
    half = inverse.soft_inpainting(denoiser, y, 0.5)(x, 0.3)
    np.testing.assert_allclose(
        half, 0.5 * (np.tanh(x + np.float32(0.3)) + y), rtol=1e-6
    )


@pytest.mark.parametrize("schedule", ["vp_linear", "edm"])
def test_a_release_mask_holds_each_entry_over_its_share(schedule):
    """Entry i is y while less than m_i of the log-SNR range is covered: m = 1
    to the end, 0 never, all at one share.
    """
    schedule, mask = SCHEDULES[schedule](), np.array([0.0, 0.25, 0.75, 1.0])
    start, end = (
        float(schedules.log_snr(schedule, t)) for t in (schedule.t_max, schedule.t_min)
    )
    shares = np.array([0.0, 0.1, 0.3, 0.7, 0.8, 1.0])
    ts = schedules.time_of_log_snr(schedule, start + shares * (end - start))
    held = jax.jit(jax.vmap(inverse.release_mask(schedule, mask)))(ts)
    np.testing.assert_array_equal(
        held[1:], shares[1:, None] < np.where(mask == 1, 2, mask)
    )
    assert held[0, 3] == 1 and held[0, 0] == 0
    soft = inverse.soft_inpainting(
        lambda x, t: 0 * x, np.full(4, 2.0), inverse.release_mask(schedule, mask)
    )
    x = dj.sample(
        KEY,
        soft,
        schedule,
        solver=solvers.ddim(),
        grid=dj.grids.to_zero(dj.grids.log_snr(schedule, 4)),
        shape=(4,),
    )
    np.testing.assert_allclose(x[jnp.array([0, 3])], [0.0, 2.0], atol=1e-6)


# ------------------------------------------------------------------ ΠGDM exact, DPS not


@pytest.mark.parametrize("schedule", every(SCHEDULES, DISTINCT))
def test_pigdm_is_exact_on_isotropic_gaussians(schedule, x64):
    """On N(m, s²I) with r² = s²σ²/(α²s² + σ²) ΠGDM's D is the posterior's own,
    for any A, y and τ, τ = 0 too.
    """
    schedule, std, x = SCHEDULES[schedule](), 0.7, jnp.array([0.4, -0.9, 1.3])
    target = targets.gaussian([0.5, -0.3, 0.1], std)
    prior = targets.denoiser(target, schedule)
    variance = inverse.gaussian_variance(schedule, std)
    for entries, y, tau in ((MATRIX, [0.7, -0.2], 0.3), (MATRIX[:1], [1.1], 0.0)):
        operator = inverse.matrix(entries)
        result = inverse.pigdm(
            schedule, prior, operator, y, noise_std=tau, variance=variance
        )
        exact = targets.denoiser(
            inverse.exact_posterior(target, operator, y, tau), schedule
        )
        both = jax.jit(jax.vmap(lambda t: (result(x, t), exact(x, t), prior(x, t))))
        for one, other, unguided in zip(
            *both(interior(schedule, (0.1, 0.5, 0.9))), strict=True
        ):
            # σ²/α Jᵀ = s²σ²/(α²s² + σ²): bounded; x/α at α = 0.006 carries its rounding
            np.testing.assert_allclose(one, other, rtol=0, atol=1e4 * EPS64)
            assert np.max(np.abs(other - unguided)) > 1e-4


@pytest.mark.parametrize(("std", "tau"), [(1.0, 1.0), (1.0, 0.5), (0.6, 0.8)])
def test_dps_is_too_narrow_and_overshoots_on_gaussians(std, tau, x64):
    """On N(0, s²), α = 1, y = x + τn, z = s²/τ²: DPS's flow has variance s²
    e^{−z} and mean √(2z) F(√(z/2)) y, F Dawson's integral. The posterior has
    s²/(1 + z) and z/(1 + z) y.

    From dx/du = ½[(1/(s² + u) + k²/τ²) x − k y/τ²], k = s²/(s² + u), u = σ²
    from ∞ to 0. At s = τ = 1: variance 0.368 for 0.5, mean 0.725 y for 0.5 y.
    ΠGDM on the same flow is exact. The start N(0, σ_T²) is off by s²/σ_T².
    """
    top, z, y = 300.0, std**2 / tau**2, 0.8
    schedule = schedules.edm(1e-4, top)
    target, operator = targets.gaussian([0.0], std), inverse.matrix([[1.0]])
    prior, grid = targets.denoiser(target, schedule), dj.grids.log_snr(schedule, 1000)

    def mean_and_variance(denoiser):
        end = lambda x: dj.sample(
            None,
            denoiser,
            schedule,
            solver=solvers.rk4(),
            grid=grid,
            x_init=jnp.array([x]),
        )[0]
        low, high = float(end(0.0)), float(end(top))
        return low, (high - low) ** 2

    slack = 4 * (std / top) ** 2 * (1 + z)
    expected = (
        math.sqrt(2 * z) * special.dawsn(math.sqrt(z / 2)) * y,
        std**2 * math.exp(-z),
    )
    result = mean_and_variance(
        inverse.dps(schedule, prior, operator, [y], noise_std=tau)
    )
    # the flow ends at σ = 1e-4, its mean short of the limit by O(σ²); U's share of the
    # mean falls as s/σ_T
    assert result == pytest.approx(expected, rel=slack, abs=z * y * std / top)
    exact = z / (1 + z) * y, std**2 / (1 + z)
    pigdm = mean_and_variance(
        inverse.pigdm(
            schedule,
            prior,
            operator,
            [y],
            noise_std=tau,
            variance=inverse.gaussian_variance(schedule, std),
        )
    )
    assert pigdm == pytest.approx(exact, rel=slack, abs=z * y * std / top)
    assert result[0] > 1.1 * exact[0] and result[1] < 0.9 * exact[1]


def test_dps_and_classifier_guidance_agree(x64):
    """DPS is `classifier` guidance by log N(y | A D(x, t), τ²I), at any scale."""
    schedule, operator, y, tau = (
        schedules.vp_linear(),
        inverse.matrix([[1.0, -0.5]]),
        jnp.array([0.4]),
        0.3,
    )
    prior = targets.denoiser(
        targets.gaussian_mixture([0.5, 0.5], [[1.0, 0.5], [-0.5, 0.0]], [0.4, 0.6]),
        schedule,
    )
    log_prob_y = lambda x, t: (
        -0.5 * jnp.sum((y - operator.forward(prior(x, t))) ** 2) / tau**2
    )
    dps = inverse.dps(schedule, prior, operator, y, noise_std=tau, scale=0.7)
    guided = dj.guidance.classifier(schedule, prior, log_prob_y, 0.7)
    x = np.array([0.3, -0.8])
    result, expected = jax.jit(jax.vmap(lambda t: (dps(x, t), guided(x, t))))(
        np.array([0.1, 0.6])
    )
    np.testing.assert_allclose(result, expected, rtol=1e-11)


@pytest.mark.parametrize("schedule", ["vp_linear", "rectified_flow"])
def test_dps_steps_are_the_papers(schedule, x64):
    """A ddpm step on D, then x − ζ ∇_x ‖y − A D(x, t)‖, with the same noise,
    to noise 0: Algorithm 1.
    """
    operator, y, size, schedule = (
        inverse.matrix([[1.0, -0.5]]),
        jnp.array([0.4]),
        0.3,
        SCHEDULES[schedule](),
    )
    prior = targets.denoiser(
        targets.gaussian_mixture([0.5, 0.5], [[1.0, 0.5], [-0.5, 0.0]], [0.4, 0.6]),
        schedule,
    )
    grid = jnp.append(dj.grids.karras(schedule, 3), 0.0)
    noise = jax.random.normal(KEY, (4, 2))

    def run(denoiser, x, grid, noise):
        source = noise_source.Source(lambda step, i: noise[step])
        return driver.run(
            source, solvers.ddpm(), solvers.diffusion(schedule, denoiser), x=x, ts=grid
        )[0]

    @jax.jit
    def paper(x):
        for i in range(4):
            slope = jax.grad(
                lambda x: jnp.linalg.norm(y - operator.forward(prior(x, grid[i])))
            )(x)
            x = run(prior, x, grid[i : i + 2], noise[i:]) - size * slope
        return x

    x = schedule.sigma(grid[0]) * jnp.array([0.3, -0.8])
    denoiser = inverse.dps_steps(
        schedule, prior, operator, y, grid=grid, step_size=size
    )
    chex.assert_trees_all_close(
        jax.jit(run)(denoiser, x, grid, noise), paper(x), rtol=1e-9
    )


def test_new_measurements_do_not_retrace():
    """Another y, τ and scale run the code compiled for the first, and each
    sample knows its own y.
    """
    schedule, operator, traced = schedules.edm(), inverse.matrix(MATRIX), []

    def prior(x, t):
        traced.append(t)
        return x / (1 + t**2)

    for y, tau, scale in (([0.1, 0.2], 0.5, 1.0), ([0.3, -2.0], 0.7, 0.5)):
        denoiser = inverse.pigdm(
            schedule, prior, operator, y, noise_std=tau, scale=scale
        )
        dj.sample(
            KEY,
            denoiser,
            schedule,
            solver=solvers.ddim(),
            grid=dj.grids.karras(schedule, 3),
            shape=(3,),
        )
    assert len(traced) == 1
    many = jax.vmap(
        lambda y: dj.sample(
            KEY,
            inverse.pigdm(schedule, prior, operator, y, noise_std=0.5),
            schedule,
            shape=(3,),
        )
    )
    first, second = many(jnp.array([[0.1, 0.2], [3.0, -2.0]]))
    assert float(jnp.linalg.norm(operator.forward(second) - jnp.array([3.0, -2.0]))) < 2
    assert float(jnp.linalg.norm(first - second)) > 1


# -------------------------------------------------------------- replacement and RePaint

CORRELATION, OBSERVED = 0.8, 1.5


def correlated(schedule):
    """N(0, [[1, ρ], [ρ, 1]]) with its first entry observed: the posterior of
    the second is N(ρ y, 1 − ρ²).
    """
    target = targets.gaussian([0.0, 0.0], [[1.0, CORRELATION], [CORRELATION, 1.0]])
    return inverse.replacement(
        targets.denoiser(target, schedule),
        inverse.inpainting([True, False]),
        [OBSERVED],
    )


@pytest.mark.parametrize("schedule", ["vp_linear", "edm"])
def test_replacement_ends_in_the_observation(schedule, x64):
    """At noise 0 the observed pixels are y, not the noisy x nor the denoiser's
    guess, by every kind of solver.

    To rounding: a velocity's zero end is (u − A x)/B, whose terms are x/t at
    t_min.
    """
    schedule = SCHEDULES[schedule]()
    operator = inverse.inpainting(MASK)
    y = np.array([5.0, -2.0, 0.3])
    denoiser = inverse.replacement(lambda x, t: 0.5 * x, operator, y)
    grid = jnp.asarray(np.append(np.asarray(dj.grids.karras(schedule, 5)), 0.0))
    kinds = [
        solvers.ddim(),
        solvers.ddpm(),
        solvers.dpmpp_2m(),
        solvers.heun(),
        solvers.edm_stochastic(),
    ]
    ends = jax.jit(
        lambda: [
            dj.sample(
                KEY, denoiser, schedule, solver=solver, grid=grid, shape=MASK.shape
            )
            for solver in kinds
        ]
    )()
    for x in ends:
        np.testing.assert_allclose(np.asarray(x)[MASK], y, rtol=1e5 * EPS64)


def test_replacement_keeps_the_observed_part_at_its_noise_level(x64):
    """Along ddim A x_t = α y + σ ε with one ε throughout.

    Under ddpm N(α y, σ²) at every grid time.
    """
    schedule = schedules.vp_linear()
    denoiser, grid = correlated(schedule), dj.grids.karras(schedule, 6)
    states = dj.sample(
        KEY, denoiser, schedule, solver=solvers.ddim(), grid=grid, shape=(2,), path=True
    )[:, 0]
    noise = (states - schedule.alpha(grid) * OBSERVED) / schedule.sigma(grid)
    np.testing.assert_allclose(noise, noise[0], rtol=1e-9)

    def start(key):
        noise = jax.random.normal(key, (2,))
        return (
            schedule.alpha(grid[0]) * jnp.array([OBSERVED, 0.0])
            + schedule.sigma(grid[0]) * noise
        )

    starts = jax.vmap(start)(jax.random.split(jax.random.key(1), 2000))
    states = dj.sample_many(
        KEY,
        2000,
        denoiser,
        schedule,
        solver=solvers.ddpm(),
        grid=grid,
        x_init=starts,
        path=True,
    )[..., 0]
    z = (states - schedule.alpha(grid) * OBSERVED) / schedule.sigma(grid)  # (2000, 7)
    assert np.all(np.abs(z.mean(0)) < 4.5 / math.sqrt(2000))
    assert np.all(np.abs(z.var(0) - 1) < 4.5 * math.sqrt(2 / 2000))


EXACT_FOR_A_CONSTANT = (
    solvers.ddim(),
    solvers.dpm_solver(2),
    solvers.dpm_solver(3),
    solvers.dpmpp_2s(),
    solvers.dpmpp_2m(),
    solvers.dpmpp_3m(),
    solvers.deis(3),
    solvers.unipc(3),
    solvers.sa_solver(2, 2, 0),
    solvers.ipndm(4),
    solvers.adams_bashforth(3),
    solvers.dpm_2(),
    solvers.exponential_runge_kutta(),
    solvers.er_sde(3, 0.0),
    solvers.seeds(3, 0.0),
    solvers.heunpp(),
)
EXACT_WHERE_STRAIGHT = (
    solvers.euler(),
    solvers.heun(),
    solvers.midpoint(),
    solvers.rk4(),
)


@pytest.mark.parametrize(
    "name",
    every(("vp_linear", "edm", "rectified_flow"), ("vp_linear", "rectified_flow")),
)
def test_which_solvers_keep_the_observed_part_exactly(name, x64):
    """A x_t = α y + σ A ε at every time of a coarse grid, as the docstring
    lists them. Euler's is far off on VP.

    D of the observed entry is the constant y, so that it is a problem of its
    own. ρ spans up to 1e6: rounding 1e-9.
    """
    schedule = SCHEDULES[name]()
    grid, problem = (
        dj.grids.karras(schedule, 6),
        solvers.diffusion(schedule, lambda x, t: jnp.full_like(x, OBSERVED)),
    )
    alpha, sigma = np.asarray(schedule.alpha(grid)), np.asarray(schedule.sigma(grid))
    x = jnp.array([0.7]) * sigma[0]

    @jax.jit
    def paths():
        return [
            solvers.integrate(None, solver, problem, x=x, ts=grid, path=True)[:, 0]
            for solver in EXACT_FOR_A_CONSTANT + EXACT_WHERE_STRAIGHT
        ]

    noise = [(np.asarray(path) - alpha * OBSERVED) / sigma for path in paths()]
    exact = len(noise) if name != "vp_linear" else len(EXACT_FOR_A_CONSTANT)
    for path in noise[:exact]:
        np.testing.assert_allclose(path, path[0], rtol=1e-8)
    for path in noise[exact:]:
        assert np.max(np.abs(path - path[0])) > 1


def propagated(solver, schedule, denoiser, grid, draws):
    """(mean, covariance) at grid[-1] from N(0, σ_T²I): steps are affine, so
    the Jacobians by start and noise give it.

    draws: rows of the table of noise, one for each step and each repeated
    step.
    """
    problem, steps = solvers.diffusion(schedule, denoiser), grid.shape[0] - 1

    def end(x, noise):
        def normal(step, i):
            row = jnp.where(step < steps, step, steps + step - jnp.uint32(2**20))
            return noise[row, i]

        return driver.run(noise_source.Source(normal), solver, problem, x=x, ts=grid)[0]

    x, noise = jnp.zeros(2), jnp.zeros((draws, 8, 2))
    mean, (by_start, by_noise) = jax.jit(
        lambda: (end(x, noise), jax.jacfwd(end, (0, 1))(x, noise))
    )()
    by_noise = by_noise.reshape(2, -1)
    return np.asarray(mean), np.asarray(
        schedule.sigma(grid[0]) ** 2 * by_start @ by_start.T + by_noise @ by_noise.T
    )


def test_the_bias_of_replacement_on_a_gaussian(x64):
    """x_2 given x_1 = y by the flow on VE, x_1 = y + σz:
    dx_2/dσ = (x_2 − D_2)/σ, linear. By DOP853 beside the solver.

    With Λ = (Σ + σ²)⁻¹ the second row of x − D = σ²Λx. The distribution is N(a
    y, v) with neither a = ρ nor v = 1 − ρ².
    """
    top, low, rho = 200.0, 1e-3, CORRELATION
    schedule = schedules.edm(low, top)
    grid = dj.grids.log_snr(schedule, 400)

    def rate(sigma, x2, y, z):
        a = 1 + sigma**2
        return sigma * (a * x2 - rho * (y + sigma * z)) / (a**2 - rho**2)

    def fine(start, y, z):
        return integrate.solve_ivp(
            rate, (top, low), [start], "DOP853", args=(y, z), rtol=1e-10, atol=1e-12
        ).y[0, -1]

    by_start, mean, by_noise = (
        fine(top, 0.0, 0.0),
        fine(0.0, OBSERVED, 0.0),
        fine(0.0, 0.0, 1.0),
    )
    # the run starts from N(0, σ_T²) in both entries: x_1 = σ_T z' = y + σ_T z with
    # z = z' − y/σ_T
    mean = mean - by_noise * OBSERVED / top
    result, covariance = propagated(
        solvers.rk4(), schedule, correlated(schedule), grid, 400
    )
    assert result[1] == pytest.approx(mean, abs=1e-6)
    assert covariance[1, 1] == pytest.approx(by_start**2 + by_noise**2, abs=1e-6)
    assert result[0] == pytest.approx(OBSERVED, abs=2 * OBSERVED * low / top)
    assert (result[1] / OBSERVED, covariance[1, 1]) == pytest.approx(
        (0.345, 0.672), abs=1e-3
    )  # for 0.8 and 0.36


def repaint_moments(schedule, grid, jump, repeats):
    """Mean and covariance of RePaint with ddpm steps on the correlated
    Gaussian, from Algorithm 1 in plain matrices.
    """
    sigma_0 = np.array([[1.0, CORRELATION], [CORRELATION, 1.0]])
    observed, rest = np.diag([1.0, 0.0]), np.diag([0.0, 1.0])
    alpha, sigma = (
        np.asarray(f(np.where(grid == 0, 1.0, grid)))
        for f in (schedule.alpha, schedule.sigma)
    )
    alpha, sigma = np.where(grid == 0, 1.0, alpha), np.where(grid == 0, 0.0, sigma)
    mean, covariance = np.zeros(2), sigma[0] ** 2 * np.eye(2)

    def down(i, mean, covariance):
        a = alpha[i] / alpha[i + 1]
        forward = sigma[i] ** 2 - a**2 * sigma[i + 1] ** 2  # β of the forward step
        denoise = (
            alpha[i]
            * sigma_0
            @ np.linalg.inv(alpha[i] ** 2 * sigma_0 + sigma[i] ** 2 * np.eye(2))
        )
        by_data, by_state = (
            alpha[i + 1] * forward / sigma[i] ** 2,
            a * sigma[i + 1] ** 2 / sigma[i] ** 2,
        )
        linear = rest @ (by_data * denoise + by_state * np.eye(2))
        added = (
            forward * sigma[i + 1] ** 2 / sigma[i] ** 2 * rest
            + sigma[i + 1] ** 2 * observed
        )
        return linear @ mean + alpha[i + 1] * OBSERVED * np.array(
            [1.0, 0.0]
        ), linear @ covariance @ linear.T + added

    last = len(grid) - 1
    for i in range(last):
        mean, covariance = down(i, mean, covariance)
        reached = i + 1
        if jump <= reached < last and (last - 1 - reached) % jump == 0:
            for _ in range(repeats - 1):
                a = alpha[reached - jump] / alpha[reached]
                mean = a * mean
                covariance = a**2 * covariance + (
                    sigma[reached - jump] ** 2 - a**2 * sigma[reached] ** 2
                ) * np.eye(2)
                for j in range(reached - jump, reached):
                    mean, covariance = down(j, mean, covariance)
    return mean, covariance


@pytest.mark.parametrize(
    ("jump", "repeats"),
    [
        (2, 3),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in ((1, 3), (1, 1), (3, 2))
        ),
    ],
)
def test_repaint_has_the_distribution_of_its_algorithm(jump, repeats, x64):
    """Exact propagation of the solver against Algorithm 1 in plain matrices,
    on VP to noise 0 and above it.
    """
    schedule = schedules.vp_linear()
    for grid in (
        jnp.append(dj.grids.karras(schedule, 5), 0.0),
        dj.grids.karras(schedule, 8),
    ):
        solver = inverse.repaint(jump=jump, repeats=repeats)
        draws = 8 + 8 * (repeats - 1) * jump + jump
        result = propagated(solver, schedule, correlated(schedule), grid, draws)
        for one, other in zip(
            result,
            repaint_moments(schedule, np.asarray(grid), jump, repeats),
            strict=True,
        ):
            np.testing.assert_allclose(one, other, atol=1e-11)
        if grid[-1] == 0:
            np.testing.assert_allclose(result[0][0], OBSERVED, rtol=1e-14)
            np.testing.assert_allclose(result[1][0], 0, atol=1e-14)


def test_the_bias_of_repaint_on_a_gaussian(x64):
    """Mean and variance of x_2 over 100 steps, beside ρ and 1 − ρ²: a, v of
    N(a y, v) for r = 1, 3, 10, 30.

    The mean comes nearer with each r. The variance passes the truth and stays
    below it: a ddpm step adds β̃, less than the reverse step's variance. With 4
    times the steps it is nearer. By `repaint_moments`, which the solver has.
    """
    schedule, result = schedules.vp_linear(), {}
    for steps, repeats in ((100, 1), (100, 3), (100, 10), (100, 30), (400, 30)):
        grid = np.append(np.asarray(dj.grids.karras(schedule, steps)), 0.0)
        mean, covariance = repaint_moments(schedule, grid, 1, repeats)
        result[steps, repeats] = mean[1] / OBSERVED, covariance[1, 1]
    means, variances = zip(*result.values(), strict=True)
    assert np.all(np.diff(means[:4]) > 0) and means[3] < CORRELATION
    assert means[:4] == pytest.approx((0.483, 0.675, 0.764, 0.788), abs=1e-3)
    assert variances[:4] == pytest.approx((0.450, 0.357, 0.322, 0.310), abs=1e-3)
    assert abs(variances[4] - 0.36) < 0.5 * abs(variances[3] - 0.36)


def test_repaint_counts_its_evaluations():
    """N steps and j (r − 1) for each of the states repeated, counted at run time."""
    schedule = schedules.vp_linear()
    for jump, repeats, zero in ((1, 4, True), (3, 2, False)):
        ran = []

        def net(x, t):
            jax.debug.callback(lambda t: ran.append(float(t)), t)
            return 0.5 * x

        denoiser = inverse.replacement(net, inverse.inpainting([True, False]), [1.0])
        grid = (
            jnp.append(dj.grids.karras(schedule, 5), 0.0)
            if zero
            else dj.grids.karras(schedule, 6)
        )
        solver = inverse.repaint(solvers.ddpm(), jump, repeats)
        dj.sample(KEY, denoiser, schedule, solver=solver, grid=grid, shape=(2,))
        jax.effects_barrier()
        assert len(ran) == solver.evaluations(6, to_zero=zero)
        assert len(ran) == 6 + {1: 5, 3: 1}[jump] * (repeats - 1) * jump
    assert inverse.repaint() is inverse.repaint(solvers.ddpm(), 1, 10)


def test_repaint_names_the_denoiser_that_replaces_nothing():
    with pytest.raises(
        TypeError, match=r"inverse\.replacement for repaint, got Network"
    ):
        dj.sample(
            KEY,
            predictions.denoiser(schedules.vp_linear(), lambda x, t: x, "v"),
            schedules.vp_linear(),
            solver=inverse.repaint(),
            grid=[1.0, 0.5, 0.1],
            shape=(2,),
        )


def test_repaint_rejects_a_replacement_between_several_denoisers():
    """Guidance by a second denoiser would undo what the first inserts."""
    schedule, free = schedules.vp_linear(), lambda x, t: 0 * x
    replaced = inverse.replacement(free, inverse.inpainting([True, False]), [OBSERVED])
    guided = dj.guidance.classifier_free(replaced, free, 2.0)
    settings = {"solver": inverse.repaint(), "grid": [1.0, 0.5, 0.1], "shape": (2,)}
    with pytest.raises(TypeError, match=r"replacement for repaint, got Extrapolated"):
        dj.sample(KEY, guided, schedule, **settings)


def test_repaint_takes_a_condition():
    """The condition of `sample_many` reaches the denoiser through `replacement`."""
    schedule, operator = schedules.vp_linear(), inverse.inpainting([True, False])
    denoiser = inverse.replacement(
        lambda x, t, c: c * jnp.ones(2), operator, [OBSERVED]
    )
    grid = jnp.append(dj.grids.karras(schedule, 3), 0.0)
    result = dj.sample_many(
        KEY,
        2,
        denoiser,
        schedule,
        solver=inverse.repaint(repeats=2),
        grid=grid,
        shape=(2,),
        condition=jnp.array([0.2, -0.7]),
    )
    np.testing.assert_allclose(result, [[OBSERVED, 0.2], [OBSERVED, -0.7]], rtol=1e-6)


def test_repaint_depends_on_its_key_alone_and_keeps_pixels():
    schedule, grid = (
        schedules.vp_linear(),
        jnp.append(dj.grids.karras(schedules.vp_linear(), 5), 0.0),
    )
    run = functools.partial(
        dj.sample_many,
        KEY,
        denoiser=correlated(schedule),
        schedule=schedule,
        solver=inverse.repaint(repeats=2),
        grid=grid,
        shape=(2,),
    )
    three = run(3)
    chex.assert_trees_all_close(three[:2], run(2), rtol=1e-5)
    assert np.unique(np.asarray(three[:, 1])).size == 3
    np.testing.assert_allclose(three[:, 0], OBSERVED, rtol=1e-6)


# ------------------------------------------------------------------------------- errors

D = lambda x, t: x
EYE = inverse.matrix(np.eye(2))
EDM = schedules.edm()
ERRORS = {
    "y's shape": (
        lambda: inverse.dps(EDM, D, EYE, np.zeros(3), noise_std=0.1),
        ValueError,
        r"y must have shape \(2,\), got \(3,\)",
    ),
    "x's shape": (
        lambda: inverse.dps(EDM, D, EYE, np.zeros(2), noise_std=0.1)(jnp.zeros(3), 1.0),
        ValueError,
        r"x must have shape \(2,\), got \(3,\)",
    ),
    "target's shape": (
        lambda: inverse.exact_posterior(
            targets.gaussian([0.0, 0.0, 0.0], 1.0), EYE, np.zeros(2), 0.1
        ),
        ValueError,
        r"operator must take the target's shape \(3,\), got \(2,\)",
    ),
    "noise_std": (
        lambda: inverse.pigdm(EDM, D, EYE, np.zeros(2), noise_std=-0.1),
        ValueError,
        "noise_std must be 0 or more, got -0.1",
    ),
    "noise_std of dps": (
        lambda: inverse.dps(EDM, D, EYE, np.zeros(2), noise_std=0.0),
        ValueError,
        "noise_std must be positive, got 0.0",
    ),
    "noise_std of the posterior": (
        lambda: inverse.exact_posterior(
            targets.gaussian([0.0, 0.0], 1.0), EYE, np.zeros(2), -1
        ),
        ValueError,
        "noise_std must be 0 or more",
    ),
    "singular": (
        lambda: inverse.exact_posterior(
            targets.gaussian([0.0], 1.0),
            inverse.matrix([[1.0], [2.0]]),
            np.zeros(2),
            0.0,
        ),
        ValueError,
        "noise_std must be positive where A V Aᵀ is singular, got 0.0",
    ),
    "target": (
        lambda: inverse.exact_posterior(targets.checkerboard(), EYE, np.zeros(2), 0.1),
        TypeError,
        "got UniformBoxes",
    ),
    "mask": (
        lambda: inverse.inpainting([1, 0]),
        TypeError,
        "mask must be boolean, True where observed, got int64",
    ),
    "empty mask": (
        lambda: inverse.inpainting([False, False]),
        ValueError,
        "mask must be True somewhere, got all False",
    ),
    "operator": (
        lambda: inverse.replacement(D, np.eye(2), np.zeros(2)),
        TypeError,
        "operator must be made by diffjax.inverse",
    ),
    "matrix": (
        lambda: inverse.matrix(np.zeros(3)),
        ValueError,
        r"entries must have shape \(M, D\), got \(3,\)",
    ),
    "factor": (
        lambda: inverse.downsampling((4, 6), 4),
        ValueError,
        r"multiples of factor=4, got \(4, 6\)",
    ),
    "affine": (
        lambda: inverse.linear_operator(lambda x: x + 1, (2,)),
        ValueError,
        "function must be linear, got function",
    ),
    "not linear": (
        lambda: inverse.linear_operator(jnp.sin, (2,)),
        TypeError,
        "function must be linear: JAX finds no transpose",
    ),
    "complex": (
        lambda: inverse.linear_operator(jnp.fft.fft, (2,)),
        TypeError,
        r"function\(0\) must be real, got dtype complex64",
    ),
    "variance": (
        lambda: inverse.pigdm(EDM, D, EYE, np.zeros(2), noise_std=0.1, variance=1.0),
        TypeError,
        "variance must be callable",
    ),
    "no signal": (
        lambda: inverse.dps(
            schedules.rectified_flow(t_max=1.0), D, EYE, np.zeros(2), noise_std=0.1
        ),
        ValueError,
        r"schedule must have α\(t_max\) > 0",
    ),
    "repaint's denoiser": (
        lambda: dj.sample(
            KEY, D, EDM, solver=inverse.repaint(), grid=[2.0, 1.0], shape=(2,)
        ),
        TypeError,
        "denoiser must be made by inverse.replacement for repaint",
    ),
    "repaint's solver": (
        lambda: inverse.repaint(solvers.dpmpp_2m()),
        TypeError,
        "must not remember earlier steps",
    ),
    "dps grid": (
        lambda: inverse.dps_steps(EDM, D, EYE, np.zeros(2), grid=[1.0, 2.0]),
        ValueError,
        "grid must decrease, got 1.0 … 2.0",
    ),
    "step_size": (
        lambda: inverse.dps_steps(
            EDM, D, EYE, np.zeros(2), grid=[2.0, 1.0], step_size=-1.0
        ),
        ValueError,
        "step_size must be 0 or more, got -1.0",
    ),
    "noise of an entry": (
        lambda: inverse.dps(EDM, D, EYE, np.zeros(2), noise_std=[0.1, 0.0]),
        ValueError,
        "noise_std must be positive, got 0 in entry 1",
    ),
    "noise of no operator": (
        lambda: inverse.dps(EDM, D, np.eye(2), np.zeros(2), noise_std=[0.1, 0.2]),
        TypeError,
        "operator must be made by diffjax.inverse",
    ),
    "ΠGDM's noise of no operator": (
        lambda: inverse.pigdm(EDM, D, np.eye(2), np.zeros(2), noise_std=[0.1, 0.2]),
        TypeError,
        "operator must be made by diffjax.inverse",
    ),
    "soft observation of another shape": (  # which would broadcast
        lambda: inverse.soft_inpainting(D, np.zeros(2), 1.0)(np.zeros((3, 2)), 1.0),
        ValueError,
        r"x must have shape \(2,\), got \(3, 2\)",
    ),
    "noise's shape": (
        lambda: inverse.pigdm(EDM, D, EYE, np.zeros(2), noise_std=np.ones(3)),
        ValueError,
        r"noise_std must have shape \(\) or \(2,\), got \(3,\)",
    ),
    "soft mask": (
        lambda: inverse.soft_inpainting(D, np.zeros(2), [0.0, 1.5]),
        ValueError,
        r"mask must lie in \[0, 1\], got 1.5 in entry 1",
    ),
    "soft mask's shape": (
        lambda: inverse.soft_inpainting(D, np.zeros(2), np.zeros(3)),
        ValueError,
        r"mask must have shape \(\) or \(2,\), got \(3,\)",
    ),
    "trust": (
        lambda: inverse.trust_mask(EDM, -0.1),
        ValueError,
        "noise_std must be 0 or more, got -0.1",
    ),
    "repeats": (
        lambda: inverse.repaint(repeats=0),
        ValueError,
        "repeats must be at least 1, got 0",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_raises(name):
    assert_raises(*ERRORS[name])
