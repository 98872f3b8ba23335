"""Guided denoisers: the identities of guidance, how often the network is
called, and the distributions that guidance samples.
"""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import guidance, predictions, schedules, solvers, targets
from tests.families import DISTINCT, EPS64, SCHEDULES, assert_raises, every, interior

KEY = jax.random.key(0)
X = np.array([0.3, -0.8])


def conditional():
    return targets.gaussian_mixture([0.3, 0.7], [[1.0, 0.5], [-0.5, 0.0]], [0.4, 0.6])


def unconditional():
    return targets.gaussian([0.2, -0.1], 1.1)


def pair(schedule):
    return targets.denoiser(conditional(), schedule), targets.denoiser(
        unconditional(), schedule
    )


class Counted:
    """D(x, t, c) = c x/(1 + t²), which counts how often it is traced and, by
    callbacks, on how many examples it runs.
    """

    def __init__(self):
        self.traced, self.ran = 0, 0

    def __call__(self, x, t, condition=2.0):
        self.traced += 1
        jax.debug.callback(self._run, condition)
        return condition * x / (1 + t**2)

    def _run(self, condition):
        self.ran += 1


# --------------------------------------------------------------------------- identities


VIEWS = {
    kind: getattr(predictions, kind) for kind in ("score", "noise", "v", "velocity")
} | {"data": lambda _, d: d}


@pytest.mark.parametrize("schedule", every(SCHEDULES, DISTINCT))
def test_scores_noises_and_data_are_extrapolated_alike(schedule, x64):
    """(1 − γ) F_u + γ F_c for F = D, s, ε̂, v and velocity: what the guided D
    gives is what guiding F gives.

    To the rounding of F = a D + b (x − αD)/σ: 32 ε (|a| |D| + |b|
    (|x| + α|D|)/σ) for the greatest of the three D.
    """
    schedule = SCHEDULES[schedule]()
    better, worse = pair(schedule)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    @functools.partial(jax.vmap, in_axes=(None, 0))
    def both(t, scale):
        r = schedules.rates(schedule, t)
        x = jnp.asarray(X) * jnp.hypot(r.alpha, r.sigma)
        guided = guidance.classifier_free(better, worse, scale)
        data = (1 + 2 * scale) * jnp.max(
            jnp.abs(jnp.stack([d(x, t) for d in (better, worse)]))
        )
        result = []
        for kind, view in VIEWS.items():
            a, b = predictions.KINDS[kind](r, None)
            terms = (
                abs(a) * data
                + abs(b)
                * ((1 + 2 * scale) * jnp.max(jnp.abs(x)) + r.alpha * data)
                / r.sigma
            )
            expected = (1 - scale) * view(schedule, worse)(x, t) + scale * view(
                schedule, better
            )(x, t)
            result.append(
                jnp.max(jnp.abs(view(schedule, guided)(x, t) - expected)) / terms
            )
        return jnp.stack(result)

    errors = both(interior(schedule, (0.1, 0.5, 0.9)), jnp.array([0.0, 0.7, 3.5]))
    assert float(jnp.max(errors)) < 32 * EPS64


@pytest.mark.parametrize("schedule", ["vp_linear", "edm", "own"])
def test_an_exact_classifier_at_scale_one_gives_the_conditional_denoiser(schedule, x64):
    """With log p(y | x_t) of a mixture's component, D + (σ²/α)∇log
    p(y | x_t) = E[x_0 | x_t, y] (Bayes' rule).
    """
    schedule = SCHEDULES[schedule]()
    whole, part = (
        conditional(),
        targets.gaussian([1.0, 0.5], 0.4),
    )  # y: the first component, of weight 0.3

    def log_prob_y(x, t):
        return (
            part.noised(schedule, t).log_prob(x)
            - whole.noised(schedule, t).log_prob(x)
            + math.log(0.3)
        )

    plain = targets.denoiser(whole, schedule)
    guided = guidance.classifier(schedule, plain, log_prob_y)
    for t in interior(schedule, (0.1, 0.5, 0.9)):
        x = jnp.asarray(X) * jnp.hypot(schedule.alpha(t), schedule.sigma(t))
        exact = targets.denoiser(part, schedule)(x, t)
        # σ²/α of a score ~ x/σ²: relative rounding of x/α beside D
        chex.assert_trees_all_close(
            guided(x, t),
            exact,
            atol=1e3 * EPS64 * (1 + float(jnp.max(jnp.abs(x / schedule.alpha(t))))),
        )
        assert float(jnp.max(jnp.abs(plain(x, t) - exact))) > 1e-3
        doubled = guidance.classifier(schedule, plain, log_prob_y, lambda t: 2.0)(x, t)
        chex.assert_trees_all_close(
            doubled, 2 * guided(x, t) - plain(x, t), rtol=1e-10, atol=1e-12
        )


