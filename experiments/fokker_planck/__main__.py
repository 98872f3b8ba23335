"""Does the density equation ∂p/∂t = −div(f p) + ½g²Δp hold, and do simulated
paths follow it?

    python -m experiments.fokker_planck [--schedules vp_linear ve edm] [--paths 20000]

Mixtures are known exactly at every noise level. So the equation's terms can be
taken by central differences of the density itself, and its solution on cells
can be compared with the truth. Figures in OUT:

- densities.png: Euler–Maruyama paths of VP, VE and Langevin dynamics in a
  double well as histograms, beside the density solved on cells and the exact
  one.
- residuals.png: the residual of the equation as Δx and Δt are halved together,
  for forward SDE, probability flow and reverse SDE on every schedule, and for
  the flow with the sign of its score reversed, f + ½g²∇log p.
- along_a_path.png: d log p(x(t), t)/dt along a path of the flow beside ∂log
  p/∂t at a fixed point.

Hardware and time: about a minute on 2 CPU cores.

Expect residuals that fall with order 2.00 until rounding, on every schedule.
That of the reversed sign stays at 1.33 in units of |λ′|, and its distance from
its limit g²Δp/p falls with order 2.00. Solved densities are within 0.002 (L1)
of the exact ones, of order 2.0, and keep their mass to rounding.

Histograms are as far from the exact densities (0.026 to 0.044) as that many
exact draws are (0.037 ± 0.004), and χ² is within 3 standard deviations of its
mean. With --steps 2000 --paths 100000 the bias of Euler–Maruyama in the double
well shows: χ² is 94 at t = 3.2, for 43 ± 9.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from diffjax import checks, schedules, sde, solvers, targets
from diffjax.numerics import divergence
from experiments.fokker_planck import figures as fokker_planck_figures
from experiments.shared import cli, devices, files
from experiments.shared import schedules as schedule_table
from experiments.shared.figures import save_figure
from experiments.shared.mapping import map_examples
from experiments.shared.schedules import ScheduleChoice

SCHEDULES = schedule_table.SCHEDULES | {
    "from_betas": ScheduleChoice(
        "from 1000 betas",
        lambda: schedules.from_betas(dj.ddpm.linear_betas(1000)),
    ),
    "learned": ScheduleChoice("learned", lambda: schedules.learned(jax.random.key(0))),
}
"""Title and factory of each schedule whose residuals are measured."""

NOISE_TO_SIGNAL = (0.3, 1.0, 3.0)
"""σ/α where residuals are measured and, between the two ends, densities are drawn."""

LEVELS = {
    "forward": "forward SDE",
    "flow": "probability flow",
    "reverse": "reverse SDE, run downwards",
}
"""Titles of the processes that carry p_t."""

COARSEST = 1 / 4
"""The largest step: Δx in units of σ, Δt in units of 1/|λ′(t)|."""

MEASURED = 6
"""Number of steps, whose last two give the orders. There fourth-order terms
are negligible and rounding is not yet visible.
"""

EXPECTED = 10
"""Bins across a drawn window, and the least count expected of a bin of χ²."""


ScheduleName = Literal[
    "vp_linear",
    "vp_cosine",
    "sub_vp",
    "ve",
    "edm",
    "rectified_flow",
    "from_betas",
    "learned",
]


@dataclasses.dataclass(frozen=True)
class Config(devices.Devices):
    """The Fokker–Planck equation: residual, solution, and simulated paths."""

    out: pathlib.Path = pathlib.Path("runs/fokker_planck")
    """Folder for figures, config.json and metrics.json."""
    seed: int = 0
    """Seed of all draws."""
    processes: tuple[Literal["vp", "ve", "langevin"], ...] = ("vp", "ve", "langevin")
    """The processes that are simulated and solved."""
    schedules: tuple[ScheduleName, ...] = get_args(ScheduleName)
    """The schedules whose residuals are measured."""
    halvings: int = 11
    """Number of times that Δx and Δt are halved together."""
    points: int = 32
    """Exact samples at each of three noise levels at which residuals are measured."""
    paths: int = 20000
    """Euler–Maruyama paths of each process."""
    steps: int = 4000
    """Steps of each simulation, and of the solver."""
    cells: int = 800
    """Cells of the solver."""


def run(config: Config) -> dict[str, Any]:
    """Simulate, solve, take differences and draw.

    Returns:
      The metrics, which are also in OUT/metrics.json.
    """
    check(config)
    out = files.start(config)
    with cli.progress(
        len(config.processes) + len(config.schedules) + 1,
        label="Fokker–Planck",
        unit="part",
    ) as bar:
        evolutions, residuals = {}, {}
        for name in config.processes:
            key = jax.random.fold_in(
                jax.random.key(config.seed), list(PROCESSES).index(name)
            )
            evolutions[name] = evolve(config, PROCESSES[name](), key)
            bar.update()
        with jax.enable_x64(True):
            for name in config.schedules:
                residuals[name] = residuals_of(config, SCHEDULES[name].factory())
                bar.update()
            path = along_a_path()
            bar.update()
    metrics = {
        "densities": {
            name: evolution.metrics for name, evolution in evolutions.items()
        },
        "residuals": {name: summary(sizes) for name, sizes in residuals.items()},
        "along_a_path": path.metrics,
    }
    files.write_json(out / "metrics.json", metrics)
    save_figure(
        fokker_planck_figures.draw_densities(config.paths, evolutions),
        out / "densities.png",
    )
    titles = {name: title for name, (title, _) in SCHEDULES.items()}
    figure = fokker_planck_figures.draw_residuals(residuals, LEVELS, titles, COARSEST)
    save_figure(figure, out / "residuals.png")
    save_figure(
        fokker_planck_figures.draw_path(path, differences), out / "along_a_path.png"
    )
    print_metrics(metrics)
    return metrics


def check(config: Config) -> None:
    """Raise ValueError for settings too small to be meaningful."""
    for name, table in (("processes", PROCESSES), ("schedules", SCHEDULES)):
        if not getattr(config, name):
            raise ValueError(
                f"{name} must name at least one of {list(table)}, got none"
            )
    checks.integer("halvings", config.halvings, MEASURED - 1, 16)
    checks.integer("points", config.points, 1)
    checks.integer("paths", config.paths, 500)
    checks.integer("steps", config.steps, 100)
    checks.integer("cells", config.cells, 100)
    for name in ("steps", "cells"):
        if getattr(config, name) % 2:
            raise ValueError(
                f"{name} must be even, to be halved, got {getattr(config, name)}"
            )


# ------------------------------------------------------- (a) densities in time


@dataclasses.dataclass(frozen=True)
class Process:
    """An SDE on the line whose distribution at ts[0] is known.

    Attributes:
      sample: key -> x (1,) at the first time.
      log_prob: (x, t) -> (), exact at any t, or at the first only where
        `at_rest` is set.
      at_rest: x -> (), the distribution as t → ∞, up to a constant.
      ends: Ends of the line of cells.
      times: First and last time.
      snapshots: Times in between that are measured and drawn.
    """

    title: str
    sde: sde.SDE
    sample: Callable[[jax.Array], jax.Array]
    log_prob: Callable[[Any, Any], Any]
    ends: tuple[float, float]
    times: tuple[float, float]
    snapshots: tuple[float, ...]
    at_rest: Callable[[Any], Any] | None = None


def diffusing(title: str, schedule: schedules.Schedule, reach: float) -> Process:
    """A mixture carried to noise by the forward SDE."""
    target = targets.gaussian_mixture([0.35, 0.65], [[-1.5], [1.0]], [0.25, 0.5])
    inner = schedules.time_of_log_snr(
        schedule, -2 * jnp.log(jnp.asarray(NOISE_TO_SIGNAL))
    )
    return Process(
        title,
        sde.forward(schedule),
        target.noised(schedule, schedule.t_min).sample,
        lambda x, t: target.noised(schedule, t).log_prob(x),
        (-reach, reach),
        (float(schedule.t_min), float(schedule.t_max)),
        tuple(float(t) for t in inner),
    )


def double_well() -> Process:
    """Langevin dynamics at e^{−3(x² − 1)²/2}/Z from the right-hand well.

    Half of the mass crosses to the other well, at a rate of 0.3.
    """
    well = targets.energy(lambda x: -1.5 * jnp.sum((x**2 - 1) ** 2))
    start = targets.gaussian([1.0], 0.15)
    return Process(
        "Langevin in a double well",
        sde.langevin(well.log_prob),
        start.sample,
        lambda x, t: start.log_prob(x),
        (-2.5, 2.5),
        (0.0, 16.0),
        (0.08, 0.8, 3.2),
        at_rest=well.log_prob,
    )


PROCESSES: dict[str, Callable[[], Process]] = {
    "vp": lambda: diffusing("VP", schedules.vp_linear(), 7.0),
    "ve": lambda: diffusing("VE", schedules.ve(sigma_min=0.01, sigma_max=6.0), 32.0),
    "langevin": double_well,
}


@dataclasses.dataclass(frozen=True)
class Evolution:
    """One process at its snapshots.

    Attributes:
      edges: (C + 1,), edges of the cells.
      times: (S,).
      solved: (S, C), densities of the solver.
      exact: (S, C), exact densities. A row is NaN where the distribution is
        not known.
      counts: (S, C), counts of paths.
      rest: (C,), the stationary density where `exact` has unknown rows, else
        None.
    """

    process: Process
    edges: np.ndarray
    times: np.ndarray
    solved: np.ndarray
    exact: np.ndarray
    rest: np.ndarray | None
    counts: np.ndarray
    metrics: dict[str, Any]


def evolve(config: Config, process: Process, key: jax.Array) -> Evolution:
    """Solve and simulate one process, and compare.

    The solver runs in float64 on `cells` and `steps` and on half as many, the
    simulation in the working precision.
    """
    ts = np.linspace(*process.times, config.steps + 1)
    at = np.unique(
        [
            0,
            *(2 * np.argmin(np.abs(ts[::2] - t)) for t in process.snapshots),
            config.steps,
        ]
    )
    with jax.enable_x64(True):
        edges, solved, exact, rest = solve(process, config.cells, ts, at)
        _, coarse, coarse_exact, _ = solve(process, config.cells // 2, ts[::2], at // 2)
    paths = simulate(config, process, key, ts, at)  # (S, paths)
    counts = np.stack([np.histogram(x, edges)[0] for x in paths])
    width = edges[1] - edges[0]
    rows = zip(ts[at], solved, exact, counts, strict=True)
    metrics: dict[str, Any] = {
        "snapshots": [compare(config.paths, t, p, q, n, width) for t, p, q, n in rows]
    }
    metrics["mass_error"] = float(np.abs(solved.sum(1) * width - 1).max())
    if rest is None:
        errors = (
            distance(coarse[-1], coarse_exact[-1], 2 * width),
            distance(solved[-1], exact[-1], width),
        )
        metrics["solver_order"] = float(np.log2(errors[0] / errors[1]))
    else:
        metrics["l1_to_rest"] = distance(solved[-1], rest, width)
    return Evolution(process, edges, ts[at], solved, exact, rest, counts, metrics)


def distance(p: np.ndarray, q: np.ndarray, width: float) -> float:
    """L1 distance of two densities on cells, at most 2."""
    return float(np.abs(p - q).sum() * width)


def solve(
    process: Process, cells: int, ts: np.ndarray, at: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Solve the density equation on cells.

    Returns:
      Edges, the solver's densities at the snapshots and the exact ones, (S,
        C), and the stationary one or None.
    """
    edges = np.linspace(*process.ends, cells + 1)
    centres, width = 0.5 * (edges[1:] + edges[:-1]), edges[1] - edges[0]
    exact = np.array(jax.jit(over_line(process.log_prob))(centres, ts[at]))
    solved = sde.solve_fokker_planck(
        process.sde, exact[0] / (exact[0].sum() * width), edges, ts
    )[at]
    if process.at_rest is None:
        return edges, np.asarray(solved), exact, None
    exact[1:] = np.nan
    rest = np.exp(np.asarray(jax.vmap(process.at_rest)(centres[:, None])))
    return edges, np.asarray(solved), exact, rest / (rest.sum() * width)


