"""Which solver on which grid errs least for a given number of denoiser evaluations, against the exact answer?

    python -m experiments.bench_solvers [--quick] [--schedules vp_linear edm] [--targets mixture_6d] [--out DIR]
    python -m experiments.bench_solvers --recommend 16 --schedules edm --targets mixture_6d
    python -m experiments.bench_solvers --peers        (beside k-diffusion's and diffusers' samplers: the extra `peers`)

Denoisers are exact and all runs are in float64 from exact samples of p at t_max, so that an error is the solver's own.

- A deterministic solver is compared start by start with the end of the probability flow, by `adaptive` at 1e-11: the
  root mean square over starts and entries, in data units, with the 95 % confidence interval that its starts give.
- On a trained network (`--targets runs/score_sde`) the flow is that of the network, in float64, to 1e-8, and only
  deterministic solvers have rows.
- A stochastic solver is compared in law with the exact p at t_min. On the Gaussian target its own law is known exactly,
  from the Jacobian of a run by its start and all of its noise: the error is KL(law ‖ exact) in nats, without chance. On
  others it is the sliced 2-Wasserstein distance of samples to exact ones, in data units, the mean over seeds and its
  95 % interval, beside the floor: the same between two exact sets.

Evaluations are counted in the traced program itself, and must be what `solver.evaluations` promises. Steps are as many
as the budget allows. Seconds and bytes are of the compiled program for all starts at once.

The default makes some 600 programs, and compiles each: expect some 12 minutes on 2 idle CPU cores; --quick takes 37
seconds, --peers --quick 86. Expect of --quick (vp_linear, mixture_2d): at 8 evaluations dpmpp_2m first with an error of
0.044, at 16 dpmpp_3m with 0.0043 where Heun has 0.029 and DDIM 0.11, all on the log-SNR grid. Expect of --peers, at 16
evaluations: the best of ours, of k-diffusion and of diffusers on standard grids all 0.014, ours on a grid fitted to the
model 0.001.
"""

import dataclasses
import functools
import math
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from diffjax import checks, grids, metrics, schedules, solvers, targets, tuning
from diffjax.solvers import driver
from experiments import datasets, record, score_sde, solver_figures
from experiments.solver_table import SOLVERS, make

QUICK = ("heun", "ddim", "dpmpp_2m", "dpmpp_3m", "deis(3)", "unipc(2)", "euler_maruyama", "dpmpp_2m_sde")

SCHEDULES: dict[str, Callable[[], schedules.Schedule]] = {
    "vp_linear": lambda: schedules.vp_linear(t_min=1e-3),
    "vp_cosine": schedules.vp_cosine,
    "sub_vp": lambda: schedules.sub_vp(t_min=1e-3),
    "ve": schedules.ve,
    "edm": schedules.edm,
    "rectified_flow": schedules.rectified_flow,
}

PARALLEL_STEPS = 64
"""Steps of a solver that takes all of them at once, until they stand."""

GRIDS: dict[str, Callable[[schedules.Schedule, int], Any]] = {
    "karras": grids.karras,
    "log_snr": grids.log_snr,
    "uniform": grids.uniform,
    "quadratic": grids.quadratic,
    "polyexponential(1.5)": lambda schedule, steps: grids.polyexponential(schedule, steps, 1.5),
    "karras(3)": lambda schedule, steps: grids.karras(schedule, steps, 3.0),
}
"""name -> family of grids from t_max to t_min."""


def random_mixture(components: int, dimension: int, seed: int) -> targets.Mixture:
    """Components of standard deviation 0.25 to 0.6 around means from N(0, 1), of even weight: they overlap."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(components, dimension))
    return targets.gaussian_mixture(
        np.full(components, 1 / components), means, rng.uniform(0.25, 0.6, (components, dimension))
    )


def digits(count: int = 256) -> targets.Empirical:
    """The law that puts its mass on `count` of scikit-learn's digits, 64 numbers each."""
    return targets.empirical(
        datasets.open_dataset("digits", 300, 0).train[:count].astype(np.float64).reshape(count, -1)
    )


COVARIANCE = [[0.6, 0.25], [0.25, 0.3]]

