"""Chains have the distributions that they claim, and errors name what diverged."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import langevin, sde, targets
from diffjax.langevin import kernels, kinetic, overdamped
from diffjax.langevin.densities import as_density

MIXTURE = functools.partial(
    targets.gaussian_mixture, [0.4, 0.6], [[1.5, 0.0], [-1.0, 0.5]], [0.4, 0.7]
)


def standard():
    """N(0, 1) of one entry."""
    return targets.gaussian([0.0], 1.0)


# ---- the distributions of steps


@pytest.mark.parametrize("size", [0.2, 2.0])
def test_mala_is_in_detailed_balance(size, x64):
    """p(x) q(y|x) α(x, y) = p(y) q(x|y) α(y, x) at random pairs, α as the
    kernel itself reports it for its proposal.

    The kernel's draw is read off its proposal: y = x + ½εs(x) + √ε z for the z
    of the key. α(y, x) is that of the reverse move, from the same formula at
    exchanged arguments, and log q is the Gaussian's, written out here.
    """
    target = MIXTURE()
    kernel = langevin.mala(target, size)

    def log_q(y, x):
        return -jnp.sum((y - x - 0.5 * size * jax.grad(target.log_prob)(x)) ** 2) / (
            2 * size
        )

    @jax.jit
    @jax.vmap
    def both(key, x):
        _, info = kernel.step(key, kernel.init(x))
        z = kernels.normal(key, x)
        y = kernels.langevin_step(x, jax.grad(target.log_prob)(x), size, z)
        log_back = jnp.minimum(
            0, target.log_prob(x) + log_q(y, x) - target.log_prob(y) - log_q(x, y)
        )
        there = target.log_prob(x) + log_q(y, x) + info.log_alpha
        return there, target.log_prob(y) + log_q(x, y) + log_back, info.log_alpha

    keys = jax.random.split(jax.random.key(0), 256)
    xs = 1.5 * jax.random.normal(jax.random.key(1), (256, 2))
    there, back, log_alpha = both(keys, xs)
    np.testing.assert_allclose(there, back, atol=1e-10)
    assert (
        np.mean(log_alpha < -0.01) > 0.2 and np.mean(log_alpha == 0) > 0.05
    )  # either side of the minimum is met


@pytest.mark.parametrize("adjusted", [langevin.mala, langevin.underdamped])
def test_adjusted_chains_accept_with_the_probability_they_report(adjusted):
    """The share of accepted steps is the mean α within 4 standard errors √(α(1
    − α)/n).
    """
    xs = jnp.zeros((1000, 1))
    result = langevin.run_many(
        jax.random.key(0), adjusted(standard(), 1.5), xs, 200, warm_up=60
    )
    alpha, accepted = (
        np.asarray(result.infos.acceptance, np.float64),
        np.asarray(result.infos.accepted),
    )
    assert (
        abs(accepted.mean() - alpha.mean())
        < 4 * np.sqrt(np.sum(alpha * (1 - alpha))) / alpha.size
    )
    moved = np.diff(np.asarray(result.samples)[..., 0], axis=1) != 0
    if adjusted is langevin.mala:
        np.testing.assert_array_equal(moved, accepted[:, 1:])


def estimated(key, x):
    """∇log p of N(0, 1) with noise of standard deviation 2."""
    return -x + 2 * jax.random.normal(key, x.shape)


STATIONARY = {
    "mala, drift step 0.5": (lambda: langevin.mala(standard(), 1.0), 1.0),
    "mala, drift step 1.0": (lambda: langevin.mala(standard(), 2.0), 1.0),
    "ula": (
        lambda: langevin.ula(langevin.score_only(jnp.negative), 2.0),
        1 / (1 - 2.0 / 4),
    ),
    "baoab": (lambda: langevin.baoab(standard(), 1.5), 1.0),
    "underdamped": (lambda: langevin.underdamped(standard(), 1.5, 0.7), 1.0),
    "sgld": (
        lambda: langevin.sgld(estimated, lambda n: jnp.where(n < 5, 0.1, 0.5)),
        1.5 / (1 - 0.5 / 4),
    ),
    "annealed": (
        lambda: langevin.annealed(
            [targets.gaussian([0.0], s) for s in (3.0, 1.0)], [4.0, 1.0], 9
        ),
        4 / 3,
    ),
}
"""Each kernel on N(0, 1) and its exact stationary variance, as its docstring
states it. Drift step δ = ε/2.
"""


@pytest.mark.parametrize("name", STATIONARY)
def test_variances_on_a_gaussian(name):
    """E x² over 1000 independent chains is the exact stationary value within 4
    standard errors, from their own spread.

    The least factor by which a variance nears its own is 0.75² per step, so
    that 60 steps of warm-up leave 1e-12. For MALA an inverted ratio would give
    1/(1 − δ), δ = ε/2: 2 at δ = 0.5, and no distribution at all at δ = 1.
    """
    make, variance = STATIONARY[name]
    xs = jax.random.normal(jax.random.key(1), (1000, 1))
    result = langevin.run_many(jax.random.key(0), make(), xs, 200, warm_up=60).check()
    squares = np.asarray(result.samples, np.float64)[..., 0] ** 2
    means = squares.mean(1)
    assert abs(means.mean() - variance) < 4 * means.std(ddof=1) / np.sqrt(1000)
    assert (
        means.std(ddof=1) / np.sqrt(1000) < 0.012 * variance
    )  # the test would see 5 %


def stationary(step, size):
    """The moments that a contracting linear step x′ = A x + B z leaves invariant.

    A and B are read off unit vectors.
    """
    unit, none = np.eye(size), np.zeros((size, size))
    a, b = np.split(
        np.asarray(
            jax.jit(jax.vmap(step))(np.vstack([unit, none]), np.vstack([none, unit]))
        ).T,
        2,
        1,
    )
    total = b @ b.T
    for _ in range(40):  # the sum of Aⁿ B Bᵀ Aⁿᵀ, doubled in length each time
        total, a = total + a @ total @ a.T, a @ a
    return total


@pytest.mark.parametrize("size", [0.1, 1.9])
def test_exact_distributions_of_linear_steps(size, x64, monkeypatch):
    """On N(0, 1), from the kernels' own steps with their noise held by hand:
    ULA's variance is 1/(1 − ε/4), BAOAB's position has variance 1 and its
    velocity 1 − h²/4, for h < 2. Rounding is all that is left.
    """
    drawn = {}
    for module in (overdamped, kinetic):
        monkeypatch.setattr(
            module, "normal", lambda key, x, draw=0: drawn["z"][: x.size]
        )
    key = jax.random.key(0)

    def ula(x, z):
        drawn["z"] = z
        kernel = langevin.ula(standard(), size)
        return kernel.step(key, kernel.init(jnp.zeros(1))._replace(x=x))[0].x

    def baoab(xv, z):
        drawn["z"] = z
        kernel = langevin.baoab(standard(), size)
        state, _ = kernel.step(
            key, kernels.Kinetic(xv[:1], xv[1:], jnp.zeros(()), -xv[:1])
        )
        return jnp.concatenate([state.x, state.velocity])

    assert stationary(ula, 1)[0, 0] == pytest.approx(1 / (1 - size / 4), rel=1e-9)
    np.testing.assert_allclose(
        stationary(baoab, 2), [[1, 0], [0, 1 - size**2 / 4]], atol=1e-9
    )


# ---- the printed drift


def double_well(x):
    """A score function that is not quadratic: two wells at ±1, of depth ½."""
    return -0.5 * (x[0] ** 2 - 1) ** 2


def test_drift_of_twice_the_gradient_samples_the_fourth_power(x64):
    """dy = 2∇score dt + dw leaves e^{4·score} invariant, and dy = ½∇score dt +
    dw leaves e^{score}. The exact rate of change of log p by Fokker–Planck is
    0 there at every position, and is not for the two exchanged.
    """
    gradient = jax.grad(double_well)
    printed = sde.SDE(lambda x, t: 2 * gradient(x), lambda x, t: jnp.ones(()))
    right = sde.langevin(double_well)
    places = jnp.linspace(-2, 2, 9)[:, None]

    def rate(process, power):
        return jax.vmap(
            lambda x: sde.fokker_planck(process, lambda x, t: power * double_well(x))(
                x, 0.0
            )
        )(places)

    rates = jax.jit(
        lambda: [rate(printed, 4), rate(right, 1), rate(printed, 1), rate(right, 4)]
    )()
    np.testing.assert_allclose(rates[:2], 0, atol=1e-12)
    assert np.abs(rates[2]).max() > 1 and np.abs(rates[3]).max() > 1


def test_chains_of_either_drift_have_these_distributions():
    """E y⁴ of chains y + 2gΔt + √Δt ε is that of e^{4·score} by quadrature, of
    chains with ½gΔt that of e^{score}.

    The tolerance is 4 standard errors over 500 chains and the step's bias, of
    the order of Δt times the curvature of the log density, at most 4 · 4 here,
    an eighth of it as for a Gaussian of that curvature, ε/4.
    """
    size, key = 0.01, jax.random.key(0)
    gradient, right = jax.grad(double_well), langevin.ula(double_well, 0.01)

    def printed(key, state):
        x = (
            state.x
            + 2 * gradient(state.x) * size
            + np.sqrt(size) * kernels.normal(key, state.x)
        )
        return state._replace(x=x), kernels.always(x)

    def exact(power):
        x = np.linspace(-4, 4, 801)[:, None]
        density = np.exp(power * np.asarray(jax.vmap(double_well)(x), np.float64))
        return np.sum(x[:, 0] ** 4 * density) / np.sum(density)

    assert exact(1) / exact(4) > 1.4
    xs = jax.random.choice(jax.random.key(1), jnp.array([-1.0, 1.0]), (500, 1))
    for kernel, power in ((langevin.Kernel(right.init, printed), 4), (right, 1)):
        result = langevin.run_many(
            key, kernel, xs, 2000, thinning=10, warm_up=500
        ).samples
        means = np.asarray(result, np.float64)[..., 0] ** 4
        means = means.mean(1)
        slack = 4 * means.std(ddof=1) / np.sqrt(500) + size * 4 * 4 / 4 * exact(power)
        assert abs(means.mean() - exact(power)) < slack < 0.1 * exact(power), power


# ---- runs


@pytest.mark.parametrize("make", [langevin.mala, langevin.underdamped])
def test_a_chain_that_starts_in_its_distribution_stays_in_it(make):
    """Draws of N(0, 1) are draws of N(0, 1) after the first step, and after
    the second: E x² within 4 of √(2/4096). A kinetic chain whose velocity
    began at 0 would be at (1 − h²/2)² or so of it, h = 1.
    """
    xs = jax.random.normal(jax.random.key(1), (4096, 1))
    result = langevin.run_many(jax.random.key(0), make(standard(), 1.0), xs, 2).check()
    squares = np.asarray(result.samples, np.float64)[..., 0] ** 2
    np.testing.assert_allclose(squares.mean(0), 1, atol=4 * np.sqrt(2 / 4096))


def test_chain_i_is_a_run_of_its_own_key():
    """Chain i of many is `run(fold_in(key, i), …)` to rounding.

    A longer run begins as a shorter one. A run goes on from a state.
    """
    kernel, key = langevin.mala(MIXTURE(), 0.5), jax.random.key(3)
    xs = jax.random.normal(jax.random.key(1), (4, 2))
    many = langevin.run_many(key, kernel, xs, 30)
    one = langevin.run(jax.random.fold_in(key, 2), kernel, xs[2], 30)
    np.testing.assert_allclose(many.samples[2], one.samples, rtol=1e-5, atol=1e-6)
    thinned = langevin.run_many(key, kernel, xs, 20, thinning=5, warm_up=10)
    np.testing.assert_allclose(
        thinned.samples, many.samples[:, 14::5], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        thinned.acceptance, many.infos.acceptance[:, 10:].mean(1), rtol=1e-5
    )
    np.testing.assert_allclose(
        thinned.infos.log_alpha, many.infos.log_alpha[:, 14::5], rtol=1e-3, atol=1e-5
    )
    onwards = langevin.run_many(key, kernel, many.state, 30)
    assert (
        np.all(many.diverged_at == -1)
        and many.check() is many
        and np.any(onwards.samples[:, 0] != xs)
    )


def test_new_parameters_do_not_retrace():
    """Another step size, another target of one family, another start and key
    run the same compiled program.
    """
    traced = []

    def log_density(scale, x):
        traced.append(x)
        return -0.5 * jnp.sum((x / scale) ** 2)

    def once(scale, size, seed):
        kernel = langevin.mala(functools.partial(log_density, scale), size)
        state = kernels.Scored(jnp.ones(2), jnp.zeros(()), jnp.zeros(2))
        return langevin.run(jax.random.key(seed), kernel, state, 6)

    once(jnp.array(1.0), 0.1, 0)
    before = len(traced)
    once(jnp.array(2.0), 0.2, 1)
    assert len(traced) == before > 0
    first, second = (
        jax.tree.structure(langevin.mala(density, 0.1))
        for density in (
            MIXTURE(),
            targets.gaussian_mixture([0.5, 0.5], [[1.0, 0.0], [0.0, 0.0]], [1.0, 2.0]),
        )
    )
    assert first == second


def test_a_diverging_chain_is_reported_and_enters_no_mean():
    """ULA at ε = 5 on N(0, 1) multiplies x by −1.5 per step: 1e30 · 1.5ⁿ is
    beyond float32's 3.4e38 from n = 49 on, which is step 48. A start at 0 is
    not there by then, nor in a hundred steps.
    """
    xs, first = jnp.array([[0.0], [1e30], [0.0]]), 48
    result = langevin.run_many(
        jax.random.key(0), langevin.ula(langevin.score_only(jnp.negative), 5.0), xs, 100
    )
    assert (
        list(result.diverged_at) == [-1, first, -1]
        and np.isfinite(result.samples[1, :first]).all()
    )
    assert np.isnan(result.samples[1, first:]).all() and np.isnan(result.acceptance[1])
    with pytest.raises(
        FloatingPointError, match=f"1 of 3 chains diverged: chain 1 at step {first}"
    ):
        result.check()
    with pytest.raises(
        ValueError,
        match="got NaN or infinity in 1 of 3 chains, the first of them chain 1",
    ):
        langevin.effective_sample_size(result.samples)


def test_a_density_of_zero_raises_in_the_chain_and_nan_is_reported():
    """−infinity outside the support is never accepted.

    A NaN there is a divergence, although it is not accepted.
    """
    log_density = lambda outside, x: jnp.where(x[0] > 0, -x[0], outside)

    def chains(outside):
        kernel = langevin.mala(functools.partial(log_density, outside), 2.0)
        return langevin.run_many(jax.random.key(0), kernel, jnp.ones((50, 1)), 100)

    inside = chains(-np.inf).check()
    assert np.all(inside.samples > 0)
    assert float(np.mean(inside.infos.log_alpha == -np.inf)) > 0.01
    reported = chains(np.nan)
    first = np.where(
        np.isneginf(inside.infos.log_alpha).any(1),
        np.isneginf(inside.infos.log_alpha).argmax(1),
        -1,
    )
    np.testing.assert_array_equal(reported.diverged_at, first)


@pytest.mark.parametrize("make", [langevin.mala, langevin.underdamped])
def test_a_density_of_zero_with_a_gradient_of_nan_raises_too(make):
    """x e^{−x} for x > 0: beyond 0 the gradient of the masked logarithm is
    NaN, and the chain stays where it was. Its mean is 2 and its variance 2:
    within 4 standard errors of chains that are independent.
    """
    log_density = lambda x: jnp.where(x[0] > 0, jnp.log(x[0]) - x[0], -jnp.inf)
    result = langevin.run_many(
        jax.random.key(0),
        make(log_density, 1.0),
        np.ones((500, 1), np.float32),
        60,
        thinning=10,
        warm_up=300,
    )
    means = np.asarray(result.check().samples, np.float64)[..., 0].mean(1)
    assert (
        np.all(result.samples > 0)
        and abs(means.mean() - 2) < 4 * means.std(ddof=1) / np.sqrt(500) < 0.4
    )


@pytest.mark.parametrize("make", [langevin.mala, langevin.underdamped])
def test_log_densities_beyond_the_digits_are_reported(make):
    """At 1e8 float32 counts in steps of 8 nats: every chain is reported by the
    step at which rounding decides. 1e5 is resolved to 0.008, and so is the
    first step's acceptance within its rounding. Far from a narrow mode log p
    is −5e7 at first, where differences are larger still, and MALA goes on to
    where it is resolved.
    """
    density = lambda offset, scale, x: offset - 0.5 * jnp.sum((x / scale) ** 2)
    starts = np.random.default_rng(0).normal(size=(64, 1)).astype(np.float32)

    def run(offset, scale, size, start):
        kernel = make(
            functools.partial(density, np.float32(offset), np.float32(scale)),
            np.float32(size),
        )
        return langevin.run_many(jax.random.key(0), kernel, start, 100)

    lost, kept, plain = (run(offset, 1.0, 1.0, starts) for offset in (1e8, 1e5, 0.0))
    assert np.all(lost.diverged_at >= 0)
    with pytest.raises(
        FloatingPointError, match="too large for its differences to be resolved"
    ):
        lost.check()
    np.testing.assert_allclose(
        kept.check().infos.acceptance[:, 0], plain.infos.acceptance[:, 0], atol=0.05
    )
    if make is langevin.mala:
        arriving = run(0.0, 1e-4, 1e-8, np.ones_like(starts)).check()
        assert np.max(np.abs(arriving.state.x)) < 10 * 1e-4


@pytest.mark.slow
def test_step_size_is_adapted_to_the_acceptance():
    """After 2000 steps of dual averaging the chain accepts 0.574 ± 0.05 of its
    steps: its own scatter is of that size (the weights of the average are
    n^{−3/4}).
    """
    make = functools.partial(langevin.mala, targets.gaussian(np.zeros(6), 0.3))
    size, state = langevin.adapt_step_size(jax.random.key(0), make, jnp.zeros(6), 2000)
    result = langevin.run(jax.random.key(1), make(size), state, 2000)
    assert float(result.acceptance) == pytest.approx(0.574, abs=0.05)


# ---- names of errors


@pytest.mark.parametrize(
    "make, error, message",
    [
        (
            lambda: langevin.ula(standard(), 0.0),
            ValueError,
            "step_size must be positive, got 0.0",
        ),
        (
            lambda: langevin.mala(standard(), -1.0),
            ValueError,
            "step_size must be positive, got -1.0",
        ),
        (
            lambda: langevin.mala(standard(), 1e-40),
            ValueError,
            "step_size must lie in \\[1.17\\d*e-38, 3.40\\d*e.38\\], got 1e-40",
        ),
        (
            lambda: langevin.baoab(standard(), 0.1, friction=0.0),
            ValueError,
            "friction must be positive",
        ),
        (
            lambda: langevin.ula(3.0, 0.1),
            TypeError,
            "target must be callable as .* or have log_prob",
        ),
        (
            lambda: langevin.mala(langevin.score_only(jnp.negative), 0.1),
            TypeError,
            "target must have a log density",
        ),
        (
            lambda: langevin.mala(lambda x: x, 0.1).init(jnp.ones(2)),
            ValueError,
            r"must return a scalar, got shape \(2,\)",
        ),
        (
            lambda: langevin.ula(targets.energy(lambda x: x), 0.1).step(
                jax.random.key(0), kernels.Position(jnp.ones(2), 0)
            ),
            ValueError,
            "must return a scalar",
        ),
        (
            lambda: langevin.ula(langevin.score_only(jnp.sum), 0.1).step(
                jax.random.key(0), kernels.Position(jnp.ones(2), 0)
            ),
            ValueError,
            "a score must return its example's shape",
        ),
        (
            lambda: langevin.mala(lambda x: jnp.log(x[0]), 0.1).init(-jnp.ones(1)),
            ValueError,
            "x must lie where the log density is finite",
        ),
        (
            lambda: langevin.mala(standard(), 0.1).init(jnp.full(1, jnp.nan)),
            ValueError,
            "x must be finite",
        ),
        (
            lambda: langevin.annealed([], 0.1, 3),
            ValueError,
            "ladder must hold at least one, got none",
        ),
        (
            lambda: langevin.annealed([standard(), MIXTURE()], 0.1, 3),
            ValueError,
            "ladder must hold densities of one structure",
        ),
        (
            lambda: langevin.annealed([standard()], [0.1, 0.2], 3),
            ValueError,
            "step_sizes must have shape",
        ),
        (
            lambda: langevin.annealed([standard()], [-0.1], 3),
            ValueError,
            "step_sizes must be positive",
        ),
        (
            lambda: langevin.annealed([standard()], 0.1, 0),
            ValueError,
            "steps must be at least 1, got 0",
        ),
        (
            lambda: langevin.run(0, langevin.ula(standard(), 0.1), jnp.zeros(1), 3),
            TypeError,
            "key must be a typed key",
        ),
        (
            lambda: langevin.run(jax.random.key(0), 0, jnp.zeros(1), 3),
            TypeError,
            "kernel must have init",
        ),
        (
            lambda: langevin.run(
                jax.random.key(0), langevin.ula(standard(), 0.1), jnp.zeros(1), 0
            ),
            ValueError,
            "steps must be at least 1, got 0",
        ),
        (
            lambda: langevin.run(
                jax.random.key(0),
                langevin.ula(standard(), 0.1),
                jnp.zeros(1),
                10,
                thinning=3,
            ),
            ValueError,
            "thinning must divide steps=10, got 3",
        ),
        (
            lambda: langevin.run_many(
                jax.random.key(0),
                langevin.mala(lambda x: jnp.log(x[0]), 0.1),
                jnp.array([[1.0], [-1.0]]),
                3,
            ),
            ValueError,
            r"got nan at \[-1.\] for chain 1, the first of 1 of 2",
        ),
        (
            lambda: langevin.tempered(standard(), standard(), 1.5),
            ValueError,
            r"beta must lie in \[0.0, 1.0\]",
        ),
        (
            lambda: langevin.adapt_step_size(
                jax.random.key(0),
                langevin.mala,
                jnp.zeros(1),
                10,
                target_acceptance=1.0,
            ),
            ValueError,
            "target_acceptance must lie in",
        ),
    ],
)
def test_bad_arguments_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_densities_are_pytrees():
    """A bound method of a target has the target's arrays as leaves: two
    targets share their structure.
    """
    first, second = (
        as_density("target", targets.gaussian([m], 1.0)) for m in (0.0, 1.0)
    )
    assert (
        jax.tree.structure(first) == jax.tree.structure(second)
        and len(jax.tree.leaves(first)) == 3
    )
