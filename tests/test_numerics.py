"""Arithmetic that naive code gets wrong, against exact or independent values."""

import decimal
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import numerics
from tests.families import EPS32, EPS64, quick


def exact_phi(order, z):
    """Σ_j z^j / (j + k)! in 60-digit decimals: the sum cancels by e^{2|z|} <
    10^27 at most.
    """
    with decimal.localcontext(prec=60):
        z = decimal.Decimal(float(z))
        term = decimal.Decimal(1) / math.factorial(order)
        total = decimal.Decimal(0)
        for j in range(1, 250):
            total += term
            term *= z / (order + j)
        return float(total)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_phi_to_rounding(dtype):
    """Relative error of a few ulp from 1e-6 to 30, both signs and both sides
    of the switch from series to recurrence.
    """
    with jax.enable_x64(dtype == "float64"):
        switches = np.arange(1, 6)[:, None] * (1 + np.array([-1e-6, 0, 1e-6]))
        sizes = np.concatenate([np.geomspace(1e-6, 30, 60), switches.ravel()])
        z = np.concatenate([sizes, -sizes]).astype(dtype)
        results = jax.jit(lambda z: [numerics.phi(order, z) for order in range(6)])(z)
        for order, result in enumerate(results):
            exact = np.array([exact_phi(order, value) for value in z])
            # each stage of the recurrence rounds once or twice, and cancels by less
            # than 2 outside |z| < k
            np.testing.assert_allclose(
                np.asarray(result, np.float64),
                exact,
                rtol=4 * (order + 1) * np.finfo(dtype).eps,
            )


def test_phi_recurrence_and_limits(x64):
    """φ_k(0) = 1/k!, z φ_k = φ_{k−1} − 1/(k−1)!, φ_1′ = φ_1 − φ_2, with finite
    gradients at 0.
    """
    z = np.array([-20.0, -2.5, -0.5, 0.5, 2.5, 20.0, 0.0])
    slopes = jax.vmap(
        lambda u: [jax.grad(lambda v: numerics.phi(k, v))(u) for k in (1, 3)]
    )
    phi, slopes = quick(lambda z: ([numerics.phi(k, z) for k in range(6)], slopes(z)))(
        z
    )
    for k in range(1, 6):
        assert float(phi[k][-1]) == pytest.approx(1 / math.factorial(k), rel=EPS64)
        np.testing.assert_allclose(
            z * phi[k],
            phi[k - 1] - 1 / math.factorial(k - 1),
            rtol=1e-13,
            atol=16 * EPS64,
        )
    np.testing.assert_allclose(
        slopes[0], np.asarray(phi[1]) - np.asarray(phi[2]), rtol=1e-12
    )
    assert float(slopes[1][-1]) == pytest.approx(1 / 24, rel=4 * EPS64)


def test_phi_raises_on_bad_orders():
    with pytest.raises(ValueError, match="order must be between 0 and 30, got -1"):
        numerics.phi(-1, 0.0)


def test_log_expm1_at_both_ends():
    """log(e^x − 1) in float32 from 1e-6 (where it is log x) to 300 (where e^x
    overflows).
    """
    x = np.geomspace(1e-6, 300, 100).astype(np.float32)
    exact = x.astype(np.float64) + np.log(-np.expm1(-x.astype(np.float64)))
    np.testing.assert_allclose(
        numerics.log_expm1(x), exact, rtol=4 * EPS32, atol=4 * EPS32
    )


# ----------------------------------------------------------------- normal probabilities


# ------------------------------------------------------------------ traces of Jacobians


def field(x):
    """A nonlinear field on (2, 3) with a full Jacobian."""
    mixed = jnp.tanh(x @ jnp.arange(9.0).reshape(3, 3) / 9) + x[::-1] * x
    return mixed + jnp.sum(x)


def test_divergence_is_the_trace_of_the_jacobian(x64):
    x = np.random.default_rng(1).standard_normal((2, 3))
    parts = quick(
        lambda x: (*numerics.divergence(field, x), field(x), jax.jacfwd(field)(x))
    )(x)
    value, trace, expected, jacobian = map(np.asarray, parts)
    np.testing.assert_allclose(value, expected, rtol=1e-15)
    assert float(trace) == pytest.approx(np.trace(jacobian.reshape(6, 6)), rel=1e-13)


def test_hutchinson_of_every_sign_pattern_has_the_stated_mean_and_variance(x64):
    """Over all 2⁶ Rademacher probes the mean is tr J and the variance 2
    Σ_{i≠j} S_ij², S the symmetric part: exactly.
    """
    x = np.random.default_rng(1).standard_normal((2, 3))
    signs = np.stack(np.meshgrid(*[[-1.0, 1.0]] * 6), -1).reshape(-1, 2, 3)
    parts = quick(
        lambda x: (
            *numerics.hutchinson(field, x, signs),
            field(x),
            jax.jacfwd(field)(x),
        )
    )(x)
    value, estimates, expected, jacobian = map(np.asarray, parts)
    jacobian = jacobian.reshape(6, 6)
    symmetric = 0.5 * (jacobian + jacobian.T)
    off_diagonal = symmetric - np.diag(np.diag(symmetric))
    np.testing.assert_allclose(value, expected, rtol=1e-15)
    np.testing.assert_allclose(estimates.mean(), np.trace(jacobian), rtol=1e-12)
    np.testing.assert_allclose(estimates.var(), 2 * np.sum(off_diagonal**2), rtol=1e-12)


def test_hutchinson_is_exact_for_a_diagonal_jacobian(x64):
    rng = np.random.default_rng(2)
    x, probes = rng.standard_normal(5), rng.choice([-1.0, 1.0], (4, 5))
    _, estimates = quick(lambda x: numerics.hutchinson(jnp.sin, x, probes))(x)
    np.testing.assert_allclose(estimates, np.full(4, np.sum(np.cos(x))), rtol=1e-14)


def test_hutchinson_with_gaussian_probes_has_variance_twice_the_frobenius_norm(x64):
    rng, count = np.random.default_rng(4), 40_000
    matrix, probes = rng.standard_normal((4, 4)), rng.standard_normal((count, 4))
    _, estimates = quick(
        lambda x, probes: numerics.hutchinson(lambda x: matrix @ x, x, probes)
    )(np.zeros(4), probes)
    variance = 2 * np.sum((0.5 * (matrix + matrix.T)) ** 2)
    centred = np.asarray(estimates) - np.trace(matrix)
    assert abs(centred.mean()) < 4 * math.sqrt(variance / count)
    standard_error = np.std(centred**2) / math.sqrt(count)
    assert abs(np.mean(centred**2) - variance) < 4 * standard_error


# ------------------------------------------------------------- dequantisation, bits/dim


def test_float_dtype():
    assert numerics.float_dtype(jnp.ones(2, jnp.bfloat16), 3) == jnp.float32
    with jax.enable_x64(True):
        assert numerics.float_dtype(jnp.ones(2, jnp.bfloat16)) == jnp.float64