TARGETS: dict[str, Callable[[], Any]] = {
    # Three times one component: a single Gaussian whose arrays have mixture_2d's shapes, so that they share programs.
    "gaussian": lambda: targets.gaussian_mixture(
        np.full(3, 1 / 3), np.tile([0.5, -1.0], (3, 1)), np.tile(COVARIANCE, (3, 1, 1))
    ),
    "mixture_2d": lambda: targets.gaussian_mixture(
        [0.2, 0.3, 0.5], [[1.0, 0.5], [-0.5, 0.0], [0.3, -1.2]],
        [[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.4]], [[0.1, -0.05], [-0.05, 0.1]]],
    ),
    "mixture_6d": lambda: random_mixture(8, 6, seed=1),
    "mixture_16d": lambda: random_mixture(8, 16, seed=2),
    "held_out": lambda: random_mixture(8, 6, seed=11),
    "digits": digits,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """Solvers, schedules and grids by their error at a number of evaluations, against exact answers."""

    out: pathlib.Path = pathlib.Path("runs/bench_solvers")
    """Folder for config.json, metrics.json and figures."""
    seed: int = 0
    """Seed of all draws."""
    schedules: tuple[str, ...] = ("vp_linear", "edm")
    """Of vp_linear, vp_cosine, sub_vp, ve, edm, rectified_flow."""
    targets: tuple[str, ...] = ("gaussian", "mixture_2d")
    """Of gaussian, mixture_2d, mixture_6d, mixture_16d, held_out (6-D), digits; or the folder of a score_sde run."""
    grids: tuple[str, ...] = ("karras", "log_snr", "uniform", "polyexponential(1.5)")
    """Of karras, karras(3), log_snr, uniform, quadratic, polyexponential(1.5)."""
    solvers: tuple[str, ...] = ()
    """Names of the table of solvers; none for all."""
    budgets: tuple[int, ...] = (8, 16, 32, 62)
    """Evaluations of the denoiser."""
    starts: int = 1024
    """Starts, and samples, of each seed."""
    seeds: int = 4
    """Independent sets of starts."""
    recommend: int | None = None
    """Only this budget, and print the best solver and grid for it."""
    peers: bool = False
    """Only the comparison with k-diffusion and diffusers."""
    quick: bool = False
    """A few solvers, one schedule, two grids, two budgets."""


class Row(NamedTuple):
    """One measured run.

    nfe: evaluations counted. measure: "rms", "kl" or "sliced_wasserstein". interval: 95 %. floor: of the measure
    between exact sets, 0 where there is none. details: further errors. seconds: compile_seconds of a program that
    several rows share stand with each.
    """

    solver: str
    grid: str
    schedule: str
    target: str
    budget: int | None
    steps: int
    nfe: float
    stochastic: bool
    order: int | None
    measure: str
    error: float
    interval: tuple[float, float]
    floor: float
    details: dict[str, float]
    compile_seconds: float
    run_seconds: float
    memory_bytes: int


class Problem(NamedTuple):
    """A denoiser under a schedule, with keys and starts (seeds · starts, *shape), seed after seed, and their truth.

    law: t -> the exact law of x_t; None for a trained network, to which only its own flow is known.
    """

    target_name: str
    schedule_name: str
    denoiser: Any
    schedule: Any
    law: Any
    keys: Any
    starts: Any
    ends: Any
    exact: Any  # samples of p at t_min, shape of starts
    others: Any  # further ones


def run(config: Config) -> list[Row]:
    """Measure every row, print the table, write metrics.json and the figures."""
    config = resolve(config)
    out = record.start(config)
    with jax.enable_x64(True):
        if config.peers:
            return against_references(config, out)
        rows = []
        for each in measure(config):
            if rows and each.solver != rows[-1].solver:
                record.write_json(out / "metrics.json", report(rows))  # what there is, should the run be cut short
            rows.append(each)
    if not rows:
        raise ValueError("no solver fits: raise --budgets or --recommend, or name other solvers, schedules or grids")
    record.write_json(out / "metrics.json", report(rows))
    if config.recommend is None:
        print_rows(rows)
        for name, figure in solver_figures.figures(rows).items():
            record.save_figure(figure, out / f"{name}.png")
    else:
        print_recommendations(rows, config.recommend)
    return rows


