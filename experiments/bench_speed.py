"""What does the library cost over a loop written by hand, and does anything grow with the number of steps?

    python -m experiments.bench_speed [--quick] [--out DIR] [--seed N]        (make bench)

Every row is a ratio of two programs measured in one process, alternated A B, B A, …: the median of the pairs' ratios
and its quartiles. "Limit" is what the library promises; rows without one are told for comparison. The first row times
one program against itself: what lies within its quartiles of 1 is noise.

The six solvers that have a loop by hand, and DPM-Solver++(2M), are held against that; every other one against a bare
scan of its step over the whole batch as one array.

Takes about 9 minutes on 2 CPU cores, of which the U-Net's programs compile for one; a GPU runs a larger U-Net. Expect
loops within 1.05 of those by hand (within noise of 1 for the U-Net, whose evaluations outweigh all else), equal
compilation times and memory at 20 and 2000 steps, noise at a quarter of the cost of `fold_in` and `normal`, a guided
step at most 2.05 of an unguided one, and an import below 0.15 seconds. Runs of 0.1 seconds on a busy machine scatter by
10 % and more: read a ratio beside its quartiles and those of the first row.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

import diffjax as dj
from diffjax import grids, guidance, networks, noise, predictions, schedules, solvers, targets
from diffjax.solvers import driver
from experiments import record, solver_table

COMPONENTS, DIMENSION = 8, 6
"""Of the exact mixture."""

IMPORT_LIMIT = 0.3
"""Seconds that `import diffjax` may add to importing jax and flax."""

STEPS = {"euler": 64, "heun": 32, "rk4": 16, "euler_maruyama": 64, "stochastic_heun": 32, "reverse_diffusion": 64}
"""Steps of each solver on the mixture: about 64 evaluations."""

BUDGET = 64
"""Evaluations of each solver that is held against a scan of its own step."""

Program = Callable[[], Any]
"""() -> its results, arrays."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Ratios of the library's time, compilation and memory to those of loops written by hand."""

    out: pathlib.Path = pathlib.Path("runs/bench_speed")
    """Folder for config.json, metrics.json and ratios.png."""
    seed: int = 0
    """Seed of all draws; no ratio should depend on it."""
    samples: int = 8192
    """Samples of the mixture at a time."""
    alternations: int = 25
    """Pairs of runs behind each ratio of run times."""
    network: bool = True
    """Whether to run the U-Net's rows."""
    quick: bool = False
    """Few samples and repetitions and a tiny U-Net: only to see that everything runs."""


class Row(NamedTuple):
    """One measured quantity: a ratio, or seconds. at_most: its limit, None where it is only told."""

    name: str
    median: float
    quartiles: tuple[float, float]
    at_most: float | None = None
    unit: str = ""


def run(config: Config) -> dict[str, Row]:
    """Measure every row, print the table, write metrics.json and ratios.png; the rows by name."""
    if config.quick:
        config = dataclasses.replace(config, samples=64, alternations=2)
    if config.alternations < 1 or config.samples < 1:
        raise ValueError(f"alternations and samples must be positive, got {config.alternations} and {config.samples}")
    out = record.start(config)
    parts = [loops, bare_scans, noise_of_a_loop, peers, *([network_loops, guided] if config.network else [])]
    parts += [memory, compilation, imports]
    rows: list[Row] = []
    with record.progress(len(parts), what="measuring", unit="part") as bar:
        for part in parts:
            bar.set_postfix_str(part.__name__)
            rows += part(config)
            bar.update()
    results = {row.name: row for row in rows}
    record.write_json(out / "metrics.json", report(results))
    record.save_figure(draw(rows), out / "ratios.png")
    print_rows(rows)
    return results


# ----------------------------------------------------------------------------------------------------------- measuring


