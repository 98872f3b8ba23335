"""Which solver on which grid has the least error for a number of denoiser
evaluations?

    python -m experiments.bench_solvers [--quick] [--schedules vp_linear edm]
    python -m experiments.bench_solvers --recommend 16 --targets mixture_6d
    python -m experiments.bench_solvers --peers             (the extra `peers`)
    python -m experiments.bench_solvers --fitted --budgets 4 6 8 12
    python -m experiments.bench_solvers --no-guarded --solvers "unipc(3)"

Denoisers are exact and all runs are in float64 from exact samples of p at
t_max, so that an error is the solver's alone.

- A deterministic solver is compared start by start with the end of the
  probability flow, by `adaptive` at 1e-11: the root mean square over starts
  and entries, in data units, with the 95 % confidence interval that its starts
  give.
- On a trained network (`--targets runs/score_sde`) the flow is that of the
  network, in float64, to 1e-8, and only deterministic solvers have rows.
- A stochastic solver is compared in distribution with the exact p at t_min. On
  the Gaussian target its distribution is known exactly, from the Jacobian of a
  run by its start and all of its noise: the error is KL(distribution ‖ exact)
  in nats, without chance.
- On other targets it is the sliced 2-Wasserstein distance of samples to exact
  ones, in data units, the mean over seeds and its 95 % interval, beside the
  floor: the same between two exact sets.

Evaluations are counted in the traced program itself, and must be those that
`solver.evaluations` promises. Steps are as many as the budget allows. Seconds
and bytes are of the compiled program for all starts at once. --peers adds the
samplers of k-diffusion and diffusers. --fitted measures solvers whose coefficients
are fitted to one mixture, on other starts of it and on another mixture.

--site FILE also writes the curves that docs/pages/solvers/explore.md shows.

Units: `error`, `interval` and `floor` are in data units where `measure` is rms
or sliced_wasserstein, in nats where it is kl. `largest` and `energy_distance`
are in data units, `mean` and `covariance` relative to the exact spread.
`compile_seconds` and `run_seconds` are in seconds, `memory_bytes` in bytes,
`budget` and `nfe` in evaluations. Errors of --fitted are in data units.

Hardware and time: some 12 minutes on 2 CPU cores, as the default makes some
600 programs and compiles each. --quick takes 37 seconds, --peers --quick
86.

Expect of --quick (vp_linear, mixture_2d) at 8 evaluations dpmpp_2m first with
an error of 0.044, at 16 dpmpp_3m with 0.0043 where Heun has 0.029 and DDIM
0.11, all on the log-SNR grid. Expect of --peers, at 16 evaluations, 0.014 of
the best of ours, of k-diffusion and of diffusers on standard grids, and 0.001
of ours on a grid fitted to the model.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import checks, grids, schedules, solvers, targets, tuning
from diffjax.solvers import driver, requirements
from experiments.bench_solvers import figures as solver_figures
from experiments.bench_solvers import fitted
from experiments.bench_solvers.errors import (
    flow_error,
    moments_error,
    root_mean,
    sample_error,
)
from experiments.bench_solvers.problems import (
    TARGETS,
    SolverTask,
    flow_ends,
    is_run,
    problem,
    trained_problem,
)
from experiments.bench_solvers.programs import (
    Program,
    batch_program,
    build,
    evaluations,
    moments_program,
    timed,
)
from experiments.bench_solvers.report import (
    ErrorRow,
    curves,
    groups,
    print_recommendations,
    print_rows,
    report,
)
from experiments.shared import cli, files
from experiments.shared.figures import save_figure
from experiments.shared.schedules import SCHEDULES
from experiments.shared.solvers import SOLVERS, make

QUICK = (
    "heun",
    "ddim",
    "dpmpp_2m",
    "dpmpp_3m",
    "deis(3)",
    "unipc(2)",
    "euler_maruyama",
    "dpmpp_2m_sde",
)

PARALLEL_STEPS = 64
"""Steps of a solver that iterates on all of them at once until convergence."""

GRIDS: dict[str, Callable[[schedules.Schedule, int], Any]] = {
    "karras": grids.karras,
    "log_snr": grids.log_snr,
    "uniform": grids.uniform,
    "quadratic": grids.quadratic,
    "polyexponential(1.5)": lambda schedule, steps: grids.polyexponential(
        schedule, steps, 1.5
    ),
    "karras(3)": lambda schedule, steps: grids.karras(schedule, steps, 3.0),
}
"""name -> family of grids from t_max to t_min."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Errors of solvers on schedules and grids at a number of evaluations."""

    out: pathlib.Path = pathlib.Path("runs/bench_solvers")
    """Folder for config.json, metrics.json and figures."""
    seed: int = 0
    """Seed of all draws."""
    schedules: tuple[str, ...] = ("vp_linear", "edm")
    """Of vp_linear, vp_cosine, sub_vp, ve, edm, rectified_flow."""
    targets: tuple[str, ...] = ("gaussian", "mixture_2d")
    """Of gaussian, mixture_2d, mixture_6d, mixture_16d, held_out (6-D), digits,
    other_2d, or the folder of a score_sde run.
    """
    grids: tuple[str, ...] = ("karras", "log_snr", "uniform", "polyexponential(1.5)")
    """Of karras, karras(3), log_snr, uniform, quadratic, polyexponential(1.5)."""
    solvers: tuple[str, ...] = ()
    """Names of the table of solvers. Default: all."""
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
    fitted: bool = False
    """Only solvers whose coefficients are fitted."""
    site: pathlib.Path | None = None
    """Also write the curves, with few digits, to this JSON file. That of the site is
    experiments/results/solver_curves.json.
    """
    guarded: bool = True
    """Multistep methods lower their order on steps that are too long. --no-guarded
    runs them as published.
    """
    quick: bool = False
    """A few solvers, one schedule, two grids, two budgets."""


