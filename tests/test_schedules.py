"""Every schedule obeys the distributions that α and σ imply.

Closed forms equal what is derived.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import schedules
from tests.families import (
    EPS32,
    EPS64,
    SCHEDULES,
    Bare,
    Own,
    ddpm_betas,
    interior,
    ladder_sigmas,
    quick,
)

pytestmark = pytest.mark.filterwarnings("error:Explicitly requested dtype")


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# Hand-written schedules in NumPy, t -> (α, σ, f, g²), in paper symbols.


def vp(t, b0=0.1, b1=20.0):
    integral, beta = b0 * t + 0.5 * (b1 - b0) * t**2, b0 + (b1 - b0) * t
    return np.exp(-0.5 * integral), np.sqrt(-np.expm1(-integral)), -0.5 * beta, beta


def sub(t):
    alpha, sigma, f, beta = vp(t)
    return alpha, sigma**2, f, beta * (1 - alpha**4)


def cosine(t, s=0.008):
    k = np.pi / 2 / (1 + s)
    alpha = np.cos(k * (t + s)) / np.cos(k * s)
    f = -k * np.tan(k * (t + s))
    return alpha, np.sqrt(1 - alpha**2), f, -2 * f


def exploding(t, low=0.01, high=50.0):
    sigma = low * (high / low) ** t
    return np.ones_like(t), sigma, np.zeros_like(t), 2 * np.log(high / low) * sigma**2


def chain(t):
    """Between indices i and i + 1 the log-SNR is linear.

    Variance preserving: f = ½λ′σ², g² = −λ′σ².
    """
    bars = np.cumprod(1 - ddpm_betas())
    table = np.log(bars / (1 - bars))
    i = np.floor(t * 1000).astype(int) - 1
    rate = 1000 * (table[i + 1] - table[i])
    log_snr = table[i] + (t - (i + 1) / 1000) * rate
    variance = sigmoid(-log_snr)
    return (
        np.sqrt(sigmoid(log_snr)),
        np.sqrt(variance),
        0.5 * rate * variance,
        -rate * variance,
    )


def ladder(t):
    """Between indices i and i + 1 log σ is linear: g² = dσ²/dt = 2 (log σ)′ σ²."""
    table = np.log(ladder_sigmas())
    i = np.floor(t * 1000).astype(int) - 1
    rate = 1000 * (table[i + 1] - table[i])
    sigma = np.exp(table[i] + (t - (i + 1) / 1000) * rate)
    return np.ones_like(t), sigma, np.zeros_like(t), 2 * rate * sigma**2


def monotone_network(t):
    net = schedules.learned(jax.random.key(0))
    weight, slope, centre = (
        np.exp(net.weight),
        np.exp(net.slope),
        np.asarray(net.centre),
    )

    def bump(u):
        return sigmoid(slope * (np.asarray(u)[..., None] - centre))

    def height(u):
        return u + bump(u) @ weight

    drop = float(net.log_snr_max - net.log_snr_min) / (height(1.0) - height(0.0))
    log_snr = float(net.log_snr_max) - drop * (height(t) - height(0.0))
    rate = -drop * (1 + (bump(t) * (1 - bump(t))) @ (weight * slope))
    variance = sigmoid(-log_snr)
    return (
        np.sqrt(sigmoid(log_snr)),
        np.sqrt(variance),
        0.5 * rate * variance,
        -rate * variance,
    )


CLOSED_FORMS = {
    "vp_linear": vp,
    "vp_cosine": cosine,
    "sub_vp": sub,
    "ve": exploding,
    "edm": lambda t: (np.ones_like(t), t, np.zeros_like(t), 2 * t),
    "rectified_flow": lambda t: (1 - t, t, -1 / (1 - t), 2 * t / (1 - t)),
    "from_betas": chain,
    "from_sigmas": ladder,
    "learned": monotone_network,
    "own": lambda t: (
        np.cos(np.pi * t / 2),
        1.5 * np.sin(np.pi * t / 2),
        -np.pi / 2 * np.tan(np.pi * t / 2),
        1.5**2 * np.pi * np.tan(np.pi * t / 2),
    ),
}


def test_every_schedule_has_a_closed_form_here():
    assert CLOSED_FORMS.keys() == SCHEDULES.keys()


QUANTITIES = (
    schedules.log_snr,
    schedules.drift_coefficient,
    schedules.diffusion_coefficient,
    schedules.log_snr_rate,
    schedules.rates,
)
NODES, WEIGHTS = np.polynomial.legendre.leggauss(8)


@functools.cache
def derived(name, bare=False):
    """(at interior times, at 33 times, at quadrature nodes) of a schedule in
    float64, from one program.
    """
    schedule = SCHEDULES[name]()
    schedule = Bare(schedule) if bare else schedule

    @quick
    def everything(inner, t):
        at_inner = {q.__name__: q(schedule, inner) for q in QUANTITIES}
        at_inner |= {"alpha": schedule.alpha(inner), "sigma": schedule.sigma(inner)}
        log_snr = schedules.log_snr(schedule, t)
        again = schedules.time_of_log_snr(schedule, log_snr)
        rate, once_more = (
            schedules.log_snr_rate(schedule, t),
            schedules.log_snr(schedule, again),
        )
        at_grid = {
            "log_snr": log_snr,
            "again": again,
            "rate": rate,
            "once_more": once_more,
        }
        if bare:
            return at_inner, at_grid, None
        if hasattr(schedule, "times"):
            edges = jnp.asarray(schedule.times)
        else:
            edges = schedules.time_of_log_snr(
                schedule, jnp.linspace(log_snr[0], log_snr[-1], 60)
            )
        low, high = edges[:-1, None], edges[1:, None]
        nodes = 0.5 * (low + high) + 0.5 * (high - low) * NODES  # (intervals, 8)
        rates = {
            "f": schedules.drift_coefficient(schedule, nodes),
            "variance_rate": (
                schedules.diffusion_coefficient(schedule, nodes) / schedule.alpha(nodes)
            )
            ** 2,
        }
        return (
            at_inner,
            at_grid,
            rates
            | {f: getattr(schedule, f)(edges) for f in ("alpha", "sigma")}
            | {"edges": edges},
        )

    inner, t = (
        np.asarray(interior(schedule)),
        np.linspace(schedule.t_min, schedule.t_max, 33),
    )
    at_inner, at_grid, at_nodes = jax.tree.map(np.asarray, everything(inner, t))
    return at_inner | {"t": inner}, at_grid | {"t": t}, at_nodes


@pytest.mark.parametrize("bare", [False, True], ids=["stated", "derived"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_equals_its_closed_form(name, bare, x64):
    """α, σ, f, g and λ = log α²/σ², both as the class states them and as α and
    σ alone imply.
    """
    computed = derived(name, bare)[0]
    alpha, sigma, drift, diffusion_squared = CLOSED_FORMS[name](computed["t"])
    # the references themselves cancel (√(1 − α²)): 1e-11 covers α² within 1e-5 of 1
    np.testing.assert_allclose(computed["alpha"], alpha, rtol=1e-13)
    np.testing.assert_allclose(computed["sigma"], sigma, rtol=1e-11)
    np.testing.assert_allclose(
        computed["log_snr"], 2 * np.log(alpha / sigma), rtol=1e-11, atol=1e-11
    )
    np.testing.assert_allclose(computed["drift_coefficient"], drift, rtol=1e-11)
    np.testing.assert_allclose(
        computed["diffusion_coefficient"] ** 2, diffusion_squared, rtol=1e-10
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_imply_the_forward_sde(name, x64):
    """α′ = fα and dσ²/dt = 2fσ² + g²: with rates() from forward-mode autodiff,
    f and g as the class states them.
    """
    computed = derived(name)[0]
    r, f, g = (
        computed["rates"],
        computed["drift_coefficient"],
        computed["diffusion_coefficient"],
    )
    np.testing.assert_allclose(r.alpha_rate, f * r.alpha, rtol=1e-12)
    np.testing.assert_allclose(
        2 * r.sigma * (r.sigma_rate - f * r.sigma), g**2, rtol=1e-12
    )
    np.testing.assert_allclose(
        computed["log_snr_rate"], -((g / r.sigma) ** 2), rtol=1e-12
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_moments_of_the_forward_sde_integrate_to_alpha_and_sigma(name, x64):
    """dm/dt = f m and dV/dt = 2fV + g² carry (α, σ²) from t_min to every t.

    By variation of constants: ∫f = Δlog α and ∫(g/α)² = Δ(σ/α)², over
    intervals of equal log-SNR (the table's own, for a chain, where λ has
    kinks), by 8-point Gauss–Legendre, whose error (Δλ)^16/16! is below
    rounding. A sub-VP σ that were a variance, or a g of another schedule,
    fails.
    """
    computed = derived(name)[2]
    edges, alpha, sigma = computed["edges"], computed["alpha"], computed["sigma"]

    def integral(values):
        return 0.5 * np.diff(edges) * (values @ WEIGHTS)

    np.testing.assert_allclose(
        integral(computed["f"]), np.diff(np.log(alpha)), rtol=1e-9, atol=1e-14
    )
    np.testing.assert_allclose(
        integral(computed["variance_rate"]), np.diff((sigma / alpha) ** 2), rtol=1e-9
    )


@pytest.mark.parametrize("bare", [False, True], ids=["stated", "derived"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_log_snr_falls_and_is_inverted_both_ways(name, bare, x64):
    """t(λ(t)) = t and λ(t(λ)) = λ to rounding times the condition number. Λ
    strictly decreasing.
    """
    computed = derived(name, bare)[1]
    t, log_snr, again, rate = (
        computed["t"],
        computed["log_snr"],
        computed["again"],
        np.abs(computed["rate"]),
    )
    assert np.all(np.diff(log_snr) < 0)
    # λ is a sum of logarithms of size up to |λ|/2 + 1, each rounded a few times
    rounding = 32 * EPS64 * (1 + np.abs(log_snr))
    assert np.all(np.abs(again - t) <= rounding / rate + 8 * EPS64 * t)
    assert np.all(
        np.abs(computed["once_more"] - log_snr) <= 2 * rounding + 16 * EPS64 * rate * t
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_log_snr_beyond_the_interval_goes_to_the_nearer_end(name):
    schedule = SCHEDULES[name]()
    ends = schedules.time_of_log_snr(schedule, jnp.array([jnp.inf, 200.0, -200.0]))
    np.testing.assert_allclose(
        ends, [schedule.t_min, schedule.t_min, schedule.t_max], rtol=2 * EPS32
    )


PARAMETERS = {
    "vp_linear": (lambda p: schedules.vp_linear(0.1, p), 20.0),
    "vp_linear, beta_min": (lambda p: schedules.vp_linear(p, 20.0), 0.1),
    "vp_linear, derived": (lambda p: Bare(schedules.vp_linear(0.1, p)), 20.0),
    "sub_vp": (lambda p: schedules.sub_vp(0.1, p), 20.0),
    "sub_vp, derived": (lambda p: Bare(schedules.sub_vp(0.1, p)), 20.0),
    "vp_cosine": (lambda p: schedules.vp_cosine(p), 0.008),
    "ve": (lambda p: schedules.ve(0.01, p), 50.0),
    "own": (lambda p: Own(p, 1e-3, 0.99), 1.5),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_time_of_log_snr_carries_its_implicit_derivative(name, x64):
    """dt/dθ and dt/dλ by autodiff, forwards and backwards, equal central
    differences of the solved time.
    """
    make, value = PARAMETERS[name]

    def time(parameter, log_snr):
        return schedules.time_of_log_snr(make(parameter), log_snr)

    # h² truncation and ε/h rounding, both near 1e-10 of the value at h = 1e-5 of the
    # argument
    h, k = 1e-5 * value, 1e-5

    @quick
    @jax.vmap
    def derivatives(log_snr):
        moved = jax.vmap(time)(
            value + h * jnp.array([1, -1, 0, 0]), log_snr + k * jnp.array([0, 0, 1, -1])
        )
        both = [
            derivative(time, (0, 1))(value, log_snr)
            for derivative in (jax.jacfwd, jax.jacrev)
        ]
        return *both, ((moved[0] - moved[1]) / (2 * h), (moved[2] - moved[3]) / (2 * k))

    forward, backward, expected = derivatives(np.array([-4.0, 0.5, 6.0]))
    for derivative in (forward, backward):
        np.testing.assert_allclose(derivative, expected, rtol=1e-7, atol=1e-12)


def test_vmap_over_a_parameter_builds_inside():
    """vmap over beta_max: each schedule is its own, here and through the
    implicit inverse.
    """
    betas = jnp.array([5.0, 10.0, 20.0])

    def half_noise(beta_max):
        return schedules.time_of_log_snr(
            Bare(schedules.vp_linear(beta_max=beta_max)), 0.0
        )

    expected = [
        schedules.time_of_log_snr(schedules.vp_linear(beta_max=float(b)), 0.0)
        for b in betas
    ]
    # at λ = 0, ∫β = log 2 and λ′ is of order 10: rounding of λ is at most a few ulp of
    # 1
    np.testing.assert_allclose(
        jax.jit(jax.vmap(half_noise))(betas), expected, rtol=16 * EPS32
    )


def test_a_plain_class_serves_as_schedule():
    """Stating α, σ and the interval is enough, without registering the class
    as a pytree.
    """

    class Trigonometric:
        t_min, t_max = 1e-3, 0.99

        def alpha(self, t):
            return jnp.cos(0.5 * jnp.pi * t)

        def sigma(self, t):
            return jnp.sin(0.5 * jnp.pi * t)

    assert float(schedules.time_of_log_snr(Trigonometric(), 0.0)) == pytest.approx(
        0.5, rel=4 * EPS32
    )
    assert isinstance(Trigonometric(), schedules.Schedule)


# ------------------------------------------------------------------------------ float32


def float32_times(schedule):
    low, high = np.float32(schedule.t_min), np.float32(schedule.t_max)
    t = np.array(
        [low, *[max(low, np.float32(u)) for u in (1e-5, 1e-3)], 0.01, 0.1, 0.5, 0.9],
        np.float32,
    )
    return np.concatenate([np.clip(t, low, high), [np.nextafter(high, low)]]).astype(
        np.float32
    )


@functools.cache
def float32_and_exact():
    """α and σ of every schedule in float32, and in float64 at the same times."""

    def both(rows, dtype):
        at = {
            name: float32_times(schedule).astype(dtype)
            for name, schedule in rows.items()
        }
        run = jax.jit(
            lambda at: {
                name: {
                    "alpha": schedule.alpha(at[name]),
                    "sigma": schedule.sigma(at[name]),
                }
                for name, schedule in rows.items()
            }
        )
        return jax.tree.map(np.asarray, run(at))

    rows = {name: make() for name, make in SCHEDULES.items()}
    narrow = both(rows, np.float32)
    with jax.enable_x64(True):
        wide = {name: make() for name, make in SCHEDULES.items()}
        # its random weights differ by dtype: take the float32 ones
        wide["learned"] = jax.tree.map(
            lambda leaf: np.asarray(leaf, np.float64), rows["learned"]
        )
        return narrow, both(wide, np.float64)


@pytest.mark.parametrize("name", SCHEDULES)
def test_float32_alpha_and_sigma_keep_their_digits(name):
    """Relative error of α and σ in float32, from t_min and 1e-5, 1e-3 up,
    against float64 at the same t.

    They are exponentials of logarithms at worst: a few ulp of 1 + |log|. The
    plain √(1 − α²) is off by 1e-2 at t = 1e-5.
    """
    narrow, exact = (rows[name] for rows in float32_and_exact())
    assert narrow["sigma"].dtype == np.float32
    for quantity in ("alpha", "sigma"):
        # α → 0 at t → 1 is a cosine's or 1 − t's zero: rounding of t, absolute
        bound = 8 * EPS32 * (1 + np.abs(np.log(exact[quantity]))) * exact[
            quantity
        ] + 2 * EPS32 * (quantity == "alpha")
        assert np.all(np.abs(narrow[quantity] - exact[quantity]) <= bound), quantity


@pytest.mark.parametrize("name", SCHEDULES)
def test_times_of_any_kind_are_accepted(name):
    """Python and NumPy numbers, float64 and half-precision arrays give float32
    at least, silently.
    """
    schedule = SCHEDULES[name]()
    middle = float(np.float16(0.5 * (schedule.t_min + schedule.t_max)))
    expected = schedules.log_snr(schedule, jnp.float32(middle))
    for t in (
        middle,
        np.float64(middle),
        np.array(middle),
        jnp.bfloat16(1.0) * 0 + np.float16(middle),
    ):
        for function in (
            schedules.log_snr,
            schedules.drift_coefficient,
            schedules.diffusion_coefficient,
        ):
            assert function(schedule, t).dtype == jnp.float32
        if jnp.result_type(t) != jnp.bfloat16:
            np.testing.assert_allclose(
                schedules.log_snr(schedule, t), expected, rtol=4 * EPS32
            )


# -------------------------------------------------------------------------- each family


def test_prior_std_is_the_schedules_own(x64):
    """VE's and EDM's prior is N(0, σ_max²), not N(0, 1). Sub-VP's is 1 − e^{−∫β}."""
    assert float(schedules.prior_std(schedules.ve(sigma_max=50.0))) == pytest.approx(
        50.0, rel=1e-13
    )
    assert float(schedules.prior_std(schedules.edm(sigma_max=80.0))) == 80.0
    assert float(schedules.prior_std(schedules.vp_linear())) == pytest.approx(
        math.sqrt(-math.expm1(-10.05)), rel=1e-14
    )
    assert float(schedules.prior_std(schedules.sub_vp())) == pytest.approx(
        -math.expm1(-10.05), rel=1e-14
    )