def resolve(config: Config) -> Config:
    """The configuration with its short forms spelled out; ValueError for names that no table has."""
    if config.quick:
        config = dataclasses.replace(
            config, schedules=config.schedules[:1], grids=config.grids[:2], budgets=(8, 16), starts=256, seeds=2,
            solvers=config.solvers or QUICK,
        )  # fmt: skip
    if config.recommend is not None:
        checks.integer("recommend", config.recommend, 1)
        config = dataclasses.replace(config, budgets=(config.recommend,))
    tables = {"schedules": SCHEDULES, "targets": TARGETS, "grids": GRIDS, "solvers": SOLVERS}
    for field in ("schedules", "targets", "grids"):
        if not getattr(config, field):
            raise ValueError(f"{field} must name at least one, got none")
    for field, table in tables.items():
        for name in getattr(config, field):
            if name not in table and not (field == "targets" and is_run(name)):
                more = " or the folder of a trained run of score_sde" if field == "targets" else ""
                raise ValueError(f"{field} must be of {', '.join(table)}{more}; got {name!r}")
    if not config.budgets or min(config.budgets) < 1:
        raise ValueError(f"budgets must be positive, at least one, got {config.budgets}")
    if config.starts < 16 or config.seeds < 2:
        raise ValueError(f"starts must be at least 16 and seeds 2, got {config.starts} and {config.seeds}")
    return dataclasses.replace(config, solvers=config.solvers or tuple(SOLVERS))


# ----------------------------------------------------------------------------------------------------------- measuring


def measure(config: Config) -> Iterator[Row]:
    """All rows; solvers that refuse a schedule or a grid give none."""
    exact, runs = ([name for name in config.targets if is_run(name) == trained] for trained in (False, True))
    problems = [problem(config, target, schedule) for schedule in config.schedules for target in exact]
    problems += [trained_problem(config, folder) for folder in runs]
    with record.progress(len(config.solvers) * len(problems), what="measuring", unit="solver") as bar:
        for name in config.solvers:
            solver = make(name)
            programs: dict[Any, Program] = {}  # of this solver: hundreds together exhaust memory maps
            bar.set_postfix_str(name)
            for given in problems:
                if solver.stochastic and given.law is None:
                    continue  # a law that nobody knows
                for budget, steps in plan(solver, config.budgets):
                    for grid_name in config.grids if steps > 1 or budget else ("ends",):
                        grid = affordable_grid(grid_name, solver, given.schedule, budget, steps)
                        if grid is not None and not refused(solver, given.schedule, grid):
                            yield row(config, programs, name, solver, given, grid_name, grid, budget)
                bar.update()


