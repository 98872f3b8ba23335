"""Which solver and grid have the least worst-case regret when the problem is not
known?

    python -m experiments.solver_regret [--quick]

The regret of a pair (solver, grid) on a problem is its error over the least
error of all pairs at the same number of evaluations. A recommendation is the
pair of least worst regret over one half of the suite. Its regret on the other
half, which no choice has seen, shows its value.

Units: `worst` and `median` are regrets, ratios of two errors, and have no
unit.

Hardware and time: about 40 minutes on 2 CPU cores, with `--quick` 3 minutes.

Expect of the recommended pair 1.6 to 2.8 times the error of the best pair, on the
median problem of the held-out half. The table is in
experiments/results/solver_regret.json. Figure in OUT:

- regret.png: the best pairs and the recommended one on the held-out half.
"""

import dataclasses
import json
import os
import pathlib
from typing import Any

import jax
import numpy as np

from diffjax import grids
from experiments.shared import cli, files, strict_json
from experiments.shared.figures import save_figure
from experiments.solver_regret.figures import draw
from experiments.solver_regret.measure import (
    GRIDS,
    MEASURES,
    SOLVERS,
    Errors,
    measure,
    regrets,
)
from experiments.solver_regret.suite import groups

QUICK = ("ddim", "heun", "dpmpp_2m", "deis(3)", "ipndm(4)", "unipc(3)")


@dataclasses.dataclass(frozen=True)
class Config:
    """Solvers and grids by their worst-case regret over a suite of problems."""

    out: pathlib.Path = pathlib.Path("runs/solver_regret")
    """Folder for config.json, errors.json and metrics.json. Solvers whose errors
    it holds are not run again.
    """
    seed: int = 0
    """Seed of the starts and of the networks' training."""
    solvers: tuple[str, ...] = SOLVERS
    """Names of the table of solvers. All are deterministic with a fixed number of
    evaluations.
    """
    budgets: tuple[int, ...] = (6, 8, 12, 16, 24, 32, 48)
    """Evaluations of the denoiser."""
    starts: int = 128
    """Starts of each mixture. Digits and networks take half."""
    train_steps: int = 2000
    """Optimiser steps of each trained network."""
    quick: bool = False
    """A few solvers, three budgets, 64 starts, short training."""


def run(config: Config) -> dict[str, Any]:
    """Measure all pairs, write errors.json and metrics.json, and print the
    recommendations.
    """
    if config.quick:
        config = dataclasses.replace(
            config, solvers=QUICK, budgets=(8, 16, 32), starts=64, train_steps=300
        )
    check_same_suite(config)
    out = files.start(config)
    with jax.enable_x64(True):
        print(
            "making the suite: exact flows to 1e-10, two networks under two schedules",
            flush=True,
        )
        suite = groups(config.seed, config.starts, config.train_steps)
        rows = read_errors(out / "errors.json")
        done = {row.solver for row in rows}
        with cli.progress(
            len(config.solvers) * len(suite), label="measuring", unit="solver"
        ) as bar:
            for name in config.solvers:
                if name in done:
                    bar.update(len(suite))
                    continue
                for group in suite:
                    bar.set_postfix_str(f"{name}, {group.names[0]}")
                    rows += measure(name, group, config.budgets)
                    bar.update()
                write_errors(out / "errors.json", rows)
                jax.clear_caches()
    summary = summarise(rows, config.budgets)
    files.write_results(out, summary)
    save_figure(draw(summary), out / "regret.png")
    print_summary(summary)
    return summary


SUITE = ("seed", "budgets", "starts", "train_steps")
"""The flags that decide which problems are measured."""


def check_same_suite(config: Config) -> None:
    """Raise ValueError if config.out holds errors that were measured with other
    flags of `SUITE`.
    """
    if not (config.out / "errors.json").exists():
        return
    held = files.read_json(
        config.out / "config.json", "remove errors.json to measure anew", *SUITE
    )
    for name in SUITE:
        now = files.as_dict(config)[name]
        if held[name] != json.loads(json.dumps(now)):
            raise ValueError(
                f"{name} must be {held[name]} as in {config.out}/errors.json, or give "
                f"another --out; got {now}"
            )


