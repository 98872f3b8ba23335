"""Noise-conditional score networks: ladders, their objective, annealed Langevin.

Ladders and objective are those of DDPM in other units. Annealed Langevin has the
distribution that its steps propagate.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import diffjax as dj
from diffjax import ddpm, ncsn, predictions, schedules, solvers, targets
from diffjax.noise import normal
from diffjax.solvers import driver, noise_source
from tests.families import assert_raises, quick
from tests.solver_members import (
    check_samples_are_propagated,
    mixture,
    propagated_distribution,
)

KEY = jax.random.key(0)


def small_chain():
    return schedules.from_betas(ddpm.cosine_betas(12))


def small_ladder():
    return schedules.from_sigmas(ncsn.geometric_sigmas(10, 0.1, 10.0))


# --------------------------------------------------------------------- ladder and chain


def test_geometric_ladder_has_one_ratio_and_exact_ends():
    sigmas = ncsn.geometric_sigmas(10, 0.01, 50.0)
    assert (sigmas[0], sigmas[-1], sigmas.shape, sigmas.dtype) == (
        0.01,
        50.0,
        (10,),
        np.float64,
    )
    np.testing.assert_allclose(sigmas[1:] / sigmas[:-1], 5000 ** (1 / 9), rtol=1e-13)


@pytest.mark.parametrize(
    ("dimension", "overlap"), [(5, 0.9), (64, 0.5), (3072, 0.5), (3072, 0.1)]
)
def test_overlapping_ladder_is_the_shortest_that_overlaps(dimension, overlap):
    """A ladder one level shorter would overlap too little.

    Φ(√(2D)(γ − 1) + 3γ) − Φ(√(2D)(γ − 1) − 3γ) ≥ overlap at the ladder's
    ratio.
    """

    def shared(ratio):
        middle = math.sqrt(2 * dimension) * (ratio - 1)
        return norm.cdf(middle + 3 * ratio) - norm.cdf(middle - 3 * ratio)

    levels = len(ncsn.overlapping_sigmas(dimension, 0.01, 50.0, overlap))
    assert (
        shared(5000 ** (1 / (levels - 1)))
        >= overlap
        > shared(5000 ** (1 / (levels - 2)))
    )


def test_overlapping_ladder_of_cifar_is_the_papers():
    """232 levels between 0.01 and 50 at D = 3072 (Song & Ermon 2020, section
    3.2).

    They overlap by 0.566, near the ½ of the paper.
    """
    assert len(ncsn.overlapping_sigmas(3072, 0.01, 50.0, 0.566)) == 232


def test_overlap_is_the_mass_that_falls_into_the_next_shell():
    """Of 4000 norms in 200 dimensions the share in the next shell is the
    overlap.

    Within 4 standard errors of 0.008, and 0.01 since a norm is only nearly
    normal.
    """
    ratio = math.exp(
        np.diff(np.log(ncsn.overlapping_sigmas(200, 1.0, 1e6, 0.4)))[0]
    )  # of many levels: 0.4 is met
    norms = np.linalg.norm(np.random.default_rng(0).normal(size=(4000, 200)), axis=-1)
    inside = np.mean(np.abs(norms - math.sqrt(200) * ratio) < 3 * ratio / math.sqrt(2))
    assert abs(inside - 0.4) < 4 * 0.008 + 0.01


def test_forward_steps_compose_to_the_ladder(x64):
    """Means stay, variances add up to σ_i², at every index."""
    ladder, x0, indices = small_ladder(), np.array([0.7, -1.2]), np.arange(1, 11)

    @quick
    def moments(x0):
        step = jax.vmap(lambda i: ncsn.forward_step(ladder, x0, i))(indices)
        return step.loc, step.var, ladder.sigma(indices / 10)

    means, variances, sigmas = map(np.asarray, moments(x0))
    np.testing.assert_array_equal(means, np.broadcast_to(x0, (10, 2)))
    np.testing.assert_allclose(np.cumsum(variances), sigmas**2, rtol=1e-13)


CHAINS = {
    "vp, its own betas": (
        schedules.vp_linear,
        lambda s, t: 1 - (s.alpha(t) / s.alpha(t - np.diff(t, prepend=0))) ** 2,
    ),
    "vp, β(t)/T": (schedules.vp_linear, lambda s, t: s.beta(t) * np.diff(t, prepend=0)),
    "ve": (schedules.ve, lambda s, t: s.sigma(t)),
}
"""Continuous schedule, and the table of the chain with steps ending at the
times t = i/T.
"""


@pytest.mark.parametrize("name", CHAINS)
def test_the_sde_is_the_limit_of_the_chain(name, x64):
    """One step's mean increment and variance, over 1/T, tend to f x and g².

    They do so at first order in 1/T, as does α of the whole chain. Terms of
    second order are below 5 % of the error from T = 256 on: slopes within 0.1
    of 1.

    Exact at any T are the variance g²/T where β_i = β(t_i)/T, α where the β
    are the schedule's own, and 0 and 1 on VE.
    """
    make, table = CHAINS[name]
    schedule, x, errors = make(), np.array([0.8]), []
    for steps in (256, 512, 1024):
        times = np.arange(1, steps + 1) / steps
        values = np.asarray(table(schedule, times))
        exploding = name == "ve"
        chain = (
            schedules.from_sigmas(values) if exploding else schedules.from_betas(values)
        )

        @quick
        def parts(x, t, chain=chain, exploding=exploding, steps=steps):
            step = (ncsn if exploding else ddpm).forward_step(chain, x, steps // 2)
            rates = (
                f(schedule, t)
                for f in (schedules.drift_coefficient, schedules.diffusion_coefficient)
            )
            return step, *rates, chain.alpha(t), schedule.alpha(t)

        step, f, g, alpha, limit = jax.tree.map(np.asarray, parts(x, 0.5))
        mean, variance = steps * (step.loc - x) / x, steps * step.var
        errors.append(
            [float(mean[0] - f), float(variance - g**2), float(alpha - limit)]
        )
    errors = np.abs(errors)
    falls = np.array(
        {"vp, its own betas": [1, 1, 0], "vp, β(t)/T": [1, 0, 1], "ve": [0, 1, 0]}[
            name
        ],
        bool,
    )
    assert np.all(errors[:, ~falls] < 1e-9)  # the increments' rounding, times T
    np.testing.assert_allclose(
        np.log2(errors[-2, falls] / errors[-1, falls]), 1, atol=0.1
    )


# ---------------------------------------------------------------------------- objective


def drawn_losses(loss, indices, count=3):
    """loss(key, x, index) at indices, for a few keys and examples: (count, indices)."""

    @quick
    def run():
        keys = jax.random.split(KEY, count)
        xs = jax.vmap(lambda key: mixture().sample(jax.random.fold_in(key, 7)))(keys)
        return jax.vmap(lambda key, x: jax.vmap(lambda i: loss(key, x, i))(indices))(
            keys, xs
        )

    return np.asarray(run())


def crude(x, t):
    """A denoiser that is wrong everywhere."""
    return jnp.tanh(x) / (1 + t)


def test_ddpm_and_ncsn_have_one_objective_in_other_units(x64):
    """½σ²‖s − ∇log q‖² is ½‖ε̂ − ε‖² on a chain, and on its ladder in y = x/α.

    For every x_0, ε and index.
    """
    chain = small_chain()
    ladder, indices = ncsn.rescaled(chain), jnp.arange(1, 13)
    np.testing.assert_allclose(
        ladder.sigmas, chain.sigma(chain.times) / chain.alpha(chain.times), rtol=1e-12
    )
    of_ladder = lambda y, t: crude(chain.alpha(t) * y, t)

    def three(key, x, i):
        pair = [
            ncsn.score_loss(key, *model, x, index=i)
            for model in ((crude, chain), (of_ladder, ladder))
        ]
        return jnp.stack([ddpm.simple_loss(key, crude, chain, x, index=i), *pair])

    simple, same, rescaled = np.moveaxis(drawn_losses(three, indices), -1, 0)
    np.testing.assert_allclose(
        same, simple, rtol=1e-12
    )  # ½ Σ over 2 entries against their mean
    np.testing.assert_allclose(rescaled, simple, rtol=1e-9)


@pytest.mark.parametrize("make", [small_chain, small_ladder])
def test_score_loss_is_the_scores_weighted_error(make, x64):
    """½ λ ‖s − ∇log q(x_i | x_0)‖² at the key's draw, for a λ of the caller.

    s is `predictions.score` of the denoiser.
    """
    ladder, index = make(), 4
    t = ladder.times[index - 1]
    score = predictions.score(ladder, crude)

    def by_hand(key, x, index):
        x_t = schedules.perturb(ladder, x, t, normal(key, index, x.shape, x.dtype))
        conditional = (ladder.alpha(t) * x - x_t) / ladder.sigma(t) ** 2
        return (
            0.5 * ladder.sigma(t) ** 1.5 * jnp.sum((score(x_t, t) - conditional) ** 2)
        )

    def both(key, x, i):
        ours = ncsn.score_loss(key, crude, ladder, x, index=i, weight=lambda s: s**1.5)
        return jnp.stack([ours, by_hand(key, x, i)])

    ours, expected = np.moveaxis(drawn_losses(both, np.array([4])), -1, 0)
    np.testing.assert_allclose(ours, expected, rtol=1e-9)


def test_ddpms_bound_is_the_scores_error_under_its_weight(x64):
    """L_{t−1} = (1 − α_t)²/(2β̃_t α_t) ‖s − ∇log q(x_t | x_0)‖² at every x_0
    and ε.

    It holds at every index from 2. At 1, where β̃ is 0, the weight is
    infinite, so that the sum of the bound's terms is that from 2 and the
    decoder's term.
    """
    chain, indices = small_chain(), jnp.arange(1, 13)
    weights = np.asarray(ncsn.bound_weights(chain))
    assert np.isinf(weights[0]) and np.all(np.isfinite(weights[1:]))

    def both(key, x, i):
        square = 2 * ncsn.score_loss(
            key, crude, chain, x, index=i, weight=jnp.ones_like
        )
        return jnp.stack([ddpm.bound_loss(key, crude, chain, x, index=i), square])

    bound, squares = np.moveaxis(drawn_losses(both, indices), -1, 0)  # (draws, T)
    np.testing.assert_allclose(bound[:, 1:], weights[1:] * squares[:, 1:], rtol=1e-9)
    assert np.all(np.isfinite(bound[:, 0]))


@pytest.mark.slow
def test_the_exact_score_has_the_least_loss():
    """E_x ½σ²‖s − ∇log q‖² is least at the exact score.

    On N(0, v) it is D v/(2(v + σ²)) there.
    """
    ladder, std, count = small_ladder(), 0.8, 20_000
    target = targets.gaussian([0.0, 0.0], std)
    keys = jax.random.split(KEY, count)
    xs = jax.vmap(lambda key: target.sample(jax.random.fold_in(key, 7)))(keys)
    exact = targets.denoiser(target, ladder)

    @jax.jit
    def losses(keys, xs):
        both = lambda k, x: [
            ncsn.score_loss(k, denoiser, ladder, x, index=5)
            for denoiser in (exact, crude)
        ]
        return jax.vmap(both)(keys, xs)

    ours, others = (np.asarray(values, np.float64) for values in losses(keys, xs))
    sigma = float(ladder.sigma(0.5))
    assert abs(ours.mean() - std**2 / (std**2 + sigma**2)) < 4 * ours.std() / math.sqrt(
        count
    )
    assert others.mean() > ours.mean()


def test_an_index_left_out_is_drawn_uniformly():
    """Of 1200 draws each of 12 indices has 100 within 4 √(100 · 11/12).

    The loss σ² shows the index.
    """
    ladder = ncsn.rescaled(small_chain())
    draw = lambda key: ncsn.score_loss(
        key, lambda x, t: 0 * x + t, ladder, jnp.zeros(1), weight=lambda s: s**4
    )
    drawn = quick(
        lambda: jax.vmap(draw)(jax.random.split(KEY, 1200))
    )()  # ½ λ/σ² · t²/σ² = ½ t²
    counts = np.bincount(np.rint(np.sqrt(2 * drawn) * 12).astype(int), minlength=13)
    assert counts[0] == 0 and np.all(
        np.abs(counts[1:] - 100) < 4 * math.sqrt(100 * 11 / 12)
    )


# -------------------------------------------------------------------- annealed Langevin


@pytest.mark.parametrize(
    "make", [pytest.param(small_ladder, marks=pytest.mark.slow), schedules.vp_linear]
)
def test_annealed_langevin_has_the_distribution_that_its_steps_propagate(make):
    """Mean and covariance of 20 000 samples are those exactly propagated.

    Within 4 standard errors, on a Gaussian.
    """
    solver = solvers.annealed_langevin(4, 0.5)
    check_samples_are_propagated(solver, make(), steps=8, count=20_000, numbers=4)


def test_one_level_of_annealed_langevin_is_the_papers_recursion(x64):
    """Algorithm 1, from the state of the noise level above.

    x ← x + ½ε_i ∇log p + √ε_i z with ε_i = ε σ_i²/σ_L², T times.
    """
    ladder, epsilon = small_ladder(), 0.002
    denoiser = targets.denoiser(mixture(), ladder)
    score = predictions.score(ladder, denoiser)
    z = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)))
    solver = solvers.annealed_langevin(3, epsilon / 0.1**2)
    ts = dj.grids.from_indices(ladder, [6, 5])

    @quick
    def both(x):
        source = noise_source.Source(lambda number, draw: z[number])
        ours, _ = driver.run(
            source, solver, solvers.diffusion(ladder, denoiser), x=x, ts=ts
        )
        size = epsilon * ladder.sigma(0.5) ** 2 / 0.1**2
        for noise in z:
            x = x + 0.5 * size * score(x, 0.5) + jnp.sqrt(size) * noise
        return ours, x

    np.testing.assert_allclose(*both(np.array([1.5, -2.0])), rtol=1e-10)


def test_the_variance_of_annealed_langevin_is_known_in_closed_form(x64):
    """At a noise level where p_s = N(m, v) mean and variance have closed
    forms.

    The variance after T steps from V is V∞ + (1 − ε/2v)^{2T} (V − V∞), V∞ =
    v/(1 − ε/4v). The mean's distance falls by (1 − ε/2v)^T. The bias of the
    step size at infinite T is V∞ − v.
    """
    ladder, std, eta = small_ladder(), 0.7, 0.8
    target = targets.gaussian([1.0, -2.0], std)
    before, after = (std**2 + ladder.sigma(t) ** 2 for t in (0.6, 0.5))
    size = eta * ladder.sigma(0.5) ** 2
    settled, decay = after / (1 - size / (4 * after)), 1 - size / (2 * after)
    assert settled > 1.05 * after
    for corrections in (3, 100):
        solver = solvers.annealed_langevin(corrections, eta)
        grid = dj.grids.from_indices(ladder, [6, 5])
        mean, covariance = propagated_distribution(
            solver, ladder, target, grid, corrections
        )
        variance = settled + decay ** (2 * corrections) * (before - settled)
        np.testing.assert_allclose(covariance, variance * np.eye(2), atol=1e-12)
        np.testing.assert_allclose(mean, [1.0, -2.0], rtol=1e-12)


def test_annealed_langevin_ends_in_the_denoiser_and_counts_its_evaluations():
    """T at each level, one on the step to 0, which returns D of the last state."""
    ladder = small_ladder()
    denoiser, solver = targets.denoiser(mixture(), ladder), solvers.annealed_langevin(4)
    grid = dj.grids.to_zero(dj.grids.from_indices(ladder, range(10, 0, -1)))
    path, info = dj.sample(
        KEY,
        denoiser,
        ladder,
        solver=solver,
        grid=grid,
        shape=(2,),
        path=True,
        info=True,
    )
    np.testing.assert_allclose(path[-1], denoiser(path[-2], grid[-2]), rtol=1e-5)
    assert (
        solver.evaluations(len(grid) - 1, to_zero=True)
        == int(info.evaluations)
        == 9 * 4 + 1
    )


# ---------------------------------------------------------------------------- bad input

LADDER, CHAIN, X = small_ladder(), small_chain(), jnp.zeros(2)

BAD_ARGUMENTS = {
    "count": (
        lambda: ncsn.geometric_sigmas(1, 0.1, 1.0),
        ValueError,
        "count must be at least 2, got 1",
    ),
    "order": (
        lambda: ncsn.geometric_sigmas(5, 1.0, 0.1),
        ValueError,
        "sigma_max must be greater than sigma_min=1.0",
    ),
    "sign": (
        lambda: ncsn.geometric_sigmas(5, 0.0, 0.1),
        ValueError,
        "sigma_min must be positive, got 0",
    ),
    "dimension": (
        lambda: ncsn.overlapping_sigmas(4, 0.1, 1.0),
        ValueError,
        "dimension must be at least 5, got 4",
    ),
    "overlap": (
        lambda: ncsn.overlapping_sigmas(9, 0.1, 1.0, 1.0),
        ValueError,
        "overlap must lie in .*, got 1.0",
    ),
    "rescaled": (
        lambda: ncsn.rescaled(LADDER),
        TypeError,
        "chain must be made by schedules.from_betas",
    ),
    "weights": (
        lambda: ncsn.bound_weights(LADDER),
        TypeError,
        "chain must be made by schedules.from_betas",
    ),
    "step, chain": (
        lambda: ncsn.forward_step(CHAIN, X, 1),
        TypeError,
        "ladder must be made by schedules.from_sigmas",
    ),
    "step, index": (
        lambda: ncsn.forward_step(LADDER, X, 11),
        ValueError,
        "index must be between 1 and 10, got 11",
    ),
    "ddpm step": (
        lambda: ddpm.forward_step(LADDER, X, 1),
        TypeError,
        "chain must be made by schedules.from_betas",
    ),
    "loss, index": (
        lambda: ncsn.score_loss(KEY, crude, LADDER, X, index=0),
        ValueError,
        "index must be between 1 and 10",
    ),
    "loss, schedule": (
        lambda: ncsn.score_loss(KEY, crude, schedules.ve(), X, index=1),
        TypeError,
        "ladder must be made by schedules.from_sigmas or from_betas",
    ),
    "loss, weight": (
        lambda: ncsn.score_loss(KEY, crude, LADDER, X, index=1, weight=2.0),
        TypeError,
        r"weight must be callable as weight\(sigma\), got 2.0",
    ),
    "loss, shape": (
        lambda: ncsn.score_loss(KEY, lambda x, t: x[:1], LADDER, X, index=1),
        ValueError,
        r"denoiser must return its example's shape \(2,\), got \(1,\)",
    ),
    "corrections": (
        lambda: solvers.annealed_langevin(0),
        ValueError,
        "corrections must be at least 1, got 0",
    ),
    "step_size": (
        lambda: solvers.annealed_langevin(5, 4.0),
        ValueError,
        "step_size must be below 4.*got 4.0",
    ),
    "step_size, sign": (
        lambda: solvers.annealed_langevin(5, 0.0),
        ValueError,
        "step_size must be positive, got 0.0",
    ),
    "nested": (
        lambda: solvers.picard(solvers.annealed_langevin()),
        TypeError,
        "must not itself be made of solvers",
    ),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_raises(name):
    assert_raises(*BAD_ARGUMENTS[name])
