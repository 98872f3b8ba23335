"""Which few-step method comes nearest to the exact flow, and where?

    python -m experiments.few_step [--quick] [--tasks soft digits] [--budget 2]

Nine objectives of flow maps train the same network with the same number of
floating-point operations, in which evaluations of the teacher count. The teacher is
an exact denoiser, so that the end of each trajectory is known. At 1, 2, 4 and 8
evaluations the samples are compared with these ends, beside `ddim` and `unipc(3)`, on
the recommended grid and on one that `tuning.optimised_grid` fitted.

With `--teacher network` the teacher is trained too, and its students have a quarter
less of the budget.

Tasks, all on rectified flow:

- soft: four overlapping normals of the plane. The map is Lipschitz with a moderate
  constant. The greatest stretch at sampled starts is printed.
- modes: eight normals on a circle, far apart. The map is steep between them.
- guided: a component of `soft` guided away from the rest, with the guidance scale an
  argument of the map. Errors are against the exact guided flow.
- digits: normals of standard deviation 0.2 around 256 images of 8×8 pixels.

The network is an MLP of four dense layers of 256 features, 512 for digits, with both
times as inputs. For digits a multiple of x is added to its output. The optimiser is
Adam with a cosine decay for all. Each objective
draws its pairs of times where its equation needs them for one step.

Files in OUT: metrics.json with all numbers, and few_step.png.

Units: `rms` and `rms_by_scale` are in data units, `frechet` and `frechet_renoised` in
squared data units. `budget` and `flops_per_step` are floating-point operations,
`seconds` seconds. `stretch` is a ratio of lengths and has no unit. `steps`,
`parameters` and `evaluations` are counts.

Hardware and time: 16 to 27 minutes on 2 CPU cores, 15 to 30 s per student.
`--quick` takes less than a minute.

Expect of the defaults on `soft` after one step 0.033 by the Lagrangian objective, 0.038
by consistency distillation and the Eulerian one, and 1.4 by `ddim`. After eight
`unipc(3)` on its fitted grid has 0.006. See experiments/results/few_step.json.
"""

import dataclasses
import pathlib
from typing import Any, Literal

import jax

import diffjax as dj
from experiments.few_step import figures, measures, students, tasks
from experiments.few_step.measures import EVALUATIONS
from experiments.few_step.objectives import FLOW_MATCHING, OBJECTIVES
from experiments.shared import cli, files
from experiments.shared.figures import save_figure

TASKS = ("soft", "modes", "guided", "digits")
NINE = tuple(OBJECTIVES)[:9]
QUICK = ("consistency_training", "progressive", "lagrangian")

TEACHER_SHARE = 0.25
"""Share of the budget that trains the teacher with `--teacher network`."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Few-step methods against exact flow maps, at equal compute."""

    out: pathlib.Path = pathlib.Path("runs/few_step")
    """Folder for config.json, metrics.json and few_step.png."""
    seed: int = 1
    """Seed of examples, starts, initial parameters and training. The settings were
    chosen on seed 0.
    """
    tasks: tuple[Literal["soft", "modes", "guided", "digits"], ...] = TASKS
    """The flows to follow."""
    objectives: tuple[str, ...] = NINE
    """Names of objectives. Beside the default nine there are
    continuous_consistency_of_data, mean_flow_of_data and shortcut_of_data.
    """
    guided_objectives: tuple[str, ...] = ("lagrangian", "shortcut")
    """The same for the guided task, of those that learn from a teacher."""
    budget: float = 1.0
    """Training of each student in 10^12 FLOPs, twice as many for digits."""
    learning_rate: float = 2e-3
    """Peak rate of Adam, half as much for digits."""
    starts: int = 4096
    """Starts from which errors are measured, an eighth of them for digits."""
    teacher: Literal["exact", "network"] = "exact"
    """The teacher of the students that have one: the exact denoiser, or a network
    trained by flow matching with a quarter of their budget. The guided teacher is
    always exact.
    """
    quick: bool = False
    """Small networks, a few steps and 64 starts, for a run of seconds. By default of
    the first task and of three objectives.
    """


def run(config: Config) -> dict[str, Any]:
    """Train, measure and draw.

    Returns:
      The metrics, which are also in OUT/metrics.json.
    """
    config = check(config)
    out = files.start(config)
    clock, drawn = cli.Clock(), {}
    results: dict[str, Any] = {"evaluations": EVALUATIONS, "tasks": {}}
    for name in config.tasks:
        print(f"{name}: solving the exact flow", flush=True)
        task = tasks.open_task(name, config.seed, config.starts, config.quick)
        results["tasks"][name], drawn[name] = compare(config, task)
        clock.lap(name)
        results["seconds"] = clock.laps
        files.write_results(out, results, finished=name == config.tasks[-1])
        print_task(name, results["tasks"][name])
        jax.clear_caches()
    save_figure(figures.draw(results, drawn), out / "few_step.png")
    return results