def test_perturb_has_the_distribution_of_the_kernel():
    """x_t = α x_0 + σ ε, in ε and x_0 alike, for an example of any shape."""
    schedule, x0, noise = (
        schedules.sub_vp(),
        jnp.full((2, 3), 2.0),
        jnp.full((2, 3), -1.0),
    )
    expected = 2 * schedule.alpha(0.4) - schedule.sigma(0.4)
    np.testing.assert_allclose(
        schedules.perturb(schedule, x0, 0.4, noise),
        np.full((2, 3), expected),
        rtol=2 * EPS32,
    )


def test_vp_cosine_is_nichol_and_dhariwals(x64):
    """ᾱ(t) = f(t)/f(0), f = cos²((t + s)/(1 + s)·π/2): eq. 17."""
    t = np.linspace(0.01, 0.99, 9)

    def f(u):
        return np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2

    np.testing.assert_allclose(
        schedules.vp_cosine().alpha(t) ** 2, f(t) / f(0), rtol=1e-13
    )


def test_sub_vp_lies_below_vp(x64):
    """σ is the square of VP's σ, hence a smaller standard deviation. Α is the
    same (Song et al. 2021).
    """
    t = np.linspace(0.01, 1, 9)
    sub_vp, vp_linear = schedules.sub_vp(), schedules.vp_linear()
    np.testing.assert_allclose(sub_vp.sigma(t), vp_linear.sigma(t) ** 2, rtol=1e-14)
    np.testing.assert_allclose(sub_vp.alpha(t), vp_linear.alpha(t), rtol=1e-15)


