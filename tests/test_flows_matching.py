"""Flow matching: pairings, exact fields of Gaussians, bridges and reflow."""

import functools
import inspect
import re
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from scipy.optimize import linear_sum_assignment

import diffjax as dj
from diffjax import (
    flows,
    guidance,
    inverse,
    predictions,
    schedules,
    sde,
    solvers,
    targets,
)
from diffjax.types import pytree
from tests.families import assert_raises, every

MEAN, STD = np.array([0.7, -0.3]), np.array([0.4, 1.6])
BRIDGE_STD = 0.8


@pytree
class Flow:
    """A base and a bijector."""

    base: Any
    bijector: Any


@pytree
class Quadratic:
    """γ² = ¼ t (1 − t)²: no bridge, and not symmetric."""

    def __call__(self, t):
        return 0.25 * t * (1 - t) ** 2


INTERPOLANTS = {
    "linear": (lambda: flows.interpolant(), "independent"),
    "optimal": (lambda: flows.interpolant(), "optimal"),
    "vp_cosine": (lambda: flows.interpolant(schedules.vp_cosine()), "independent"),
    "ve": (lambda: flows.interpolant(schedules.ve(0.05, 5.0)), "optimal"),
    "interpolant": (lambda: flows.interpolant(variance=Quadratic()), "optimal"),
    "bridge": (lambda: flows.bridge(BRIDGE_STD, 0.05), "independent"),
    "schrodinger": (lambda: flows.bridge(BRIDGE_STD, 0.05), "entropic"),
}
"""name -> (interpolant, pairing of the Gaussian pair)."""


@pytree
class Picked:
    """A pairing of given indices."""

    index: Any
    independent = False

    def __call__(self, key, x0, x1):
        return self.index


def gaussian_pairs(key, gaussian, count):
    """x_0 ~ N(m, s²) and x_1 ~ N(0, 1) with the covariance of the interpolant."""
    noise, extra = jax.random.normal(key, (2, count, 2))
    rest = jnp.sqrt(jnp.maximum(gaussian.std**2 - gaussian.covariance**2, 0))
    return gaussian.mean + gaussian.covariance * noise + rest * extra, noise


def field(gaussian, name="velocity"):
    """A method of a Gaussian interpolant as a pytree callable."""
    return jax.tree_util.Partial(getattr(type(gaussian), name), gaussian)


@pytest.mark.parametrize("name", every(INTERPOLANTS, ("vp_cosine", "schrodinger")))
def test_the_losses_gradient_is_that_of_the_marginal_velocity(name, x64):
    """The loss has the gradient of ‖u − E[dx_t/dt | x_t]‖².

    For a velocity linear in features φ of (x, t) the gradients differ by 2
    E[(dx_t/dt − E[dx_t/dt | x_t]) φ] = 0. The mean over 20 000 pairs vanishes
    within 4 standard errors for each φ, and so does that of z − E[z | x_t].
    """
    interpolant, pairing = INTERPOLANTS[name][0](), INTERPOLANTS[name][1]
    gaussian = flows.gaussian_interpolant(interpolant, MEAN, STD, pairing)

    @jax.jit
    def drawn_and_exact(gaussian):
        x0, x1 = gaussian_pairs(jax.random.key(0), gaussian, 20_000)
        drawn = flows.examples(
            jax.random.key(1), gaussian.interpolant, x0, x1, pairing=flows.fixed_pairs()
        )
        noise = None if drawn.z is None else jax.vmap(gaussian.noise)(drawn.x, drawn.t)
        return drawn, jax.vmap(gaussian.velocity)(drawn.x, drawn.t), noise

    drawn, velocity, noise = jax.tree.map(np.asarray, drawn_and_exact(gaussian))
    x, t = drawn.x, drawn.t[:, None]
    features = np.stack(
        [np.ones_like(x), x, t * x, np.sin(3 * t) * x**2, x[:, ::-1]]
    )  # (5, N, 2)
    for target, exact in ((drawn.velocity, velocity), (drawn.z, noise)):
        if target is None:
            continue
        products = (features * (target - exact)).reshape(5, -1)
        error = np.std(products, axis=1) / np.sqrt(
            20_000
        )  # the two entries of one x may agree
        assert np.all(np.abs(products.mean(1)) < 4 * error + 1e-12), name