def test_a_classifiers_condition_comes_with_the_call():
    """`sample_many(condition=labels)` hands example i's label to log_prob_y,
    and the result is its conditional's.
    """
    schedule = schedules.vp_linear()
    parts = [targets.gaussian(m, s) for m, s in (([1.0, 0.5], 0.4), ([-0.5, 0.0], 0.6))]

    def log_prob_y(x, t, label):
        return jnp.stack([p.noised(schedule, t).log_prob(x) for p in parts])[
            label
        ] - conditional().noised(schedule, t).log_prob(x)

    guided = guidance.classifier(
        schedule, targets.denoiser(conditional(), schedule), log_prob_y
    )
    xs = dj.sample_many(
        KEY, 2, guided, schedule, shape=(2,), condition=jnp.array([0, 1])
    )
    for i, part in enumerate(parts):
        alone = dj.sample(
            jax.random.fold_in(KEY, i),
            targets.denoiser(part, schedule),
            schedule,
            shape=(2,),
        )
        chex.assert_trees_all_close(
            xs[i], alone, atol=2e-4
        )  # float32: ∇log p(y|x_t) is a difference of scores ~ x/σ²


# -------------------------------------------------------------------------- call counts


def test_one_batched_call_guides_and_one_plain_call_does_not():
    """A guided step calls the network once, on a batch of two.

    Scale 1 calls it once on one example, never with ∅.
    """
    schedule, grid = schedules.edm(), dj.grids.karras(schedules.edm(), 5)
    for scale, batch in ((1.0, 1), (1, 1), (2.0, 2), (0.0, 2)):
        net = Counted()
        guided = guidance.classifier_free_batched(net, 2.0, 0.5, scale)
        x = dj.sample(
            KEY, guided, schedule, solver=solvers.ddim(), grid=grid, shape=(3,)
        )
        jax.effects_barrier()
        assert (net.traced, net.ran) == (1, 5 * batch)
        free = guidance.classifier_free(
            functools.partial(Counted(), condition=2.0),
            lambda x, t: 0.5 * x / (1 + t**2),
            scale,
        )
        chex.assert_trees_all_close(
            x,
            dj.sample(
                KEY, free, schedule, solver=solvers.ddim(), grid=grid, shape=(3,)
            ),
            rtol=1e-5,
        )


def test_scale_one_is_the_better_denoiser_alone():
    """In whatever type the number 1 comes, one plain call is left."""
    better, worse = (lambda x, t: x), (lambda x, t: -x)
    for one in (1, 1.0, np.float32(1), jnp.asarray(1.0)):
        for make in (guidance.classifier_free, guidance.autoguidance):
            assert not isinstance(make(better, worse, one), guidance.Extrapolated)


def test_a_classifier_shifts_the_noise(x64):
    """ε̂ − γ √(1 − ᾱ) ∇ log p(y | x_t) on a chain, and s + γ ∇ log p(y | x_t)."""
    chain, x, t = schedules.from_betas([0.1, 0.2, 0.3]), jnp.array([0.3, -1.0]), 2 / 3
    log_p = lambda x, t: jnp.sum(jnp.sin(x))
    plain, guided = (
        jnp.tanh,
        guidance.classifier(chain, lambda x, t: jnp.tanh(x), log_p, 2.5),
    )
    shifted, noise = (
        predictions.noise(chain, d)(x, t) for d in (guided, lambda x, t: plain(x))
    )
    np.testing.assert_allclose(
        shifted, noise - 2.5 * chain.sigma(t) * jnp.cos(x), rtol=1e-12
    )