def test_rates_stay_finite_where_the_sde_diverges():
    """At rectified flow's t = 1 α′ = −1 and σ′ = 1, though f and g² are infinite."""
    r = schedules.rates(schedules.rectified_flow(t_max=1.0), 1.0)
    assert tuple(map(float, r)) == (0.0, 1.0, -1.0, 1.0)


def test_chain_equals_its_cumulative_products(x64):
    """√ᾱ_i and √(1 − ᾱ_i) at t = i/T, in float64.

    Ho et al.'s betas leave √ᾱ_T = 0.0064 of the signal.
    """
    betas = ddpm_betas()
    schedule = schedules.from_betas(betas)
    bars = np.cumprod(1 - betas)
    np.testing.assert_allclose(
        schedule.alpha(schedule.times), np.sqrt(bars), rtol=1e-13
    )
    np.testing.assert_allclose(
        schedule.sigma(schedule.times), np.sqrt(1 - bars), rtol=1e-11
    )  # 1 − ᾱ_1 cancels here
    np.testing.assert_allclose(schedule.alpha_bars, bars, rtol=1e-13)
    assert (schedule.steps, schedule.t_min, schedule.t_max) == (1000, 1e-3, 1.0)
    assert float(schedule.alpha(1.0)) == pytest.approx(0.0064, abs=5e-5)