def run(config: Config) -> list[ErrorRow]:
    """Measure every row, print the table, write metrics.json and the figures."""
    config = resolve(config)
    out = files.start(config)
    with jax.enable_x64(True):
        if config.peers:
            return against_references(config, out)
        if config.fitted:
            fits = list(fitted.measure(config))
            files.write_results(out, {"rows": [row._asdict() for row in fits]})
            fitted.print_rows(fits)
            return []
        rows = []
        for row in measure(config):
            if rows and row.solver != rows[-1].solver:
                # Written after each solver, in case the run is cut short.
                files.write_results(out, report(rows), finished=False)
            rows.append(row)
    if not rows:
        raise ValueError(
            "no solver fits: raise --budgets or --recommend, or name other solvers, "
            "schedules or grids"
        )
    files.write_results(out, report(rows))
    if config.site is not None:
        samples = config.seeds * config.starts
        files.write_json(config.site, curves(rows, samples), indent=None)
    if config.recommend is None:
        print_rows(rows)
        for name, figure in solver_figures.figures(rows).items():
            save_figure(figure, out / f"{name}.png")
    else:
        print_recommendations(rows, config.recommend)
    return rows


def resolve(config: Config) -> Config:
    """Spell out the short forms of the flags. Raises ValueError for names that no
    table has.
    """
    if config.quick:
        config = dataclasses.replace(
            config,
            schedules=config.schedules[:1],
            grids=config.grids[:2],
            budgets=(8, 16),
            starts=256,
            seeds=2,
            solvers=config.solvers or QUICK,
        )
    if config.recommend is not None:
        checks.integer("recommend", config.recommend, 1)
        config = dataclasses.replace(config, budgets=(config.recommend,))
    tables = {
        "schedules": SCHEDULES,
        "targets": TARGETS,
        "grids": GRIDS,
        "solvers": SOLVERS,
    }
    for field in ("schedules", "targets", "grids"):
        if not getattr(config, field):
            raise ValueError(f"{field} must name at least one, got none")
    for field, table in tables.items():
        for name in getattr(config, field):
            if name not in table and not (field == "targets" and is_run(name)):
                more = (
                    " or the folder of a trained run of score_sde"
                    if field == "targets"
                    else ""
                )
                raise ValueError(
                    f"{field} must be of {', '.join(table)}{more}; got {name!r}"
                )
    if not config.budgets or min(config.budgets) < 1:
        raise ValueError(
            f"budgets must be positive, at least one, got {config.budgets}"
        )
    if config.site is not None and not config.guarded:
        raise ValueError(
            "site must be None with guarded=False, as the curves name the guarded "
            f"solvers, got {config.site}"
        )
    if config.starts < 16 or config.seeds < 2:
        raise ValueError(
            f"starts must be at least 16 and seeds 2, got {config.starts} and "
            f"{config.seeds}"
        )
    return dataclasses.replace(config, solvers=config.solvers or tuple(SOLVERS))


# ------------------------------------------------------------------- measuring