def test_conditions_of_examples_and_of_the_factory():
    """A condition per example from `sample_many` takes the bound one's place.

    Without either the call raises.
    """
    schedule, grid = schedules.edm(), dj.grids.karras(schedules.edm(), 4)
    net = lambda x, t, c: c["gain"] * x / (1 + t**2) + c["shift"]
    null = {"gain": jnp.array(0.5), "shift": jnp.zeros(2)}
    conditions = {
        "gain": jnp.array([1.0, 0.2]),
        "shift": jnp.array([[0.1, 0.2], [-1.0, 0.3]]),
    }
    run = functools.partial(
        dj.sample_many, KEY, 2, schedule=schedule, grid=grid, shape=(2,)
    )
    for scale in (1.0, 2.5):
        xs = run(
            denoiser=guidance.classifier_free_batched(net, None, null, scale),
            condition=conditions,
        )
        for i in range(2):
            bound = guidance.classifier_free_batched(
                net, jax.tree.map(lambda leaf, i=i: leaf[i], conditions), null, scale
            )
            chex.assert_trees_all_close(xs[i], run(denoiser=bound)[i], rtol=1e-5)
            two = guidance.classifier_free(
                net, functools.partial(lambda c, x, t: net(x, t, c), null), scale
            )
            chex.assert_trees_all_close(
                xs, run(denoiser=two, condition=conditions), rtol=1e-5
            )
    with pytest.raises(ValueError, match="condition must be given"):
        guidance.classifier_free_batched(net, None, null, 2.0)(jnp.zeros(2), 1.0)


def test_new_conditions_and_scales_do_not_retrace():
    schedule, net = schedules.edm(), Counted()
    for label, scale in ((1.0, 2.0), (3.0, 4.0)):
        guided = guidance.classifier_free_batched(net, label, 0.0, scale)
        dj.sample(
            KEY,
            guided,
            schedule,
            solver=solvers.ddim(),
            grid=dj.grids.karras(schedule, 3),
            shape=(2,),
        )
    assert net.traced == 1


def test_outside_its_interval_guidance_costs_one_call():
    """Guided on (t_low, t_high], the conditional alone elsewhere: equal to
    each there, and only that one is run.
    """
    schedule = schedules.edm()
    grid = jnp.array([80.0, 20.0, 5.0, 2.0, 1.0, 0.3, 0.0])
    net = Counted()
    guided = guidance.classifier_free_batched(net, 2.0, 0.5, 3.0)
    plain = guidance.classifier_free_batched(net, 2.0, 0.5, 1.0)
    within = guidance.limited(schedule, guided, plain, (1.0, 5.0))
    x = jnp.array([0.4, -0.7])
    for t in (0.3, 1.0, 1.01, 5.0, 5.01, 80.0):
        chex.assert_trees_all_close(
            within(x, t), (guided if 1 < t <= 5 else plain)(x, t), rtol=1e-6
        )
    jax.effects_barrier()
    net.ran = 0
    dj.sample(KEY, within, schedule, solver=solvers.ddim(), grid=grid, shape=(2,))
    jax.effects_barrier()
    assert (
        net.ran == 2 * 2 + 4
    )  # t = 5 and 2 guided, by a batch of two; 80, 20, 1 and 0.3 not


# ------------------------------------------------------------------------ distributions