def test_chain_in_float32_is_its_table_rounded():
    """No index is off by one in float32:

    σ at i/T is √(1 − ᾱ_i), for all i, as time and through quick.
    """
    betas = ddpm_betas()
    schedule = schedules.from_betas(betas)
    sigma = np.sqrt(-np.expm1(np.cumsum(np.log1p(-betas))))
    # σ = e^{½ log sigmoid(−λ)}: λ up to 9.2 in size, halved
    rtol = 8 * EPS32 * (1 + 9.2 / 2)
    np.testing.assert_allclose(
        jax.jit(lambda s, t: s.sigma(t))(schedule, schedule.times), sigma, rtol=rtol
    )


def test_ladder_is_its_table_and_a_geometric_one_is_ve(x64):
    """σ_i at t = i/L for any ladder.

    Σ_min r^(i−1) is VE with the same ends, at (t − 1/L)/(1 − 1/L).
    """
    sigmas = ladder_sigmas()
    schedule = schedules.from_sigmas(sigmas)
    np.testing.assert_allclose(schedule.sigma(schedule.times), sigmas, rtol=1e-13)
    np.testing.assert_allclose(np.cumsum(schedule.increments), sigmas**2, rtol=1e-12)
    np.testing.assert_allclose(
        jax.jit(lambda s: schedules.from_sigmas(s).sigma(0.3))(sigmas),
        schedule.sigma(0.3),
    )
    geometric, t = (
        schedules.from_sigmas(np.geomspace(0.01, 50, 10)),
        np.linspace(0.1, 1, 37),
    )
    np.testing.assert_allclose(
        geometric.sigma(t), schedules.ve().sigma((t - 0.1) / 0.9), rtol=1e-12
    )