def check(config: Config) -> Config:
    """The flags with those of `--quick`. Raise ValueError for unusable ones."""
    for name in config.tasks:
        dj.checks.choice("tasks", name, tuple(tasks.TASKS))
    for name in config.objectives:
        dj.checks.choice("objectives", name, tuple(OBJECTIVES))
    of_teacher = tuple(k for k, v in OBJECTIVES.items() if v.source == "teacher")
    for name in config.guided_objectives:
        dj.checks.choice("guided_objectives", name, of_teacher)
    for name in ("tasks", "objectives", "guided_objectives"):
        if not getattr(config, name):
            raise ValueError(f"{name} must name at least one, got none")
    for name in ("budget", "learning_rate"):
        dj.checks.positive(name, getattr(config, name))
    dj.checks.integer("starts", config.starts, 16)
    if config.quick:
        small: dict[str, Any] = {"budget": 1e-6, "starts": 64}
        if config.tasks == TASKS:
            small["tasks"] = TASKS[:1]
        if config.objectives == NINE:
            small["objectives"] = QUICK
        config = dataclasses.replace(config, **small)
    return config


def compare(
    config: Config, task: tasks.Task
) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """The numbers of all methods on a task, and samples to draw."""
    budget = 1e12 * config.budget * task.scale
    numbers: dict[str, Any] = {"budget": budget, "stretch": task.stretch}
    numbers["students"], numbers["solvers"], reached = {}, {}, {}
    taught, spent = _with_teacher(config, task, budget)
    for name in config.guided_objectives if task.guided else config.objectives:
        source = OBJECTIVES[name].source
        if source == "data":
            student = _train(config, task, name, budget)
        else:
            student = _train(config, taught, name, budget - spent)
        reached[name] = measures.of_student(task, student, config.seed)
        numbers["students"][name] = {
            "source": source,
            "steps": student.steps,
            "flops_per_step": student.flops,
            "seconds": round(student.seconds, 1),
            "parameters": student.parameters,
            **measures.errors(task, reached[name]),
        }
    print(f"{task.name}: solvers and fitted grids", flush=True)
    for name, ends in measures.of_solvers(task, config.seed, config.quick).items():
        reached[name] = ends
        numbers["solvers"][name] = measures.errors(task, ends)
    if task.reference is not None:
        exact = measures.frechet(task, {0: task.ends})[0]
        numbers["exact"] = {"frechet": exact}
    return numbers, _to_draw(task, numbers, reached)


def _with_teacher(config, task, budget):
    """The task with the teacher that students learn from, and the FLOPs spent on it."""
    if config.teacher == "exact" or task.guided:
        return task, 0.0
    spent = TEACHER_SHARE * budget
    teacher = _train(config, task, "teacher", spent)
    return dataclasses.replace(task, teacher=teacher.of(1)), spent


def _train(config, task, name, budget):
    rate = config.learning_rate / (2 if task.name == "digits" else 1)
    objective = FLOW_MATCHING if name == "teacher" else OBJECTIVES[name]
    return students.train(
        task, name, objective, budget=budget, learning_rate=rate, seed=config.seed
    )


def _to_draw(task, numbers, reached):
    """The exact ends, the ends of one step of the two best students, and of a solver
    with eight. Guided ones are those of the greatest scale.
    """
    rows = numbers["students"]
    ranked = sorted(rows, key=lambda name: rows[name]["rms"][1])
    sets = [("exact map", task.ends[-1])]
    for name in ranked[:2]:
        title = f"{figures.title_of(name)}, 1 evaluation"
        sets.append((title, reached[name].ends[1][-1]))
    solver = "unipc(3), recommended grid"
    sets.append((f"{solver}, 8 evaluations", reached[solver].ends[8][-1]))
    return sets


def print_task(name: str, numbers: dict[str, Any]) -> None:
    """Print the table of a task, and the best method at each number of evaluations.

    Args:
      name: Of the task.
      numbers: As in metrics.json.
    """
    stretch = numbers["stretch"]
    if stretch:
        print(
            f"\n{name}: stretch of the exact map at sampled starts: greatest "
            f"{stretch['greatest']:.1f}, mean {stretch['mean']:.1f}"
        )
    heads = [f"{'root mean square error at':^36}", f"{'Fréchet² at':^36}"]
    heads.append(f"{'Fréchet², γ = 1, at':^27}")
    print(f"{name:27}{'source':>8}{'steps':>7}  " + "  ".join(heads))
    counts = "".join(f"{n:9}" for n in EVALUATIONS)
    print(f"{'':42}  {counts}  {counts}  {counts[9:]}")
    methods = numbers["students"] | numbers["solvers"]
    for method, row in methods.items():
        cells = [
            "".join(f"{value:9.2g}" for value in row.get(measure, {}).values()).rjust(
                9 * (3 if measure == "frechet_renoised" else 4)
            )
            for measure in ("rms", "frechet", "frechet_renoised")
        ]
        about = f"{row.get('source', ''):>8}{row.get('steps', ''):>7}"
        print(f"{method:27}{about}  {cells[0]:36}  {cells[1]:36}  {cells[2]}")
    if "exact" in numbers:
        print(f"Fréchet² of the exact map's ends: {numbers['exact']['frechet']:.2g}")
    for measure, title in (("rms", "root mean square error"), ("frechet", "Fréchet²")):
        if all(measure in row for row in methods.values()):
            names = [measures.best(methods, n, measure) for n in EVALUATIONS]
            print(f"least {title} at 1, 2, 4, 8: {'; '.join(names)}")


if __name__ == "__main__":
    cli.main(run, Config, __doc__)