def test_the_loss_is_least_at_the_marginal_velocity_where_it_is_the_residual_variance(
    x64,
):
    """The optimal pairing leaves no residual, the independent one E Var(x_1 −
    x_0 | x_t).

    The latter is positive and has a closed form.
    """

    @jax.jit
    def losses(gaussian):
        x0, x1 = gaussian_pairs(jax.random.key(2), gaussian, 10_000)
        return flows.matching_loss(
            jax.random.key(3),
            field(gaussian),
            gaussian.interpolant,
            x0,
            x1=x1,
            pairing=flows.fixed_pairs(),
            times="uniform",
        )

    for pairing in ("optimal", "independent"):
        gaussian = flows.gaussian_interpolant(flows.interpolant(), MEAN, STD, pairing)
        mean, values = jax.tree.map(np.asarray, losses(gaussian))
        t = (np.arange(4000)[:, None] + 0.5) / 4000 * (1 - 1e-3) + 1e-3
        variance = ((1 - t) * STD) ** 2 + t**2
        exact = (
            0.0
            if pairing == "optimal"
            else np.mean(STD**2 + 1 - (t - (1 - t) * STD**2) ** 2 / variance)
        )
        assert values.shape == (10_000,)
        assert abs(mean - exact) < 4 * values.std() / 100 + 1e-12


def test_the_optimal_velocity_is_the_closed_form(x64):
    """u = (x − (1 − t) m)(1 − s)/((1 − t) s + t) − m, with t = 1 the noise."""
    gaussian = flows.gaussian_interpolant(flows.interpolant(), MEAN, STD, "optimal")
    x, ts = np.array([0.2, -1.1]), np.array([0.0, 0.3, 0.9, 1.0])
    t = ts[:, None]
    expected = (x - (1 - t) * MEAN) * (1 - STD) / ((1 - t) * STD + t) - MEAN
    np.testing.assert_allclose(
        jax.jit(jax.vmap(gaussian.velocity, (None, 0)))(x, ts), expected, rtol=1e-12
    )


def test_the_optimal_flow_is_straight_and_one_step_solves_it():
    """Under the optimal pairing one Euler step is exact.

    x_0 = m + s x_1 to rounding, `log_prob` is that of N(m, s²) and `encode`
    inverts. The curvature of the paths is 0, that of the independent pairing
    is not.
    """
    interpolant, x1 = flows.interpolant(), jnp.array([0.5, -1.2])
    curvature = {}
    for pairing in ("optimal", "independent"):
        gaussian = flows.gaussian_interpolant(interpolant, MEAN, STD, pairing)
        curvature[pairing] = float(
            flows.curvature(flows.continuous(field(gaussian), 32), x1)
        )
    assert curvature["optimal"] < 1e-9 < 1e-3 < curvature["independent"]
    gaussian = flows.gaussian_interpolant(interpolant, MEAN, STD, "optimal")
    np.testing.assert_allclose(
        flows.continuous(field(gaussian), 1, solvers.euler()).forward(x1),
        MEAN + STD * x1,
        atol=1e-6,
    )
    denoiser = flows.velocity_denoiser(
        interpolant, field(gaussian), flows.optimal_assignment()
    )
    grid = jnp.linspace(1.0, 1e-3, 9)
    x0 = dj.sample(
        None,
        denoiser,
        interpolant.schedule,
        solver=solvers.heun(),
        grid=grid,
        x_init=x1,
    )
    at_end = 1e-3 * x1 + (1 - 1e-3) * (MEAN + STD * x1)
    np.testing.assert_allclose(x0, at_end, atol=1e-5)
    np.testing.assert_allclose(
        dj.encode(denoiser, interpolant.schedule, x0, solver=solvers.heun(), grid=grid),
        x1,
        atol=1e-4,
    )
    mean, variance = gaussian.moments(1e-3)
    exact = targets.gaussian(mean, jnp.sqrt(variance)).log_prob(x0)
    np.testing.assert_allclose(
        dj.log_prob(denoiser, interpolant.schedule, x0, grid=grid), exact, atol=1e-4
    )


# ------------------------------------------------------------------------- paired noise