def compare(name: str, a: Program, b: Program, alternations: int, at_most: float | None = None) -> Row:
    """Row of time(a) / time(b), after each has run once."""
    programs = (a, b)
    for program in programs:
        jax.block_until_ready(program())
    ratios = []
    for i in range(alternations):
        seconds = {}
        for j in (0, 1) if i % 2 == 0 else (1, 0):
            start = time.perf_counter()
            jax.block_until_ready(programs[j]())
            seconds[j] = time.perf_counter() - start
        ratios.append(seconds[0] / seconds[1])
    return summary(name, ratios, at_most)


def summary(name: str, values: list[float], at_most: float | None = None, unit: str = "") -> Row:
    """Row of the median and quartiles of values."""
    low, middle, high = np.percentile(values, (25, 50, 75))
    return Row(name, float(middle), (float(low), float(high)), at_most, unit)


def same(name: str, a: Program, b: Program, tolerance: float = 1e-3) -> None:
    """Raise ValueError unless both programs compute the same array, up to rounding: else the ratio says nothing."""
    x, y = np.asarray(a()), np.asarray(b())
    error = np.abs(x - y).max() / np.abs(y).max()
    if not error < tolerance:
        raise ValueError(f"{name} and its loop by hand must agree within {tolerance}, got a relative error of {error}")


# ------------------------------------------------------------------------------------------------------ loops by hand


class Coefficients(NamedTuple):
    """At one time: α, σ and dx = (a x + b D) dt + g dw̄, a and b of the probability flow or of the reverse SDE."""

    t: Any
    alpha: Any
    sigma: Any
    a: Any
    b: Any
    g: Any


def coefficients(schedule: schedules.VPLinear, t: jax.Array, stochastic: bool) -> Coefficients:
    """f x − ½(1 + η²) g² s with f = −½β, g² = β and s = (αD − x)/σ², η = 1 or 0."""
    alpha, sigma, beta = schedule.alpha(t), schedule.sigma(t), schedule.beta(t)
    share = (1.0 if stochastic else 0.5) * beta / sigma**2
    return Coefficients(t, alpha, sigma, share - 0.5 * beta, -share * alpha, jnp.sqrt(beta))


def slope(denoise, x, at):
    """a x + b D(x, t)."""
    return at.a * x + at.b * denoise(x, at)


def euler_by_hand(denoise, draw, x, at, dt):
    return x + dt * slope(denoise, x, at[0])


def heun_by_hand(denoise, draw, x, at, dt):
    first = slope(denoise, x, at[0])
    return x + 0.5 * dt * (first + slope(denoise, x + dt * first, at[2]))


def rk4_by_hand(denoise, draw, x, at, dt):
    k1 = slope(denoise, x, at[0])
    k2 = slope(denoise, x + 0.5 * dt * k1, at[1])
    k3 = slope(denoise, x + 0.5 * dt * k2, at[1])
    k4 = slope(denoise, x + dt * k3, at[2])
    return x + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def euler_maruyama_by_hand(denoise, draw, x, at, dt):
    return x + dt * slope(denoise, x, at[0]) + at[0].g * jnp.sqrt(-dt) * draw()


def stochastic_heun_by_hand(denoise, draw, x, at, dt):
    increment = jnp.sqrt(-dt) * draw()
    first = slope(denoise, x, at[0])
    second = slope(denoise, x + dt * first + at[0].g * increment, at[2])
    return x + 0.5 * dt * (first + second) + 0.5 * (at[0].g + at[2].g) * increment


def reverse_diffusion_by_hand(denoise, draw, x, at, dt):
    ratio = at[0].alpha / at[2].alpha
    variance = at[0].sigma ** 2 - (ratio * at[2].sigma) ** 2
    score = (at[0].alpha * denoise(x, at[0]) - x) / at[0].sigma ** 2
    return (2 - ratio) * x + variance * score + jnp.sqrt(variance) * draw()