@pytest.mark.parametrize("scale", [0.5, 2.0, 3.0])
def test_guided_gaussians_have_three_different_variances(scale, x64):
    """Unconditional N(0, S²), conditional N(m, s²), α = 1, from N(0, σ_T²):
    the flow's, the SDE's, the tilted variance.

    With a = (1 − γ)/(S² + u) + γ/(s² + u), u = σ²: the flow has dV/du = aV,
    hence V = U ∏ (v/(v + U))^{power}, which tends to S^{2(1−γ)}s^{2γ}. The SDE
    has dV/du = 2aV − 1, the density p_u^{1−γ}p_c^γ has 1/a(0). For S = 1,
    s² = ¼, γ = 2: 0.0625, 7/64, 1/7. Both by rk4 on the library's own drift in
    float64, order 4: below 1e-6 at 2000 steps.
    """
    wide, narrow, mean, top = 1.0, 0.25, 0.7, 1e3
    schedule = schedules.edm(1e-4, top)
    denoiser = guidance.classifier_free(
        targets.denoiser(targets.gaussian([mean], math.sqrt(narrow)), schedule),
        targets.denoiser(targets.gaussian([0.0], math.sqrt(wide)), schedule),
        scale,
    )
    grid = dj.grids.log_snr(schedule, 2000)

    def flow(x):
        return solvers.integrate(
            None,
            solvers.rk4(),
            solvers.diffusion(schedule, denoiser),
            x=jnp.array([x]),
            ts=grid,
        )[0]

    sde = dj.sde.reverse(schedule, denoiser)

    def rate(variance, t):
        slope = sde.drift(jnp.ones(1), t) - sde.drift(jnp.zeros(1), t)
        return 2 * slope * variance - sde.diffusion(jnp.zeros(1), t) ** 2

    flow_variance = float(flow(1.0) - flow(0.0)) ** 2 * top**2
    sde_variance = float(
        solvers.integrate(None, solvers.rk4(), rate, x=jnp.array([top**2]), ts=grid)[0]
    )
    limit = wide ** (1 - scale) * narrow**scale
    finite = (
        top**2
        * (wide / (wide + top**2)) ** (1 - scale)
        * (narrow / (narrow + top**2)) ** scale
    )
    assert flow_variance == pytest.approx(finite, rel=1e-6)
    assert flow_variance == pytest.approx(limit, rel=2 * (1 + scale) / top**2)
    # ∫ e^{−2∫a} du by quadrature in log u, and what is left of U
    u = np.concatenate([[0.0], np.geomspace(1e-9, top**2, 200_001)])
    decay = (1 + u / wide) ** (-2 * (1 - scale)) * (1 + u / narrow) ** (-2 * scale)
    expected = np.trapezoid(decay, u) + top**2 * decay[-1]
    assert sde_variance == pytest.approx(expected, rel=1e-6)
    tilted = 1 / ((1 - scale) / wide + scale / narrow)
    score = predictions.score(schedule, denoiser)
    slope = float((score(jnp.ones(1), grid[-1]) - score(jnp.zeros(1), grid[-1]))[0])
    assert slope == pytest.approx(
        -1 / tilted, rel=1e-6
    )  # guided at noise 0 is the tilted density's score
    variances = sorted([flow_variance, sde_variance, tilted])
    assert (
        variances[1] / variances[0] > 1.01 and variances[2] / variances[1] > 1.01
    )  # three of them
    if scale == 2.0:
        assert (flow_variance, sde_variance, tilted) == pytest.approx(
            (1 / 16, 7 / 64, 1 / 7), rel=1e-5
        )


@pytest.mark.parametrize("schedule", ["vp_linear", "edm", "rectified_flow"])
def test_cfg_plus_plus_is_guided_data_and_unguided_noise(schedule, x64):
    """Each ddim step with γ = λ/(1 − ρ_s/ρ_t) is x_s = α_s D_λ + σ_s ε̂_u, to
    D_λ at noise 0. γ h → λ as steps shrink.
    """
    schedule, strength = SCHEDULES[schedule](), 0.6
    better, worse = pair(schedule)
    grid = jnp.append(dj.grids.karras(schedule, 6), 0.0)
    scale = guidance.cfg_plus_plus_scale(schedule, grid, strength)
    guided = guidance.classifier_free(better, worse, scale)
    x = jnp.asarray(X) * schedule.sigma(grid[0])
    states = dj.sample(
        None, guided, schedule, solver=solvers.ddim(), grid=grid, x_init=x, path=True
    )
    for i, (t, s) in enumerate(zip(grid[:-1], grid[1:], strict=True)):
        data = (1 - strength) * worse(x, t) + strength * better(x, t)
        noise = predictions.noise(schedule, worse)(x, t)
        x = data if s == 0 else schedule.alpha(s) * data + schedule.sigma(s) * noise
        chex.assert_trees_all_close(states[i + 1], x, rtol=1e-9)
    fine = dj.grids.log_snr(schedule, 4000)
    steps = (
        0.5
        * (
            schedules.log_snr(schedule, schedule.t_min)
            - schedules.log_snr(schedule, schedule.t_max)
        )
        / 4000
    )
    unbounded = guidance.cfg_plus_plus_scale(schedule, fine, strength).values * steps
    np.testing.assert_allclose(
        unbounded, strength, rtol=float(steps)
    )  # h/(1 − e^{−h}) = 1 + h/2 + …