def test_a_denoiser_of_paired_noise_has_no_score():
    """Functions that use the score raise TypeError, by name.

    Under the optimal pairing (αD − x)/σ² is not ∇log p_t. The error also comes
    through guidance that holds such a denoiser. The same denoiser of the
    independent pairing passes.
    """
    interpolant = flows.interpolant(schedules.rectified_flow())
    gaussian = flows.gaussian_interpolant(interpolant, MEAN, STD, "optimal")
    schedule, x, t, key = (
        interpolant.schedule,
        jnp.array([0.2, -1.1]),
        0.4,
        jax.random.key(0),
    )
    tweedie = predictions.score(
        schedule, flows.velocity_denoiser(interpolant, field(gaussian))
    )(x, t)  # unmarked: it is wrong
    assert jnp.max(jnp.abs(tweedie - gaussian.score(x, t))) > 0.3
    paired = flows.velocity_denoiser(
        interpolant, field(gaussian), flows.optimal_assignment()
    )
    fair = flows.velocity_denoiser(interpolant, field(gaussian), flows.independent())
    assert predictions.is_independent(fair)
    assert not predictions.is_independent(paired)
    thresholded = guidance.static_threshold(paired)
    assert not predictions.is_independent(thresholded)
    grid, y = jnp.linspace(0.99, 1e-2, 5), jnp.ones(1)
    operator = inverse.inpainting(jnp.array([True, False]))
    uses = {
        "the stochastic solver euler_maruyama": lambda d: dj.sample(
            key, d, schedule, solver=solvers.euler_maruyama(), x_init=x
        ),
        "the stochastic solver ddim": lambda d: dj.sample(
            key, d, schedule, solver=solvers.ddim(1.0), grid=grid, x_init=x
        ),
        "the stochastic solver edm_stochastic": lambda d: dj.sample_many(
            key, 2, d, schedule, solver=solvers.edm_stochastic(), grid=grid, shape=(2,)
        ),
        "the stochastic solver reverse_diffusion": lambda d: solvers.integrate(
            key,
            solvers.reverse_diffusion(),
            solvers.diffusion(schedule, d),
            x=x,
            ts=grid,
        ),
        "score needs": lambda d: predictions.score(schedule, d),
        "the reverse SDE": lambda d: sde.reverse(schedule, d, noise=0.5),
        "classifier guidance": lambda d: guidance.classifier(
            schedule, d, lambda x, t: jnp.sum(x)
        ),
        "guidance by a likelihood": lambda d: inverse.dps(
            schedule, d, operator, y, noise_std=0.1
        ),
        "dps_steps": lambda d: inverse.dps_steps(schedule, d, operator, y, grid=grid),
    }
    for message, use in uses.items():
        assert_raises(lambda use=use: use(paired), TypeError, message)
        assert_raises(lambda use=use: use(thresholded), TypeError, message)
    for name in ("score needs", "the reverse SDE", "classifier guidance", "dps_steps"):
        uses[name](fair)
    for solver in (solvers.ddim(), solvers.dpmpp_2m()):
        assert jnp.all(
            jnp.isfinite(
                dj.sample(None, paired, schedule, solver=solver, grid=grid, x_init=x)
            )
        )
    sde.reverse(schedule, paired, noise=0.0)


def makes_a_solver(signature):
    """Whether a function returns a solver and needs no argument."""
    needed = [p for p in signature.parameters.values() if p.default is p.empty]
    return signature.return_annotation in (solvers.Solver, "Solver") and not needed


def test_no_stochastic_solver_takes_paired_noise():
    """Every stochastic solver raises TypeError with its name, whichever
    factory made it.

    It does so too where functools.partial binds the denoiser. Tweedie's
    formula for the variance also raises TypeError.
    """
    interpolant = flows.interpolant(schedules.rectified_flow())
    paired = flows.velocity_denoiser(interpolant, lambda x, t: -x, flows.fixed_pairs())
    bound = functools.partial(lambda denoiser, x, t: denoiser(x, t), paired)
    public = [getattr(solvers, name) for name in solvers.__all__]
    factories = [
        value
        for value in public
        if inspect.isfunction(value) and makes_a_solver(inspect.signature(value))
    ]
    made = [factory() for factory in factories]
    stochastic = [solver for solver in made if solver.stochastic] + [
        solvers.ddim(1.0),
        inverse.repaint(),
    ]
    assert len(stochastic) > 15
    for solver in stochastic:
        for denoiser in (paired, bound):
            assert_raises(
                lambda s=solver, d=denoiser: dj.sample(
                    jax.random.key(0),
                    d,
                    interpolant.schedule,
                    solver=s,
                    x_init=jnp.ones(2),
                ),
                TypeError,
                "the stochastic solver " + re.escape(solver.name),
            )
    for denoiser in (paired, bound):
        assert_raises(
            lambda d=denoiser: predictions.variance(interpolant.schedule, d),
            TypeError,
            "variance needs noise independent of the data",
        )


# ----------------------------------------------------------------------------- pairings


def clouds(count, dimension, key=0):
    """Noise and data that lie apart, in the working precision."""
    a, b = (
        np.random.default_rng(key)
        .standard_normal((2, count, dimension))
        .astype(jnp.zeros(0).dtype)
    )
    return 0.5 * a + 1, b


def paired_cost(x0, x1, index):
    return float(np.sum((np.asarray(x0) - np.asarray(x1)[np.asarray(index)]) ** 2) / 2)


