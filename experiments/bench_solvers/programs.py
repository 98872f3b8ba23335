"""Compiled runs for `bench_solvers`, with the evaluations counted in their
traces.
"""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffjax import solvers
from diffjax.solvers import driver, noise_source


class Program(NamedTuple):
    """A compiled run and its cost.

    Its evaluations are counted in the trace, None where the program decides
    them itself.
    """

    call: Callable
    evaluations: int | None
    compile_seconds: float
    memory_bytes: int


def build(function: Callable, arguments: tuple, count: int | None) -> Program:
    """Compile `function` for these arguments, and count the evaluations in its
    trace.
    """
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
    """D(x, t), as a call that `evaluations` can find by its name."""
    return denoiser(x, t)


def marked(denoiser: Any, schedule: Any) -> Any:
    """The problem whose denoiser's calls can be counted in a trace."""
    return driver.diffusion(schedule, functools.partial(marked_evaluation, denoiser))


def evaluations(jaxpr: Any) -> int | None:
    """Number of times that a traced program calls the marked denoiser.

    None where a loop or branch decides that as it runs.
    """
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
        total += sum(inner) * (
            equation.params["length"] if equation.primitive.name == "scan" else 1
        )
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
        source = noise_source.source_of(key, x, ts)
        source = source._replace(mean=lambda value: jax.lax.pmean(value, "examples"))
        end, info = driver.run(
            source, solver, marked(denoiser, schedule), x=x, ts=ts, zero_end=False
        )
        return end, jnp.asarray(info.evaluations)

    return jax.vmap(one, (None, None, 0, 0, None), axis_name="examples")


def moments_program(solver: solvers.Solver) -> Callable:
    """(denoiser, schedule, mean, covariance, grid) -> mean and covariance at
    grid[-1].

    For a Gaussian target a run is affine in its start and in all its noise.
    Its Jacobians by both give the distribution of its end.
    """

    def distribution(denoiser, schedule, mean, covariance, ts):
        drawn = []

        def end(x, noise):
            def normal(step, i):
                drawn.append(i)
                return jnp.zeros_like(x) if noise is None else noise[step, i]

            return driver.run(
                noise_source.Source(normal),
                solver,
                marked(denoiser, schedule),
                x=x,
                ts=ts,
                zero_end=False,
            )[0]

        jax.eval_shape(lambda x: end(x, None), mean)
        noise = jnp.zeros((ts.shape[0] - 1, max(drawn) + 1, *mean.shape))
        reached, push = jax.linearize(end, mean, noise)
        basis = jnp.eye(mean.size + noise.size)
        split = lambda v: push(v[: mean.size], v[mean.size :].reshape(noise.shape))
        jacobian = jax.vmap(split)(basis)  # (D + noises, D)
        by_start, by_noise = jacobian[: mean.size], jacobian[mean.size :]
        return reached, by_start.T @ covariance @ by_start + by_noise.T @ by_noise

    return distribution