BY_HAND = {
    "euler": euler_by_hand,
    "heun": heun_by_hand,
    "rk4": rk4_by_hand,
    "euler_maruyama": euler_maruyama_by_hand,
    "stochastic_heun": stochastic_heun_by_hand,
    "reverse_diffusion": reverse_diffusion_by_hand,
}
"""(denoise, draw, x, at, dt) -> x at t + dt for a batch x; at: coefficients at t, t + dt/2 and t + dt."""


@functools.partial(jax.jit, static_argnums=(0, 1))
def loop_by_hand(name: str, denoise: Callable, arrays: Any, schedule: Any, key: jax.Array, x: jax.Array, ts: jax.Array):
    """A scan over the steps of one method, for a batch x (B, ...), with all coefficients computed before it.

    denoise: (arrays, x, at) -> D of the batch. Noise is that of `sample_many` for the same key.
    """
    stochastic = name in ("euler_maruyama", "stochastic_heun", "reverse_diffusion")
    t, dt = ts[:-1], jnp.diff(ts)
    at = tuple(coefficients(schedule, t + c * dt, stochastic) for c in (0, 0.5, 1))
    keys = example_keys(key, x)

    def body(x, step):
        i, at, dt = step
        draw = lambda: draw_by_hand(keys, i, 0, x)  # noqa: E731
        return BY_HAND[name](functools.partial(denoise, arrays), draw, x, at, dt), None

    return jax.lax.scan(body, x, (jnp.arange(dt.shape[0], dtype=jnp.uint32), at, dt))[0]


def example_keys(key, x):
    """The keys that `sample_many` gives the solver for each example of a batch."""
    return jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i))[0])(jnp.arange(x.shape[0]))


def draw_by_hand(keys, step, i, x):
    """The i-th draw of a step, for each example."""
    return jax.vmap(lambda k: noise.normal(k, step * noise.DRAWS_PER_STEP + i, x.shape[1:]))(keys)


# ---------------------------------------------------------------------------------------------------- rows: the mixture


class Problem(NamedTuple):
    """An exact mixture in six dimensions, its noise schedule, a key, and starts (samples, 6)."""

    target: targets.Mixture
    schedule: schedules.VPLinear
    key: jax.Array
    x: jax.Array


def mixture(config: Config) -> Problem:
    """Eight Gaussians under the linear VP schedule."""
    key_means, key, key_start = jax.random.split(jax.random.key(config.seed), 3)
    means = 2 * jax.random.normal(key_means, (COMPONENTS, DIMENSION))
    target = targets.gaussian_mixture(np.full(COMPONENTS, 1 / COMPONENTS), means, np.full(COMPONENTS, 0.4))
    x = jax.random.normal(key_start, (config.samples, DIMENSION))
    return Problem(target, dj.schedules.vp_linear(), key, x)


def mixture_denoiser(target, x, at):
    """The exact D of a batch at known α and σ."""
    return jax.vmap(target.posterior_mean, (0, None, None))(x, at.alpha, at.sigma)


def loops(config: Config) -> Iterator[Row]:
    """`sample_many` and `sample` against the loop by hand, after that loop against itself."""
    target, schedule, key, x = mixture(config)
    denoiser = targets.denoiser(target, schedule)

    def by_hand(name, grid):
        return lambda: loop_by_hand(name, mixture_denoiser, target, schedule, key, x, grid)

    grid = grids.log_snr(schedule, STEPS["euler"])
    yield compare("loop by hand, against itself", *[by_hand("euler", grid)] * 2, config.alternations)
    for name, steps in [*STEPS.items()][:: 3 if config.quick else 1]:
        solver, grid = getattr(solvers, name)(), grids.log_snr(schedule, steps)

        def library(solver=solver, grid=grid):
            return dj.sample_many(key, len(x), denoiser, schedule, solver=solver, grid=grid, x_init=x)

        same(name, library, by_hand(name, grid))
        yield compare(f"sample_many, {name}", library, by_hand(name, grid), config.alternations, 1.05)
    batched = functools.partial(batch_denoiser, target, schedule)
    grid = grids.log_snr(schedule, STEPS["heun"])

    def one():
        return dj.sample(key, batched, schedule, solver=solvers.heun(), grid=grid, x_init=x)

    same("sample", one, by_hand("heun", grid))
    yield compare("sample of one large array, heun", one, by_hand("heun", grid), config.alternations, 1.05)
    by_hand_2m = functools.partial(dpmpp_2m_by_hand, mixture_denoiser, target, schedule, key, x, grid)
    same("dpmpp_2m", functools.partial(library, solvers.dpmpp_2m(), grid), by_hand_2m)
    yield compare(
        "sample_many, dpmpp_2m, by hand", functools.partial(library, solvers.dpmpp_2m(), grid), by_hand_2m,
        config.alternations, 1.05,
    )  # fmt: skip


