"""The comparison of solvers at its smallest settings: what it measures is what
theory says.
"""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import schedules, solvers, targets
from experiments.bench_solvers import __main__ as bench_solvers
from experiments.bench_solvers import errors as solver_errors
from experiments.bench_solvers import figures as solver_figures
from experiments.bench_solvers import fitted as bench_fitted
from experiments.bench_solvers import peers as solver_peers
from experiments.bench_solvers import problems as solver_problems
from experiments.bench_solvers import programs as solver_programs
from experiments.bench_solvers import report as solver_report
from experiments.score_sde import model as score_sde
from experiments.shared import datasets
from experiments.shared.solvers import SOLVERS, make


def small(tmp_path, **changes):
    defaults = {
        "schedules": ("vp_linear",),
        "targets": ("gaussian",),
        "grids": ("log_snr",),
        "starts": 16,
        "seeds": 2,
    }
    return bench_solvers.Config(out=tmp_path, **{**defaults, **changes})


@pytest.mark.slow
def test_errors_fall_at_the_order_of_the_solver(tmp_path):
    """From 64 to 128 steps log₂ of the ratio of errors is the order within 0.3,
    and twice that for KL, a square.
    """
    rows = bench_solvers.run(
        small(tmp_path, solvers=("ddim", "dpmpp_2m", "ddim(1)"), budgets=(64, 128))
    )
    errors = {(row.solver, row.budget): row.error for row in rows}
    for name, slope in (("ddim", 1), ("dpmpp_2m", 2), ("ddim(1)", 2)):
        assert (
            abs(math.log2(errors[name, 64] / errors[name, 128]) - slope) < 0.3 * slope
        )
    assert {row.measure for row in rows if row.stochastic} == {"kl"}
    stored = json.loads((tmp_path / "metrics.json").read_text())["rows"]
    assert [row["error"] for row in stored] == [row.error for row in rows]
    assert (tmp_path / "error_rms.png").stat().st_size > 0


@pytest.mark.slow
def test_fitted_coefficients_err_less_than_published_ones(tmp_path, monkeypatch):
    """At two evaluations, on starts that the fit has not seen, by a factor."""
    monkeypatch.setattr(bench_fitted, "EXAMPLES", 64)
    monkeypatch.setattr(bench_fitted, "PAIRS", bench_fitted.PAIRS[:1])
    bench_solvers.run(small(tmp_path, fitted=True, budgets=(2,)))
    (row,) = json.loads((tmp_path / "metrics.json").read_text())["rows"]
    assert row["target"] == "mixture_2d" and row["evaluations"] == 2
    assert 0 < 2 * row["coefficients"] < row["grid"]
    assert math.isfinite(row["other_coefficients"])


def test_a_recommendation_names_the_least_error(tmp_path, capsys):
    rows = bench_solvers.run(
        small(
            tmp_path,
            solvers=("ddim", "dpmpp_2m"),
            recommend=32,
            grids=("log_snr", "uniform"),
        )
    )
    top = min(rows, key=lambda row: row.error)
    assert (
        f"{top.solver} on {top.grid}, 32 steps, 32 evaluations"
        in capsys.readouterr().out
    )
    assert (top.solver, top.grid) == (
        "dpmpp_2m",
        "log_snr",
    )  # uniform in t leaves nothing for the last decades of σ


@pytest.mark.parametrize("name", SOLVERS)
def test_a_budget_is_kept_and_used(name):
    """The steps planned cost at most the budget, and one more would cost more."""
    solver = make(name)
    for budget, steps in bench_solvers.plan(solver, (5, 8, 31)):
        if budget is None:
            continue  # its own choice
        cost = [solver.evaluations(n) for n in (steps, steps + 1)]
        assert cost[0] <= budget < cost[1]


@pytest.mark.parametrize(
    ("factory", "steps"),
    [(solvers.heun, 3), (solvers.dpmpp_2m, 4), (solvers.dpmpp_sde, 2)],
)
def test_evaluations_are_counted_in_the_program(factory, steps, x64):
    solver, schedule = factory(), schedules.edm()
    denoiser = targets.denoiser(targets.gaussian([0.0, 1.0], 0.5), schedule)
    arguments = (
        denoiser,
        schedule,
        jax.random.split(jax.random.key(0), 2),
        jnp.ones((2, 2)),
    )
    grid = bench_solvers.make_grid("karras", schedule, steps)
    counted = solver_programs.evaluations(
        jax.make_jaxpr(solver_programs.batch_program(solver))(*arguments, grid).jaxpr
    )
    assert counted == solver.evaluations(steps) > 0


def test_the_count_of_an_adaptive_program_is_not_guessed(x64):
    schedule = schedules.edm()
    denoiser = targets.denoiser(targets.gaussian([0.0], 0.5), schedule)
    arguments = (
        denoiser,
        schedule,
        jax.random.split(jax.random.key(0), 2),
        jnp.ones((2, 1)),
    )
    program = jax.make_jaxpr(solver_programs.batch_program(solvers.adaptive()))
    assert (
        solver_programs.evaluations(program(*arguments, jnp.array([80.0, 0.002])).jaxpr)
        is None
    )


def test_divergence_of_gaussians_has_its_closed_form():
    """KL(N(1, 4) ‖ N(0, 1)) = ½ (4 + 1 − 1 − log 4), and to second order in a
    small change of one variance e²/4.
    """
    one, two = np.eye(1), 4 * np.eye(1)
    closed = 0.5 * (4 - math.log(4))
    assert math.isclose(
        solver_errors.gaussian_kl(np.ones(1), two, np.zeros(1), one),
        closed,
        rel_tol=1e-12,
    )
    tiny = 1e-6
    small_change = solver_errors.gaussian_kl(
        np.zeros(1), (1 + tiny) * one, np.zeros(1), one
    )
    assert math.isclose(
        small_change, tiny**2 / 4, rel_tol=1e-5
    )  # e²/4 − e³/6, and e itself to 1e-10