@pytest.mark.parametrize("traced", [False, True])
def test_chain_posterior_is_bayes_rule(traced, x64):
    """q(x_{t−1} | x_t, x_0) ∝ N(x_t.

    √(1 − β_t) x_{t−1}, β_t) N(x_{t−1}. √ᾱ_{t−1} x_0, 1 − ᾱ_{t−1}): precisions
    add.
    """
    betas = np.array([1e-4, 0.01, 0.3, 0.05, 0.9])
    make = lambda b: schedules.from_betas(b).posterior()
    posterior = jax.jit(make)(betas) if traced else make(betas)
    before = np.concatenate([[1.0], np.cumprod(1 - betas)[:-1]])
    with np.errstate(divide="ignore"):
        prior_precision, step_precision = 1 / (1 - before), (1 - betas) / betas
    variance = 1 / (prior_precision + step_precision)
    np.testing.assert_allclose(posterior.variance, variance, rtol=1e-11)
    np.testing.assert_allclose(
        posterior.state, variance * np.sqrt(1 - betas) / betas, rtol=1e-11
    )
    expected = variance[1:] * np.sqrt(before[1:]) * prior_precision[1:]
    np.testing.assert_allclose(
        posterior.data, [1.0, *expected], rtol=1e-11
    )  # index 1 is x_0 itself
    np.testing.assert_allclose(
        posterior.log_variance, np.log([variance[1], *variance[1:]]), rtol=1e-11
    )