def test_a_steps_scale_may_be_made_inside_jit():
    """A concrete grid is checked on the host, so that a scale or measurement
    may be traced.
    """
    schedule = schedules.edm()
    grid = dj.grids.karras(schedule, 4)
    upwards = grid[::-1]
    make = lambda strength, grid=grid: (
        guidance.cfg_plus_plus_scale(schedule, grid, strength).values
    )
    np.testing.assert_allclose(jax.jit(make)(0.6), make(0.6), rtol=1e-6)
    assert_raises(
        lambda: jax.jit(lambda x: make(x, upwards))(0.6),
        ValueError,
        "grid must decrease",
    )


class Steep:
    """α = e^{−120 t} and σ = 1: in float32 α(1) is 0, and the stated log-SNR −240."""

    t_min, t_max = 1e-3, 1.0

    def alpha(self, t):
        """e^{−120 t}."""
        return jnp.exp(-120.0 * t)

    def sigma(self, t):
        """1."""
        return jnp.ones_like(t)

    def log_snr(self, t):
        """−240 t."""
        return -240.0 * t


def test_ratios_of_steps_where_alpha_underflows():
    """ρ_s/ρ_t = e^{(λ_t − λ_s)/2} from the log-SNR where α is 0 to rounding, 0
    where it is 0, and 1 − ρ_s/ρ_t of close steps without cancellation.
    """
    steps = guidance.ratio_of_steps(
        schedules.rectified_flow(t_max=1.0), [1.0, 0.5, 0.25]
    )
    np.testing.assert_allclose(steps.value, [0.0, 1 / 3], rtol=1e-6)
    steps = guidance.ratio_of_steps(Steep(), [1.0, 0.999, 0.998])
    np.testing.assert_allclose(steps.value, math.exp(-0.12), rtol=1e-4)
    close = guidance.ratio_of_steps(schedules.edm(), [1.0, 0.99999])
    assert float(close.gap[0]) == pytest.approx(
        1.0 - float(np.float32(0.99999)), rel=1e-6
    )


# ------------------------------------------------------------- rescaling and thresholds


def test_rescaling_keeps_the_conditionals_spread(x64):
    """At φ = 1 std D = std D_c.

    Between, the factor is linear in φ. A constant D stays unchanged.
    """
    better = lambda x, t: jnp.sin(3 * x) + 0.2
    worse = lambda x, t: 0.3 * x
    x = jax.random.normal(KEY, (4, 5, 3))
    plain, *rescaled = (
        guidance.classifier_free(better, worse, 5.0, rescale=r)(x, 1.0)
        for r in (None, 0.0, 0.7, 1.0)
    )
    np.testing.assert_array_equal(rescaled[0], plain)
    assert float(jnp.std(rescaled[2])) == pytest.approx(
        float(jnp.std(better(x, 1.0))), rel=1e-13
    )
    assert float(jnp.std(plain)) > 2 * float(jnp.std(rescaled[2]))
    chex.assert_trees_all_close(
        rescaled[1], 0.7 * rescaled[2] + 0.3 * plain, rtol=1e-12
    )
    batched = guidance.classifier_free_batched(
        lambda x, t, c: c * x, 2.0, 0.5, 3.0, rescale=1.0
    )
    assert float(jnp.std(batched(x, 1.0))) == pytest.approx(
        2 * float(jnp.std(x)), rel=1e-13
    )
    constant = guidance.classifier_free(
        lambda x, t: 0 * x + 2.0, lambda x, t: 0 * x, 3.0, rescale=0.5
    )
    np.testing.assert_array_equal(constant(x, 1.0), np.full(x.shape, 6.0))


