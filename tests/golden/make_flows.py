"""Makes flows.npz: bijectors and flows of flowjax and distrax in float64.

    make golden  # python -m tests.golden.make_flows with the extra `peers`, 30 s

The committed file was made by flowjax 19.1.2 and distrax 0.1.9 on jax 0.10.2.
It stores the versions that made it. Under LIBRARY/NAME it has
    parameters/…           the bijector's parameters in diffjax's order: `PARAMETERS`
    x, y, log_det          (8, …), (8, …), (8,): y = f(x) and log|det ∂f/∂x|
    back, inverse_log_det  (8, …), (8,): f⁻¹ of y in reversed order, compiled by itself,
                           and its log|det|
    log_prob               (8,): of y, for the flows under a standard normal

f maps from the base to the data, whatever the library calls that direction.
For flowjax's masked autoregressive layer, which maps from the base in one
pass, f is `transform`.
"""

import importlib.metadata
import pathlib
import zlib

import distrax
import equinox
import flowjax.bijections as fj
import jax
import jax.numpy as jnp
import numpy as np
import paramax

from experiments.bench_speed import flow_peers
from experiments.bench_speed.flow_peers import BINS

PATH = pathlib.Path(__file__).parent / "flows.npz"
BATCH, SIZE, WIDTH = 8, 4, 6
SPLINE = BINS * 3 - 1
DENSE = {
    "w0": (SIZE, WIDTH),
    "b0": (WIDTH,),
    "w1": (WIDTH, SIZE * 2),
    "b1": (SIZE * 2,),
}

PARAMETERS = {
    "affine": {"shift": (SIZE,), "log_scale": (SIZE,)},
    "spline": {"raw": (SIZE, SPLINE)},
    "triangular": {"below": (SIZE, SIZE), "log_diagonal": (SIZE,), "shift": (SIZE,)},
    "lu": {
        "lower": (SIZE, SIZE),
        "upper": (SIZE, SIZE),
        "log_diagonal": (SIZE,),
        "shift": (SIZE,),
    },
    "masked_coupling": DENSE,
    "chain": {
        "shift": (SIZE,),
        "log_scale": (SIZE,),
        "shift2": (SIZE,),
        "log_scale2": (SIZE,),
    },
    "inverse": {"below": (SIZE, SIZE), "log_diagonal": (SIZE,), "shift": (SIZE,)},
    "tanh": {},
    "sigmoid": {},
    "positive": {},
    "exponential": {},
    "permutation": {},
    "masked_autoregressive affine": {**DENSE, "wm": (WIDTH, WIDTH), "bm": (WIDTH,)},
    "masked_autoregressive spline": {
        **DENSE,
        "wm": (WIDTH, WIDTH),
        "bm": (WIDTH,),
        "w1": (WIDTH, SIZE * SPLINE),
        "b1": (SIZE * SPLINE,),
    },
}
"""name -> the shape of each array, N(0, 1) but for log scales and weights,
N(0, ½²).
"""

ORDER = (2, 0, 3, 1)
"""Of the permutation: y_i = x_{ORDER[i]}."""


def drawn(name):
    """The parameters of a case, the same for both libraries."""
    draws = np.random.default_rng(zlib.crc32(name.encode()))
    scale = lambda part: 0.5 if part.startswith(("log", "w")) else 1.0
    return {
        part: scale(part) * draws.normal(size=shape)
        for part, shape in PARAMETERS[name].items()
    }


def lower_triangular(p):
    """The matrix of the triangular map: e^{log diagonal} on the diagonal."""
    return np.tril(p["below"], -1) + np.diag(np.exp(p["log_diagonal"]))


# ------------------------------------------------------------------------------ distrax


def distrax_spline(raw):
    """The spline of ours with slopes 1 at both ends."""
    return flow_peers.distrax_map("spline")(
        flow_peers.their_parameters("spline", raw, SPLINE)
    )