def over_line(log_prob: Callable[[Any, Any], Any]) -> Callable[[Any, Any], jax.Array]:
    """Map a log density (x, t) to (centres (C,), ts (S,)) -> densities (S, C)."""
    at_point = jax.vmap(lambda x, t: jnp.exp(log_prob(x[None], t)), in_axes=(0, None))
    return jax.vmap(at_point, in_axes=(None, 0))


def simulate(
    config: Config, process: Process, key: jax.Array, ts: np.ndarray, at: np.ndarray
) -> np.ndarray:
    """Euler–Maruyama paths from exact starts at the snapshots, (S, paths)."""

    def walk(_, key):
        key_start, key_path = jax.random.split(key)
        states = [process.sample(key_start)]
        # States between snapshots are not kept.
        for i, (start, end) in enumerate(zip(at, at[1:], strict=False)):
            piece = jax.random.fold_in(key_path, i)
            method = solvers.euler_maruyama()
            states.append(
                solvers.integrate(
                    piece, method, process.sde, x=states[-1], ts=ts[start : end + 1]
                )
            )
        return jnp.stack(states)[:, 0]

    keys = jax.random.split(key, config.paths)
    return map_examples(walk, (), (keys,), chunk=config.paths).T


def compare(
    paths: int, t: float, solved: Any, exact: Any, counts: Any, width: float
) -> dict[str, Any]:
    """Distances at one time, all of cells (C,).

    - solver_l1: of the solver to the exact density, None where that is not
      known.
    - histogram_l1: of bins to the exact distribution or else to the solver,
      with the mean (floor) and standard deviation for as many draws of that
      distribution itself.
    - χ²: of bins to the solver. For such draws its mean is `degrees` = bins −
      1 and its variance twice that. z is the distance from the mean in
      standard deviations.
    """
    known = bool(np.all(np.isfinite(exact)))
    distribution = (exact if known else solved) * width
    starts = bins_of(distribution, paths)
    share, frequency = (
        np.add.reduceat(distribution, starts),
        np.add.reduceat(counts, starts) / paths,
    )
    # Frequencies are nearly normal: E|·| = √(2/π) std, Var|·| = (1 − 2/π)
    # variance.
    variance = share * (1 - share) / paths
    starts = bins_of(solved * width, paths)
    expected = paths * np.add.reduceat(solved * width, starts)
    chi_squared = float(
        np.sum((np.add.reduceat(counts, starts) - expected) ** 2 / expected)
    )
    degrees = len(starts) - 1
    return {
        "t": float(t),
        "solver_l1": distance(solved, exact, width) if known else None,
        "histogram_l1": float(np.abs(frequency - share).sum()),
        "histogram_l1_floor": float(np.sum(np.sqrt(2 / np.pi * variance))),
        "histogram_l1_std": float(np.sqrt(np.sum((1 - 2 / np.pi) * variance))),
        "chi_squared": chi_squared,
        "degrees": degrees,
        "z": float((chi_squared - degrees) / np.sqrt(2 * degrees)),
    }