def bare_scans(config: Config) -> Iterator[Row]:
    """`sample_many` by every other solver of fixed cost against a scan of its step over the whole batch, nothing
    else.
    """
    target, schedule, key, x = mixture(config)
    denoiser = targets.denoiser(target, schedule)
    names = [name for name in solver_table.SOLVERS if solver_table.SOLVERS[name][0] not in (*STEPS, "restart")]
    for name in names[:: 12 if config.quick else 1]:
        solver = solver_table.make(name)
        if solver.evaluations(np.array([2.0, 1.0])) is None:
            continue
        grid = grids.log_snr(schedule, solvers.steps_within(solver, BUDGET))

        def library(solver=solver, grid=grid):
            return dj.sample_many(key, len(x), denoiser, schedule, solver=solver, grid=grid, x_init=x)

        bare = functools.partial(bare_scan, solver, target, schedule, key, x, grid)
        same(name, library, bare)
        yield compare(f"sample_many, {name}", library, bare, config.alternations, 1.05)


@functools.partial(jax.jit, static_argnums=0)
def bare_scan(solver, target, schedule, key, x, ts):
    """The solver's steps for a batch x (B, ...) as one array, with its coefficients computed before the scan."""
    denoiser = functools.partial(batch_denoiser, target, schedule)
    problem = driver.derive(solver, solvers.Problem(schedule, denoiser, zero_end=False))
    inputs, keys = solver.prepare(problem, ts), example_keys(key, x)

    def body(carry, step):
        i, at = step
        return solver.step(problem, at, lambda j: draw_by_hand(keys, i, j, x), *carry), None

    state = solver.init(problem, x, jax.tree.map(lambda leaf: leaf[0], inputs))
    return jax.lax.scan(body, (x, state), (jnp.arange(len(ts) - 1, dtype=jnp.uint32), inputs))[0][0]


@functools.partial(jax.jit, static_argnums=0)
def dpmpp_2m_by_hand(denoise, arrays, schedule, key, x, ts):
    """x ← (σ_s/σ_t) x + α_s (1 − e^{−h}) (D + (h/2h_prev)(D − D_prev)), a scan for a batch x (B, ...)."""
    at = coefficients(schedule, ts, False)
    h = jnp.diff(jnp.log(at.alpha / at.sigma))
    extra = 0.5 * jnp.concatenate([jnp.zeros(1), h[1:] / h[:-1]])
    keep, gain = at.sigma[1:] / at.sigma[:-1], -at.alpha[1:] * jnp.expm1(-h)

    def body(carry, step):
        x, before = carry
        at, keep, gain, extra = step
        data = denoise(arrays, x, at)
        return (keep * x + gain * (data + extra * (data - before)), data), None

    steps = jax.tree.map(lambda c: c[:-1], at), keep, gain, extra
    return jax.lax.scan(body, (x, jnp.zeros_like(x)), steps)[0][0]


def batch_denoiser(target, schedule, x, t):
    """The exact D of a batch that a solver takes for one example."""
    return jax.vmap(targets.denoiser(target, schedule), (0, None))(x, t)