def test_autoguidance_moves_away_from_the_worse_model():
    """2 D − D_− at γ = 2, both with the condition. γ = 1 never calls the worse one."""
    net = lambda gain: lambda x, t, c: gain * c * x
    x, c = jnp.array([1.0, -2.0]), jnp.array(3.0)
    np.testing.assert_allclose(
        guidance.autoguidance(net(0.9), net(0.5), 2.0)(x, 1.0, c),
        3 * (2 * 0.9 - 0.5) * x,
        rtol=1e-6,
    )
    worse = Counted()
    np.testing.assert_allclose(
        guidance.autoguidance(net(0.9), worse, 1)(x, 1.0, c), 2.7 * x, rtol=1e-6
    )
    assert worse.traced == 0


def test_thresholds_bound_the_data_and_the_noise_follows(x64):
    """Static: [low, high].

    Dynamic: |D| ≤ bound, the identity where the quantile is within it, and
    linear below s.
    """
    schedule = schedules.vp_linear()
    wild = lambda x, t: 4 * x
    x, t = jax.random.normal(KEY, (200,)), 0.5
    static = guidance.static_threshold(wild, -1.0, 0.5)
    np.testing.assert_array_equal(static(x, t), np.clip(4 * x, -1.0, 0.5))
    dynamic = guidance.dynamic_threshold(wild, 0.9, 1.5)
    reach = np.quantile(np.abs(4 * x), 0.9)
    np.testing.assert_allclose(
        dynamic(x, t), np.clip(4 * x, -reach, reach) * 1.5 / reach, rtol=1e-12
    )
    assert reach > 1.5 and float(jnp.max(jnp.abs(dynamic(x, t)))) == pytest.approx(
        1.5, rel=1e-12
    )
    mild = guidance.dynamic_threshold(lambda x, t: 0.1 * x, 0.9, 1.5)
    np.testing.assert_array_equal(mild(x, t), 0.1 * x)
    for bounded in (
        static,
        dynamic,
    ):  # α D + σ ε̂ = x still: what is clipped from the data goes to the noise
        noise = predictions.noise(schedule, bounded)(x, t)
        chex.assert_trees_all_close(
            schedule.alpha(t) * bounded(x, t) + schedule.sigma(t) * noise, x, rtol=1e-12
        )
    end = dj.sample(KEY, static, schedule, grid=[1.0, 0.5, 0.1, 0.0], shape=(50,))
    assert float(jnp.min(end)) >= -1 and float(jnp.max(end)) <= 0.5


def test_conditions_are_dropped_at_their_probability_and_as_a_whole():
    """Of 20 000 keys the share dropped is within 4.5 standard errors of p, and
    each pytree is dropped or kept whole.
    """
    condition, null, probability, count = (
        {"label": 3, "text": jnp.ones(4)},
        {"label": 0, "text": jnp.zeros(4)},
        0.15,
        20_000,
    )
    keys = jax.random.split(KEY, count)
    dropped = jax.vmap(guidance.drop_condition, (0, None, None, None))(
        keys, condition, null, probability
    )
    kept = np.asarray(dropped["label"]) == 3
    assert np.all(np.asarray(dropped["label"])[~kept] == 0)
    np.testing.assert_array_equal(dropped["text"], np.repeat(kept[:, None], 4, 1))
    assert dropped["label"].dtype == jnp.int32
    assert abs((1 - kept.mean()) - probability) < 4.5 * math.sqrt(
        probability * (1 - probability) / count
    )


# ------------------------------------------------------------------------------- errors

