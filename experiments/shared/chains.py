"""Markov chains that the devices of a run share, with the keys and the results of
`diffjax.langevin`.
"""

from typing import Any

import jax
import numpy as np

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
    arrays, static = partition((base, target, as_pytree_callable(make_kernel)))
    # Chain i depends on its number alone, so that those beyond `count` can be
    # cut off.
    settings = (static, devices.padded(count), steps, devices.mesh())
    drawn = _annealed(settings, arrays, key, betas)
    log_weights, samples = (part[:count] for part in devices.on_host(drawn))
    # Not a number is not below infinity either.
    bad = int(np.sum(~(log_weights < np.inf)))
    if bad:
        raise FloatingPointError(f"{bad} of {count} annealed chains diverged")
    return importance_estimate(log_weights, samples)


@compiled
def _annealed(settings, arrays, key, betas):
    static, count, steps, _ = settings
    base, target, make_kernel = combine(arrays, static)
    estimate = langevin.annealed_importance_sampling(
        key, base, target, betas, make_kernel=make_kernel, count=count, steps=steps
    )
    return devices.shared((estimate.log_weights, estimate.samples))


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
    arrays, static = partition((base, target, as_pytree_callable(make_kernel)))
    settings = (static, count, steps, warm_up, devices.mesh())
    estimate = devices.on_host(_integrated(settings, arrays, key, betas))
    if not np.isfinite(estimate.log_z):
        bad = int(np.sum(~np.isfinite(estimate.chain_values)))
        raise FloatingPointError(
            f"log Z is {estimate.log_z}: {bad} of {count} chains diverged or met a "
            "density of 0"
        )
    return estimate


@compiled
def _integrated(settings, arrays, key, betas):
    static, count, steps, warm_up, _ = settings
    base, target, make_kernel = combine(arrays, static)
    estimate = langevin.thermodynamic_integration(
        key,
        base,
        target,
        betas,
        make_kernel=make_kernel,
        count=count,
        steps=steps,
        warm_up=warm_up,
    )
    return estimate._replace(chain_values=devices.shared(estimate.chain_values))
