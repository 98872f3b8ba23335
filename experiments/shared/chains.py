"""Markov chains that the devices of a run share, with the keys and the results of
`diffjax.langevin`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from diffjax import langevin
from diffjax.langevin.normalisers import importance_estimate
from diffjax.types import as_pytree_callable, combine, compiled, partition
from experiments.shared import devices


def run_many(
    key: jax.Array, kernel: langevin.Kernel, starts: Any, steps: int, **settings: int
) -> langevin.Chains:
    """`langevin.run_many` on the devices of the run.

    Args:
      key: The key of the run.
      kernel: The kernel.
      starts: Positions, (count, *shape).
      steps: Number of steps after the warm-up.
      **settings: Its thinning and warm-up.

    Returns:
      The chains as NumPy arrays.
    """
    count = len(starts)
    rows = np.minimum(np.arange(devices.padded(count)), count - 1)
    result = langevin.run_many(
        key, kernel, devices.shared(starts[rows]), steps, **settings
    )
    return jax.tree.map(lambda part: part[:count], devices.on_host(result))


def annealed_importance_sampling(
    key: jax.Array,
    base: Any,
    target: Any,
    betas: Any,
    *,
    make_kernel: Any,
    count: int,
    steps: int,
) -> langevin.ImportanceEstimate:
    """`langevin.annealed_importance_sampling` on the devices of the run.

    Args:
      key: The key of the chains.
      base: The distribution of the starts.
      target: The density.
      betas: Increasing from 0 to 1, (K + 1,).
      make_kernel: (density, β) -> kernel.
      count: Number of chains.
      steps: Number of steps at each β.

    Returns:
      The estimate.

    Raises:
      FloatingPointError: If chains diverged.
    """
    # Chain i depends on its number alone, so that those beyond `count` can be
    # cut off.
    estimate = _estimate(
        langevin.annealed_importance_sampling,
        ("log_weights", "samples"),
        (base, target, make_kernel),
        key,
        betas,
        count=devices.padded(count),
        steps=steps,
    )
    log_weights, samples = estimate.log_weights[:count], estimate.samples[:count]
    # Not a number is not below infinity either.
    bad = int(np.sum(~(log_weights < np.inf)))
    if bad:
        raise FloatingPointError(f"{bad} of {count} annealed chains diverged")
    return importance_estimate(log_weights, samples)


def thermodynamic_integration(
    key: jax.Array,
    base: Any,
    target: Any,
    betas: Any,
    *,
    make_kernel: Any,
    count: int,
    steps: int,
    warm_up: int,
) -> langevin.ThermodynamicEstimate:
    """`langevin.thermodynamic_integration` on the devices of the run.

    Args:
      key: The key of the chains.
      base: The distribution of the starts.
      target: The density.
      betas: Increasing from 0 to 1, (K + 1,).
      make_kernel: (density, β) -> kernel.
      count: Number of chains. The devices share them where it is a multiple of
        their number.
      steps: Number of steps at each β that are averaged.
      warm_up: Number of steps at each β that are left out.

    Returns:
      The estimate as NumPy arrays.

    Raises:
      FloatingPointError: If the estimate is not finite.
    """
    estimate = _estimate(
        langevin.thermodynamic_integration,
        ("chain_values",),
        (base, target, make_kernel),
        key,
        betas,
        count=count,
        steps=steps,
        warm_up=warm_up,
    )
    if not np.isfinite(estimate.log_z):
        bad = int(np.sum(~np.isfinite(estimate.chain_values)))
        raise FloatingPointError(
            f"log Z is {estimate.log_z}: {bad} of {count} chains diverged or met a "
            "density of 0"
        )
    return estimate


class _Settings(NamedTuple):
    """Settings of a compiled estimate."""

    method: Callable
    split: tuple[str, ...]  # the results that the devices share
    static: Any
    numbers: tuple[tuple[str, int], ...]
    mesh: Mesh


def _estimate(method, split, densities, key, betas, **numbers):
    """A result of `method` on the host, made on the devices of the run."""
    base, target, make_kernel = densities
    arrays, static = partition((base, target, as_pytree_callable(make_kernel)))
    numbers = tuple(numbers.items())
    settings = _Settings(method, split, static, numbers, devices.mesh())
    return devices.on_host(_compiled_estimate(settings, arrays, key, betas))


@compiled
def _compiled_estimate(settings, arrays, key, betas):
    base, target, make_kernel = combine(arrays, settings.static)
    numbers = dict(settings.numbers)
    estimate = settings.method(
        key, base, target, betas, make_kernel=make_kernel, **numbers
    )
    parts = {name: getattr(estimate, name) for name in settings.split}
    return estimate._replace(**devices.shared(parts))