def noise_of_a_loop(config: Config) -> Iterator[Row]:
    """The noise alone: a scan that adds one draw a step to every example."""
    key, shape, steps = jax.random.key(config.seed), (config.samples, DIMENSION), STEPS["euler_maruyama"]
    keys = jax.random.split(key, config.samples)

    def total(draw):
        add = lambda x, i: (x + draw(i), None)  # noqa: E731
        run = jax.jit(lambda: jax.lax.scan(add, jnp.zeros(shape), jnp.arange(steps, dtype=jnp.uint32))[0])
        return run

    per_example = total(lambda i: jax.vmap(lambda k: noise.normal(k, i, shape[1:]))(keys))
    folded = total(lambda i: jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, i), shape[1:]))(keys))
    batch = total(lambda i: jax.random.normal(jax.random.fold_in(key, i), shape))
    yield compare("noise.normal, against fold_in + normal", per_example, folded, config.alternations, 1.0)
    yield compare("noise.normal, against one normal for the batch", per_example, batch, config.alternations)


def peers(config: Config) -> Iterator[Row]:
    """diffrax's loop over the same flow and the same grid against the loop by hand."""
    try:
        import diffrax
    except ImportError:
        print("diffrax is not installed: no row for it")
        return
    target, schedule, key, x = mixture(config)
    velocity = dj.sde.probability_flow(schedule, targets.denoiser(target, schedule))
    for name, solver in (("euler", diffrax.Euler()), ("heun", diffrax.Heun()))[: 1 if config.quick else 2]:
        grid = grids.log_snr(schedule, STEPS[name])

        @jax.jit
        def peer(velocity, x, grid, solver=solver):
            term = diffrax.ODETerm(lambda t, y, args: jax.vmap(velocity, (0, None))(y, t))
            controller = diffrax.StepTo(ts=grid)
            solution = diffrax.diffeqsolve(
                term, solver, grid[0], grid[-1], None, x, stepsize_controller=controller, max_steps=len(grid)
            )
            return jnp.reshape(solution.ys, x.shape)

        a = functools.partial(peer, velocity, x, grid)
        b = functools.partial(loop_by_hand, name, mixture_denoiser, target, schedule, key, x, grid)
        same(f"diffrax {name}", a, b)
        yield compare(f"diffrax {name}, against the loop by hand", a, b, config.alternations)


# --------------------------------------------------------------------------------------------------- rows: a network


