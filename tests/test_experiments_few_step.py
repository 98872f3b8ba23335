"""The comparison of few-step methods, at its smallest setting."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import guidance, metrics, schedules, targets
from experiments.few_step import __main__ as few_step
from experiments.few_step import measures, students, tasks
from experiments.few_step.objectives import OBJECTIVES, Draw

TARGET = targets.gaussian([0.5, -1.0], 0.6)
SCHEDULE = schedules.rectified_flow()


def task_of(pool, ends, **settings):
    """A task of the normal distribution."""
    denoiser = targets.denoiser(TARGET, SCHEDULE)
    fields = {"conditions": (), "stretch": {}, "reference": metrics.moments(pool)}
    fields |= {"width": 8, "batch": 8, "scale": 1.0} | settings
    return tasks.Task(
        "normal", SCHEDULE, denoiser, pool, np.zeros_like(ends[0]), ends=ends, **fields
    )


ROWS = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
TASK = task_of(ROWS, ROWS[None])
VANISHING = ("eulerian", "lagrangian", "mean_flow", "progressive", "shortcut")


@pytest.mark.parametrize("name", VANISHING)
def test_losses_of_a_teacher_vanish_on_the_exact_map(name):
    """At the exact map of a normal distribution, whatever pair of times is drawn.

    In float32 to the square of a rounding error, which a quotient by the shortest
    interval of 2^−7 multiplies.
    """
    exact = targets.flow_map(TARGET, SCHEDULE)
    draws = (ROWS, ROWS[::-1], np.random.default_rng(1).uniform(size=(64, 3)))

    @jax.jit
    def losses(x0, noise, u):
        one = lambda *draw: OBJECTIVES[name].loss(
            TASK, exact, Draw(*draw, (), 0.5, 4.0, exact)
        )
        return jax.vmap(one)(x0, noise, u)

    rounding = 2**7 * 8 * np.finfo(np.float32).eps * np.max(np.abs(ROWS))
    assert np.all(losses(*(jnp.float32(part) for part in draws)) < rounding**2)


def test_errors_are_those_of_a_shift():
    """A shift by (3, 4) of exact ends has root mean square 5 with no deviation, and
    squared Fréchet distance 25.
    """
    shift = np.array([3.0, 4.0])
    reached = measures.Ends({1: TASK.ends + shift, 8: TASK.ends}, {2: TASK.ends})
    numbers = measures.errors(TASK, reached)
    rounding = 64 * np.finfo(np.float32).eps
    assert abs(numbers["rms"][1] - 5) < rounding and numbers["rms"][8] == 0
    assert numbers["rms_standard_error"][1] < rounding
    assert abs(numbers["frechet"][1] - 25) < 25 * rounding
    assert numbers["frechet_renoised"][2] < rounding
    other = {"rms": {1: 4.0}}
    assert measures.best({"a": numbers, "b": other}, 1) == "b"
    assert measures.best({"a": numbers, "b": other}, 8) == "a"


def test_errors_of_a_guided_map_are_also_those_of_each_scale():
    """Errors of 3 and 4 at two scales have the root mean square √12.5."""
    task = dataclasses.replace(
        TASK, conditions=(1.0, 2.0), reference=None, ends=np.zeros((2, 4, 1))
    )
    ends = np.array([3.0, 4.0])[:, None, None] * np.ones((2, 4, 1))
    numbers = measures.errors(task, measures.Ends({1: ends}, {}))
    np.testing.assert_allclose(numbers["rms"][1], np.sqrt(12.5), rtol=1e-6)
    assert numbers["rms_by_scale"] == {1.0: {1: 3.0}, 2.0: {1: 4.0}}
    assert "frechet" not in numbers


def test_the_rate_rises_for_a_twentieth_and_ends_at_0():
    rates = students.learning_rates(2.0, 1000)
    assert np.argmax(rates) in (50, 51) and rates[-1] < 1e-4
    assert 1.98 < rates.max() <= 2.0 and rates[0] > 0


@pytest.mark.parametrize("blocks", [6, 35, 161])
def test_stages_follow_each_other_and_the_first_takes_two_shares(blocks):
    """Each end is rounded to a block, by half a block at most."""
    staged = students.stages("progressive", blocks)
    begins, ends, steps = zip(*staged, strict=True)
    assert begins == (0, *ends[:-1]) and ends[-1] == blocks
    assert steps == students.PROGRESSIVE_STEPS
    shares = np.array([2, 1, 1, 1, 1]) * blocks / 6
    assert np.all(np.abs(np.array(ends) - np.cumsum(shares)) <= 0.5 + 1e-9)
    assert students.stages("lagrangian", blocks) == [(0, blocks, 0)]


def test_the_committed_students_spent_the_same_and_reach_the_stated_error():
    """To half a block of steps, beside the rounding to six digits. One step of the best
    student errs by less than 0.05 on the overlapping modes.
    """
    path = pathlib.Path(few_step.__file__).parents[1] / "results" / "few_step.json"
    for name, numbers in json.loads(path.read_text())["tasks"].items():
        for row in numbers["students"].values():
            block = students.BLOCK * row["flops_per_step"]
            spent = row["steps"] * row["flops_per_step"]
            assert abs(spent - numbers["budget"]) <= 0.5 * block + 1e-5 * spent
        if name == "soft":
            assert min(row["rms"]["1"] for row in numbers["students"].values()) < 0.05


@pytest.mark.slow
def test_ends_are_those_of_the_exact_flow_map():
    """`targets.flow_map` solves the same flow to 1e-12, the task to 1e-9. Both are
    rounded to float32.
    """
    task = tasks.open_task("soft", 3, 8, small=True)
    with jax.enable_x64(True):
        exact = targets.flow_map(tasks.soft_mixture(), task.schedule)
        times = task.schedule.t_max, task.schedule.t_min
        ends = jax.vmap(lambda x: exact(x, *times))(np.float64(task.starts))
    # A start is rounded too, and the map stretches that.
    bound = 1e-6 * task.stretch["greatest"] * np.max(np.abs(task.starts))
    np.testing.assert_allclose(task.ends[0], ends, atol=bound, rtol=0)


@pytest.mark.slow
def test_the_guided_teacher_is_the_guidance_of_the_exact_denoisers():
    task = tasks.open_task("guided", 3, 16, small=True)
    guided = guidance.classifier_free(
        task.denoiser.conditional, task.denoiser.unconditional, 2.5
    )
    x, t = jnp.array([0.3, -0.8]), 0.6
    # The velocity (x − D)/σ of rectified flow.
    expected = (x - guided(x, t)) / t
    np.testing.assert_allclose(task.velocity(x, t, 2.5), expected, rtol=1e-5)
    assert task.ends.shape == (len(tasks.MEASURED_SCALES), 16, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        {"teacher": "network", "objectives": ("progressive", "flow_map_matching")},
        {"tasks": ("guided",), "guided_objectives": ("lagrangian",)},
        {"tasks": ("digits",), "objectives": ("consistency_training",)},
    ],
)
def test_few_step_writes_what_it_promises(flags, tmp_path):
    """Every method has its errors, and a solver of several steps none at one."""
    config = few_step.Config(out=tmp_path, quick=True, **flags)
    few_step.run(config)
    measured = json.loads((tmp_path / "metrics.json").read_text())
    assert {path.name for path in tmp_path.iterdir()} >= {"few_step.png", "config.json"}
    for name, numbers in measured["tasks"].items():
        chosen = config.guided_objectives if name == "guided" else config.objectives
        assert tuple(numbers["students"]) == chosen
        for row in (numbers["students"] | numbers["solvers"]).values():
            assert np.all(np.isfinite(list(row["rms"].values())))
        for row in numbers["students"].values():
            assert list(row["rms"]) == ["1", "2", "4", "8"]
            assert row["steps"] % students.BLOCK == 0 and row["flops_per_step"] > 0
        assert list(numbers["solvers"]["unipc(3), recommended grid"]["rms"]) == [
            "2",
            "4",
            "8",
        ]


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("tasks", (), "tasks must name at least one, got none"),
        ("tasks", ("faces",), "tasks must be one of"),
        ("objectives", ("gan",), "objectives must be one of"),
        ("guided_objectives", ("flow_map_matching",), "guided_objectives must be one"),
        ("budget", 0.0, "budget must be positive, got 0"),
        ("starts", 2, "starts must be at least 16, got 2"),
    ],
)
def test_few_step_raises(field, value, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        few_step.run(
            dataclasses.replace(few_step.Config(out=tmp_path), **{field: value})
        )
