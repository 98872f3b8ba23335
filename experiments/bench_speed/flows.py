"""Rows of `bench_speed` on a flow's density and sample, against a pass by hand
and other libraries.
"""

import functools
import importlib.util
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from diffjax import flows
from diffjax.flows.conditioners import CausalTransformer
from diffjax.flows.density import Flow
from diffjax.types import pytree
from experiments.bench_speed import flow_peers
from experiments.bench_speed.ratios import (
    Config,
    RatioRow,
    compare,
    compiled_at,
    growth,
)
from experiments.shared.timing import Program, same

SIZE, LAYERS, WIDTH = 8, 8, 64
"""Entries of an example, coupling layers, units of each of the two hidden layers
of a network.
"""

FLOWS = ("real_nvp", "spline_coupling")
DEPTHS = (4, 32)


def model(name: str, config: Config, layers: int = LAYERS) -> Flow:
    """A flow of the library with weights moved away from those of the identity."""

    @jax.jit
    def made(key):
        flow = getattr(flows, name)(key, (SIZE,), layers=layers, width=WIDTH)
        return flow_peers.moved(flow, key, 0.1)

    return made(jax.random.key(config.seed))


def log_probs(flow: Flow, xs: jax.Array) -> jax.Array:
    """Densities of a batch (B, D)."""
    return jax.vmap(flow.log_prob)(xs)


def samples(flow: Flow, keys: jax.Array) -> jax.Array:
    """One sample for each key, (B, D)."""
    return jax.vmap(flow.sample)(keys)


def drawn(config: Config) -> tuple[jax.Array, jax.Array]:
    """(data (samples, D), keys of as many samples)."""
    key_data, key = jax.random.split(jax.random.key(config.seed))
    return jax.random.normal(key_data, (config.samples, SIZE)), jax.random.split(
        key, config.samples
    )


# ---------------------------------------------------------------- pass by hand


def network(conditioner: Any, count: int, h: jax.Array) -> jax.Array:
    """Parameters (B, D/2, count) from the unchanged entries (B, D/2)."""
    for weight, bias in zip(
        conditioner.weights[:-1], conditioner.biases[:-1], strict=True
    ):
        h = jax.nn.silu(h @ weight + bias)
    return (h @ conditioner.weights[-1] + conditioner.biases[-1]).reshape(
        len(h), SIZE // 2, count
    )