@pytest.mark.parametrize("dimension", [1, 2, pytest.param(5, marks=pytest.mark.slow)])
def test_the_optimal_assignment_is_that_of_scipy(dimension):
    """A permutation of the exact least cost, under jit.

    It costs no more than the pairs in their order.
    """
    x0, x1 = clouds(40, dimension)
    index = flows.optimal_assignment()(jax.random.key(0), x0, x1)  # a compiled function
    assert sorted(index.tolist()) == list(range(40))
    cost = np.asarray(flows.transport_cost(x0, x1), np.float64)
    exact = cost[linear_sum_assignment(cost)].sum()
    np.testing.assert_allclose(paired_cost(x0, x1, index), exact, rtol=1e-5)
    assert exact < paired_cost(x0, x1, np.arange(40))


def test_the_entropic_plan_is_doubly_stochastic_between_its_two_limits(x64):
    """Rows sum to 1/n to rounding, columns to 1/m within the tolerance, for n
    ≠ m too.

    The mean cost grows with ε from that of the assignment to that of
    independence.
    """
    x0, x1 = clouds(24, 2)
    cost, costs = np.asarray(flows.transport_cost(x0, x1)), []
    np.testing.assert_allclose(
        cost, 0.5 * np.sum((x0[:, None] - x1) ** 2, -1), atol=1e-12
    )
    for regularisation in (0.01, 0.1, 1.0, 1e4):
        plan = np.asarray(
            flows.sinkhorn_plan(cost, regularisation, iterations=20_000, tolerance=1e-4)
        )
        np.testing.assert_allclose(plan.sum(1), 1 / 24, rtol=1e-12)
        assert np.sum(np.abs(plan.sum(0) - 1 / 24)) <= 1e-4
        costs.append(float(np.sum(plan * cost)))
    assert costs == sorted(costs)
    least = cost[linear_sum_assignment(cost)].mean()
    assert (
        least - 1e-4 * float(cost.max()) <= costs[0] <= least + 0.01 * np.log(24)
    )  # entropy is at most log n
    np.testing.assert_allclose(costs[-1], cost.mean(), rtol=1e-3)
    uneven = np.asarray(flows.sinkhorn_plan(cost[:10], 0.5))
    np.testing.assert_allclose(uneven.sum(1), 1 / 10, rtol=1e-12)
    assert np.sum(np.abs(uneven.sum(0) - 1 / 24)) <= 1e-3


def test_the_entropic_plan_of_gaussians_has_the_closed_covariance(x64):
    """On quantiles of N(0.5, 0.6²) and N(0, 1) the covariance is (√(4s² + ε²)
    − ε)/2.

    The plan has it up to the spread that 300 atoms leave, under 1 %. The
    covariance of drawn pairs is within 4 standard errors of the plan's.
    """
    quantiles = scipy.stats.norm.ppf((np.arange(300) + 0.5) / 300)
    x0, x1 = (0.5 + 0.6 * quantiles)[:, None], quantiles[:, None]

    @jax.jit
    def plan_and_draws(regularisation):
        plan = flows.sinkhorn_plan(
            flows.transport_cost(x0, x1), regularisation, tolerance=1e-6
        )
        keys = jax.random.split(jax.random.key(0), 50)
        draws = jax.vmap(lambda key: flows.sinkhorn(regularisation)(key, x0, x1))(keys)
        return plan, draws, flows.entropic_covariance(0.6, regularisation)

    for regularisation in (0.2, 1.0):
        plan, draws, exact = jax.tree.map(np.asarray, plan_and_draws(regularisation))
        covariance = np.sum(plan * (x0 - 0.5) * x1[:, 0])
        np.testing.assert_allclose(covariance, exact, rtol=1e-2)
        products = ((x0[:, 0] - 0.5) * x1[draws, 0]).mean(1)  # (50,)
        assert (
            abs(products.mean() - covariance)
            < 4 * np.std(products) / np.sqrt(50) + 1e-3
        )


def test_labels_stay_with_their_data():
    """A pairing reorders the noise, while data and their labels keep their order."""
    x0, x1 = clouds(40, 2)
    labels = {"class": np.arange(40)}
    drawn = flows.examples(
        jax.random.key(0),
        flows.interpolant(),
        x0,
        x1,
        pairing=flows.optimal_assignment(),
        condition=labels,
    )
    np.testing.assert_array_equal(drawn.x0, x0)
    np.testing.assert_array_equal(drawn.condition["class"], np.arange(40))
    assert sorted(map(tuple, np.asarray(drawn.x1))) == sorted(
        map(tuple, np.asarray(x1))
    )
    seen = lambda x, t, condition: condition["class"] * jnp.ones_like(x)
    _, losses = flows.matching_loss(
        jax.random.key(0),
        seen,
        flows.interpolant(),
        x0,
        x1=x1,
        pairing=flows.optimal_assignment(),
        condition=labels,
    )
    expected = np.mean((np.arange(40.0)[:, None] - np.asarray(drawn.velocity)) ** 2, 1)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