def test_the_reference_is_the_flow_of_a_gaussian(x64):
    """x − α m scales as √(α² v + σ²) along the flow of N(m, v)."""
    target, schedule = targets.gaussian([0.5], 0.6), schedules.vp_linear(t_min=1e-3)
    starts = jnp.array([[-1.0], [0.3], [2.0]])

    def at(t):
        return schedule.alpha(t), jnp.sqrt(
            schedule.alpha(t) ** 2 * 0.36 + schedule.sigma(t) ** 2
        )

    (alpha, spread), (alpha_end, spread_end) = at(schedule.t_max), at(schedule.t_min)
    exact = alpha_end * 0.5 + spread_end / spread * (starts - alpha * 0.5)
    ends = solver_problems.flow_ends(
        targets.denoiser(target, schedule), schedule, starts, 1e-11
    )
    assert np.max(np.abs(ends - exact)) < 1e-9


@pytest.mark.slow
def test_a_trained_network_is_solved_along_its_own_flow(tmp_path):
    """Errors of Heun on the network's flow fall at order 2 within 0.5. A
    stochastic solver, whose distribution is unknown, has no row.
    """
    run = tmp_path / "run"
    score_sde.train(*_tiny_run(run), run)
    rows = bench_solvers.run(
        small(
            tmp_path,
            targets=(str(run),),
            solvers=("heun", "ddim(1)"),
            budgets=(128, 256),
        )
    )
    assert {row.solver for row in rows} == {"heun"}
    assert math.log2(rows[0].error / rows[1].error) > 2 - 0.5


def _tiny_run(out):
    config = score_sde.Config(
        out=out,
        data="moons",
        width=16,
        depth=1,
        steps=20,
        batch_size=16,
        noise_floor=0.05,
    )
    out.mkdir()
    return config, score_sde.make_model(
        config, datasets.open_dataset("moons", config.held_out, config.seed)
    )


def test_the_front_holds_what_no_faster_row_betters():
    def point(seconds, error):
        return solver_report.ErrorRow(
            "s",
            "g",
            "",
            "",
            1,
            1,
            1,
            False,
            1,
            "rms",
            error,
            (0, 0),
            0,
            {},
            0,
            seconds,
            0,
        )

    rows = [point(1, 3.0), point(2, 4.0), point(3, 1.0), point(4, 2.0)]
    assert solver_figures.pareto(rows) == [rows[0], rows[2]]


def test_curves_for_the_site_hold_every_row(tmp_path):
    """Each row is a point of its problem's curves, to 4 digits, and a run that
    diverged is null. The code of each solver makes it.
    """
    site = tmp_path / "curves.json"
    rows = bench_solvers.run(
        small(
            tmp_path,
            solvers=("ddim", "dpmpp_2m", "ddim(1)", "adaptive(1e-2)"),
            budgets=(8, 16),
            site=site,
        )
    )
    stored = json.loads(site.read_text())
    assert stored["samples"] == 32 and len(stored["problems"]) == 2
    points = {
        (problem["measure"], solver, grid): points
        for problem in stored["problems"]
        for solver, curves in problem["curves"].items()
        for grid, points in curves.items()
    }
    assert sum(map(len, points.values())) == len(rows)
    for row in rows:
        (point,) = (
            dict(zip(stored["point"], point, strict=False))
            for point in points[row.measure, row.solver, row.grid]
            if point[0] == row.budget
        )
        assert math.isclose(point["error"], row.error, rel_tol=1e-3)
        assert point["steps"] == row.steps and math.isclose(point["nfe"], row.nfe)
    diverged = rows[0]._replace(error=math.inf, interval=(math.inf, math.inf))
    (problem,) = solver_report.curves([diverged], 32)["problems"]
    assert problem["curves"]["ddim"]["log_snr"] == [[8, 8, 8.0, None]]
    for name, solver in stored["solvers"].items():
        assert eval(solver["code"], {"dj": dj}).order == make(name).order


def test_unknown_names_and_empty_budgets_raise(tmp_path):
    with pytest.raises(ValueError, match="schedules must be of vp_linear.*got 'vp'"):
        bench_solvers.run(small(tmp_path, schedules=("vp",)))
    with pytest.raises(ValueError, match="budgets must be positive"):
        bench_solvers.run(small(tmp_path, budgets=()))
    with pytest.raises(ValueError, match="site must be None.*guarded=False"):
        bench_solvers.run(small(tmp_path, site=tmp_path / "a.json", guarded=False))


def test_multistep_methods_of_the_table_can_run_as_published(tmp_path):
    assert make("unipc(3)", guarded=False) is dj.solvers.unipc(3, guarded=False)
    assert make("heun", guarded=False) is make("heun")
    settings = {"solvers": ("dpmpp_3m_sde",), "budgets": (8,), "schedules": ("edm",)}
    with jax.enable_x64(True):
        guarded, published = (
            next(
                bench_solvers.measure(small(tmp_path, guarded=value, **settings))
            ).error
            for value in (True, False)
        )
    assert guarded < 0.5 * published  # 0.40 and 1.0 nats


def test_peers_that_are_not_installed_are_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(solver_peers, "missing", lambda: "torch is not installed")
    assert bench_solvers.run(small(tmp_path, peers=True)) == []
    assert "torch is not installed" in capsys.readouterr().out