def coupling_by_hand(
    coupling: Any, move: Callable, count: int, x: jax.Array, swap: bool
) -> tuple:
    """(y, log|det| (B,)) of one layer for a batch, by the scalar map's
    arithmetic.
    """
    a, b = x[:, : SIZE // 2], x[:, SIZE // 2 :]
    kept, other = (b, a) if swap else (a, b)
    other, log_slopes = move(other, network(coupling.conditioner, count, kept))
    return jnp.concatenate([other, kept] if swap else [kept, other], 1), log_slopes.sum(
        1
    )


def mixing_by_hand(linear: Any, inverse: bool) -> tuple[jax.Array, jax.Array]:
    """(matrix, log|det|) of the map L U between layers, or of its inverse.

    Its permutation P is the identity here.
    """
    diagonal = linear.floor + jnp.exp(linear.log_diagonal)
    lower = jnp.tril(linear.lower, -1) + jnp.eye(SIZE)
    upper = jnp.triu(linear.upper, 1) + jnp.diag(diagonal)
    matrix = (
        solve_triangular(upper, solve_triangular(lower, jnp.eye(SIZE), lower=True))
        if inverse
        else lower @ upper
    )
    return matrix, (-1 if inverse else 1) * jnp.log(diagonal).sum()


@functools.partial(jax.jit, static_argnums=0)
def log_probs_by_hand(scalar_map: Any, bijector: Any, xs: jax.Array) -> jax.Array:
    """Densities of a batch (B, D), as one scan over pairs of layers from data to
    a standard normal.
    """
    stack, actnorm = bijector.bijectors
    move = functools.partial(
        coupling_by_hand, move=scalar_map.inverse, count=scalar_map.count
    )

    def pair(carry, layers):
        x, total = carry
        first, second, *mixing = layers.bijectors
        if mixing:
            matrix, log_det = mixing_by_hand(mixing[0], inverse=True)
            x, total = x @ matrix.T, total + log_det
        x, by_second = move(second, x=x, swap=True)
        x, by_first = move(first, x=x, swap=False)
        return (x, total + by_first + by_second), None

    x = (xs - actnorm.shift) * jnp.exp(-actnorm.log_scale)
    start = (x, jnp.full(len(xs), -actnorm.log_scale.sum()))
    x, total = jax.lax.scan(pair, start, stack.layers, reverse=True)[0]
    return total - 0.5 * (x**2).sum(1) - 0.5 * SIZE * math.log(2 * math.pi)


@functools.partial(jax.jit, static_argnums=0)
def samples_by_hand(scalar_map: Any, bijector: Any, keys: jax.Array) -> jax.Array:
    """Samples (B, D), as one scan over pairs of layers from the normal vector of
    each key.
    """
    stack, actnorm = bijector.bijectors
    move = functools.partial(
        coupling_by_hand, move=scalar_map.forward, count=scalar_map.count
    )

    def pair(x, layers):
        first, second, *mixing = layers.bijectors
        x, _ = move(first, x=x, swap=False)
        x, _ = move(second, x=x, swap=True)
        if mixing:
            x = x @ mixing_by_hand(mixing[0], inverse=False)[0].T
        return x, None

    x = jax.lax.scan(pair, normals(keys), stack.layers)[0]
    return x * jnp.exp(actnorm.log_scale) + actnorm.shift


def normals(keys: jax.Array) -> jax.Array:
    """The base's draw for each key, (B, D)."""
    return jax.vmap(lambda key: jax.random.normal(key, (SIZE,)))(keys)


# ------------------------------------------------------------------------ rows


def couplings(config: Config) -> Iterator[RatioRow]:
    """Density and sample of coupling flows against one pass by hand."""
    xs, keys = drawn(config)
    for name in FLOWS[: 1 if config.quick else None]:
        flow = model(name, config)
        scalar_map = flow.bijector.bijectors[0].layers.bijectors[0].scalar_map
        pairs: dict[str, tuple[Program, Program]] = {
            "density": (
                functools.partial(jax.jit(log_probs), flow, xs),
                functools.partial(log_probs_by_hand, scalar_map, flow.bijector, xs),
            ),
            "sample": (
                functools.partial(jax.jit(samples), flow, keys),
                functools.partial(samples_by_hand, scalar_map, flow.bijector, keys),
            ),
        }
        for label, (library, by_hand) in pairs.items():
            same(f"{name}, {label}", library, by_hand)
            yield compare(
                f"{name}, {label}, {LAYERS} × {WIDTH}",
                library,
                by_hand,
                config.alternations,
                1.05,
            )


def peer_couplings(config: Config) -> Iterator[RatioRow]:
    """The same function, weight for weight, in flowjax and distrax, against ours
    without linear maps.
    """
    key, (xs, keys) = jax.random.key(config.seed), drawn(config)
    for library, make in (
        ("flowjax", flow_peers.flowjax_flow),
        ("distrax", flow_peers.distrax_flow),
    ):
        if importlib.util.find_spec(library) is None:
            print(f"{library} is not installed: no row for it")
            continue
        for kind in flow_peers.MAPS:
            flow = jax.jit(
                lambda key, kind=kind: flow_peers.coupling_flow(
                    kind, key, SIZE, LAYERS, WIDTH
                )
            )(key)
            pairs = peer_programs(
                library, functools.partial(make, kind), flow, xs, keys
            )
            for label, (peer, ours) in pairs.items():
                same(f"{library}, {kind} coupling, {label}", peer, ours)
                yield compare(
                    f"{library}, {kind} coupling, {label}, against ours",
                    peer,
                    ours,
                    config.alternations,
                )


def peer_programs(
    library: str, make: Callable, flow: Flow, xs: jax.Array, keys: jax.Array
) -> dict[str, tuple]:
    """name -> (their program, ours). The peer's flow is made of the weights
    inside its program.
    """

    @jax.jit
    def density(flow, xs):
        return make(flow).log_prob(xs)

    @jax.jit
    def sample(flow, keys):
        theirs, zs = make(flow), normals(keys)
        return (
            jax.vmap(theirs.bijection.transform)(zs)
            if library == "flowjax"
            else theirs.bijector.forward(zs)
        )

    return {
        "density": (
            functools.partial(density, flow, xs),
            functools.partial(jax.jit(log_probs), flow, xs),
        ),
        "sample": (
            functools.partial(sample, flow, keys),
            functools.partial(jax.jit(samples), flow, keys),
        ),
    }


def autoregressions(config: Config) -> Iterator[RatioRow]:
    """Cost of a sample where each entry needs the one before, against the
    density's one pass.
    """
    xs, keys = drawn(config)
    coupling, masked = model("real_nvp", config), model("maf", config)
    density, sample = jax.jit(log_probs), jax.jit(samples)
    program = lambda run, flow, data: functools.partial(run, flow, data)
    of_coupling, of_masked = (
        program(density, coupling, xs),
        program(density, masked, xs),
    )
    yield compare(
        "real_nvp, sample, against its density",
        program(sample, coupling, keys),
        of_coupling,
        config.alternations,
    )
    yield compare(
        "maf, density, against real_nvp's", of_masked, of_coupling, config.alternations
    )
    yield compare(
        f"maf, sample of {SIZE} entries, against its density",
        program(sample, masked, keys),
        of_masked,
        max(1, config.alternations // 2),
    )


@pytree
class WholePasses:
    """A network that caches nothing, so that each patch of a sample costs a pass
    over all.
    """

    conditioner: Any

    def __call__(self, y: jax.Array, condition: Any = None) -> jax.Array:
        """The network's θ."""
        return self.conditioner(y, condition)


def patches(config: Config) -> Iterator[RatioRow]:
    """A transformer flow's sample with cached keys and values, against whole
    passes and its density.
    """
    side, count = (4, 2) if config.quick else (16, 64)

    @jax.jit
    def made(key):
        return flow_peers.moved(
            flows.tarflow(key, (side, side, 1), layers=2, width=WIDTH), key, 0.1
        )

    key = jax.random.key(config.seed)
    flow, keys, xs = (
        made(key),
        jax.random.split(key, count),
        jax.random.normal(key, (count, side, side, 1)),
    )
    is_transformer = lambda node: isinstance(node, CausalTransformer)
    forgetful = jax.tree.map(
        lambda n: WholePasses(n) if is_transformer(n) else n,
        flow,
        is_leaf=is_transformer,
    )
    sample = jax.jit(samples)
    remembered, forgotten = (
        functools.partial(sample, flow, keys),
        functools.partial(sample, forgetful, keys),
    )
    same("tarflow, sample", remembered, forgotten)
    few, tokens = max(1, config.alternations // 4), (side // 2) ** 2
    label = f"tarflow, sample of {tokens} patches"
    yield compare(
        f"{label}, keys and values kept, against whole passes",
        remembered,
        forgotten,
        few,
    )
    yield compare(
        f"{label}, against its density",
        remembered,
        functools.partial(jax.jit(log_probs), flow, xs),
        few,
    )


def depth(config: Config) -> Iterator[RatioRow]:
    """Compilation of a deeper flow's density: our scan, and distrax's chain of
    objects.
    """
    xs, key = (
        jax.ShapeDtypeStruct((config.samples, SIZE), jnp.float32),
        jax.random.key(config.seed),
    )
    repetitions = 1 if config.quick else 5

    # Flows are made beforehand, of shapes alone, so that making them is not
    # measured.
    def shapes(
        make,
    ):
        return {
            layers: jax.eval_shape(functools.partial(make, layers=layers), key)
            for layers in DEPTHS
        }

    ours = shapes(
        lambda key, layers: flows.real_nvp(key, (SIZE,), layers=layers, width=WIDTH)
    )
    seconds = compiled_at(
        lambda layers: jax.jit(log_probs).lower(ours[layers], xs), DEPTHS, repetitions
    )
    yield from growth("compilation of real_nvp's density at {} layers", seconds, 1.1)
    if importlib.util.find_spec("distrax") is None or config.quick:
        return

    @jax.jit
    def density(flow, xs):
        return flow_peers.distrax_flow("affine", flow).log_prob(xs)

    theirs = shapes(
        lambda key, layers: flow_peers.coupling_flow("affine", key, SIZE, layers, WIDTH)
    )
    seconds = compiled_at(
        lambda layers: density.lower(theirs[layers], xs),
        DEPTHS,
        max(1, repetitions // 2),
    )
    yield from growth(
        "compilation of distrax's affine coupling density at {} layers", seconds
    )