def checkerboard_coupling(p):
    """distrax's coupling whose mask keeps entries 0, 2, …: a bounded affine
    map of the others.
    """

    def conditioner(h):
        h = jax.nn.silu(h @ p["w0"] + p["b0"]) @ p["w1"] + p["b1"]
        return h.reshape(SIZE, 2)[:, ::-1]

    return distrax.MaskedCoupling(
        jnp.arange(SIZE) % 2 == 0, conditioner, flow_peers.distrax_map("affine")
    )


DISTRAX = {
    "affine": lambda p: distrax.Block(
        distrax.ScalarAffine(p["shift"], log_scale=p["log_scale"]), 1
    ),
    "spline": lambda p: distrax.Block(distrax_spline(p["raw"]), 1),
    "triangular": lambda p: distrax.Chain(
        [
            distrax.Block(distrax.ScalarAffine(p["shift"]), 1),
            distrax.TriangularLinear(lower_triangular(p)),
        ]
    ),
    "lu": lambda p: distrax.LowerUpperTriangularAffine(
        np.tril(p["lower"], -1)
        + np.triu(p["upper"], 1)
        + np.diag(np.exp(p["log_diagonal"])),
        p["shift"],
    ),
    "masked_coupling": checkerboard_coupling,
    "chain": lambda p: distrax.Block(
        distrax.Chain(
            [
                distrax.ScalarAffine(p["shift2"], log_scale=p["log_scale2"]),
                distrax.Tanh(),
                distrax.ScalarAffine(p["shift"], log_scale=p["log_scale"]),
            ]
        ),
        1,
    ),
    "inverse": lambda p: distrax.Inverse(DISTRAX["triangular"](p)),
    "tanh": lambda p: distrax.Block(distrax.Tanh(), 1),
    "sigmoid": lambda p: distrax.Block(distrax.Sigmoid(), 1),
}
"""name -> (parameters) -> distrax's bijector of a vector."""


# ------------------------------------------------------------------------------ flowjax


def flowjax_affine(shift, log_scale):
    """y = e^{log scale} x + shift."""
    return equinox.tree_at(
        lambda a: a.scale,
        fj.Affine(shift),
        paramax.Parameterize(jnp.exp, jnp.asarray(log_scale)),
    )


def flowjax_spline(raw):
    """One spline an entry, with slopes 1 at both ends."""
    theirs = flow_peers.their_parameters("spline", raw, SPLINE)

    def one(p):
        spline = flow_peers.flowjax_map("spline")
        moved = (spline.x_pos.arr + p[:BINS], spline.y_pos.arr + p[BINS : 2 * BINS])
        slopes = spline.derivatives.args[0] + p[2 * BINS :]
        return equinox.tree_at(
            lambda s: (s.x_pos.arr, s.y_pos.arr, s.derivatives.args[0]),
            spline,
            (*moved, slopes),
        )

    return fj.Vmap(
        equinox.filter_vmap(one)(jnp.asarray(theirs)), in_axes=equinox.if_array(0)
    )


def flowjax_triangular(p):
    """y = T x + shift, T itself in place of its own parametrisation."""
    made = fj.TriangularAffine(p["shift"], jnp.eye(SIZE))
    return equinox.tree_at(
        lambda t: t.triangular, made, jnp.asarray(lower_triangular(p))
    )


def flowjax_autoregressive(kind):
    """parameters -> flowjax's masked autoregressive layer with our weights."""

    def make(p):
        made = fj.MaskedAutoregressive(
            jax.random.key(0),
            transformer=flow_peers.flowjax_map(kind),
            dim=SIZE,
            nn_width=WIDTH,
            nn_depth=2,
            nn_activation=jax.nn.silu,
        )
        last = [
            flow_peers.their_parameters(kind, p[part], flow_peers.MAPS[kind].count)
            for part in ("w1", "b1")
        ]
        values = [p["w0"].T, p["b0"], p["wm"].T, p["bm"], last[0].T, last[1]]
        layers = lambda m: m.masked_autoregressive_mlp.layers
        weight = lambda dense: dense.weight.args[1]  # of where(mask, weight, 0)
        return equinox.tree_at(
            lambda m: [
                leaf for dense in layers(m) for leaf in (weight(dense), dense.bias)
            ],
            made,
            [jnp.asarray(value) for value in values],
        )

    return make