def write_errors(path: pathlib.Path, rows: list[Errors]) -> None:
    """Write all errors, one per line."""
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(
        "[\n"
        + ",\n".join(strict_json.dumps(row._asdict(), None).strip() for row in rows)
        + "\n]\n"
    )
    # A kill before this line leaves the earlier file.
    os.replace(temporary, path)


def read_errors(path: pathlib.Path) -> list[Errors]:
    """Read the errors of `write_errors`, none where there is no file.

    A run that was stopped goes on after its last solver.

    Raises:
      ValueError: If the file is damaged. The message names the file and the
        cure.
    """
    try:
        return (
            [Errors(**row) for row in strict_json.loads(path.read_text())]
            if path.exists()
            else []
        )
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): remove it to measure anew"
        ) from None


def summarise(
    rows: list[Errors], budgets: tuple[int, ...], kept: int = 5
) -> dict[str, Any]:
    """The pairs of least worst regret on the choosing half, with their regrets on
    both halves.

    Args:
      rows: All errors.
      budgets: Evaluations.
      kept: Number of pairs reported for each budget and measure.

    Returns:
      JSON values: the suite, and for each "BUDGET evaluations, MEASURE" the
        best pairs and the recommended one.
    """
    held_out = {row.problem: row.held_out for row in rows}
    halves = {
        half: [p for p, out in held_out.items() if out == (half == "held out")]
        for half in ("chosen on", "held out")
    }
    report: dict[str, Any] = {
        "problems": halves,
        "solvers": sorted({row.solver for row in rows}),
        "grids": list(GRIDS),
        "least worst regret": {},
        "recommended": {},
    }
    for budget in budgets:
        for measured in MEASURES:
            table = regrets(rows, budget, measured)
            if not table:
                continue
            title = f"{budget} evaluations, {measured}"
            lines = {
                pair: standing(pair, regret, halves) for pair, regret in table.items()
            }
            best = sorted(lines.values(), key=lambda line: line["chosen on"]["worst"])
            report["least worst regret"][title] = best[:kept]
            if (recommended := recommendation(budget)) in lines:
                report["recommended"][title] = lines[recommended]
    return report


def recommendation(budget: int) -> tuple[str, str]:
    """The default solver and grid of `sample`, at another number of evaluations."""
    return "unipc(3)", f"angular({0.5 if budget < grids.DENSE else 0.25})"


def standing(
    pair: tuple[str, str], regret: dict[str, float], halves: dict[str, list[str]]
) -> dict[str, Any]:
    """The worst and the median regret of a pair on each half, and the problem
    where it is worst.
    """
    line: dict[str, Any] = {"solver": pair[0], "grid": pair[1]}
    for half, problems in halves.items():
        values = [regret[problem] for problem in problems]
        line[half] = {
            "worst": float(np.max(values)),
            "median": float(np.median(values)),
        }
        line[half]["worst problem"] = problems[int(np.argmax(values))]
    return line


def print_summary(summary: dict[str, Any]) -> None:
    """Print the best pairs of each budget, with worst and median regret on both
    halves.
    """
    print("regret: worst (median) on the half chosen on, then on the half held out")
    for title, lines in summary["least worst regret"].items():
        print(title)
        recommended = summary["recommended"].get(title)
        for line in (
            lines
            if recommended is None or recommended in lines
            else [*lines, recommended]
        ):
            on, out = line["chosen on"], line["held out"]
            print(
                f"  {line['solver']:26s} {line['grid']:22s} {on['worst']:6.2f} "
                f"({on['median']:.2f})   "
                f"{out['worst']:6.2f} ({out['median']:.2f})  {out['worst problem']}"
            )


if __name__ == "__main__":
    cli.main(run, Config, __doc__)
