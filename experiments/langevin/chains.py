"""The chains of `langevin` on a line: histograms, biases and paths."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import langevin, numerics, quadrature, targets
from experiments.langevin.config import Config
from experiments.shared import chains as shared_chains

KERNELS: dict[str, tuple[str, Callable, Callable, str]] = {
    "ula": ("ULA", langevin.ula, lambda e: e, "#b5482a"),
    "mala": ("MALA", langevin.mala, lambda e: e, "#1f4e79"),
    "baoab": ("BAOAB", langevin.baoab, math.sqrt, "#c9952b"),
    "underdamped": (
        "underdamped, adjusted",
        langevin.underdamped,
        math.sqrt,
        "#3c8d5a",
    ),
}
"""name -> (title, factory, its step size for ε, colour).

A kinetic step h moves as far as a Langevin step of ε = h².
"""
LINE = ((0.4, 0.6), ((-1.5,), (1.0,)), (0.4, 0.7))
PLANE = ((0.4, 0.35, 0.25), ((1.5, 0.0), (-1.0, 0.5), (0.0, -2.0)), (0.5, 0.7, 0.4))
BOUNDS, CELLS = (-5.0, 5.0), 80
LONG = 0.5
"""ε of the histograms and the paths."""
PATH_STEPS, WARM_UP = 150, 100
FAR_GONE = 1e3
"""A chain whose last position is this far from 0, in root mean squares of the
target, has diverged.
"""


def key_of(config: Config, purpose: str) -> jax.Array:
    """The key of one purpose."""
    return jax.random.fold_in(
        jax.random.key(config.seed), sum(i * ord(c) for i, c in enumerate(purpose, 1))
    )


def exact_samples(key: jax.Array, target: Any, count: int) -> jax.Array:
    """Exact draws, (count, D)."""
    return jax.jit(jax.vmap(target.sample))(jax.random.split(key, count))


def kernel_of(name: str, target: Any, size: float) -> langevin.Kernel:
    """The kernel that moves by ε = size."""
    _, factory, scale, _ = KERNELS[name]
    return factory(target, scale(size))


def chains(
    config: Config, name: str, target: Any, size: float, thinning: int = 1
) -> langevin.Chains:
    """All chains of a kernel from exact draws of the target. They may leave it
    and diverge.
    """
    starts = exact_samples(key_of(config, "starts"), target, config.chains)
    kernel = kernel_of(name, target, size)
    return shared_chains.run_many(
        key_of(config, name),
        kernel,
        starts,
        config.steps,
        thinning=thinning,
        warm_up=WARM_UP,
    )


def on_a_line(
    config: Config, line: Any, bar: Any
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Distance ½Σ|frequency − probability| of each kernel's histogram, and of as
    many exact draws.
    """
    edges = np.linspace(*BOUNDS, CELLS + 1)
    mass = np.array(
        [
            float(
                jnp.exp(
                    quadrature.log_integral(line.log_prob, [pair], 8, tolerance=None)
                )
            )
            for pair in pairs(edges)
        ]
    )
    results, counts = {}, {}
    for name in KERNELS:
        result = chains(config, name, line, LONG, thinning=10).check()
        counts[name] = frequencies(result.samples, edges)
        results[name] = {
            "distance": float(0.5 * np.abs(counts[name] - mass).sum()),
            "acceptance": float(result.acceptance.mean()),
            "effective_sample_size": float(
                langevin.effective_sample_size(result.samples)[0]
            ),
            "r_hat": float(langevin.r_hat(result.samples)[0]),
        }
        bar.update()
    exact = exact_samples(
        key_of(config, "exact"), line, config.chains * config.steps // 10
    )
    results["exact"] = {
        "distance": float(0.5 * np.abs(frequencies(exact, edges) - mass).sum())
    }
    return results, counts


def pairs(edges: np.ndarray) -> np.ndarray:
    """Cells as pairs of edges, (N, 2)."""
    return np.stack([edges[:-1], edges[1:]], -1)


def frequencies(samples: Any, edges: np.ndarray) -> np.ndarray:
    """The share of samples in each cell."""
    return np.histogram(np.asarray(samples).ravel(), edges)[0] / np.size(samples)


def bias(config: Config, target: Any, bar: Any) -> dict[str, Any]:
    """Relative error of the mean square by kernel and step size, with its
    standard error between chains.

    It is None where a chain diverged, and the number of those is reported.
    """
    exact = float(
        quadrature.integrate(
            lambda x: x[0] ** 2 * jnp.exp(target.log_prob(x)), [(-9, 9)], 400
        )
    )
    biases = {}
    for name in KERNELS:
        rows = []
        for size in config.step_sizes:
            result = chains(config, name, target, size)
            row: dict[str, Any] = {
                "step_size": size,
                "bias": None,
                "standard_error": None,
            }
            # A chain that diverges overflows late. Its size shows it long before.
            gone = ~(
                np.abs(np.asarray(result.samples[:, -1, 0]))
                < FAR_GONE * math.sqrt(exact)
            )
            if not gone.any():
                means = np.asarray(jnp.mean(result.samples**2, (1, 2)), np.float64)
                row["standard_error"] = numerics.standard_error(means) / exact
                row["bias"] = means.mean() / exact - 1
            else:
                row["diverged"] = int(gone.sum())
            rows.append(row)
            bar.update()
        biases[name] = rows
    return {"mean_square": exact, "kernels": biases}


def path(config: Config, name: str) -> np.ndarray:
    """One chain on the mixture in the plane, (steps, 2)."""
    kernel = kernel_of(name, targets.gaussian_mixture(*PLANE), LONG / 5)
    return np.asarray(
        langevin.run(key_of(config, "path"), kernel, jnp.array([1.5, 0.0]), PATH_STEPS)
        .check()
        .samples
    )


def exact_bias(name: str, size: np.ndarray) -> np.ndarray:
    """Relative bias of the variance on N(0, 1): ε/4 / (1 − ε/4) of ULA, none of
    the others.
    """
    return size / 4 / (1 - size / 4) if name == "ula" else np.zeros_like(size)
