"""Argument errors name the argument, the value and what is accepted.

Traced values are let through.
"""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import checks, schedules, solvers
from tests.families import assert_raises

ERRORS = {
    "number, string": (
        lambda: checks.number("rho", "seven"),
        TypeError,
        "rho must be a real number, got 'seven'",
    ),
    "number, bool": (
        lambda: checks.number("rho", True),
        TypeError,
        "rho must be a real number, got True",
    ),
    "number, None": (
        lambda: checks.number("rho", None),
        TypeError,
        "rho must be a real number, got None",
    ),
    "number, complex": (
        lambda: checks.number("rho", 1j),
        TypeError,
        "rho must be a real number",
    ),
    "number, vector": (
        lambda: checks.number("rho", jnp.ones(2)),
        ValueError,
        r"rho must be a scalar, got shape \(2,\)",
    ),
    "number, NaN": (
        lambda: checks.number("rho", float("nan")),
        ValueError,
        "rho must be finite, got nan",
    ),
    "positive": (
        lambda: checks.positive("std", 0),
        ValueError,
        "std must be positive, got 0",
    ),
    "positive, array": (
        lambda: checks.positive("std", jnp.array(-1.0)),
        ValueError,
        "std must be positive, got -1",
    ),
    "non_negative": (
        lambda: checks.non_negative("eta", -0.1),
        ValueError,
        "eta must be 0 or more, got -0.1",
    ),
    "greater": (
        lambda: checks.greater("beta_max", 0.05, "beta_min", 0.1),
        ValueError,
        "beta_max must be greater than beta_min=0.1, got 0.05",
    ),
    "within": (
        lambda: checks.within("t_max", 1.5, 0.0, 1.0),
        ValueError,
        r"t_max must lie in \[0.0, 1.0\], got 1.5",
    ),
    "integer, float": (
        lambda: checks.integer("steps", 2.0, 1),
        TypeError,
        "steps must be an integer, got 2.0",
    ),
    "integer, bool": (
        lambda: checks.integer("steps", True, 1),
        TypeError,
        "steps must be an integer, got True",
    ),
    "integer, low": (
        lambda: checks.integer("steps", 0, 1),
        ValueError,
        "steps must be at least 1, got 0",
    ),
    "integer, high": (
        lambda: checks.integer("order", 4, 1, 3),
        ValueError,
        "order must be between 1 and 3, got 4",
    ),
    "choice": (
        lambda: checks.choice("kind", "x", ["a", "b"]),
        ValueError,
        "kind must be one of 'a', 'b'; got 'x'",
    ),
    "shape": (
        lambda: checks.one_of_shapes("x", np.ones(3), [(2,), (2, 2)]),
        ValueError,
        r"x must have shape \(2,\) or \(2, 2\), got \(3,\)$",
    ),
    "shape of what holds no numbers": (
        lambda: checks.one_of_shapes("x", "name", [(2,)]),
        TypeError,
        "x must be an array of real numbers, got .*name",
    ),
    "shape of a key": (
        lambda: checks.one_of_shapes("x", jax.random.key(0), [(2,)]),
        TypeError,
        "x must be an array of real numbers, got Array.*key",
    ),
    "shape of lists of several lengths": (
        lambda: checks.one_of_shapes("x", [[1.0], [1.0, 2.0]], [(2,)]),
        TypeError,
        "x must be an array of real numbers, got",
    ),
    "number of lists of several lengths": (
        lambda: checks.number("beta", [[1.0], [1.0, 2.0]]),
        TypeError,
        "beta must be an array of real numbers, got",
    ),
    "choice by an array": (
        lambda: checks.choice("kind", np.array(["a", "b"]), ["a", "b"]),
        ValueError,
        "kind must be one of 'a', 'b'; got array",
    ),
    "shape of a batch": (
        lambda: checks.one_of_shapes("x", np.ones((3, 2)), [(2,)]),
        ValueError,
        (
            r"x must have shape \(2,\), got \(3, 2\) \(one example: use jax.vmap for a "
            r"batch\)"
        ),
    ),
    "all_positive": (
        lambda: checks.all_positive("var", np.array([1.0, -2.0])),
        ValueError,
        "var must be positive, got -2 in entry 1",
    ),
    "all_non_negative": (
        lambda: checks.all_non_negative("p", np.array([1.0, -2.0])),
        ValueError,
        "p must be 0 or more, got -2 in entry 1",
    ),
    "all_within": (
        lambda: checks.all_within("sigmas", np.array([1.0, np.nan]), 1e-15, 1e15),
        ValueError,
        r"sigmas must lie in \[1e-15, 1e\+15\], got nan in entry 1",
    ),
    "all_greater": (
        lambda: checks.all_greater("upper", np.zeros(1), "lower", np.ones(1)),
        ValueError,
        r"upper must exceed lower everywhere, got lower \[1.0\], upper \[0.0\]",
    ),
    "increasing": (
        lambda: checks.increasing("levels", np.array([0.0, 2.0, 1.0])),
        ValueError,
        "levels must increase, got 1.0 after 2.0 at index 2",
    ),
    "probabilities": (
        lambda: checks.probabilities("weights", np.array([0.5, 0.6])),
        ValueError,
        r"weights must be positive and sum to 1, got .* with sum 1.1",
    ),
    "axes": (
        lambda: checks.axes("means", np.ones(3), "(K, D)"),
        ValueError,
        r"means must have shape \(K, D\), got \(3,\)",
    ),
    "column": (
        lambda: checks.column("levels", np.ones(1), "K", 2),
        ValueError,
        r"levels must have shape \(K,\) with K at least 2, got \(1,\)",
    ),
    "scalar_of": (
        lambda: checks.scalar_of("log_prob", np.ones(3)),
        ValueError,
        r"log_prob must return a scalar, got shape \(3,\)",
    ),
    "callables": (
        lambda: checks.callables("encoders", [], 1),
        TypeError,
        r"encoders must be a sequence of callables, got \[\]",
    ),
    "as_many": (
        lambda: checks.as_many("decoders", [1], "encoders", [1, 2]),
        ValueError,
        "decoders must be as many as encoders, 2, got 1",
    ),
    "increasing row": (
        lambda: checks.increasing("knots", np.array([[0.0, 1.0], [3.0, 2.0]])),
        ValueError,
        r"knots must increase, got 2.0 after 3.0 at index 1 of row \[1\]",
    ),
    "between": (
        lambda: checks.between("floor", 1, 0, 1),
        ValueError,
        r"floor must lie in \(0, 1\), got 1.0",
    ),
    "all_between": (
        lambda: checks.all_between("y", np.array([0.5, np.nan]), 0.0, np.inf),
        ValueError,
        r"y must lie in \(0.0, inf\), got nan in entry 1",
    ),
    "each": (
        lambda: checks.each("sizes", (1, 0), checks.integer, 1),
        ValueError,
        r"sizes\[1\] must be at least 1, got 0",
    ),
    "attributes": (
        lambda: checks.attributes(types.SimpleNamespace(width=0), width=checks.even),
        ValueError,
        "width must be between 2 and 65536, got 0",
    ),
    "finite_batch": (
        lambda: checks.finite_batch("batch", np.ones((1, 2)), 2),
        ValueError,
        r"batch must have shape \(N, ...\) with N at least 2, got \(1, 2\)",
    ),
    "real_shaped": (
        lambda: checks.real_shaped("t", np.ones(2), ()),
        ValueError,
        r"t must have shape \(\), got \(2,\) \(one example: use jax.vmap",
    ),
    "known": (
        lambda: jax.jit(lambda x: checks.known("mask", x, "(it is static)"))(1.0),
        TypeError,
        r"mask must be concrete \(it is static\), got traced values",
    ),
    "distribution": (
        lambda: checks.distribution("base", 1.0),
        TypeError,
        r"base must have log_prob\(x\) and sample\(key\), got 1.0",
    ),
    "each of none": (
        lambda: checks.each("scales", [], checks.number, least=1),
        ValueError,
        "scales must hold at least one, got none",
    ),
    "last_axis": (
        lambda: checks.last_axis("x", np.ones((2, 3)), 2),
        ValueError,
        r"x must have 2 channels on its last axis, got shape \(2, 3\)",
    ),
    "broadcastable": (
        lambda: checks.broadcastable("shift", np.ones((2, 1)), np.ones(2)),
        ValueError,
        r"shift of shape \(2, 1\) must be broadcastable .*, got \(2,\)",
    ),
    "image": (
        lambda: checks.image("x", (4, 3, 1), "factor", 2),
        ValueError,
        r"x must be \(H, W, C\) with sides divisible by factor=2, got \(4, 3, 1\)",
    ),
    "index": (
        lambda: checks.index("index", 4, 3),
        ValueError,
        "index must be between 1 and 3, got 4",
    ),
    "instance": (
        lambda: checks.instance("prior", "x", float, "a float"),
        TypeError,
        "prior must be a float, got 'x'",
    ),
    "finite": (
        lambda: checks.finite("data", np.array([1.0, np.nan, np.inf])),
        ValueError,
        "data must be finite, got 2 NaN or infinite entries of 3",
    ),
    "real_array, complex": (
        lambda: checks.real_array("x", np.ones(2, complex)),
        TypeError,
        "x must be real, got dtype",
    ),
    "real_array, string": (
        lambda: checks.real_array("x", "abc"),
        TypeError,
        "x must be an array of real numbers",
    ),
    "key, old": (
        lambda: checks.key("key", jax.random.PRNGKey(0)),
        TypeError,
        "key must be a typed key.* uint32",
    ),
    "key, seed": (
        lambda: checks.key("key", 0),
        TypeError,
        "key must be a typed key.* got 0",
    ),
    "key, many": (
        lambda: checks.key("key", jax.random.split(jax.random.key(0))),
        ValueError,
        r"got shape \(2,\)",
    ),
    "number, an integer beyond float64": (
        lambda: checks.number("step", 10**400),
        ValueError,
        "step must be finite in float64, got an integer of 1329 bits",
    ),
    "arrays": (
        lambda: checks.arrays("condition", {"a": 2**70}),
        TypeError,
        "condition must be a pytree of arrays",
    ),
    "integers": (
        lambda: checks.integers("indices", [0.5]),
        TypeError,
        "indices must be integers, got dtype float",
    ),
    "made_by": (
        lambda: checks.made_by("history", 3, tuple, "loss_history"),
        TypeError,
        "history must be made by loss_history, got int",
    ),
    "key of noise": (
        lambda: dj.noise.normal(3, 0, (2,)),
        TypeError,
        "key must be a typed key.* got 3",
    ),
    "shape of noise, too large": (
        lambda: dj.noise.normal(jax.random.key(0), 0, (2**31, 2)),
        ValueError,
        "shape must have at most 2147483648 entries",
    ),
    "dtype of noise": (
        lambda: dj.noise.normal(jax.random.key(0), 0, (2,), int),
        TypeError,
        "dtype must be a floating type, got int",
    ),
    "dtype of noise, unknown": (
        lambda: dj.noise.normal(jax.random.key(0), 0, (2,), "float31"),
        TypeError,
        "dtype must be a floating type, got 'float31'",
    ),
    "counter of noise": (
        lambda: dj.noise.normal(jax.random.key(0), 0.5, (2,)),
        TypeError,
        r"counter must be an integer of shape \(\), got 0.5",
    ),
    "a condition too large": (
        lambda: dj.guidance.drop_condition(jax.random.key(0), 2**70, 0),
        TypeError,
        "condition must be a pytree of arrays",
    ),
    "an argument of a compiled function": (
        lambda: dj.predictions.scalings(2**40, sigma_data=0.5),
        ValueError,
        "sigma must hold no integer of more than 32 bits, got 1099511627776",
    ),
    "decay of the average": (
        lambda: dj.training.ema_decay_at(3, 10**30),
        ValueError,
        r"ema_decay must lie in \[0.0, 1.0\], got 1e\+30",
    ),
    "callable": (
        lambda: checks.callable_("net", 3, "net(x, t)"),
        TypeError,
        r"net must be callable as net\(x, t\), got 3",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_raises_by_name_and_value(name):
    assert_raises(*ERRORS[name])


@checks.arguments(
    count=(checks.integer, 1),
    scale=checks.positive,
    key=checks.optional(checks.key),
)
def decorated(x, count, *, scale=1.0, key=None):
    """Its arguments as the checks leave them."""
    return x, count, scale, key


def test_a_decorator_checks_arguments_however_they_are_passed():
    """Values are replaced by those of the checks, and defaults are left alone."""
    assert decorated("x", np.int64(2)) == ("x", 2, 1.0, None)
    assert type(decorated("x", count=np.int64(2))[1]) is int
    assert decorated(count=1, x="x", scale=2) == ("x", 1, 2.0, None)
    for call, error, message in (
        (lambda: decorated(0, 0), ValueError, "count must be at least 1, got 0"),
        (lambda: decorated(0, count=1.5), TypeError, "count must be an integer, got"),
        (lambda: decorated(0, 1, scale=-1), ValueError, "scale must be positive"),
        (lambda: decorated(0, 1, key=3), TypeError, "key must be a typed key"),
        (lambda: decorated(0), TypeError, r"decorated\(\) missing 1 required"),
        (lambda: decorated(0, 1, 2.0), TypeError, r"decorated\(\) takes 2 positional"),
    ):
        with pytest.raises(error, match=message):
            call()


def test_a_decorator_names_a_check_of_no_argument():
    with pytest.raises(ValueError, match="decorated has no arguments {'steps'}"):
        checks.arguments(steps=checks.positive)(decorated)


def test_accepted_values_come_back():
    array = jnp.array(2.0)
    assert checks.number("n", array) is array
    assert checks.number("n", np.float32(0.5)) == 0.5 and isinstance(
        checks.number("n", 2), float
    )
    assert (
        checks.integer("n", np.int64(3), 1, 3) == 3
        and type(checks.integer("n", np.int64(3), 1)) is int
    )
    assert checks.within("n", 1.0, 0.0, 1.0) == 1.0  # ends included
    assert checks.non_negative("n", 0) == 0.0
    key = jax.random.key(3)
    assert checks.key("key", key) is key


def test_traced_values_are_checked_by_shape_alone():
    """Under jit a negative std passes (its value is unknown), a vector does not."""
    assert jax.jit(lambda s: checks.positive("std", s))(-1.0) == -1.0
    with pytest.raises(ValueError, match=r"std must be a scalar, got shape \(2,\)"):
        jax.jit(lambda s: checks.positive("std", s))(jnp.ones(2))


@pytest.mark.parametrize("dtype", ["int32", "bfloat16", "float16", "float32", "bool"])
def test_real_array_promotes_to_float32_at_least(dtype):
    array = checks.real_array("x", jnp.ones(2, dtype))
    assert array.dtype == jnp.float32
    np.testing.assert_array_equal(array, [1.0, 1.0])


def test_real_array_keeps_float64(x64):
    assert checks.real_array("x", np.ones(2)).dtype == jnp.float64
    assert checks.real_array("x", np.ones(2, np.float32)).dtype == jnp.float32


def test_concrete_arrays_are_inspected_inside_jit_too():
    """A constant's comparison would be traced there: it is read as a number instead."""
    scale = jnp.array(-1.0)

    def run(x):
        return x * checks.positive("scale", scale)

    with pytest.raises(ValueError, match="scale must be positive, got -1"):
        jax.jit(run)(1.0)


def test_a_traced_condition_passes():
    @jax.jit
    def double(x):
        checks.require(x > 0, "x must be positive")
        return 2 * checks.increasing("x", x)

    assert double(-1.0) == -2


def test_warnings_point_at_the_line_of_the_caller():
    """However many decorators and functions of the package stand between."""
    velocity = lambda x, t: jnp.sin(40 * x / t)
    solver = solvers.adaptive(1e-6, 1e-6, max_steps=4)
    x, ts = jnp.ones(1), jnp.array([1.0, 0.01])
    with pytest.warns(RuntimeWarning, match="step limit") as record:
        solvers.integrate(None, solver, velocity, x=x, ts=ts)
    assert record[0].filename == __file__
    denoiser = lambda x, t: jnp.sin(40 * x / t)
    with pytest.warns(RuntimeWarning, match="step limit") as record:
        dj.encode(denoiser, schedules.edm(), x, solver=solver)
    assert record[0].filename == __file__