def network_loops(config: Config) -> Iterator[Row]:
    """`sample_many` with a U-Net that predicts noise against the loop by hand; of 6.5 M parameters, 16 images."""
    cpu = jax.default_backend() == "cpu"
    batch, side = (2, 8) if config.quick else (16, 16 if cpu else 32)
    if config.quick:
        net = networks.UNet(width=8, multipliers=(1,), blocks=1, attention_levels=())
    else:
        net = networks.UNet(width=64, multipliers=(1, 2, 2), blocks=2, attention_levels=(2,))
    key = jax.random.key(config.seed)
    initial = jax.jit(net.init)(key, jnp.zeros((side, side, 3)), 0.5)
    leaves, treedef = jax.tree.flatten(initial)
    moved = [p + 0.02 * jax.random.normal(jax.random.fold_in(key, i), p.shape) for i, p in enumerate(leaves)]
    params = jax.tree.unflatten(treedef, moved)  # initially the output is exactly 0
    schedule = dj.schedules.vp_linear()
    denoiser = predictions.denoiser(schedule, functools.partial(net.apply, params), "noise")
    x = jax.random.normal(key, (batch, side, side, 3))
    count = sum(leaf.size for leaf in leaves) / 1e6
    alternations = max(1, config.alternations // 2) if cpu else config.alternations

    def by_network(params, x, at):
        predicted = jax.vmap(lambda x: net.apply(params, x, at.t))(x)
        return (x - at.sigma * predicted) / at.alpha

    for name, steps in {
        "heun": 1 if cpu else 16,
        "euler_maruyama": 2 if cpu else 32,
        "dpmpp_2m": 2 if cpu else 32,
    }.items():
        if config.quick and name != "euler_maruyama":
            continue
        solver, grid = getattr(solvers, name)(), jnp.linspace(0.6, 0.3, steps + 1)

        def library(solver=solver, grid=grid):
            return dj.sample_many(key, batch, denoiser, schedule, solver=solver, grid=grid, x_init=x)

        if name in BY_HAND:
            by_hand = functools.partial(loop_by_hand, name, by_network, params, schedule, key, x, grid)
        else:
            by_hand = functools.partial(dpmpp_2m_by_hand, by_network, params, schedule, key, x, grid)
        same(f"U-Net, {name}", library, by_hand, 1e-2)
        yield compare(f"sample_many, {name}, U-Net {count:.1f} M, {side}²", library, by_hand, alternations, 1.05)


def guided(config: Config) -> Iterator[Row]:
    """A step of classifier-free guidance by one batched call against a step of the same conditional network alone."""
    key, schedule, steps = jax.random.key(config.seed), dj.schedules.vp_linear(), 4
    small, classes = config.quick, 10
    nets = {
        "DiT": (networks.DiT(width=16 if small else 96, depth=1 if small else 4, num_classes=classes), (8, 8, 1), 64),
        "U-Net": (networks.UNet(width=32, multipliers=(1, 2), num_classes=classes), (16, 16, 3), 8),
    }
    for name, (net, shape, batch) in [*nets.items()][: 1 if small else 2]:
        params = jax.jit(net.init)(key, jnp.zeros(shape), 0.5, 0)
        denoiser = predictions.denoiser(schedule, functools.partial(net.apply, params), "v")
        labels, null, grid = jnp.arange(batch) % classes, jnp.asarray(classes), grids.log_snr(schedule, steps)

        def run(scale, denoiser=denoiser, labels=labels, null=null, grid=grid, shape=shape, batch=batch):
            by = guidance.classifier_free_batched(denoiser, None, null, scale)
            return dj.sample_many(key, batch, by, schedule, solvers.ddim(), grid, shape, condition=labels)

        count = sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6
        what = f"guided by one batched call, against unguided, {name} {count:.1f} M, {batch} × {shape[0]}²"
        twice, once = functools.partial(run, 2.0), functools.partial(run, 1.0)
        yield compare(what, twice, once, config.alternations, 2.05)


# --------------------------------------------------------------------------------------- rows: compilation and memory


def sampler(config: Config, path: bool, samples: int = 8192) -> Callable[[int], Any]:
    """steps -> `sample_many` by Heun on the mixture, traced anew and lowered for so many steps."""
    target, schedule, key, _ = mixture(dataclasses.replace(config, samples=1))
    denoiser = targets.denoiser(target, schedule)

    def program(key, grid):
        shape = target.means.shape[1:]
        return dj.sample_many(key, samples, denoiser, schedule, solvers.heun(), grid, shape=shape, path=path)

    return lambda steps: jax.jit(program).lower(key, jax.ShapeDtypeStruct((steps + 1,), jnp.float32))


def memory(config: Config) -> Iterator[Row]:
    """Temporary and result bytes of the compiled program at 2000 steps over those at 20."""
    for path in (False, True):
        bytes_of, lowered = [], sampler(config, path)
        for steps in (20, 2000):
            analysis = lowered(steps).compile().memory_analysis()
            if analysis is None:
                print("this device reports no memory: no row for it")
                return
            bytes_of.append(analysis.temp_size_in_bytes + analysis.output_size_in_bytes)
        ratio = bytes_of[1] / bytes_of[0]
        yield summary(f"memory at 2000 steps against 20, path={path}", [ratio], None if path else 1.1)


def compilation(config: Config) -> Iterator[Row]:
    """Time to trace, lower and compile at 200 and 2000 steps over that at 20, nothing remembered between them."""
    seconds: dict[int, list[float]] = {20: [], 200: [], 2000: []}
    lowered = sampler(config, path=False)
    with without_compilation_cache():
        for _ in range(1 if config.quick else 9):
            for steps in seconds:
                jax.clear_caches()
                start = time.perf_counter()
                lowered(steps).compile()
                seconds[steps].append(time.perf_counter() - start)
    yield summary("compilation at 20 steps", seconds[20], unit="seconds")
    for steps in (200, 2000):
        ratios = [b / a for a, b in zip(seconds[20], seconds[steps], strict=True)]
        yield summary(f"compilation at {steps} steps against 20", ratios, 1.1)


@contextlib.contextmanager
def without_compilation_cache() -> Iterator[None]:
    """Compile in earnest: programs are neither read from the persistent cache nor written to it."""
    enabled = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()


def imports(config: Config) -> Iterator[Row]:
    """Seconds of `import diffjax` in a fresh interpreter that has imported jax and flax."""
    program = "import time, jax, flax.linen; s = time.perf_counter(); import diffjax; print(time.perf_counter() - s)"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}  # importing starts no device
    seconds = []
    for _ in range(1 if config.quick else 7):
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
        )
        seconds.append(float(done.stdout))
    yield summary("import diffjax, beyond jax and flax", seconds, IMPORT_LIMIT, "seconds")