@pytest.mark.parametrize("shift", [(1e4, 0.0), (1e4, 1e4)], ids=["one cloud", "both"])
def test_pairings_do_not_see_where_the_data_lie(shift):
    """A shift of either cloud adds to Σ ½‖x_0 − x_1‖² a term that no
    permutation changes.

    10⁴ away in float32 the costs themselves round to 4. The permutation's cost
    is the least all the same, within the rounding of costs below 20. A shift
    of both clouds leaves the costs themselves so exact.
    """
    x0, x1 = (
        cloud + by for cloud, by in zip(clouds(40, 2), np.float32(shift), strict=True)
    )
    exact = 0.5 * np.sum(
        (np.asarray(x0, np.float64)[:, None] - np.asarray(x1, np.float64)) ** 2, -1
    )
    least = exact[linear_sum_assignment(exact)].sum()
    index = np.asarray(flows.optimal_assignment()(jax.random.key(0), x0, x1))
    assert sorted(index) == list(range(40))
    assert exact[np.arange(40), index].sum() - least < 40 * 1e-5
    if shift[0] == shift[1]:
        np.testing.assert_allclose(
            flows.transport_cost(x0, x1), exact, rtol=1e-5, atol=1e-5
        )


def test_costs_of_float64_data_far_from_0_are_exact_and_data_that_have_none_are_named():
    """10⁸ away from 0, where the spacing of float32 is 8.

    Half precision is computed in float32.
    """
    x0, x1 = (np.asarray(cloud, np.float64) for cloud in clouds(6, 2))
    exact = 0.5 * np.sum((x0[:, None] - x1) ** 2, -1)
    np.testing.assert_allclose(
        flows.transport_cost(x0 + 1e8, x1 + 1e8), exact, rtol=1e-5, atol=1e-5
    )
    assert (
        flows.transport_cost(x0.astype(np.float16), x1.astype(np.float16)).dtype
        == np.float32
    )
    for pair, name in (
        ((x0[:0], x1), "x0"),
        ((x0, x1[:0]), "x1"),
        ((x0, x1 * np.nan), "x1"),
        ((x0, x1[:, :1]), "x1"),
    ):
        with pytest.raises(ValueError, match=name):
            flows.transport_cost(*pair)


def test_the_entropic_plan_has_exact_rows_at_any_regularisation():
    """Also in float32, where potentials are 10⁴ and 10¹⁰ times the entries'
    logarithms.

    A warning says where columns do not get there. An ε by which the costs
    overflow raises ValueError, or gives NaN under jit.
    """
    cost = np.asarray(flows.transport_cost(*clouds(24, 2)))
    for regularisation in (1e-4, 1e-10, 1e30):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            plan = np.asarray(flows.sinkhorn_plan(cost, regularisation))
        np.testing.assert_allclose(
            plan.sum(1), 1 / 24, rtol=24 * np.finfo(np.float32).eps
        )
        assert any(
            "columns of the plan are off by" in str(one.message) for one in caught
        ) == (regularisation < 1)
    np.testing.assert_allclose(plan, 1 / 24**2, rtol=1e-5)
    assert_raises(
        lambda: flows.sinkhorn_plan(cost, 1e-38),
        ValueError,
        "regularisation must be large enough",
    )
    assert jnp.all(
        jnp.isnan(jax.jit(flows.sinkhorn_plan, static_argnums=2)(cost, 1e-38, 5))
    )


NAN_CASES = {
    "independent": (flows.independent(), 2),
    "sorted": (flows.optimal_assignment(), 1),
    "optimal": (flows.optimal_assignment(), 2),
    "entropic": (flows.sinkhorn(0.5), 2),
}
"""name -> (pairing, dimension)."""


