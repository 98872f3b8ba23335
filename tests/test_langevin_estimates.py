"""Effective sample sizes, R̂ and estimates of log Z against what is known in
closed form.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import langevin, quadrature, targets
from diffjax.langevin import normalisers

# ---- diagnostics


def autoregressive(chains, draws, correlation, seed=0):
    """Stationary chains x′ = ρx + √(1 − ρ²) z, whose mean has the variance (1
    + ρ)/(1 − ρ) / draws.
    """
    noise = np.random.default_rng(seed).standard_normal((chains, draws))
    result = np.empty_like(noise)
    result[:, 0] = noise[:, 0]
    for n in range(1, draws):
        result[:, n] = (
            correlation * result[:, n - 1] + np.sqrt(1 - correlation**2) * noise[:, n]
        )
    return result


@pytest.mark.parametrize("correlation", [0.0, 0.7, -0.4])
def test_effective_size_of_an_autoregression(correlation):
    """ESS = N (1 − ρ)/(1 + ρ) within 10 %: the sum over lags τ̂ has the
    relative error √(2(2W + 1)/N), W the window of about ten correlation times
    (Sokal 1997, eq. 3.19), below 4 % for N = 32 000. The cut at a negative
    pair adds 4 %. The mean lies within 4 of its standard errors, and R̂ is 1.
    """
    samples = autoregressive(16, 2000, correlation)
    expected = samples.size * (1 - correlation) / (1 + correlation)
    assert float(langevin.effective_sample_size(samples)) == pytest.approx(
        expected, rel=0.1
    )
    error = float(langevin.standard_error(samples))
    assert abs(samples.mean()) < 4 * error
    assert error == pytest.approx(1 / np.sqrt(expected), rel=0.1)
    assert 0.999 < float(langevin.r_hat(samples)) < 1.01


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-18, 1e17, 1e30])
def test_diagnostics_do_not_depend_on_the_unit(scale):
    """In any unit, to the rounding of the samples.

    The standard error is in that unit.
    """
    samples = autoregressive(4, 200, 0.5).astype(np.float32)
    scaled = samples * np.float32(scale)
    for diagnostic, unit in (
        (langevin.effective_sample_size, 1.0),
        (langevin.standard_error, np.float32(scale)),
        (langevin.r_hat, 1.0),
        (lambda x: langevin.r_hat(x, ranks=False), 1.0),
    ):
        np.testing.assert_allclose(
            diagnostic(scaled), unit * diagnostic(samples), rtol=1e-4
        )


def test_chains_that_stay_have_no_diagnostics():
    """All at one value that binary fractions do not hold: NaN. Each at its
    own: R̂ is infinite, and as many draws count as there are halves of chains,
    over 2.
    """
    still = np.full((4, 50), 0.1, np.float32)
    for diagnostic in (
        langevin.effective_sample_size,
        langevin.standard_error,
        langevin.r_hat,
    ):
        assert np.isnan(diagnostic(still))
    apart = still * np.arange(1, 5, dtype=np.float32)[:, None]
    assert np.isinf(langevin.r_hat(apart)) and np.isinf(
        langevin.r_hat(apart, ranks=False)
    )
    assert float(langevin.effective_sample_size(apart)) == pytest.approx(4, rel=0.1)


def test_r_hat_sees_what_it_should():
    """Chains in two modes m apart with unit spread: R̂² = 1 + B/W up to 1/N,
    and ESS falls to about their number. Chains of differing scale are seen by
    the folded ranks alone. The shape of a draw is kept.
    """
    samples = np.random.default_rng(0).standard_normal((4, 500, 3))
    samples[:2, :, 1] += 3.0
    samples[:2, :, 2] *= 4.0
    plain, ranked = langevin.r_hat(samples, ranks=False), langevin.r_hat(samples)
    halves = samples.reshape(8, 250, 3)
    between = halves.mean(1).var(0, ddof=1)
    np.testing.assert_allclose(
        plain, np.sqrt(249 / 250 + between / halves.var(1, ddof=1).mean(0)), rtol=1e-4
    )
    assert plain[0] < 1.01 and plain[1] > 1.5 and plain[2] < 1.01
    assert ranked[0] < 1.01 and ranked[1] > 1.5 and ranked[2] > 1.1
    size = langevin.effective_sample_size(samples)
    assert size.shape == (3,) and size[1] < 12 < 1000 < size[0]


def test_diagnostics_agree_with_blackjax():
    """The effective size within 2 % of blackjax's on chains halved beforehand
    (it has no cap), where it is installed.
    """
    diagnostics = pytest.importorskip("blackjax.diagnostics")
    samples = autoregressive(8, 1000, 0.6)
    halves = samples.reshape(16, 500)
    assert float(langevin.effective_sample_size(samples)) == pytest.approx(
        float(diagnostics.effective_sample_size(halves)), rel=0.02
    )
    assert float(langevin.r_hat(samples, ranks=False)) == pytest.approx(
        float(diagnostics.potential_scale_reduction(halves)), rel=1e-4
    )


# ---- log Z

LOG_Z = 2.5
BASE = functools.partial(targets.gaussian, [0.0, 0.0], 2.0)


def mixture():
    """A mixture of three in the plane, of known log Z: the distribution itself
    times e^{2.5}.
    """
    density = targets.gaussian_mixture(
        [0.4, 0.35, 0.25], [[1.5, 0.0], [-1.0, 0.5], [0.0, -2.0]], [0.5, 0.7, 0.4]
    )
    return targets.energy(density.log_prob, -LOG_Z)


def mala_at(density, beta):
    """MALA that takes shorter steps as the distribution narrows."""
    return langevin.mala(density, 0.8 - 0.5 * beta)


def test_log_z_of_a_mixture_by_quadrature_and_chains():
    """log Z by quadrature is exact to rounding.

    By annealed importance sampling and thermodynamic integration it is within
    4 standard errors, which are small, and for the latter the estimate of the
    rule's error.
    """
    key, betas = jax.random.key(0), np.linspace(0, 1, 17)
    assert float(
        quadrature.log_integral(mixture().log_prob, [(-8, 8)] * 2, 200)
    ) == pytest.approx(LOG_Z, abs=1e-5)
    ais = langevin.annealed_importance_sampling(
        key, BASE(), mixture(), betas, make_kernel=mala_at, count=1000, steps=2
    )
    assert abs(ais.log_z - LOG_Z) < 4 * ais.standard_error < 0.2
    assert 1000 / 4 < ais.effective_size < 1000
    weights = np.asarray(jax.nn.softmax(ais.log_weights), np.float64)
    moment = weights @ np.asarray(
        ais.samples, np.float64
    )  # of p: 0.4 (1.5, 0) + 0.35 (−1, 0.5) + 0.25 (0, −2)
    np.testing.assert_allclose(
        moment, [0.25, -0.325], atol=4 * 1.3 / np.sqrt(float(ais.effective_size))
    )
    ti = langevin.thermodynamic_integration(
        key, BASE(), mixture(), betas**2, make_kernel=mala_at, count=64
    )
    assert abs(ti.log_z - LOG_Z) < 4 * ti.standard_error + ti.discretisation < 0.2
    assert ti.chain_values.shape == (64,) and ti.means.shape == (17,)


def test_annealed_importance_sampling_with_two_betas_is_importance_sampling():
    """β = (0, 1): w = p̃/p_0 at draws of the base, and Ẑ without a chain.

    Gaussians: Var w is known, and so is the mean of log w, log Z − KL(p_0‖p) =
    log Z − ½(2(s² − 1) − 2 log s²) in two dimensions, s = 2. E log Ẑ ≤ log Z,
    the gap closing as the number n of weights in Ẑ grows: here 1, 8 and 64,
    far apart beside their errors.
    """
    target = targets.energy(targets.gaussian([0.0, 0.0], 1.0).log_prob, -LOG_Z)
    result = langevin.annealed_importance_sampling(
        jax.random.key(0), BASE(), target, [0, 1], make_kernel=mala_at, count=4096
    )
    expected = np.exp(np.asarray(result.log_weights, np.float64)).mean()
    assert float(result.log_z) == pytest.approx(np.log(expected), abs=1e-5)
    assert abs(result.log_z - LOG_Z) < 4 * result.standard_error < 0.1
    log_weights = np.asarray(result.log_weights, np.float64)
    assert abs(
        log_weights.mean() - (LOG_Z - (3 - np.log(4)))
    ) < 4 * log_weights.std() / np.sqrt(4096)
    means = [
        np.log(np.exp(log_weights.reshape(-1, n)).mean(1)).mean() for n in (1, 8, 64)
    ]
    assert means[0] < means[1] < means[2] < LOG_Z


def test_annealed_importance_sampling_by_kinetic_chains():
    """From N(0, 1) to e^{−2x²}: within 4 standard errors of log Z = ½ log(π/2). At
    friction 0.1 a velocity that starts each β at 0 is hardly refreshed, the
    chains but slide towards the mode, and log Ẑ is 0.39 too large.
    """
    base, betas = targets.gaussian([0.0], 1.0), np.linspace(0, 1, 11)
    make = lambda density, beta: langevin.underdamped(density, 0.5, 0.1)
    result = langevin.annealed_importance_sampling(
        jax.random.key(0),
        base,
        lambda x: -2 * jnp.sum(x**2),
        betas,
        make_kernel=make,
        count=4096,
        steps=3,
    )
    assert (
        abs(result.log_z - 0.5 * np.log(np.pi / 2)) < 4 * result.standard_error < 0.05
    )


def test_a_constant_of_the_log_density_costs_no_digits():
    """p̃ = e^c p_0, c = 2¹⁶: log p̃ − log p_0 is c to within 2⁻⁸ of float32's
    lattice there, hence its variance below 2⁻¹⁶ and log Ẑ within 2⁻⁷. log
    weights on a lattice of ⅛ are shifted by 2²⁰ exactly: nothing else may
    change.
    """
    base, c, key = BASE(), 2.0**16, jax.random.key(0)
    ti = langevin.thermodynamic_integration(
        key,
        base,
        lambda x: base.log_prob(x) + c,
        [0, 0.5, 1],
        make_kernel=mala_at,
        count=8,
        steps=20,
    )
    assert float(jnp.max(ti.variances)) <= 2.0**-16
    assert float(ti.log_z) == pytest.approx(c, abs=2.0**-7)
    log_weights = jnp.asarray(
        np.random.default_rng(0).integers(-24, 24, 64) / 8, jnp.float32
    )
    here, there = (
        normalisers.importance_estimate(log_weights + shift, jnp.zeros(64))
        for shift in (0.0, 2.0**20)
    )
    assert (
        here.effective_size == there.effective_size
        and here.standard_error == there.standard_error
    )
    assert float(there.log_z) == pytest.approx(2.0**20 + float(here.log_z), abs=2.0**-4)


def test_thermodynamic_integration_needs_the_base_within_the_support():
    """E log p̃ under a base that reaches beyond a box is −infinity.

    Importance sampling has no such need: log Z of the box |x| < 1 is log 2
    within 4 standard errors.
    """
    base, betas = targets.gaussian([0.0], 1.0), np.linspace(0, 1, 5)
    box = lambda x: jnp.where(jnp.abs(x[0]) < 1, 0.0, -jnp.inf)
    with pytest.raises(
        ValueError,
        match="target must be positive wherever base is: .* of 8 of 8 chains",
    ):
        langevin.thermodynamic_integration(
            jax.random.key(0), base, box, betas, make_kernel=mala_at, count=8
        )
    result = langevin.annealed_importance_sampling(
        jax.random.key(0), base, box, betas, make_kernel=mala_at, count=512
    )
    assert abs(result.log_z - np.log(2)) < 4 * result.standard_error < 0.3


def test_thermodynamic_integration_finds_a_support_that_its_chains_do_not_leave():
    """Chains of tiny steps that start in a box stay there, and nothing but
    draws from the base shows the 5 % of its mass outside ±2: 4096 draws miss
    it with probability 1e-83. Under jit the estimate is NaN.
    """
    base, betas = targets.gaussian([0.0], 1.0), np.linspace(0, 1, 3)
    inside = targets.gaussian(
        [0.0], 1e-3
    )  # chains start here, where the box ends nowhere near

    def estimate(key, start):
        box = lambda x: jnp.where(jnp.abs(x[0]) < 2, 0.0, -jnp.inf)
        still = lambda density, beta: langevin.mala(density, 1e-6)
        return langevin.thermodynamic_integration(
            key, start, box, betas, make_kernel=still, count=8, steps=40, warm_up=0
        ).log_z

    run = jax.jit(jax.vmap(estimate, (0, None)))
    keys = jax.random.split(jax.random.key(0), 12)
    assert np.all(np.isnan(run(keys, base))) and np.all(np.isfinite(run(keys, inside)))
    with pytest.raises(
        ValueError,
        match="target must be positive wherever base is: .* draws from the base",
    ):
        estimate(keys[0], base)


def test_thermodynamic_integration_to_a_box_no_draw_leaves_misses_the_mass_outside():
    """Of N(0, 1) 7e-6 lie beyond ±4.5, and 1 − e^{−0.03} is the chance that
    any of 4 160 draws does: log 9 within 4 standard errors and the correction
    of the trapezoid rule.
    """
    base, betas = targets.gaussian([0.0], 1.0), np.linspace(0, 1, 17)
    box = lambda x: jnp.where(jnp.abs(x[0]) < 4.5, 0.0, -jnp.inf)
    make = lambda density, beta: langevin.mala(density, 0.7)
    result = langevin.thermodynamic_integration(
        jax.random.key(0), base, box, betas, make_kernel=make, count=64
    )
    assert (
        abs(float(result.log_z) - np.log(9))
        < 4 * result.standard_error + result.discretisation
        < 0.12
    )


def test_one_weight_has_no_standard_error():
    result = langevin.annealed_importance_sampling(
        jax.random.key(0), BASE(), mixture(), [0, 1], make_kernel=mala_at, count=1
    )
    assert np.isfinite(result.log_z) and np.isnan(result.standard_error)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"betas": [0.0, 0.5]}, ValueError, "betas must increase from 0 to 1"),
        (
            {"betas": [0.0, 0.6, 0.5, 1.0]},
            ValueError,
            "betas must increase from 0 to 1",
        ),
        ({"base": lambda x: 0.0}, TypeError, "base must have log_prob"),
        (
            {"target": langevin.score_only(jnp.negative)},
            TypeError,
            "target must have a log density",
        ),
        ({"target": lambda x: x}, ValueError, "a log density must return a scalar"),
        ({"make_kernel": 3}, TypeError, "make_kernel must be callable"),
        ({"steps": 0}, ValueError, "steps must be at least 1"),
    ],
)
def test_errors_of_estimates(change, error, message):
    settings = {
        "base": BASE(),
        "target": mixture(),
        "betas": [0.0, 1.0],
        "make_kernel": mala_at,
        "count": 8,
    } | change
    for method in (
        langevin.annealed_importance_sampling,
        langevin.thermodynamic_integration,
    ):
        with pytest.raises(error, match=message):
            method(jax.random.key(0), **settings)


def test_diverged_chains_of_an_estimate_are_named():
    """log p̃ = Σ log x is NaN wherever an entry is negative: no weight is made
    of it.
    """
    with pytest.raises(FloatingPointError, match="NaN or \\+infinity of 8"):
        langevin.annealed_importance_sampling(
            jax.random.key(0),
            BASE(),
            lambda x: jnp.sum(jnp.log(x)),
            [0, 1],
            make_kernel=mala_at,
            count=8,
        )


def test_errors_of_diagnostics():
    with pytest.raises(ValueError, match="samples must have shape"):
        langevin.effective_sample_size(np.zeros((4, 7)))
    with pytest.raises(
        ValueError,
        match="got NaN or infinity in 1 of 2 chains, the first of them chain 1",
    ):
        langevin.r_hat(np.array([np.zeros(9), np.full(9, np.nan)]))
    with pytest.raises(ValueError, match="samples must have .* no empty axis"):
        langevin.effective_sample_size(np.zeros((4, 8, 0)))
