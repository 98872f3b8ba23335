"""The midpoint rule reaches the exact integrals that it can, and names what it
cannot do.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import quadrature, targets


def test_log_z_of_densities_known_exactly(x64):
    """∫ p = 1 for a mixture in the plane and boxes aligned to cells, and log ∫
    e^{−x²/2s²} = log(s√2π) under jit.

    The Gaussians' error is e^{−2π²(s/h)²} < 1e-30 for cells h ≤ s/2 and tails
    beyond 8 standard deviations 1e-15. The boxes' edges are edges of cells, so
    that only rounding remains.
    """
    mixture = targets.gaussian_mixture(
        [0.4, 0.6], [[1.5, 0.0], [-1.0, 0.5]], [0.4, 0.7]
    )
    assert quadrature.log_integral(
        mixture.log_prob, [(-7, 7)] * 2, 128
    ) == pytest.approx(0, abs=1e-12)
    board = targets.checkerboard()
    assert quadrature.log_integral(
        board.log_prob, [(-5, 5)] * 2, 100, tolerance=None
    ) == pytest.approx(0, abs=1e-6)

    def log_z(s):
        return quadrature.log_integral(lambda x: -0.5 * (x / s) ** 2, (-20, 20), 128)

    value, slope = jax.jit(jax.value_and_grad(log_z))(1.5)
    assert value == pytest.approx(math.log(1.5 * math.sqrt(2 * math.pi)), abs=1e-12)
    assert slope == pytest.approx(1 / 1.5, abs=1e-12)


def test_integrals_have_the_function_s_shape(x64):
    """Second moments of N(0, diag(1, 4)): E[x xᵀ]."""
    density = targets.gaussian([0.0, 0.0], [1.0, 2.0])
    result = quadrature.integrate(
        lambda x: jnp.exp(density.log_prob(x)) * jnp.outer(x, x),
        [(-10, 10), (-20, 20)],
        64,
    )
    np.testing.assert_allclose(result, [[1, 0], [0, 4]], atol=1e-12)


@pytest.mark.parametrize(
    "log_density, bounds, message",
    [
        (
            lambda x: x**2,
            (-3, 3),
            (
                "must have decayed at the bounds, got a density at the lower bound -3 "
                "of axis 0"
            ),
        ),
        (lambda x: -jnp.log1p(x**2), (-9, 9), "must have decayed at the bounds"),
        (
            lambda x: -0.5 * jnp.sum(x[0] ** 2),
            [(-9, 9), (-9, 9)],
            "lower bound -9 of axis 1",
        ),
        (
            lambda x: -0.5 * (x / 0.01) ** 2,
            (-9, 9),
            "points must resolve log_density along axis 0, got 60",
        ),
        (
            lambda x: -jnp.log(jnp.abs(x)) - x**2,
            (-9, 9),
            "points must resolve log_density",
        ),
        (
            lambda x: jnp.log(x),
            (-9, 9),
            "log_density must be below infinity, got nan at -8.85, the first of 30",
        ),
        (
            lambda x: jnp.where(x > 0, jnp.inf, 0),
            (-9, 9),
            "must be below infinity, got inf",
        ),
        (
            lambda x: jnp.full_like(x, -jnp.inf),
            (-9, 9),
            "must be above -infinity somewhere within",
        ),
        (
            lambda x: -x[None],
            (-9, 9),
            r"log_density must return a scalar, got shape \(1,\)",
        ),
        (lambda x: -(x**2), (9, -9), "bounds must increase, got -9.0 after 9.0"),
        (lambda x: -(x**2), [(-1, 1)] * 3, "bounds must have shape"),
        (lambda x: -(x**2), (-np.inf, 9), "bounds must be finite"),
    ],
)
def test_raises(log_density, bounds, message):
    with pytest.raises(ValueError, match=message):
        quadrature.log_integral(log_density, bounds, 60)


def test_errors_call_the_density_by_the_name_given():
    for score, message in (
        (lambda x: x**2, "p must have decayed at the bounds"),
        (lambda x: -0.5 * (x / 0.01) ** 2, "points must resolve p along axis 0"),
        (jnp.log, "p must be below infinity, got nan"),
        (lambda x: -x[None], "p must return a scalar"),
    ):
        with pytest.raises(ValueError, match=message):
            quadrature.log_integral(score, (-9, 9), 60, name="p")
    with pytest.raises(TypeError, match="p must be callable"):
        quadrature.log_integral(3, (-9, 9), 60, name="p")


def test_other_arguments_are_named():
    with pytest.raises(TypeError, match="log_density must be callable"):
        quadrature.log_integral(3.0, (-1, 1))
    with pytest.raises(ValueError, match="points must be at least 6, got 5"):
        quadrature.rule((-1, 1), 5)
    with pytest.raises(ValueError, match="tolerance must be positive"):
        quadrature.log_integral(lambda x: -(x**2), (-9, 9), tolerance=0.0)
    with pytest.raises(ValueError, match="function must be finite, got nan at -0.99"):
        quadrature.integrate(jnp.log, (-1, 1), 100)
    with pytest.raises(
        TypeError, match="bounds must be an array of real numbers that is not traced"
    ):
        jax.jit(lambda b: quadrature.rule((0.0, b)).nodes)(1.0)