def test_nan_reaches_the_loss_under_jit():
    """A NaN in data or noise, for which nothing can be raised under jit, is in
    the mean.

    A pairing that draws the noise from a plan of NaN has no noise to give.
    """

    def loss(pairing, pair):
        x0, x1 = pair
        return flows.matching_loss(
            jax.random.key(0),
            lambda x, t: x,
            flows.interpolant(),
            x0,
            x1=x1,
            pairing=pairing,
        )[0]

    def cases(dimension):
        x0, x1 = (np.tile(cloud, (3, 1, 1)) for cloud in clouds(12, dimension))
        x0[1, 5, 0] = x1[2, 5, 0] = np.nan
        return x0, x1

    losses = jax.jit(
        lambda pairs: {
            name: jax.vmap(functools.partial(loss, pairing))(pairs[name])
            for name, (pairing, _) in NAN_CASES.items()
        }
    )({name: cases(dimension) for name, (_, dimension) in NAN_CASES.items()})
    for name, values in losses.items():
        np.testing.assert_array_equal(
            np.isnan(values), [False, True, True], err_msg=name
        )
        assert np.isfinite(values[0])


def test_pairings_of_one_pair_and_of_ties():
    """One noise goes with one example.

    Among equal points every pairing costs the same, and indices stay in range.
    """
    optimal, entropic = flows.optimal_assignment(), flows.sinkhorn(0.5)

    @jax.jit
    def indices(key, one, line, plane):
        lonely = [pairing(key, one, -one) for pairing in (optimal, entropic)]
        return (
            lonely,
            optimal(key, line, line),
            optimal(key, plane, plane),
            entropic(key, plane, plane),
        )

    lonely, *permutations, drawn = indices(
        jax.random.key(0),
        *(
            np.zeros(shape, np.float32) + (shape[0] == 1)
            for shape in ((1, 3), (7, 1), (7, 3))
        ),
    )
    assert [index.tolist() for index in lonely] == [[0], [0]]
    for index in permutations:
        assert sorted(index.tolist()) == list(range(7))
    assert set(drawn.tolist()) <= set(range(7))


# ------------------------------------------------------------------- bridges and reflow


def test_the_bridge_sde_is_the_schrodinger_bridge_of_gaussians(x64):
    """Marginals and pairs of the SDE are those of the entropic plan's process.

    The SDE of the exact velocity and score is linear, and an ODE gives its
    moments. They are the marginals of the bridge. The covariance of its two
    ends is

        (1−s)(1−t) s₀² + s t + ((1−s)t + s(1−t)) c + S² s (1−t).

    With another diffusion the marginals stay, the pairs do not.
    """
    interpolant = flows.bridge(BRIDGE_STD, 0.01)
    gaussian = flows.gaussian_interpolant(interpolant, MEAN, STD, "entropic")
    s, t = interpolant.schedule.t_min, interpolant.schedule.t_max

    def ends(diffusion):
        process = flows.bridge_sde(
            interpolant, field(gaussian), field(gaussian, "noise"), diffusion
        )

        def rates(state, time):
            mean, variance, covariance = state
            slope = jax.jvp(lambda x: process.drift(x, time), (mean,), (jnp.ones(2),))[
                1
            ]
            g = process.diffusion(mean, time)
            return (
                process.drift(mean, time),
                2 * slope * variance - g**2,
                slope * covariance,
            )

        mean, variance = gaussian.moments(t)
        grid = t + (s - t) * (1 - jnp.cos(jnp.linspace(0, jnp.pi, 801))) / 2
        return solvers.integrate(
            None, solvers.rk4(), rates, x=(mean, variance, variance), ts=grid
        )

    expected = (
        (1 - s) * (1 - t) * STD**2
        + s * t
        + ((1 - s) * t + s * (1 - t)) * gaussian.covariance
    )
    expected = expected + BRIDGE_STD**2 * s * (1 - t)
    for diffusion in (None, 0.4):
        mean, variance, covariance = ends(diffusion)
        np.testing.assert_allclose(mean, gaussian.moments(s)[0], atol=1e-6)
        np.testing.assert_allclose(variance, gaussian.moments(s)[1], atol=1e-6)
        gap = jnp.max(jnp.abs(covariance - expected))
        assert gap < 1e-6 if diffusion is None else gap > 1e-2


def test_bridge_loss_vanishes_in_mean_gradient_at_the_exact_pair(x64):
    """Of fields scaled by 1 + θ about the exact ones the loss is least at θ =
    0.

    Its derivative there is 0 within 4 standard errors, as is that of the
    noise.
    """
    interpolant = flows.bridge(BRIDGE_STD, 0.05)
    gaussian = flows.gaussian_interpolant(interpolant, MEAN, STD, "entropic")

    def values(theta, x0, x1):
        return flows.bridge_loss(
            jax.random.key(6),
            lambda x, t: (1 + theta[0]) * gaussian.velocity(x, t),
            interpolant,
            x0,
            noise=lambda x, t: (1 + theta[1]) * gaussian.noise(x, t),
            x1=x1,
            pairing=flows.fixed_pairs(),
        )[1]

    @jax.jit
    def slopes_of(theta):
        return jax.jacfwd(values)(
            theta, *gaussian_pairs(jax.random.key(5), gaussian, 10_000)
        )

    slopes = np.asarray(slopes_of(np.zeros(2)))  # (N, 2)
    assert np.all(np.abs(slopes.mean(0)) < 4 * np.std(slopes, axis=0) / 100)