# -------------------------------------------------------------------------------------------------------------- report


def report(results: dict[str, Row]) -> dict[str, Any]:
    """The rows as JSON, with the device that they were measured on."""
    return {"device": jax.devices()[0].device_kind, "rows": {name: row._asdict() for name, row in results.items()}}


def print_rows(rows: list[Row]) -> None:
    """The table: median, quartiles, limit."""
    width = max(len(row.name) + len(row.unit) for row in rows) + 4
    print(f"\n{'on ' + jax.devices()[0].device_kind:{width}}{'median':>9}{'quartiles':>16}{'limit':>8}")
    for row in rows:
        low, high = row.quartiles
        limit = "" if row.at_most is None else f"{row.at_most:.2f}" + ("  over" if row.median > row.at_most else "")
        name = f"{row.name}, {row.unit}" if row.unit else row.name
        print(f"{name:{width}}{row.median:9.3f}{f'{low:.3f} … {high:.3f}':>16}{limit:>8}")


def draw(rows: list[Row]) -> Any:
    """Medians with quartiles of the ratios, and their limits."""
    ratios = [row for row in rows if not row.unit]
    figure, axis = plt.subplots(figsize=(8.5, 0.34 * len(ratios) + 1.2), layout="constrained")
    places = np.arange(len(ratios))[::-1]
    medians = np.array([row.median for row in ratios])
    spread = np.abs(np.array([row.quartiles for row in ratios]) - medians[:, None]).T
    over = [row.at_most is not None and row.median > row.at_most for row in ratios]
    axis.barh(places, medians, xerr=spread, color=np.where(over, "#c0504d", "#5b8db8"), height=0.62)
    for place, row in zip(places, ratios, strict=True):
        if row.at_most is not None:
            axis.plot([row.at_most] * 2, [place - 0.42, place + 0.42], color="black", linewidth=1.6)
    axis.axvline(1, color="black", linewidth=0.6, linestyle=":")
    axis.set_yticks(places, [row.name for row in ratios], fontsize=9)
    axis.set_xscale("log")
    axis.set_xticks([0.2, 0.5, 1, 2, 5, 10, 20, 50, 100])
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_locator(plt.NullLocator())
    axis.set_xlabel("ratio, log axis (bar: median, line: quartiles, black mark: limit)")
    axis.set_title(f"Cost against loops by hand, on {jax.devices()[0].device_kind}", fontsize=11)
    return figure


if __name__ == "__main__":
    record.main(run, Config, __doc__)