def bins_of(masses: np.ndarray, count: int) -> np.ndarray:
    """First cells of at most DRAWN_BINS bins of equal mass, each with EXPECTED of
    `count` or more.
    """
    bins = int(min(fokker_planck_figures.DRAWN_BINS, count // (2 * EXPECTED)))
    below = np.concatenate([[0.0], np.cumsum(masses)[:-1]])
    cuts = np.unique(np.searchsorted(below, np.arange(bins) / bins * masses.sum()))
    cuts[0] = 0
    large = np.add.reduceat(masses, cuts) * count >= EXPECTED
    return cuts[np.concatenate([[True], large[1:]])]


# --------------------------------------------------------------- (b) residuals


def residuals_of(config: Config, schedule: schedules.Schedule) -> dict[str, np.ndarray]:
    """Root mean squares of the residual over exact samples of p_t at three noise
    levels.

    They are in units of g²/σ² = |λ′|, one row per process of LEVELS. "wrong"
    is that of the flow with f + ½g²∇log p, "wrong_gap" the same less its limit
    g²Δp/p.

    Returns:
      (halvings + 1,) by process.
    """
    target = targets.gaussian_mixture(
        [0.4, 0.6], [[-1.0, 0.4], [0.8, -0.2]], [[0.3, 0.8], [0.6, 0.2]]
    )
    denoiser = targets.denoiser(target, schedule)
    forward, flow = sde.forward(schedule), sde.probability_flow(schedule, denoiser)

    def log_p(x, t):
        return target.noised(schedule, t).log_prob(x)

    def still(velocity):
        return sde.SDE(velocity, lambda x, t: jnp.zeros(()))

    def residuals(step, x, t, length, duration):
        def residual(process, direction=1):
            return sde.fokker_planck_residual(
                process, log_p, step * length, direction * step * duration
            )(x, t)

        variance = forward.diffusion(x, t) ** 2
        gradient, laplacian = divergence(lambda y: jax.grad(log_p)(y, t), x)
        wrong = residual(still(lambda x, t: 2 * forward.drift(x, t) - flow(x, t)))
        rows = {
            "forward": residual(forward),
            "flow": residual(still(flow)),
            "reverse": residual(sde.reverse(schedule, denoiser), -1),
            "wrong": wrong,
            "wrong_gap": wrong - variance * (laplacian + jnp.sum(gradient**2)),
        }
        return jax.tree.map(lambda r: r / (variance / length**2), rows)

    over_points = jax.vmap(residuals, in_axes=(None, 0, None, None, None))
    over_levels = jax.vmap(over_points, in_axes=(None, 0, 0, 0, 0))
    over_steps = jax.vmap(over_levels, in_axes=(0, None, None, None, None))

    @jax.jit
    def everything(key):
        t, length, duration = scales(schedule)
        keys = jax.random.split(key, (len(t), config.points))
        x = jax.vmap(lambda keys, t: jax.vmap(target.noised(schedule, t).sample)(keys))(
            keys, t
        )  # (3, points, 2)
        return over_steps(step_sizes(config), x, t, length, duration)

    return jax.tree.map(
        lambda r: np.sqrt(np.mean(np.square(r), (1, 2))),
        everything(jax.random.key(config.seed)),
    )


def step_sizes(config: Config) -> np.ndarray:
    """Relative steps, each half of the one before."""
    return COARSEST * 0.5 ** np.arange(config.halvings + 1)


def scales(schedule: schedules.Schedule) -> tuple[Any, Any, Any]:
    """Times at NOISE_TO_SIGNAL, far from t_min, and the units σ and 1/|λ′| of Δx
    and Δt, (3,) each.

    A chain's p_t is smooth only between two indices. There t is the middle of
    an interval and the largest Δt 0.4 of it.
    """
    t = schedules.time_of_log_snr(schedule, -2 * jnp.log(jnp.asarray(NOISE_TO_SIGNAL)))
    duration = (schedule.sigma(t) / schedules.diffusion_coefficient(schedule, t)) ** 2
    if isinstance(schedule, schedules.Indexed):
        t = (jnp.floor(t * schedule.steps) + 0.5) / schedule.steps
        duration = jnp.full_like(t, 0.4 / schedule.steps / COARSEST)
    return t, schedule.sigma(t), duration


def summary(sizes: dict[str, np.ndarray]) -> dict[str, Any]:
    """Measured orders, the residual at the finest step, and all residuals."""
    falling = [name for name in sizes if name != "wrong"]
    order = {
        name: float(np.log2(sizes[name][MEASURED - 2] / sizes[name][MEASURED - 1]))
        for name in falling
    }
    return {
        "order": order,
        "wrong": float(sizes["wrong"][MEASURED - 1]),
        "residuals": sizes,
    }


# ---------------------------------------------------------- (c) along one path


@dataclasses.dataclass(frozen=True)
class Path:
    """A path x(t) of VP's probability flow and a fixed point, with log p and its
    rates at both.

    Attributes are (N + 1,) each. `along` and `fixed` are the rates by the
    formula of the flow. `edges` and `heat` are p_t(x) on cells, for the
    picture.
    """

    ts: np.ndarray
    x: np.ndarray
    point: float
    log_p_along: np.ndarray
    log_p_fixed: np.ndarray
    along: np.ndarray
    fixed: np.ndarray
    edges: np.ndarray
    heat: np.ndarray
    metrics: dict[str, float]


PATH_TIMES, PATH_STEPS = (0.01, 0.8), 400


def along_a_path() -> Path:
    """Solve a path of the flow by RK4, and take both rates by formula and by
    central differences.
    """
    schedule = schedules.vp_linear()
    target = targets.gaussian_mixture([0.35, 0.65], [[-1.5], [1.0]], [0.25, 0.5])
    flow = sde.probability_flow(schedule, targets.denoiser(target, schedule))
    ts = jnp.linspace(*PATH_TIMES, PATH_STEPS + 1)
    start = jnp.array([-1.3])

    def log_p(x, t):
        return target.noised(schedule, t).log_prob(x)

    @jax.jit
    def everything():
        xs = solvers.integrate(None, solvers.rk4(), flow, x=start, ts=ts, path=True)
        along = jax.vmap(sde.rate_along_flow(flow))(xs, ts)
        fixed = jax.vmap(
            lambda t: sde.fokker_planck(sde.forward(schedule), log_p)(start, t)
        )(ts)
        return (
            xs[:, 0],
            jax.vmap(log_p)(xs, ts),
            jax.vmap(lambda t: log_p(start, t))(ts),
            along,
            fixed,
        )

    x, log_p_along, log_p_fixed, along, fixed = (np.asarray(a) for a in everything())
    edges = np.linspace(-3, 3, 241)
    heat = np.asarray(jax.jit(over_line(log_p))(0.5 * (edges[1:] + edges[:-1]), ts))
    ts = np.asarray(ts)
    metrics = {
        "largest_rate": float(np.abs(along).max()),
        "along_error": gap(log_p_along, ts, along),
        "along_error_twice_the_step": gap(log_p_along[::2], ts[::2], along[::2]),
        "fixed_error": gap(log_p_fixed, ts, fixed),
        "largest_difference_of_the_two": float(np.abs(along - fixed).max()),
    }
    return Path(
        ts,
        x,
        float(start[0]),
        log_p_along,
        log_p_fixed,
        along,
        fixed,
        edges,
        heat,
        metrics,
    )


def differences(values: np.ndarray, ts: np.ndarray) -> np.ndarray:
    """Central differences at the inner times."""
    return (values[2:] - values[:-2]) / (ts[2:] - ts[:-2])


def gap(values: np.ndarray, ts: np.ndarray, rate: np.ndarray) -> float:
    """Largest distance of the differences from the rate, in nats per unit of t."""
    return float(np.abs(differences(values, ts) - rate[1:-1]).max())


# -------------------------------------------------------------------- printing


def print_metrics(metrics: dict[str, Any]) -> None:
    """Print three short tables."""
    print(
        f"\n{'':9}{'t':>9}  L1 distance to the exact density   as many exact draws   "
        "χ² to the solver"
    )
    print(f"{'':9}{'':>9}{'solver':>12}{'histogram':>16}{'':>26}")
    for name, row in metrics["densities"].items():
        for s in row["snapshots"]:
            solver = "not known" if s["solver_l1"] is None else f"{s['solver_l1']:.1e}"
            floor = f"{s['histogram_l1_floor']:.4f} ± {s['histogram_l1_std']:.4f}"
            deviation = np.sqrt(2 * s["degrees"])
            chi_squared = (
                f"{s['chi_squared']:.0f}, expected {s['degrees']} ± {deviation:.0f}"
            )
            print(
                f"{name:9}{s['t']:9.3g}{solver:>12}{s['histogram_l1']:16.4f}"
                f"{floor:>26}   {chi_squared}"
            )
        end = (
            f"order {row['solver_order']:.3f}"
            if "solver_order" in row
            else f"{row['l1_to_rest']:.4f} from rest in L1"
        )
        print(f"{'':9}solver: {end}; mass kept within {row['mass_error']:.0e}")
    titles = "".join(f"{LEVELS[level].split(',')[0]:>18}" for level in LEVELS)
    print(
        f"\n{'order':15}{titles}   reversed sign: residual, order of its gap to g²Δp/p"
    )
    for name, row in metrics["residuals"].items():
        orders = "".join(f"{row['order'][level]:18.3f}" for level in LEVELS)
        print(f"{name:15}{orders}{row['wrong']:12.2f}{row['order']['wrong_gap']:12.3f}")
    path = metrics["along_a_path"]
    print(
        f"\ndifferences of log p along a path are within {path['along_error']:.1e} of "
        "−tr ∂v/∂x, at a fixed point"
        f" within {path['fixed_error']:.1e}\nof ∂log p/∂t, nats per unit of t; the two "
        "rates differ by up to"
        f" {path['largest_difference_of_the_two']:.2g}"
    )


if __name__ == "__main__":
    cli.main(run, Config, __doc__)