def test_the_curvature_is_the_integral_along_the_closed_path(x64):
    """x_t = m_t + √v_t x_1 of independent Gaussians, by Gauss–Legendre on its
    derivative.

    The trapezoid rule's error falls as 1/N².
    """
    gaussian = flows.gaussian_interpolant(flows.interpolant(), MEAN, STD)
    x1 = jnp.array([-0.8, 0.6])
    nodes, weights = np.polynomial.legendre.leggauss(40)
    slope = jax.vmap(
        lambda t: jax.jvp(
            lambda t: gaussian.mean * (1 - t) + jnp.hypot((1 - t) * STD, t) * x1,
            (t,),
            (1.0,),
        )[1]
    )
    slopes = slope(jnp.asarray(0.5 * (nodes + 1)))  # (40, 2)
    expected = 0.5 * weights @ jnp.sum((slopes - (x1 - MEAN - STD * x1)) ** 2, -1)
    coarse, fine = (
        flows.curvature(flows.continuous(field(gaussian), n), x1) for n in (128, 256)
    )
    np.testing.assert_allclose(fine, expected, rtol=2e-4)
    assert abs(fine - expected) < abs(coarse - expected) / 2**1.8


def test_the_entropic_covariance_at_no_regularisation_is_the_optimal_one(x64):
    np.testing.assert_array_equal(
        flows.entropic_covariance([0.0, 1.0], 0.0), [0.0, 1.0]
    )


def test_reflow_pairs_are_the_flows_own_and_cost_no_more():
    """Pair i is noise of fold_in(key, i) and its image.

    For the flow of independent Gaussians the image is m + s x_1 in each entry.
    The cost then falls from that of independence to the optimum.
    """
    gaussian = flows.gaussian_interpolant(flows.interpolant(), MEAN, STD)
    flow = Flow(
        targets.gaussian(jnp.zeros(2), 1.0), flows.continuous(field(gaussian), 32)
    )
    x0, x1 = map(np.asarray, flows.reflow_pairs(jax.random.key(0), flow, 40))
    few, _ = flows.reflow_pairs(jax.random.key(0), flow, 3)
    np.testing.assert_allclose(few, x0[:3], rtol=1e-5)
    np.testing.assert_allclose(
        x1[5], flow.base.sample(jax.random.fold_in(jax.random.key(0), 5)), rtol=1e-6
    )
    np.testing.assert_allclose(x0, MEAN + STD * x1, atol=1e-4)
    best = flows.optimal_assignment()(jax.random.key(0), x0, x1)
    np.testing.assert_allclose(
        paired_cost(x0, x1, np.arange(40)), paired_cost(x0, x1, best), rtol=1e-4
    )