D = lambda x, t: x
ERRORS = {
    "a pair": (
        lambda: guidance.static_threshold(lambda x, t: (x, x))(jnp.zeros(2), 0.1),
        TypeError,
        r"got a tuple of 2; to pair a guided one, ddpm.paired\(guided, second\)",
    ),
    "another shape": (
        lambda: guidance.classifier_free(lambda x, t: x[:1], D, 2.0)(jnp.zeros(2), 0.1),
        ValueError,
        r"denoiser must return its example's shape \(2,\), got \(1,\)",
    ),
    "interval outside": (
        lambda: guidance.limited(schedules.edm(), D, D, (0.1, 100.0)),
        ValueError,
        r"interval must lie in the schedule's interval \[0.002, 80\], got 100",
    ),
    "interval reversed": (
        lambda: guidance.limited(schedules.edm(), D, D, (2.0, 1.0)),
        ValueError,
        "t_high must be greater than t_low=2.0, got 1.0",
    ),
    "interval": (
        lambda: guidance.limited(schedules.edm(), D, D, 2.0),
        TypeError,
        "interval must be a pair",
    ),
    "scale": (
        lambda: guidance.classifier_free(D, D, np.inf),
        ValueError,
        "scale must be finite, got inf",
    ),
    "scale of a classifier": (
        lambda: guidance.classifier(schedules.edm(), D, D, float("nan")),
        ValueError,
        "scale must be finite, got nan",
    ),
    "scale's shape": (
        lambda: guidance.autoguidance(D, D, np.ones(2)),
        ValueError,
        r"scale must be a scalar, got shape \(2,\)",
    ),
    "rescale": (
        lambda: guidance.classifier_free(D, D, 2.0, rescale=1.5),
        ValueError,
        r"rescale must lie in \[0, 1\], got 1.5",
    ),
    "conditional": (
        lambda: guidance.classifier_free(3, D, 2.0),
        TypeError,
        r"conditional must be callable as denoiser\(x, t\)",
    ),
    "shape of a condition": (
        lambda: guidance.classifier_free_batched(D, np.zeros(3), np.zeros(2), 2.0),
        ValueError,
        (
            r"condition and null_condition must agree in structure and shape, got "
            r"\(3,\), \(2,\)"
        ),
    ),
    "structure of a condition": (
        lambda: guidance.drop_condition(KEY, {"a": 1.0}, 1.0),
        ValueError,
        "condition and null_condition must agree",
    ),
    "shape of a condition at the call": (
        lambda: guidance.classifier_free_batched(D, None, np.zeros(2), 2.0)(
            jnp.zeros(2), 1.0, np.zeros(3)
        ),
        ValueError,
        "condition and null_condition must agree",
    ),
    "probability": (
        lambda: guidance.drop_condition(KEY, 1, 0, 1.1),
        ValueError,
        r"probability must lie in \[0, 1\]",
    ),
    "no signal": (
        lambda: guidance.classifier(schedules.rectified_flow(t_max=1.0), D, D),
        ValueError,
        r"schedule must have α\(t_max\) > 0, but α = 0 at t_max=1.0",
    ),
    "nearly no signal": (
        lambda: guidance.classifier(Steep(), D, D),
        ValueError,
        r"schedule must have α\(t_max\) > 0, but α = 0 at t_max=1.0",
    ),
    "vector classifier": (
        lambda: guidance.classifier(schedules.edm(), D, lambda x, t: x)(
            jnp.zeros(2), 1.0
        ),
        ValueError,
        r"log_prob_y must return a scalar, got shape \(2,\)",
    ),
    "thresholds": (
        lambda: guidance.static_threshold(D, 1.0, -1.0),
        ValueError,
        "high must be greater than low=1.0",
    ),
    "quantile": (
        lambda: guidance.dynamic_threshold(D, 99.5),
        ValueError,
        r"quantile must lie in \[0, 1\], got 99.5",
    ),
    "cfg++ upwards": (
        lambda: guidance.cfg_plus_plus_scale(schedules.edm(), [1.0, 2.0], 0.5),
        ValueError,
        "grid must decrease, got 1.0 … 2.0",
    ),
    "cfg++ scale": (
        lambda: guidance.cfg_plus_plus_scale(schedules.edm(), [2.0, 1.0], -0.5),
        ValueError,
        "scale must be 0 or more, got -0.5",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_raises(name):
    assert_raises(*ERRORS[name])
