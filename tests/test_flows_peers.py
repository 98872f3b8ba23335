"""Bijectors and coupling flows against those of flowjax and distrax, in float64.

`tests/golden/make_flows.py` made the file. Some of their bijectors have no counterpart
with the same parameters: distrax's circular splines, flowjax's block-autoregressive
networks, planar layers and those inverted by bisection.
"""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import flows
from diffjax.flows.conditioners import MaskedPerceptron
from experiments.bench_speed import flow_peers
from experiments.bench_speed.flow_peers import MAPS

ORDER = (2, 0, 3, 1)
"""y_i = x_{ORDER[i]}, of the permutation in the file."""


@functools.cache
def golden():
    """{LIBRARY/NAME: {key: array}} of the file."""
    runs = {}
    with np.load(pathlib.Path(__file__).parent / "golden" / "flows.npz") as arrays:
        for key in set(arrays) - {"versions"}:
            library, name, part = key.split("/", 2)
            runs.setdefault(f"{library}/{name}", {})[part] = arrays[key]
    return runs


def affine(p, number=""):
    return flows.affine(p["shift" + number], jnp.exp(p["log_scale" + number]))


def log_diagonal(p, floor):
    """d such that floor + e^d = e^{log_diagonal}."""
    return jnp.log(jnp.exp(p["log_diagonal"]) - floor)


def triangular(p):
    made = flows.triangular(4)
    return dataclasses.replace(
        made,
        below=p["below"],
        log_diagonal=log_diagonal(p, made.floor),
        shift=p["shift"],
    )


def lu(p):
    made = flows.lu_linear(4)
    factors = {
        "lower": p["lower"],
        "upper": p["upper"],
        "log_diagonal": log_diagonal(p, made.floor),
    }
    return flows.chain(dataclasses.replace(made, **factors), flows.affine(p["shift"]))


def masked_coupling(p):
    def conditioner(kept, condition):
        return (jax.nn.silu(kept @ p["w0"] + p["b0"]) @ p["w1"] + p["b1"]).reshape(4, 2)

    return flows.coupling(conditioner, MAPS["affine"], flows.checkerboard_mask())


def masked_autoregressive(kind):
    """One pass from the base: the inverse of our layer, with an inverted scalar map."""

    def make(p):
        turned = MAPS[kind]._replace(
            forward=MAPS[kind].inverse, inverse=MAPS[kind].forward
        )
        weights, biases = (p["w0"], p["wm"], p["w1"]), (p["b0"], p["bm"], p["b1"])
        network = MaskedPerceptron(weights, biases, None, turned.count)
        return flows.inverse(flows.autoregressive(network, turned))

    return make


def coupling_flow(kind):
    def make(p):
        shapes = jax.eval_shape(
            lambda: flow_peers.coupling_flow(kind, jax.random.key(0), 4, 4, 6)
        )
        return jax.tree.unflatten(
            jax.tree.structure(shapes), [p[part] for part in sorted(p)]
        )

    return make


OURS = {
    "affine": affine,
    "spline": lambda p: dataclasses.replace(
        flows.pointwise((4,), MAPS["spline"]), parameters=p["raw"]
    ),
    "triangular": triangular,
    "lu": lu,
    "masked_coupling": masked_coupling,
    "chain": lambda p: flows.chain(affine(p), flows.tanh(), affine(p, "2")),
    "inverse": lambda p: flows.inverse(triangular(p)),
    "tanh": lambda p: flows.tanh(),
    "sigmoid": lambda p: flows.sigmoid(),
    "positive": lambda p: flows.positive(),
    "exponential": lambda p: flows.exponential(),
    "permutation": lambda p: flows.permutation(ORDER),
    "masked_autoregressive affine": masked_autoregressive("affine"),
    "masked_autoregressive spline": masked_autoregressive("spline"),
    "coupling_flow affine": coupling_flow("affine"),
    "coupling_flow spline": coupling_flow("spline"),
}
"""name in the file -> (its parameters) -> our bijector, or flow."""


def test_every_bijector_in_the_file_has_its_counterpart():
    assert {run.split("/")[1] for run in golden()} == set(OURS)


@functools.partial(jax.jit, static_argnums=(0, 1))
def everything(name, is_flow, parameters, x, y):
    """Ours at the file's points, and f⁻¹ a step to either side of each y."""
    made = OURS[name](parameters)
    bijector = made.bijector if is_flow else made
    backward = jax.vmap(bijector.inverse_and_log_det)
    forward, back = (
        jax.vmap(bijector.forward_and_log_det)(x),
        backward(jnp.concatenate([y[::-1], *beside(y)])),
    )
    log_prob = jax.vmap(made.log_prob)(y) if is_flow else None
    return (*forward, *(part[: len(y)] for part in back), log_prob), [
        part[len(y) :] for part in back
    ]


STEP = 1e-6


def beside(y):
    """y moved by STEP up and down in each of its four entries, (4·8, 4) twice."""
    steps = STEP * np.eye(4)[:, None]
    return (y + steps).reshape(-1, 4), (y - steps).reshape(-1, 4)


def largest_slope(values):
    """The largest slope of f⁻¹ at each of eight y, by central differences."""
    up, down = np.asarray(values).reshape(2, 4, 8, -1)
    return np.abs(up - down).max((0, 2)) / (2 * STEP)


@pytest.mark.parametrize("run", sorted(golden()))
def test_a_bijector_is_the_other_librarys(run, x64):
    """f and f⁻¹ with their log-determinants, and a flow's density.

    Each library rounds some hundred sums and products otherwise, which is 1e-13 of the
    size of the results. Those that begin at y also carry its rounding, times the
    largest stretch of f⁻¹ there.
    """
    expected = golden()[run]
    parameters = {
        key.split("/")[1]: value
        for key, value in expected.items()
        if key.startswith("parameters/")
    }

    ours, moved = everything(
        run.split("/")[1],
        "log_prob" in expected,
        parameters,
        expected["x"],
        expected["y"],
    )
    ours, stretch = jax.tree.map(np.asarray, ours), sum(map(largest_slope, moved))
    stretches = {
        "back": stretch[::-1],
        "inverse_log_det": stretch[::-1],
        "log_prob": stretch,
    }
    for key, value in zip(
        ("y", "log_det", "back", "inverse_log_det", "log_prob"), ours, strict=True
    ):
        if value is None:
            continue
        error = np.abs(value - expected[key]).reshape(len(value), -1).max(1)
        size = (1 + np.abs(expected[key]).max()) * (1 + stretches.get(key, 0.0))
        assert np.all(error <= 1e-13 * size), f"{key}: {error} of {size}"