def test_bad_arguments_are_named():
    key, interpolant, x = jax.random.key(0), flows.interpolant(), jnp.ones((4, 2))
    velocity = lambda x, t: x
    bridge = flows.bridge(1.0)
    cases = [
        (
            TypeError,
            "interpolant must be made by flows.interpolant",
            lambda: flows.examples(key, schedules.edm(), x),
        ),
        (
            ValueError,
            r"x0 must have shape \(N, ...\)",
            lambda: flows.matching_loss(key, velocity, interpolant, jnp.ones(())),
        ),
        (
            ValueError,
            "x0 must be finite, got 1 NaN",
            lambda: flows.matching_loss(
                key, velocity, interpolant, x.at[0, 0].set(jnp.nan)
            ),
        ),
        (
            ValueError,
            r"x1 must have shape \(4, 2\)",
            lambda: flows.matching_loss(key, velocity, interpolant, x, x1=x[:3]),
        ),
        (
            ValueError,
            "condition must have leading axis 4",
            lambda: flows.matching_loss(key, velocity, interpolant, x, condition=x[:2]),
        ),
        (
            TypeError,
            "pairing must be one of flows.pairings",
            lambda: flows.matching_loss(
                key, velocity, interpolant, x, pairing=lambda k, a, b: 0
            ),
        ),
        (
            ValueError,
            r"velocity\(x, t\) must have shape \(2,\)",
            lambda: flows.matching_loss(key, lambda x, t: x[0], interpolant, x),
        ),
        (
            TypeError,
            "velocity must be callable",
            lambda: flows.matching_loss(key, 3.0, interpolant, x),
        ),
        (
            ValueError,
            "regularisation must be positive, got 0",
            lambda: flows.sinkhorn(0.0),
        ),
        (
            ValueError,
            "cost must have shape",
            lambda: flows.sinkhorn_plan(jnp.ones(3), 1.0),
        ),
        (
            ValueError,
            "cost must be finite",
            lambda: flows.sinkhorn_plan(jnp.full((2, 2), jnp.nan), 1.0),
        ),
        (ValueError, "std must be positive, got -1", lambda: flows.bridge(-1.0)),
        (
            ValueError,
            r"variance\(t=1\) must be positive, got 0",
            lambda: flows.interpolant(schedules.rectified_flow(t_max=1.0), Quadratic()),
        ),
        (
            ValueError,
            "interpolant must have no variance",
            lambda: flows.velocity_denoiser(bridge, velocity),
        ),
        (
            ValueError,
            "interpolant must have a variance",
            lambda: flows.bridge_sde(interpolant, velocity, velocity),
        ),
        (
            ValueError,
            "diffusion must be given for an interpolant",
            lambda: flows.bridge_sde(
                flows.interpolant(variance=Quadratic()), velocity, velocity
            ),
        ),
        (
            ValueError,
            "interpolant must be made by flows.bridge for the entropic",
            lambda: flows.gaussian_interpolant(interpolant, MEAN, STD, "entropic"),
        ),
        (
            ValueError,
            "pairing must be one of 'independent'",
            lambda: flows.gaussian_interpolant(interpolant, MEAN, STD, "best"),
        ),
        (
            TypeError,
            "flow must have a base",
            lambda: flows.reflow_pairs(key, velocity, 3),
        ),
        (
            ValueError,
            "condition must have leading axis 3 as count",
            lambda: flows.reflow_pairs(
                key,
                Flow(targets.gaussian(jnp.zeros(2), 1.0), flows.continuous(velocity)),
                3,
                x,
            ),
        ),
        (
            TypeError,
            "interpolant must be made by flows.interpolant",
            lambda: flows.velocity_denoiser(schedules.edm(), velocity),
        ),
        (
            TypeError,
            "interpolant must be made by flows.interpolant",
            lambda: flows.bridge_loss(
                key, velocity, schedules.edm(), x, noise=velocity
            ),
        ),
        (
            TypeError,
            "interpolant must be made by flows.interpolant",
            lambda: flows.gaussian_interpolant(schedules.edm(), MEAN, STD),
        ),
        (
            ValueError,
            "std must be positive, got -",
            lambda: flows.gaussian_interpolant(interpolant, MEAN, -STD, "optimal"),
        ),
        (
            ValueError,
            "mean must be finite",
            lambda: flows.gaussian_interpolant(interpolant, MEAN * np.nan, STD),
        ),
        (
            ValueError,
            "std must be 0 or more, got -1",
            lambda: flows.entropic_covariance(-1.0, 1.0),
        ),
        (
            TypeError,
            "velocity must be callable",
            lambda: flows.bridge_sde(bridge, 3.0, velocity),
        ),
        (
            ValueError,
            r"noise\(x, t\) must have shape \(2,\)",
            lambda: flows.bridge_loss(
                key, velocity, bridge, x, noise=lambda x, t: x[0]
            ),
        ),
        (ValueError, "t_min must be less than 0.5", lambda: flows.bridge(1.0, 0.7)),
        (
            ValueError,
            "times must be one of 'uniform'",
            lambda: flows.matching_loss(key, velocity, interpolant, x, times="late"),
        ),
        (
            ValueError,
            "pairing must return 4 integers, got int32 of shape",
            lambda: flows.examples(
                key, interpolant, x, pairing=Picked(jnp.zeros((4, 1), int))
            ),
        ),
        (
            ValueError,
            "pairing must return 4 integers, got float32",
            lambda: flows.examples(key, interpolant, x, pairing=Picked(jnp.zeros(4))),
        ),
        (
            ValueError,
            r"x1 must have shape \(4, 2\)",
            lambda: flows.optimal_assignment()(key, x, x[:3]),
        ),
        (
            ValueError,
            r"x1 must have shape \(3, 2\)",
            lambda: flows.sinkhorn(1.0)(key, x, x[:3, :1]),
        ),
        (
            TypeError,
            "bijector must be made by flows.continuous",
            lambda: flows.curvature(flows.chain(), x[0]),
        ),
        (
            ValueError,
            "bijector must have times between its ends",
            lambda: flows.curvature(
                flows.continuous(velocity, solver=solvers.adaptive()), x[0]
            ),
        ),
    ]
    for error, message, call in cases:
        assert_raises(call, error, message)