def plan(solver: solvers.Solver, budgets: tuple[int, ...]) -> list[tuple[int | None, int]]:
    """(budget, most steps that it allows) for each budget that allows any.

    A solver whose evaluations depend on the data has no budget: 1 step between the ends where it chooses its own, and
    PARALLEL_STEPS where it takes all of them at once.
    """
    least = solver.evaluations(np.array([2.0, 1.0]))
    if least is None:
        return [(None, PARALLEL_STEPS if solver.solve is not None else 1)]
    if solver.report is not None:  # its cost depends on the times: `affordable_grid` takes as many as may be
        return [(budget, budget // least) for budget in budgets if budget >= least]
    return [(budget, solvers.steps_within(solver, budget)) for budget in budgets if budget >= least]


def cost(solver: solvers.Solver, grid: np.ndarray) -> float:
    """The evaluations that a solver promises, ∞ where it promises none."""
    promised = solver.evaluations(grid)
    return math.inf if promised is None else promised


def make_grid(name: str, schedule: Any, steps: int) -> Any:
    """The grid (steps + 1,) of a family, or None where the schedule has none of it."""
    if name == "ends":
        return jnp.asarray([schedule.t_max, schedule.t_min], float)
    try:
        return GRIDS[name](schedule, steps)
    except ValueError:
        return None


def affordable_grid(name: str, solver: solvers.Solver, schedule: Any, budget: int | None, steps: int) -> Any:
    """The grid of a family with `steps` steps, or fewer where the solver's cost depends on the times; None if none."""
    for n in range(steps, 0, -1):
        grid = make_grid(name, schedule, n)
        if grid is None or budget is None or cost(solver, np.asarray(grid)) <= budget:
            return grid
    return None


def refused(solver: solvers.Solver, schedule: Any, grid: Any) -> bool:
    """Whether the solver says that it cannot walk this grid."""
    try:
        driver.check_grid("grid", solver, driver.diffusion(schedule, lambda x, t: x), grid)
    except ValueError:
        return True
    return False


def is_run(name: str) -> bool:
    """Whether a target is named by the folder of a trained run."""
    return name not in TARGETS and (pathlib.Path(name) / "config.json").exists()


def problem(config: Config, target_name: str, schedule_name: str) -> Problem:
    """Starts, exact samples, and the ends of the exact flow."""
    target, schedule = TARGETS[target_name](), SCHEDULES[schedule_name]()
    base = jax.random.key(config.seed)
    base = jax.random.fold_in(base, list(TARGETS).index(target_name))
    count = config.seeds * (config.starts if target_name != "digits" else max(config.starts // 8, 16))
    law = functools.partial(target.noised, schedule)
    draws = [jax.random.split(key, count) for key in jax.random.split(base, 4)]
    starts = jax.vmap(law(schedule.t_max).sample)(draws[0])
    exact, others = (jax.vmap(law(schedule.t_min).sample)(keys) for keys in draws[1:3])
    denoiser = targets.denoiser(target, schedule)
    ends = flow_ends(denoiser, schedule, starts, 1e-11)
    return Problem(target_name, schedule_name, denoiser, schedule, law, draws[3], starts, ends, exact, others)


def trained_problem(config: Config, folder: str) -> Problem:
    """A trained network in float64 from draws of the prior, a 64th of the starts, and the ends of its own flow."""
    model, denoiser = score_sde.load(pathlib.Path(folder), "float64")
    print(f"following the own flow of the network in {folder}, in float64: minutes for a large one", flush=True)
    schedule = model.schedule
    keys = jax.random.split(jax.random.key(config.seed), config.seeds * max(config.starts // 64, 16))
    draw = lambda key: schedules.prior_std(schedule) * jax.random.normal(key, model.data.shape)  # noqa: E731
    starts = jax.vmap(draw)(keys)
    ends = flow_ends(denoiser, schedule, starts, 1e-8)
    return Problem(folder, "of the run", denoiser, schedule, None, keys, starts, ends, None, None)


@functools.partial(jax.jit, static_argnums=3)
def flow_ends(denoiser: Any, schedule: Any, starts: Any, tolerance: float) -> Any:
    """Where the probability flow takes the starts from t_max to t_min, by `adaptive`."""
    ends = jnp.asarray([schedule.t_max, schedule.t_min], float)
    given = driver.diffusion(schedule, denoiser)
    truth = solvers.adaptive(tolerance, tolerance, 100_000)
    return jax.vmap(lambda x: driver.run(driver.noise_of(None, x, ends), truth, given, x, ends, zero_end=False)[0])(
        starts
    )


# ------------------------------------------------------------------------------------------------------------ programs


class Program(NamedTuple):
    """A compiled run, its evaluations counted in the trace (None where it decides them itself), and its cost."""

    call: Callable
    evaluations: int | None
    compile_seconds: float
    memory_bytes: int


def row(
    config: Config,
    programs: dict[Any, Program],
    name: str,
    solver: solvers.Solver,
    given: Problem,
    grid_name: str,
    grid: Any,
    budget: int | None,
) -> Row:
    """Compile unless an earlier row has, run, compare."""
    by_law = solver.stochastic and given.target_name == "gaussian" and budget is not None and solver.solve is None
    if by_law:
        law = given.law(given.schedule.t_max)
        arguments = (given.denoiser, given.schedule, law.mean(), law.covariance(), grid)
    else:
        arguments = (given.denoiser, given.schedule, given.keys, given.starts, grid)
    key = (
        name,
        by_law,
        jax.tree.structure(arguments),
        *((a.shape, str(a.dtype)) for a in map(jnp.asarray, jax.tree.leaves(arguments))),
    )
    if key not in programs:
        counted = (given.denoiser, given.schedule, given.keys[:2], given.starts[:2], grid)
        count = evaluations(jax.make_jaxpr(batch_program(solver))(*counted).jaxpr)
        programs[key] = build(law_program(solver) if by_law else batch_program(solver), arguments, count)
    program = programs[key]
    result, seconds = timed(program.call, arguments)
    nfe = float(np.mean(result[1])) if budget is None else program.evaluations
    promised = solver.evaluations(np.asarray(grid))
    if promised is not None and program.evaluations is not None and program.evaluations != promised:
        raise ValueError(f"{name} promises {promised} evaluations and makes {program.evaluations}")
    nfe = promised if nfe is None else nfe
    if by_law:
        outcome = law_error(given, *result)
    else:
        outcome = (sample_error if solver.stochastic else flow_error)(config, given, result[0])
    return Row(
        name, grid_name, given.schedule_name, given.target_name, budget, len(grid) - 1, nfe, solver.stochastic,
        solver.order, *outcome, program.compile_seconds, seconds, program.memory_bytes,
    )  # fmt: skip


def build(function: Callable, arguments: tuple, count: int | None) -> Program:
    """`function` compiled for these arguments, with the evaluations that a trace counted."""
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    analysis = compiled.memory_analysis()
    memory = analysis.temp_size_in_bytes if analysis else 0
    return Program(compiled, count, seconds, memory)


def timed(call: Callable, arguments: tuple) -> tuple[Any, float]:
    """(result, seconds of the faster of two runs)."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        result = jax.block_until_ready(call(*arguments))
        seconds.append(time.perf_counter() - start)
    return result, min(seconds)


@jax.jit
def marked_evaluation(denoiser: Any, x: Any, t: Any) -> Any:
    """D(x, t), as a call that `evaluations` finds by its name."""
    return denoiser(x, t)


def marked(denoiser: Any, schedule: Any) -> Any:
    """The problem whose denoiser's calls can be counted in a trace."""
    return driver.diffusion(schedule, functools.partial(marked_evaluation, denoiser))


def evaluations(jaxpr: Any) -> int | None:
    """How often a traced program calls the marked denoiser; None where a loop or branch decides that as it runs."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.params.get("name") == "marked_evaluation":
            total += 1
            continue
        inner = [evaluations(j) for j in jaxprs(equation)]
        if equation.primitive.name in ("while", "cond") and any(n != 0 for n in inner):
            return None
        if any(n is None for n in inner):
            return None
        total += sum(inner) * (equation.params["length"] if equation.primitive.name == "scan" else 1)
    return total


def jaxprs(equation: Any) -> Iterator[Any]:
    """The programs inside an equation of a trace."""
    for value in equation.params.values():
        for inner in value if isinstance(value, tuple | list) else [value]:
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield getattr(inner, "jaxpr", inner)


def batch_program(solver: solvers.Solver) -> Callable:
    """(denoiser, schedule, keys, starts, grid) -> (ends, evaluations of each)."""

    def one(denoiser, schedule, key, x, ts):
        source = driver.noise_of(key, x, ts)
        end, info = driver.run(source, solver, marked(denoiser, schedule), x, ts, zero_end=False)
        return end, jnp.asarray(info.evaluations)

    return jax.vmap(one, (None, None, 0, 0, None), axis_name=driver.BATCH)


def law_program(solver: solvers.Solver) -> Callable:
    """(denoiser, schedule, mean, covariance, grid) -> mean and covariance at grid[-1] from those at grid[0].

    For a Gaussian target a run is affine in its start and in all its noise: its Jacobians by both give the law.
    """

    def law(denoiser, schedule, mean, covariance, ts):
        drawn = []

        def end(x, noise):
            def normal(step, i):
                drawn.append(i)
                return jnp.zeros_like(x) if noise is None else noise[step, i]

            return driver.run(driver.Source(normal), solver, marked(denoiser, schedule), x, ts, zero_end=False)[0]

        jax.eval_shape(lambda x: end(x, None), mean)
        noise = jnp.zeros((ts.shape[0] - 1, max(drawn) + 1, *mean.shape))
        reached, push = jax.linearize(end, mean, noise)
        basis = jnp.eye(mean.size + noise.size)
        split = lambda v: push(v[: mean.size], v[mean.size :].reshape(noise.shape))  # noqa: E731
        jacobian = jax.vmap(split)(basis)  # (D + noises, D)
        by_start, by_noise = jacobian[: mean.size], jacobian[mean.size :]
        return reached, by_start.T @ covariance @ by_start + by_noise.T @ by_noise

    return law


# -------------------------------------------------------------------------------------------------------------- errors


def flow_error(config: Config, given: Problem, ends: Any) -> tuple:
    """("rms", root mean square error over starts and entries, its interval, 0, details)."""
    squares = np.mean((np.asarray(ends) - np.asarray(given.ends)).reshape(len(ends), -1) ** 2, -1)
    error, interval = root_mean(squares)
    return "rms", error, interval, 0.0, {"largest": float(np.sqrt(squares.max()))}


def root_mean(squares: np.ndarray) -> tuple[float, tuple[float, float]]:
    """√mean and its 95 % interval, by the standard error of the mean."""
    mean, spread = float(squares.mean()), 1.96 * float(squares.std()) / math.sqrt(len(squares))
    return math.sqrt(mean), (math.sqrt(max(mean - spread, 0.0)), math.sqrt(mean + spread))


def law_error(given: Problem, mean: Any, covariance: Any) -> tuple:
    """("kl", KL(N(mean, covariance) ‖ p at t_min) in nats, no interval, 0, details)."""
    exact = given.law(given.schedule.t_min)
    wanted_mean, wanted = np.asarray(exact.mean()), np.asarray(exact.covariance())
    mean, covariance = np.asarray(mean), np.asarray(covariance)
    if not (np.all(np.isfinite(mean)) and np.all(np.isfinite(covariance))):
        return "kl", math.inf, (math.inf, math.inf), 0.0, {}
    error = gaussian_kl(mean, covariance, wanted_mean, wanted)
    scale = math.sqrt(np.trace(wanted))
    details = {
        "mean": float(np.linalg.norm(mean - wanted_mean)) / scale,
        "covariance": float(np.linalg.norm(covariance - wanted)) / scale**2,
    }
    return "kl", error, (error, error), 0.0, details


def gaussian_kl(mean: np.ndarray, covariance: np.ndarray, other_mean: np.ndarray, other: np.ndarray) -> float:
    """KL(N(m, C) ‖ N(m′, C′)) = ½ (Σ (e − log(1 + e)) + ‖m − m′‖²_{C′}), e the eigenvalues of C′⁻¹C − 1; nats."""
    factor = np.linalg.cholesky(other)
    whitened = np.linalg.solve(factor, np.linalg.solve(factor, covariance - other).T)
    excess = np.maximum(np.linalg.eigvalsh(0.5 * (whitened + whitened.T)), np.nextafter(-1, 0))
    shift = np.linalg.solve(factor, mean - other_mean)
    return float(0.5 * (np.sum(excess - np.log1p(excess)) + shift @ shift))


def sample_error(config: Config, given: Problem, ends: Any) -> tuple:
    """("sliced_wasserstein", its mean over seeds, interval, floor, details)."""
    key = jax.random.key(config.seed + 1)
    sets = [v.reshape(config.seeds, -1, v[0].size) for v in (ends, given.exact, given.others)]
    sliced, energy, mean, covariance = (np.asarray(v) for v in distances(key, sets[0], sets[1]))
    floor = float(np.mean(distances(key, sets[2], sets[1])[0]))
    if not np.all(np.isfinite(sliced)):
        return "sliced_wasserstein", math.inf, (math.inf, math.inf), floor, {}
    half = float(stats.t.ppf(0.975, config.seeds - 1) * sliced.std(ddof=1) / math.sqrt(config.seeds))
    error = float(sliced.mean())
    details = {
        "energy_distance": float(energy.mean()),
        "mean": float(mean.mean()),
        "covariance": float(covariance.mean()),
    }
    return "sliced_wasserstein", error, (max(error - half, 0.0), error + half), floor, details


@jax.jit
def distances(key: Any, x: Any, y: Any) -> tuple:
    """Sliced Wasserstein-2 and squared energy distances, and those of means and covariances, of each x to its y."""

    def one(x, y):
        scale = jnp.sqrt(jnp.sum(jnp.var(y, 0)))
        mean = jnp.linalg.norm(x.mean(0) - y.mean(0)) / scale
        covariance = jnp.linalg.norm(jnp.cov(x.T) - jnp.cov(y.T)) / scale**2
        return jnp.sqrt(metrics.sliced_wasserstein(key, x, y)), metrics.energy_distance(x, y), mean, covariance

    return jax.vmap(one)(x, y)


# -------------------------------------------------------------------------------------------------------------- report


def report(rows: list[Row]) -> dict[str, Any]:
    """The rows as JSON, with the device; numbers that are not finite as null."""

    def plain(value):
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, tuple):
            return [plain(v) for v in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {"device": jax.devices()[0].device_kind, "rows": [plain(row._asdict()) for row in rows]}


def groups(rows: list[Row], *fields: str) -> dict[tuple, list[Row]]:
    """Rows by the values of some of their fields, in the order of their appearance."""
    found: dict[tuple, list[Row]] = {}
    for each in rows:
        found.setdefault(tuple(getattr(each, field) for field in fields), []).append(each)
    return found


def best(rows: list[Row]) -> Row:
    """The row of least error; one whose error is not a number is last."""
    return min(rows, key=lambda row: row.error if math.isfinite(row.error) else math.inf)


def print_rows(rows: list[Row]) -> None:
    """For each schedule, target and measure a table: a line a solver, a column a budget, each with its best grid."""
    for (schedule, target, measure), group in groups(rows, "schedule", "target", "measure").items():
        budgets = sorted({row.budget for row in group if row.budget})
        floor = f", floor {np.mean([row.floor for row in group]):.1e}" if group[0].floor else ""
        print(f"\n{schedule}, {target}: {measure}{floor}, with the best grid for each number of evaluations")
        print(f"{'':28}" + "".join(f"{budget:>31}" for budget in budgets))
        for (name,), of_solver in groups(group, "solver").items():
            line = f"{name:28}"
            for budget in budgets:
                at = [row for row in of_solver if row.budget == budget]
                line += f"{cell(best(at)) if at else '':>31}"
            free = [row for row in of_solver if not row.budget]
            if free:
                line += f"   {cell(best(free))} at {best(free).nfe:.0f} evaluations on average"
            print(line.rstrip())


def cell(row: Row) -> str:
    """error grid, as text."""
    return f"{row.error:.1e} {row.grid}"


def print_recommendations(rows: list[Row], budget: int) -> None:
    """The best deterministic and the best stochastic solver and grid for each schedule and target."""
    for (schedule, target), group in groups(rows, "schedule", "target").items():
        print(f"\n{schedule}, {target}, at most {budget} evaluations:")
        for stochastic in (False, True):
            candidates = [row for row in group if row.stochastic == stochastic and (row.budget or row.nfe <= budget)]
            if not candidates:
                continue
            top = best(candidates)
            tied = sorted({row.solver for row in candidates if row.interval[0] <= top.interval[1]} - {top.solver})
            kind = "stochastic" if stochastic else "deterministic"
            low, high = top.interval
            spread = f" [{low:.2e}, {high:.2e}]" if high > low else ""
            print(
                f"  {kind:14} {top.solver} on {top.grid}, {top.steps} steps, {top.nfe:.0f} evaluations: "
                f"{top.measure} {top.error:.2e}{spread}" + (f", floor {top.floor:.1e}" if top.floor else "")
            )
            if tied:
                print(f"  {'':14} not told apart from it: {', '.join(tied)}")


# --------------------------------------------------------------------------------------------------------------- peers


def against_references(config: Config, out: pathlib.Path) -> list[Row]:
    """Deterministic solvers on a held-out mixture under EDM beside those of k-diffusion and diffusers, same starts.

    Prints for each budget our best and theirs, with grid and interval, and writes them to metrics.json. Grids of ours
    named "optimised" were fitted to this denoiser on other starts. Our runs end at sigma_min; theirs there or at 0, as
    they do better, each against the exact flow's end at the same level.
    """
    from experiments import solver_peers

    if (missing := solver_peers.missing()) is not None:
        print(f"{missing}: no comparison with k-diffusion and diffusers (install the extra `peers`)")
        return []
    budgets = (8, 16, 32, 62) if not config.quick else (8, 16)
    config = dataclasses.replace(
        config, schedules=("edm",), targets=("held_out",), budgets=budgets, starts=256, seeds=2,
        grids=("karras", "karras(3)", "log_snr", "polyexponential(1.5)"),
        solvers=tuple(name for name in config.solvers if not make(name).stochastic),
    )  # fmt: skip
    rows = list(measure(config))
    given = problem(config, "held_out", "edm")
    target, finer = TARGETS["held_out"](), schedules.edm(1e-6, 80.0)
    to_zero = flow_ends(targets.denoiser(target, finer), finer, given.starts, 1e-11)
    mixture = {name: np.asarray(getattr(target, name)) for name in ("weights", "means", "variances")}
    theirs = solver_peers.measure(mixture, *(np.asarray(v) for v in (given.starts, given.ends, to_zero)), budgets)
    peers = [peer._replace(interval=root_mean(peer.squares)[1], squares=None) for peer in theirs]
    ours = [row for row in rows if row.budget is not None]
    ours += list(optimised(config, given, ours))
    table = standings(budgets, ours, peers)
    every = [peer._asdict() for peer in peers if math.isfinite(peer.error)]
    record.write_json(out / "metrics.json", {"standings": table, **report(ours), "peers": every})
    print(f"\nheld-out 6-D mixture, σ from 80 to 0.002, {len(given.starts)} starts: root mean square error")
    for budget, lines in table.items():
        print(f"{budget} evaluations")
        for line in lines:
            low, high = line["interval"]
            print(
                f"  {line['error']:.2e} [{low:.2e}, {high:.2e}]  {line['of']}: {line['run']}, {line['nfe']} evaluations"
            )
    return ours


def standings(budgets: tuple[int, ...], ours: list[Row], peers: list[Any]) -> dict[int, list[dict[str, Any]]]:
    """budget -> the three runs of least error of each library, ours on given and on fitted grids apart."""
    runs = [
        (row.budget, "diffjax, fitted grid" if row.grid == "optimised" else "diffjax", row.solver, row) for row in ours
    ] + [(peer.budget, peer.library, peer.sampler, peer) for peer in peers]
    found: dict[int, list[dict[str, Any]]] = {budget: [] for budget in budgets}
    for budget in budgets:
        for of in dict.fromkeys(whose for at, whose, _, _ in runs if at == budget):
            own = [(what, run) for at, whose, what, run in runs if (at, whose) == (budget, of)]
            own = sorted((pair for pair in own if math.isfinite(pair[1].error)), key=lambda pair: pair[1].error)
            found[budget] += [
                {"of": of, "run": f"{what} on {run.grid}", "nfe": int(run.nfe), "error": run.error,
                 "interval": run.interval}
                for what, run in own[:3]
            ]  # fmt: skip
    return found


def optimised(config: Config, given: Problem, rows: list[Row], tried: int = 3) -> Iterator[Row]:
    """The best solvers at each budget again, on grids that `tuning.optimised_grid` fits to them on 256 other starts."""
    base = given.law(given.schedule.t_max)
    fitted_on = jax.vmap(base.sample)(jax.random.split(jax.random.key(config.seed + 1000), 256))
    programs: dict[Any, Program] = {}
    for (budget,), group in groups(rows, "budget").items():
        names = dict.fromkeys(
            row.solver for row in sorted(group, key=lambda row: row.error if math.isfinite(row.error) else math.inf)
        )
        for name in list(names)[:tried]:
            solver = make(name)
            steps = solvers.steps_within(solver, budget)
            grid = tuning.optimised_grid(given.schedule, given.denoiser, steps, solver=solver, x_init=fitted_on)
            yield row(config, programs, name, solver, given, "optimised", grid, budget)


if __name__ == "__main__":
    record.main(run, Config, __doc__)
