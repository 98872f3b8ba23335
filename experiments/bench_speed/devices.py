"""Rows of `bench_speed` on the work and the memory of one of eight devices.

The devices are simulated ones of the CPU, in a program of their own, as their number
is fixed when JAX starts. Operations are those that XLA counts in the compiled programs.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import networks, training
from diffjax.training import parallel
from experiments.bench_speed.ratios import Config, RatioRow, row_of

DEVICES, BATCH = 8, 96


def eight_devices(config: Config) -> Iterator[RatioRow]:
    """A training step of a transformer split over eight devices, against one device.

    Rows are operations, examples of a batch, and bytes of the state, of one device
    times eight, against all on one device. 1 is an even split.
    """
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}",
    }
    command = [sys.executable, "-m", "experiments.bench_speed.devices"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{DEVICES} simulated devices failed: {done.stderr[-500:]}")
    shares = json.loads(done.stdout)
    limits = {"operations": 1.1, "examples": 1.0, "bytes of the state": 1.15}
    for name, share in shares.items():
        row = f"{name} of one of {DEVICES} devices, × {DEVICES}"
        yield row_of(row, [DEVICES * share], limits[name])


def shares() -> dict[str, float]:
    """The share of one device in a training step of 8×8 images, by quantity."""
    network = networks.DiT(width=96, depth=4)
    params = network.init(jax.random.key(0), jnp.zeros((8, 8, 1)), jnp.zeros(()))
    rule = training.optimiser(1e-3)

    def loss_fn(params, key, batch):
        noise = jax.random.normal(key, batch.shape)
        net = jax.vmap(lambda x: network.apply(params, x, jnp.ones(())))
        return jnp.mean((net(batch + noise) - batch) ** 2), {}

    steps = training.make_steps(training.make_step(loss_fn, rule))
    state = training.init(jax.random.key(1), params, rule)
    block, mesh = np.zeros((1, BATCH, 8, 8, 1), np.float32), training.data_mesh()
    placed = training.shard_state(state, mesh)
    batch = training.shard_batch(block, mesh, axis=1)
    one = steps.lower(state, jax.device_put(block)).compile()
    split = parallel.pinned(steps, placed, mesh).lower(placed, batch).compile()
    leaves = jax.tree.leaves(placed)
    held = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)
    return {
        "operations": split.cost_analysis()["flops"] / one.cost_analysis()["flops"],
        "examples": batch.sharding.shard_shape(batch.shape)[1] / BATCH,
        "bytes of the state": held / sum(leaf.size for leaf in leaves),
    }


if __name__ == "__main__":
    print(json.dumps(shares()))