FLOWJAX = {
    "affine": lambda p: flowjax_affine(p["shift"], p["log_scale"]),
    "spline": lambda p: flowjax_spline(p["raw"]),
    "triangular": flowjax_triangular,
    "chain": lambda p: fj.Chain(
        [
            flowjax_affine(p["shift"], p["log_scale"]),
            fj.Tanh((SIZE,)),
            flowjax_affine(p["shift2"], p["log_scale2"]),
        ]
    ),
    "inverse": lambda p: fj.Invert(flowjax_triangular(p)),
    "tanh": lambda p: fj.Tanh((SIZE,)),
    "sigmoid": lambda p: fj.Sigmoid((SIZE,)),
    "positive": lambda p: fj.SoftPlus((SIZE,)),
    "exponential": lambda p: fj.Exp((SIZE,)),
    "permutation": lambda p: fj.Permute(jnp.asarray(ORDER)),
    "masked_autoregressive affine": flowjax_autoregressive("affine"),
    "masked_autoregressive spline": flowjax_autoregressive("spline"),
}
"""name -> (parameters) -> flowjax's bijection of a vector."""


# --------------------------------------------------------------------------------- file


def both_ways(library, bijector, name):
    """x, y, log_det, back, inverse_log_det of a bijector."""
    spread = (
        1.0 if name in ("tanh", "sigmoid", "exponential", "chain") else 4.0
    )  # 4: beyond the splines' interval too
    x = spread * np.random.default_rng(1).normal(size=(BATCH, SIZE))
    forward = (
        bijector.transform_and_log_det
        if library == "flowjax"
        else bijector.forward_and_log_det
    )
    y, log_det = jax.jit(jax.vmap(forward))(x)
    back, inverse_log_det = jax.jit(jax.vmap(bijector.inverse_and_log_det))(y[::-1])
    return {
        "x": x,
        "y": y,
        "log_det": log_det,
        "back": back,
        "inverse_log_det": inverse_log_det,
    }


def flow_entries(library, kind):
    """A coupling flow of four layers: its leaves as parameters, its map, and
    the density of y.
    """
    flow = flow_peers.coupling_flow(kind, jax.random.key(3), SIZE, 4, WIDTH)
    theirs = getattr(flow_peers, f"{library}_flow")(kind, flow)
    entries = both_ways(
        library,
        theirs.bijection if library == "flowjax" else theirs.bijector,
        f"flow {kind}",
    )
    leaves = {
        f"parameters/{i:02}": leaf for i, leaf in enumerate(jax.tree.leaves(flow))
    }
    return {
        **leaves,
        **entries,
        "log_prob": jax.jit(jax.vmap(theirs.log_prob))(entries["y"]),
    }


def main():
    """Write the file."""
    packages = ("flowjax", "distrax", "jax")
    arrays = {
        "versions": np.array(
            [f"{package} {importlib.metadata.version(package)}" for package in packages]
        )
    }
    for library, makers in (("distrax", DISTRAX), ("flowjax", FLOWJAX)):
        for name, make in makers.items():
            parameters = drawn(name)
            entries = {
                f"parameters/{part}": value for part, value in parameters.items()
            }
            entries |= both_ways(library, make(parameters), name)
            arrays |= {
                f"{library}/{name}/{key}": np.asarray(value)
                for key, value in entries.items()
            }
        for kind in flow_peers.MAPS:
            entries = flow_entries(library, kind)
            arrays |= {
                f"{library}/coupling_flow {kind}/{key}": np.asarray(value)
                for key, value in entries.items()
            }
    for key, value in arrays.items():
        if key != "versions" and (
            value.dtype != np.float64 or not np.all(np.isfinite(value))
        ):
            raise ValueError(
                f"{key} must be finite float64, got {value.dtype}: {value}"
            )
    np.savez_compressed(PATH, **arrays)
    print(
        f"{PATH.name}: {len(arrays)} arrays, {PATH.stat().st_size / 1000:.0f} kB; "
        f"{', '.join(arrays['versions'])}"
    )


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main()