def test_chain_posterior_composes_to_the_marginal(x64):
    """x_{t−1} = c_0 x_0 + c_t x_t + β̃^½ z has mean √ᾱ_{t−1} x_0 and variance
    1 − ᾱ_{t−1}, in float64 at all 1000 indices.
    """
    betas = ddpm_betas()
    schedule = schedules.from_betas(betas)
    q, bars = schedule.posterior(), np.cumprod(1 - betas)
    before = np.concatenate([[1.0], bars[:-1]])
    np.testing.assert_allclose(
        q.data + q.state * np.sqrt(bars), np.sqrt(before), rtol=1e-12
    )
    np.testing.assert_allclose(
        q.variance + q.state**2 * (1 - bars), 1 - before, rtol=1e-9, atol=1e-15
    )
    assert q.variance.dtype == np.float64


def test_learned_ends_and_gradients(x64):
    """λ(0), λ(1) are the stated ends for any weights, and every weight's
    gradient is the finite-difference one.
    """
    schedule = schedules.learned(
        jax.random.key(1), hidden=4, log_snr_max=10.0, log_snr_min=-6.0
    )
    np.testing.assert_allclose(
        schedules.log_snr(schedule, jnp.array([0.0, 1.0])), [10.0, -6.0], rtol=1e-14
    )

    def sigma(weight, slope):
        moved = type(schedule)(**{**vars(schedule), "weight": weight, "slope": slope})
        return jnp.sum(moved.sigma(jnp.array([0.2, 0.7])))

    gradients = map(
        np.asarray, quick(jax.grad(sigma, (0, 1)))(schedule.weight, schedule.slope)
    )
    value = quick(sigma)
    for argument, gradient in enumerate(gradients):
        for k in range(4):
            step = 1e-5 * np.eye(4)[k]
            moves = [
                [np.asarray(schedule.weight), np.asarray(schedule.slope)]
                for _ in range(2)
            ]
            moves[0][argument], moves[1][argument] = (
                moves[0][argument] + step,
                moves[1][argument] - step,
            )
            difference = (value(*moves[0]) - value(*moves[1])) / 2e-5
            np.testing.assert_allclose(gradient[k], difference, rtol=1e-6, atol=1e-10)


def test_learned_stays_monotone_under_large_weights(x64):
    """The exponentials keep λ decreasing wherever training takes the weights."""
    schedule = schedules.learned(jax.random.key(1))
    wild = 3 * np.random.default_rng(2).standard_normal(schedule.weight.shape)
    moved = type(schedule)(**{**vars(schedule), "weight": wild, "slope": -wild})
    assert np.all(np.diff(schedules.log_snr(moved, jnp.linspace(0, 1, 200))) < 0)


# ------------------------------------------------------------------------------- errors