def measure(config: Config) -> Iterator[ErrorRow]:
    """All rows. A solver that does not support a schedule or a grid has none."""
    exact, runs = (
        [name for name in config.targets if is_run(name) == trained]
        for trained in (False, True)
    )
    problems = [
        problem(config, target, schedule)
        for schedule in config.schedules
        for target in exact
    ]
    problems += [trained_problem(config, folder) for folder in runs]
    with cli.progress(
        len(config.solvers) * len(problems), label="measuring", unit="solver"
    ) as bar:
        for name in config.solvers:
            solver = make(name, config.guarded)
            # Programs of one solver only: hundreds together exhaust memory
            # maps.
            programs: dict[Any, Program] = {}
            bar.set_postfix_str(name)
            for task in problems:
                if solver.stochastic and task.distribution is None:
                    # The exact distribution is not known here.
                    continue
                for budget, steps in plan(solver, config.budgets):
                    for grid_name in config.grids if steps > 1 or budget else ("ends",):
                        grid = make_grid(grid_name, task.schedule, steps)
                        if grid is not None and accepts(solver, task.schedule, grid):
                            yield measured_row(
                                config,
                                programs,
                                name,
                                solver,
                                task,
                                grid_name,
                                grid,
                                budget,
                            )
                bar.update()


def plan(
    solver: solvers.Solver, budgets: tuple[int, ...]
) -> list[tuple[int | None, int]]:
    """(budget, most steps that it allows) for each budget that allows any.

    A solver whose evaluations depend on the data has no budget. It has 1 step
    between the ends where it chooses its steps, and PARALLEL_STEPS where it
    takes all of them at once.
    """
    least = solver.evaluations(1)
    if least is None:
        return [(None, PARALLEL_STEPS if solver.solve is not None else 1)]
    return [
        (budget, solvers.steps_within(solver, budget))
        for budget in budgets
        if budget >= least
    ]


def make_grid(name: str, schedule: Any, steps: int) -> Any:
    """The grid (steps + 1,) of a family, or None where the schedule has none of
    it.
    """
    if name == "ends":
        return jnp.asarray([schedule.t_max, schedule.t_min], float)
    try:
        return GRIDS[name](schedule, steps)
    except ValueError:
        return None


def accepts(solver: solvers.Solver, schedule: Any, grid: Any) -> bool:
    """True if the solver can take this grid."""
    try:
        requirements.check_grid(
            "grid", solver, driver.diffusion(schedule, lambda x, t: x), grid
        )
    except ValueError:
        return False
    return True


def measured_row(
    config: Config,
    programs: dict[Any, Program],
    name: str,
    solver: solvers.Solver,
    task: SolverTask,
    grid_name: str,
    grid: Any,
    budget: int | None,
) -> ErrorRow:
    """Compile unless an earlier row has, run, compare."""
    by_moments = (
        solver.stochastic
        and task.target_name == "gaussian"
        and budget is not None
        and solver.solve is None
    )
    if by_moments:
        distribution = task.distribution(task.schedule.t_max)
        arguments = (
            task.denoiser,
            task.schedule,
            distribution.mean(),
            distribution.covariance(),
            grid,
        )
    else:
        arguments = (task.denoiser, task.schedule, task.keys, task.starts, grid)
    key = (
        name,
        by_moments,
        jax.tree.structure(arguments),
        *(
            (a.shape, str(a.dtype))
            for a in map(jnp.asarray, jax.tree.leaves(arguments))
        ),
    )
    if key not in programs:
        counted = (
            task.denoiser,
            task.schedule,
            task.keys[:2],
            task.starts[:2],
            grid,
        )
        count = evaluations(jax.make_jaxpr(batch_program(solver))(*counted).jaxpr)
        programs[key] = build(
            moments_program(solver) if by_moments else batch_program(solver),
            arguments,
            count,
        )
    program = programs[key]
    result, seconds = timed(program.call, arguments)
    nfe = float(np.mean(result[1])) if budget is None else program.evaluations
    promised = solver.evaluations(len(grid) - 1, bool(grid[-1] == 0))
    if (
        promised is not None
        and program.evaluations is not None
        and program.evaluations != promised
    ):
        raise ValueError(
            f"{name} promises {promised} evaluations and makes {program.evaluations}"
        )
    nfe = promised if nfe is None else nfe
    if by_moments:
        outcome = moments_error(task, *result)
    else:
        ends = result[0]
        outcome = (
            sample_error(config, task, ends)
            if solver.stochastic
            else flow_error(task, ends)
        )
    return ErrorRow(
        name,
        grid_name,
        task.schedule_name,
        task.target_name,
        budget,
        len(grid) - 1,
        nfe,
        solver.stochastic,
        solver.order,
        *outcome,
        program.compile_seconds,
        seconds,
        program.memory_bytes,
    )


