"""Rows of `bench_speed` on compilation and memory by number of steps, and on the
import.
"""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

import diffjax as dj
from diffjax import solvers, targets
from experiments.bench_speed.ratios import (
    Config,
    RatioRow,
    compiled_at,
    growth,
    row_of,
)
from experiments.bench_speed.solvers import mixture

IMPORT_LIMIT = 0.3
"""Seconds that `import diffjax` may add to importing jax and flax."""


def sampler(config: Config, path: bool, samples: int = 8192) -> Callable[[int], Any]:
    """steps -> `sample_many` by Heun (quick: Euler) on the mixture, traced anew
    and lowered.
    """
    target, schedule, key, _ = mixture(dataclasses.replace(config, samples=1))
    denoiser = targets.denoiser(target, schedule)

    def program(key, grid):
        shape = target.means.shape[1:]
        solver = solvers.euler() if config.quick else solvers.heun()
        return dj.sample_many(
            key,
            samples,
            denoiser,
            schedule,
            solver=solver,
            grid=grid,
            shape=shape,
            path=path,
        )

    return lambda steps: jax.jit(program).lower(
        key, jax.ShapeDtypeStruct((steps + 1,), jnp.float32)
    )


def memory(config: Config) -> Iterator[RatioRow]:
    """Temporary and result bytes of the compiled program at 2000 steps over those
    at 20.
    """
    for path in (False, True):
        bytes_of, lowered = [], sampler(config, path)
        for steps in (20, 2000):
            analysis = lowered(steps).compile().memory_analysis()
            if analysis is None:
                print("this device reports no memory: no row for it")
                return
            bytes_of.append(analysis.temp_size_in_bytes + analysis.output_size_in_bytes)
        ratio = bytes_of[1] / bytes_of[0]
        yield row_of(
            f"memory at 2000 steps against 20, path={path}",
            [ratio],
            None if path else 1.1,
        )


def compilation(config: Config) -> Iterator[RatioRow]:
    """Time to trace, lower and compile at 200 and 2000 steps over that at 20."""
    seconds = compiled_at(
        sampler(config, path=False), (20, 200, 2000), 1 if config.quick else 9
    )
    yield from growth("compilation at {} steps", seconds, 1.1)


def imports(config: Config) -> Iterator[RatioRow]:
    """Seconds of `import diffjax` in a fresh interpreter that has imported jax
    and flax.
    """
    program = (
        "import time, jax, flax.linen; s = time.perf_counter(); "
        "import diffjax; print(time.perf_counter() - s)"
    )
    # Importing starts no device, so any platform gives the same seconds.
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    seconds = []
    for _ in range(1 if config.quick else 7):
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            env=environment,
            check=True,
        )
        seconds.append(float(done.stdout))
    yield row_of(
        "import diffjax, beyond jax and flax", seconds, IMPORT_LIMIT, "seconds"
    )