ERRORS = {
    "vp order": (
        lambda: schedules.vp_linear(0.1, 0.05),
        "beta_max must be greater than beta_min=0.1, got 0.05",
    ),
    "vp sign": (
        lambda: schedules.vp_linear(-0.1, 20.0),
        "beta_min must be positive, got -0.1",
    ),
    "vp interval": (
        lambda: schedules.vp_linear(t_min=1.0, t_max=0.5),
        "t_max must be greater than t_min=1.0, got 0.5",
    ),
    "vp zero": (
        lambda: schedules.vp_linear(t_min=0.0),
        "t_min must be positive, got 0",
    ),
    "vp nan": (
        lambda: schedules.vp_linear(float("nan"), 20.0),
        "beta_min must be finite, got nan",
    ),
    "vp shape": (
        lambda: schedules.vp_linear(jnp.ones(2), 20.0),
        r"beta_min must be a scalar, got shape \(2,\)",
    ),
    "sub_vp order": (
        lambda: schedules.sub_vp(20.0, 0.1),
        "beta_max must be greater than beta_min=20.0, got 0.1",
    ),
    "cosine offset": (
        lambda: schedules.vp_cosine(offset=0.0),
        "offset must be positive, got 0",
    ),
    "cosine end": (lambda: schedules.vp_cosine(t_max=1.0), "t_max.*1"),
    "ve order": (
        lambda: schedules.ve(50.0, 0.01),
        "sigma_max must be greater than sigma_min=50.0, got 0.01",
    ),
    "ve sign": (lambda: schedules.ve(0.0, 1.0), "sigma_min must be positive, got 0"),
    "edm order": (
        lambda: schedules.edm(1.0, 1.0),
        "sigma_max must be greater than sigma_min=1.0, got 1.0",
    ),
    "flow end": (
        lambda: schedules.rectified_flow(t_max=1.5),
        r"t_max must lie in \[0.0, 1.0\], got 1.5",
    ),
    "betas range": (
        lambda: schedules.from_betas([1.0, 0.1]),
        r"betas must lie in \(0, 1\), got 1",
    ),
    "betas sign": (
        lambda: schedules.from_betas([0.1, 0.0]),
        r"betas must lie in \(0, 1\), got 0",
    ),
    "betas nan": (
        lambda: schedules.from_betas([0.1, np.nan]),
        r"betas must lie in \(0, 1\), got nan",
    ),
    "betas shape": (
        lambda: schedules.from_betas(np.full((2, 2), 0.1)),
        r"betas must have shape \(T,\).*got \(2, 2\)",
    ),
    "betas short": (
        lambda: schedules.from_betas([0.1]),
        r"betas must have shape \(T,\) with T at least 2, got \(1,\)",
    ),
    "sigmas order": (
        lambda: schedules.from_sigmas([1.0, 2.0, 2.0]),
        "sigmas must increase.*got 2.0 after 2.0",
    ),
    "sigmas sign": (
        lambda: schedules.from_sigmas([0.0, 1.0]),
        r"sigmas must lie in .*1e-15, 1e\+15.*got 0 in entry 0",
    ),
    "sigmas nan": (
        lambda: schedules.from_sigmas([0.1, np.nan]),
        r"sigmas must lie in .*1e-15, 1e\+15.*got nan",
    ),
    "sigmas short": (
        lambda: schedules.from_sigmas([0.1]),
        r"sigmas must have shape \(L,\).*got \(1,\)",
    ),
    "learned order": (
        lambda: schedules.learned(jax.random.key(0), log_snr_max=-6.0),
        "log_snr_max must be greater than log_snr_min=-5.0, got -6.0",
    ),
    "learned hidden": (
        lambda: schedules.learned(jax.random.key(0), hidden=0),
        "hidden must be between 1 and 1048576, got 0",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_raises(name):
    call, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_check_names_what_is_missing():
    with pytest.raises(TypeError, match="sigma, t_min, t_max"):
        schedules.check(type("Half", (), {"alpha": None})())
    with pytest.raises(TypeError, match="is a class, not an instance"):
        schedules.check(
            type("Whole", (), dict.fromkeys(("alpha", "sigma", "t_min", "t_max")))
        )
    with pytest.raises(TypeError, match="betas must be an array of real numbers"):
        schedules.from_betas("linear")


# ----------------------------------------------------------- zero terminal SNR, indices


def test_rescaled_betas_leave_no_signal_at_the_last_index():
    """√ᾱ′_i = √ᾱ_1 (√ᾱ_i − √ᾱ_T)/(√ᾱ_1 − √ᾱ_T) from cumulative products in float64:

    Lin et al. 2024, algorithm 1.
    """
    betas = ddpm_betas()
    alphas = np.sqrt(np.cumprod(1 - betas))
    expected = alphas[0] * (alphas - alphas[-1]) / (alphas[0] - alphas[-1])
    rescaled = schedules.rescale_zero_terminal_snr(betas)
    assert rescaled[-1] == 1 and rescaled[0] == betas[0]
    # products of 1000 rounded factors; the differences α − α_T magnify that by
    # α/(α − α_T) ≤ 2/β_T = 100
    np.testing.assert_allclose(
        np.sqrt(np.cumprod(1 - rescaled)), expected, rtol=1000 * EPS64 * 100, atol=1e-16
    )
    # neighbours' logarithms, of size 1 but for the last few dozen, differ by rounding:
    # 10 roundings over β ≥ 1e-4
    np.testing.assert_allclose(
        schedules.rescale_zero_terminal_snr(rescaled), rescaled, rtol=10 * EPS64 / 1e-4
    )


def zero_terminal_chain(steps=1000):
    return schedules.from_betas(
        schedules.rescale_zero_terminal_snr(np.linspace(0.1 / steps, 20 / steps, steps))
    )


def test_a_chain_without_terminal_signal_is_finite_everywhere():
    """α(1) = 0 exactly, λ(1) = −∞, falling λ on all times, inverted both ways.
    Α, σ and their rates stay finite.
    """
    chain = zero_terminal_chain()
    t = np.concatenate(
        [chain.times, chain.times[:-1] + 0.4e-3, 1 - np.geomspace(1e-6, 9e-4, 20)]
    )
    t = np.unique(t.astype(np.float32))
    alpha, log_snr = np.asarray(chain.alpha(t)), np.asarray(schedules.log_snr(chain, t))
    assert alpha[-1] == 0 and log_snr[-1] == -np.inf and float(chain.sigma(1.0)) == 1
    assert np.all(np.diff(log_snr) < 0) and np.all(np.diff(alpha) < 0)
    # in the last interval α = α_{T−1} T (1 − t): the spacing of t near 1, 6e-8, times
    # its slope
    again = np.asarray(schedules.time_of_log_snr(chain, log_snr))
    rate = np.abs(np.asarray(schedules.log_snr_rate(chain, t[:-1])))
    assert (
        np.all(np.abs(again - t)[:-1] <= 2 * EPS32 * (1 + np.abs(log_snr[:-1]) / rate))
        and again[-1] == 1
    )
    assert np.all(np.isfinite(schedules.rates(chain, t)))
    bars = np.cumprod(1 - np.asarray(chain.betas))
    # 2⁻²⁴ of t moves α by a share T 2⁻²⁴ in the last interval
    np.testing.assert_allclose(
        chain.alpha(chain.times.astype(np.float32)), np.sqrt(bars), rtol=1000 * EPS32
    )
    traced = quick(
        lambda t: (chain.alpha(t), chain.sigma(t), schedules.rates(chain, t))
    )(t)
    assert np.all(
        np.isfinite(np.concatenate([np.stack(traced[:2]), np.stack(traced[2])]))
    )
    assert not schedules.is_finite(chain) and schedules.noisiest_time(chain) == 0.999
    assert float(schedules.log_snr_range(chain)[0]) == pytest.approx(
        float(schedules.log_snr(chain, 0.999)), rel=EPS32
    )


def test_the_posterior_at_a_last_beta_of_one_keeps_the_data_alone():
    """β_T = 1: c_0 = √ᾱ_{T−1}, c_T = 0, β̃ = 1 − ᾱ_{T−1}: q(x_{T−1} | x_T,
    x_0) = q(x_{T−1} | x_0).
    """
    chain = zero_terminal_chain(50)
    bar = np.cumprod(1 - np.asarray(chain.betas))[-2]
    last = [column[-1] for column in chain.posterior()]
    np.testing.assert_allclose(
        last, [np.sqrt(bar), 0, 1 - bar, np.log1p(-bar)], rtol=1e-9
    )


def test_index_of_time_is_exact_at_all_indices():
    """round(t T) at every index of chains up to T = 10 000, in float32 and traced.

    Int(t T) misses 5 of 1000.
    """
    traced = jax.jit(schedules.index_of_time)
    for steps in (2, 3, 49, 98, 1000, 4001, 10_000):
        chain = schedules.from_sigmas(np.geomspace(0.01, 10, steps))
        t, index = chain.times.astype(np.float32), np.arange(1, steps + 1)
        np.testing.assert_array_equal(schedules.index_of_time(chain, t), index)
        if steps in (1000, 10_000):
            computed = traced(chain, t)
            assert computed.dtype == jnp.int32
            np.testing.assert_array_equal(computed, index)
        if steps == 1000:
            assert np.sum((t * np.float32(steps)).astype(int) != index) == 5
    assert (
        int(schedules.index_of_time(chain, 0.0)) == 1
    )  # the zero end of a grid belongs to the first index
    with pytest.raises(ValueError, match="t must be finite"):
        schedules.index_of_time(chain, np.nan)


class Trigonometric:
    """VP by cosine and sine, whose α(1) is −4e-8 in float32 and 6e-17 in float64."""

    t_min, t_max = 1e-3, 1.0

    def alpha(self, t):
        """cos(πt/2)."""
        return jnp.cos(0.5 * jnp.pi * t)

    def sigma(self, t):
        """sin(πt/2)."""
        return jnp.sin(0.5 * jnp.pi * t)


def test_alpha_that_is_zero_to_rounding_is_without_signal(x64):
    for dtype in (np.float32, np.float64):
        ends = np.array([0.9, 1.0], dtype)
        np.testing.assert_array_equal(
            schedules.without_signal(Trigonometric(), ends), [False, True]
        )
        flow = schedules.rectified_flow(t_max=1.0)
        np.testing.assert_array_equal(
            schedules.without_signal(flow, ends), [False, True]
        )
    assert not schedules.is_finite(Trigonometric())
    np.testing.assert_array_equal(
        schedules.without_signal(zero_terminal_chain(), np.array([0.999, 1.0])),
        [False, True],
    )
    # a small α that is computed from the log-SNR is no zero
    assert not schedules.without_signal(schedules.from_betas(np.full(4000, 0.01)), 1.0)
    assert not schedules.without_signal(schedules.ve(sigma_max=1e12), 1.0)


def test_a_chain_that_float32_cannot_hold_is_named():
    betas = np.linspace(1e-4, 0.02, 20_000)
    with pytest.raises(
        ValueError, match=r"betas must leave a signal .* e\^-101.2 after 20000 steps"
    ):
        schedules.from_betas(betas)
    with jax.enable_x64(True):
        assert float(schedules.from_betas(betas).alpha(1.0)) == pytest.approx(
            math.exp(0.5 * np.log1p(-betas).sum())
        )


@pytest.mark.parametrize("name", SCHEDULES)
def test_float32_times_of_log_snrs_keep_their_digits(name):
    """Concrete inverses are rounded once: within an ulp of the float64 inverse
    of the same λ, t near 0 included.
    """
    schedule = SCHEDULES[name]()
    with jax.enable_x64(True):
        low, high = float(schedule.t_min), float(schedule.t_max)
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), schedule)
        t = np.concatenate([np.geomspace(low, high, 20), np.linspace(low, high, 20)])

        @quick
        def both(wide, t):
            log_snr = schedules.log_snr(wide, t).astype(jnp.float32)
            return log_snr, schedules.time_of_log_snr(wide, log_snr.astype(jnp.float64))

        log_snr, exact = map(np.asarray, both(wide, t))
    np.testing.assert_allclose(
        schedules.time_of_log_snr(schedule, log_snr), exact, rtol=EPS32
    )
