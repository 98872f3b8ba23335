"""Continuous flows against closed forms and autodiff."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm

import diffjax as dj
from diffjax import flows, solvers, targets
from diffjax.types import pytree
from tests.families import assert_raises, every

MATRIX, SHIFT = np.array([[0.3, -0.5], [0.9, 0.2]]), np.array([0.4, -0.7])


@pytree
class Flow:
    """A base and a bijector."""

    base: Any
    bijector: Any


def growing(matrix, x, t):
    """u = e^t (A x + A b): x + b grows by exp(A (e^t − e^s)) from s to t."""
    return jnp.exp(t) * matrix @ (x + jnp.asarray(SHIFT))


def linear(scale=1.0):
    return jax.tree_util.Partial(growing, jnp.asarray(scale * MATRIX))


def closed_form(x0):
    """(x_1, log|det ∂x_1/∂x_0|) of the linear velocity."""
    span = np.exp(1.0) - 1
    return expm(span * MATRIX) @ (x0 + SHIFT) - SHIFT, span * np.trace(MATRIX)


def normal_log_prob(z):
    """Of N(0, I) in two dimensions, along the last axis."""
    return -0.5 * np.sum(np.square(z), -1) - np.log(2 * np.pi)


def turning(x, t):
    """A rotation whose angle depends on the radius: the Jacobian is not symmetric."""
    angle = jnp.sin(jnp.sum(x**2)) * (1 + t)
    return angle * jnp.stack([-x[1], x[0]])


def squeezing(x, t):
    return jnp.tanh(jnp.roll(x.reshape(-1), 1) * (1 + t) + x.reshape(-1)).reshape(
        x.shape
    )


def steered(x, t, condition):
    return jnp.tanh(x * condition["gain"] + 0.4 * x[::-1]) + t * condition["shift"]


CONDITION = {"gain": np.array([0.8, -1.2]), "shift": np.array([0.3, 1.0])}
MEMBERS = {
    "linear": (linear, (2,), None),
    "turning": (lambda: turning, (2,), None),
    "squeezing": (lambda: squeezing, (3,), None),
    "image": (lambda: squeezing, (2, 1, 2), None),
    "steered": (lambda: steered, (2,), CONDITION),
}
"""name -> (velocity, shape, condition)."""


@pytree
class Window:
    """A velocity from start to start + span, in unit time."""

    velocity: Any
    start: Any
    span: Any

    def __call__(self, x, t, *condition):
        return self.span * self.velocity(x, self.start + self.span * t, *condition)


def refined(velocity, steps, solver=None):
    """Flows of `steps` and of twice as many steps, on a leading axis.

    One program serves both: two layers are the whole interval and nothing, or
    its upper and its lower half.
    """

    def layers(windows):
        velocities = [
            Window(jax.tree_util.Partial(velocity), float(a), float(h))
            for a, h in windows
        ]
        return flows.stack(
            [flows.continuous(window, steps, solver) for window in velocities]
        )

    pair = layers([(0.0, 1.0), (0.0, 0.0)]), layers([(0.5, 0.5), (0.0, 0.5)])
    return jax.tree.map(lambda *leaves: np.stack(leaves), *pair)


@pytest.mark.parametrize("name", every(MEMBERS, ("steered",)))
def test_log_determinants_are_those_of_autodiff_in_both_directions(name, x64):
    """log|det J| by the trace tends to autodiff's of the solver's map.

    So does the round trip to the identity. Both errors fall at the solver's
    order, by at least 2^3.5 from 8 to 16 steps of order 4, or are rounding,
    inside the data and far out.
    """
    make, shape, condition = MEMBERS[name]
    draws = np.random.default_rng(0).standard_normal((3, *shape))
    draws *= np.array([0.5, 1.0, 4.0]).reshape(3, *[1] * len(shape))
    size = int(np.prod(shape))

    def errors(bijector, x):
        back, out = {}, {}
        for direction, other, store in (
            ("forward", "inverse", out),
            ("inverse", "forward", back),
        ):
            y, log_det = getattr(bijector, f"{direction}_and_log_det")(x, condition)
            jacobian = jax.jacfwd(getattr(bijector, direction))(x, condition).reshape(
                size, size
            )
            store["log_det"] = jnp.abs(log_det - jnp.linalg.slogdet(jacobian)[1])
            store["trip"] = jnp.max(jnp.abs(getattr(bijector, other)(y, condition) - x))
        return jnp.stack([*out.values(), *back.values()])

    all_errors = jax.vmap(jax.vmap(errors, (None, 0)), (0, None))
    coarse, fine = np.asarray(jax.jit(all_errors)(refined(make(), 8), draws))
    assert np.all((fine < coarse / 2**3.5) | (fine < 1e-7)), (coarse, fine)
    assert np.all(fine < 1e-2)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_the_density_is_the_closed_form_at_the_solvers_order(dtype, x64):
    """log p of the linear flow of N(0, I) converges at the solver's order.

    Errors fall by 2^p within 2^0.4, Euler 1, Heun 2, RK4 4, down to rounding.
    """
    x = np.array([0.4, -0.6], dtype)
    latent, log_det = closed_form(np.asarray(x, np.float64))
    exact = normal_log_prob(latent) + log_det
    if (
        dtype == jnp.float32
    ):  # promoted to the working precision, so that only x's own digits are lost
        z, ld = flows.continuous(linear(), 64).inverse_and_log_det(x)
        assert abs(normal_log_prob(z) + ld - exact) < 1e-6
        return
    tried = {
        solver: refined(linear(), 32, solver)
        for solver in (solvers.euler(), solvers.heun(), solvers.rk4())
    }
    solve = jax.vmap(lambda bijector: bijector.inverse_and_log_det(x))
    for solver, (z, ld) in zip(
        tried,
        jax.jit(lambda pairs: list(map(solve, pairs)))(list(tried.values())),
        strict=True,
    ):
        errors = np.abs(normal_log_prob(z) + ld - exact)
        order = np.log2(errors[0] / errors[1])
        assert abs(order - solver.order) < 0.4, (solver, order)
    adaptive = flows.continuous(linear(), solver=solvers.adaptive(1e-9, 1e-9))
    assert adaptive.times == (1.0, 0.0)
    solved = flows.transport(adaptive, x)
    np.testing.assert_allclose(
        normal_log_prob(solved.x) + solved.log_det, exact, atol=1e-7
    )
    assert int(solved.run.evaluations) == 1 + 6 * int(
        solved.run.accepted + solved.run.rejected
    )


def test_float32_holds_the_density_to_rounding():
    """Twenty steps of RK4 in float32 are off by less than 1e-5 nats.

    80 evaluations round by 6e-8 each.
    """
    x = np.float32([0.4, -0.6])
    z, ld = flows.continuous(linear(0.5), 20).inverse_and_log_det(x)
    span = 0.5 * (np.exp(1.0) - 1)
    latent = expm(span * MATRIX) @ (np.asarray(x, np.float64) + SHIFT) - SHIFT
    np.testing.assert_allclose(
        normal_log_prob(z) + ld,
        normal_log_prob(latent) + span * np.trace(MATRIX),
        atol=1e-5,
    )


def test_probes_are_unbiased_and_held_fixed_through_the_solve(x64):
    """Over 400 keys log-determinant and squared Jacobian are exact on average.

    Their means are within 4 standard errors. For a linear velocity a probe's
    log-determinant is (e − 1) εᵀAε, which takes two values only. So it cannot
    have been drawn anew in each step. The error of 64 probes is reported.
    """
    bijector, x = flows.continuous(linear(), 8), np.array([0.2, -0.4])
    keys = jax.random.split(jax.random.key(0), 400)
    run = jax.jit(jax.vmap(lambda key: flows.transport(bijector, x, key=key)))(keys)
    single = jax.tree.map(np.asarray, run)
    exact = {
        "log_det": (np.e - 1) * np.trace(MATRIX),
        "jacobian": np.sum(MATRIX**2) * (np.exp(2) - 1) / 2,
    }
    for name, value in exact.items():
        values = getattr(single, name)
        assert abs(values.mean() - value) < 4 * np.std(values) / 20 + 1e-9, name
    expected = (np.e - 1) * (
        np.trace(MATRIX) + np.array([-1, 1]) * (MATRIX[0, 1] + MATRIX[1, 0])
    )
    np.testing.assert_allclose(
        np.unique(np.round(single.log_det, 5)), np.sort(expected), atol=1e-4
    )
    several = flows.transport(bijector, x, key=keys[0], probes=64)
    np.testing.assert_allclose(
        several.standard_error, np.std(single.log_det) / 8, rtol=0.3
    )
    assert np.all(np.isnan(single.standard_error))


def test_the_regularisers_are_the_integrals_along_the_path(x64):
    """∫‖u‖² dt and ∫‖∂u/∂x‖_F² dt of the linear velocity, the same from either
    end.

    By Gauss–Legendre on the closed path, with ∫ e^{2t} ‖A‖_F² dt = ‖A‖_F² (e²
    − 1)/2.
    """
    bijector, x0 = flows.continuous(linear(), 64), np.array([0.2, -0.4])
    up = flows.transport(bijector, x0)
    down = flows.transport(bijector, up.x, upwards=False)
    nodes, weights = np.polynomial.legendre.leggauss(24)
    times = 0.5 * (nodes + 1)

    def speed(t):
        return np.sum(
            (np.exp(t) * MATRIX @ expm((np.exp(t) - 1) * MATRIX) @ (x0 + SHIFT)) ** 2
        )

    kinetic = 0.5 * weights @ [speed(t) for t in times]
    jacobian = np.sum(MATRIX**2) * (np.exp(2) - 1) / 2
    for solved in (up, down):
        np.testing.assert_allclose(solved.kinetic, kinetic, rtol=1e-6)
        np.testing.assert_allclose(solved.jacobian, jacobian, rtol=1e-6)
        assert solved.standard_error == 0
        assert (
            int(solved.run.evaluations) == 256
        )  # four a step, the last one, which ends at 0, like the others
    np.testing.assert_allclose(down.log_det, -up.log_det, rtol=1e-6)


def test_gradients_are_those_of_the_closed_form_with_checkpoints_and_without(x64):
    """d/dA of the mean log p equals that of the formula.

    Checkpoints change neither value nor gradient. They keep the memory of the
    backward pass from growing with the values that the velocity computes in
    each stage.
    """
    xs = np.random.default_rng(0).standard_normal((5, 2))
    base = targets.gaussian(np.zeros(2), 1.0)

    def exact(matrix):
        span = np.exp(1.0) - 1
        latents = (xs + SHIFT) @ jax.scipy.linalg.expm(span * matrix).T - SHIFT
        return (
            -jnp.mean(jax.vmap(base.log_prob)(latents) + span * jnp.trace(matrix)) / 2
        )

    def loss(matrix):
        bijector = flows.continuous(jax.tree_util.Partial(growing, matrix), 32)
        return flows.transport_loss(None, Flow(base, bijector), xs)[0]

    both = jax.jit(
        lambda matrix: [jax.value_and_grad(f)(matrix) for f in (exact, loss)]
    )
    (value, gradient), ours = both(MATRIX)
    np.testing.assert_allclose(ours[0], value, atol=1e-6)
    np.testing.assert_allclose(ours[1], gradient, atol=1e-5)

    weights = np.random.default_rng(1).standard_normal((2, 256)) / 16

    def compiled(checkpoint):
        def total(weights):
            velocity = jax.tree_util.Partial(
                lambda w, x, t: jnp.tanh(w @ jnp.tanh(w.T @ x + t)), weights
            )
            bijector = flows.continuous(
                velocity, 64, solvers.heun(), checkpoint=checkpoint
            )
            return bijector.inverse_and_log_det(np.ones(2))[1]

        return jax.jit(jax.value_and_grad(total)).lower(weights).compile()

    lean, plain = compiled(True), compiled(False)
    assert (
        lean.memory_analysis().temp_size_in_bytes
        < plain.memory_analysis().temp_size_in_bytes / 8
    )
    for one, other in zip(lean(weights), plain(weights), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)


def test_the_loss_adds_the_regularisers_and_gives_each_example_its_own_probe(x64):
    flow = Flow(targets.gaussian(jnp.zeros(2), 1.0), flows.continuous(linear(), 8))
    xs = np.tile([0.3, -0.2], (16, 1))
    plain, solved = flows.transport_loss(None, flow, xs)
    dear, _ = flows.transport_loss(None, flow, xs, kinetic=0.2, jacobian=0.3)
    np.testing.assert_allclose(
        dear - plain,
        (0.2 * solved.kinetic[0] + 0.3 * solved.jacobian[0]) / 2,
        rtol=1e-12,
    )
    _, probed = flows.transport_loss(jax.random.key(0), flow, xs)
    assert len(np.unique(np.round(probed.log_det, 6))) == 2


def test_it_is_a_density_and_a_neural_flow_starts_as_the_identity():
    """Quadrature of e^{log p} over the plane is 1, for a nonlinear velocity.

    The network's flow is the identity at first, with a condition too, and all
    its leaves are inexact arrays.
    """
    bijector = flows.continuous(lambda x, t: -squeezing(x, t), 12)
    points = np.linspace(-6, 6, 61, dtype=np.float32)
    grid = np.stack(np.meshgrid(points, points), -1).reshape(-1, 2)
    z, ld = jax.jit(jax.vmap(bijector.inverse_and_log_det))(grid)
    total = np.sum(np.exp(normal_log_prob(z) + ld)) * 0.2**2
    np.testing.assert_allclose(total, 1.0, atol=2e-3)
    x, condition = np.float32([0.4, -1.0, 0.2]), np.ones(2, np.float32)
    neural = flows.neural_ode(
        jax.random.key(0), (3,), width=8, depth=1, steps=2, condition_dim=2
    )
    y, log_det = neural.forward_and_log_det(x, condition)
    np.testing.assert_array_equal(y, x)
    assert log_det == 0
    leaves = jax.tree.leaves(neural)
    assert leaves and all(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves)
    assert neural.path(x, condition).shape == (3, 3)
    make = functools.partial(
        flows.neural_ode, shape=(3,), width=8, depth=1, steps=2, condition_dim=2
    )
    other = jax.eval_shape(make, jax.random.key(1))
    assert jax.tree.structure(neural) == jax.tree.structure(
        other
    )  # they stack, and share compiled code


def test_the_flow_of_an_exact_denoiser_agrees_with_log_prob(x64):
    """The same solver on the same times as `dj.log_prob` gives the same
    density.

    The velocity is that of another schedule and interval.
    """
    schedule = dj.schedules.rectified_flow()
    target = targets.gaussian_mixture(
        [0.3, 0.7], [[-1.0, 0.5], [0.7, -0.4]], [0.4, 0.6]
    )
    denoiser = targets.denoiser(target, schedule)
    times = dj.grids.log_snr(schedule, 24)
    bijector = flows.continuous(
        dj.predictions.velocity(schedule, denoiser), times=times
    )
    x, base = jnp.array([0.5, 0.1]), target.noised(schedule, schedule.t_max)
    z, ld = bijector.inverse_and_log_det(x)
    ours = dj.log_prob(denoiser, schedule, x, grid=times, base=base)
    np.testing.assert_allclose(base.log_prob(z) + ld, ours, rtol=1e-9)


def test_bad_arguments_are_named():
    bijector, x = flows.continuous(linear(), 2), jnp.ones(2)
    flow, key = Flow(targets.gaussian(jnp.zeros(2), 1.0), bijector), jax.random.key(0)
    adaptive = flows.continuous(linear(), solver=solvers.adaptive())
    cases = [
        (TypeError, "velocity must be callable", lambda: flows.continuous(3.0)),
        (
            ValueError,
            "steps must be at least 1, got 0",
            lambda: flows.continuous(linear(), 0),
        ),
        (
            TypeError,
            "solver must consume a velocity, euler_maruyama consumes a sde",
            lambda: flows.continuous(linear(), solver=solvers.euler_maruyama()),
        ),
        (
            TypeError,
            "solver must consume a velocity, ddim",
            lambda: flows.continuous(linear(), solver=solvers.ddim()),
        ),
        (
            ValueError,
            "times must decrease",
            lambda: flows.continuous(linear(), times=[0.0, 1.0]),
        ),
        (
            ValueError,
            "times must be strictly monotone",
            lambda: flows.continuous(linear(), times=[1.0, 0.5, 0.5]),
        ),
        (
            TypeError,
            "checkpoint must be True or False",
            lambda: flows.continuous(linear(), checkpoint=1),
        ),
        (
            ValueError,
            "x must be finite, got 1 NaN",
            lambda: bijector.inverse(jnp.array([jnp.nan, 0.0])),
        ),
        (
            ValueError,
            r"velocity\(x, t\) must have shape \(2,\)",
            lambda: flows.continuous(lambda x, t: x[0]).forward(x),
        ),
        (
            TypeError,
            r"velocity\(x, t\) must be real, got dtype complex",
            lambda: flows.continuous(lambda x, t: 1j * x).forward(x),
        ),
        (
            ValueError,
            "probes must be at least 1, got 0",
            lambda: flows.transport(bijector, x, key=key, probes=0),
        ),
        (
            TypeError,
            "key must be a typed key",
            lambda: flows.transport(bijector, x, key=0),
        ),
        (
            TypeError,
            "bijector must be made by flows.continuous",
            lambda: flows.transport(linear(), x),
        ),
        (
            TypeError,
            "flow must have a base and a bijector",
            lambda: flows.transport_loss(None, bijector, x[None]),
        ),
        (
            ValueError,
            "kinetic must be 0 or more, got -1",
            lambda: flows.transport_loss(None, flow, x[None], kinetic=-1.0),
        ),
        (
            ValueError,
            "xs must be finite, got 2 NaN",
            lambda: flows.transport_loss(None, flow, x[None] * jnp.nan),
        ),
        (
            ValueError,
            r"xs must have shape \(N, ...\)",
            lambda: flows.transport_loss(None, flow, jnp.ones(())),
        ),
        (
            ValueError,
            r"condition must have leading axis 1 as xs, got shape \(2,\)",
            lambda: flows.transport_loss(None, flow, x[None], x),
        ),
        (
            TypeError,
            "adaptive solver has no reverse-mode derivative",
            lambda: jax.grad(lambda x: adaptive.inverse_and_log_det(x)[1])(x),
        ),
    ]
    for error, message, call in cases:
        assert_raises(call, error, message)