def against_references(config: Config, out: pathlib.Path) -> list[ErrorRow]:
    """Deterministic solvers on a held-out mixture under EDM beside those of
    k-diffusion and diffusers.

    All have the same starts. Prints for each budget our best and theirs, with
    grid and interval, and writes them to metrics.json. Grids of ours named
    "optimised" were fitted to this denoiser on other starts. Our runs end at
    sigma_min. Theirs end there or at 0, whichever is better, and are compared
    with the exact flow's end at the same level.
    """
    from experiments.bench_solvers import peers as solver_peers

    if (missing := solver_peers.missing()) is not None:
        print(
            f"{missing}: no comparison with k-diffusion and diffusers (install the "
            "extra `peers`)"
        )
        return []
    budgets = (8, 16, 32, 62) if not config.quick else (8, 16)
    config = dataclasses.replace(
        config,
        schedules=("edm",),
        targets=("held_out",),
        budgets=budgets,
        starts=256,
        seeds=2,
        grids=("karras", "karras(3)", "log_snr", "polyexponential(1.5)"),
        solvers=tuple(name for name in config.solvers if not make(name).stochastic),
    )
    rows = list(measure(config))
    task = problem(config, "held_out", "edm")
    target, finer = TARGETS["held_out"](), schedules.edm(1e-6, 80.0)
    to_zero = flow_ends(targets.denoiser(target, finer), finer, task.starts, 1e-11)
    mixture = {
        name: np.asarray(getattr(target, name))
        for name in ("weights", "means", "variances")
    }
    theirs = solver_peers.measure(
        mixture, *(np.asarray(v) for v in (task.starts, task.ends, to_zero)), budgets
    )
    peers = [
        peer._replace(interval=root_mean(peer.squares)[1], squares=None)
        for peer in theirs
    ]
    ours = [row for row in rows if row.budget is not None]
    ours += list(optimised(config, task, ours))
    table = standings(budgets, ours, peers)
    every = [peer._asdict() for peer in peers if math.isfinite(peer.error)]
    files.write_results(out, {"standings": table, **report(ours), "peers": every})
    print(
        f"\nheld-out 6-D mixture, σ from 80 to 0.002, {len(task.starts)} starts: root "
        "mean square error"
    )
    for budget, lines in table.items():
        print(f"{budget} evaluations")
        for line in lines:
            low, high = line["interval"]
            print(
                f"  {line['error']:.2e} [{low:.2e}, {high:.2e}]  {line['of']}: "
                f"{line['run']}, {line['nfe']} evaluations"
            )
    return ours


def standings(
    budgets: tuple[int, ...], ours: list[ErrorRow], peers: list[Any]
) -> dict[int, list[dict[str, Any]]]:
    """The three runs of least error of each library, by budget.

    Ours on standard and on fitted grids are separate.
    """
    runs = [
        (
            row.budget,
            "diffjax, fitted grid" if row.grid == "optimised" else "diffjax",
            row.solver,
            row,
        )
        for row in ours
    ] + [(peer.budget, peer.library, peer.sampler, peer) for peer in peers]
    groups: dict[int, list[dict[str, Any]]] = {budget: [] for budget in budgets}
    for budget in budgets:
        for of in dict.fromkeys(whose for at, whose, _, _ in runs if at == budget):
            matching = [
                (error, run)
                for at, whose, error, run in runs
                if (at, whose) == (budget, of)
            ]
            matching = sorted(
                (pair for pair in matching if math.isfinite(pair[1].error)),
                key=lambda pair: pair[1].error,
            )
            groups[budget] += [
                {
                    "of": of,
                    "run": f"{error} on {run.grid}",
                    "nfe": int(run.nfe),
                    "error": run.error,
                    "interval": run.interval,
                }
                for error, run in matching[:3]
            ]
    return groups


def optimised(
    config: Config, task: SolverTask, rows: list[ErrorRow], tried: int = 3
) -> Iterator[ErrorRow]:
    """The best solvers at each budget again, on grids that
    `tuning.optimised_grid` fits to them.

    The fit uses 256 other starts.
    """
    base = task.distribution(task.schedule.t_max)
    fitted_on = jax.vmap(base.sample)(
        jax.random.split(jax.random.key(config.seed + 1000), 256)
    )
    programs: dict[Any, Program] = {}
    for (budget,), group in groups(rows, "budget").items():
        names = dict.fromkeys(
            row.solver
            for row in sorted(
                group,
                key=lambda row: row.error if math.isfinite(row.error) else math.inf,
            )
        )
        for name in list(names)[:tried]:
            solver = make(name, config.guarded)
            steps = solvers.steps_within(solver, budget)
            grid = tuning.optimised_grid(
                task.schedule, task.denoiser, steps, solver=solver, x_init=fitted_on
            )
            yield measured_row(
                config, programs, name, solver, task, "optimised", grid, budget
            )


if __name__ == "__main__":
    cli.main(run, Config, __doc__)
