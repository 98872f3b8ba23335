"""Training of every student with the same network and the same FLOPs."""

import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from diffjax import flow_maps
from experiments.few_step.objectives import PROGRESSIVE_STEPS, Draw, Objective
from experiments.few_step.tasks import GUIDED_SCALES, Task
from experiments.shared import cli

BLOCK = 20
"""Training steps per call of the compiled program."""

DEPTH = 4
"""Layers of the network, the last one included."""

FREQUENCIES = 4
"""Sines and cosines of each time, of half periods 1, 1/2, …"""


class MapNetwork(nn.Module):
    """A plain MLP F(x, t, s, *condition), 0 at initialisation.

    Args:
      width: Number of features.
      depth: Number of dense layers.
      skip: Whether a multiple of x, which depends on the times, is added.
    """

    width: int
    depth: int = DEPTH
    skip: bool = False

    @nn.compact
    def __call__(self, x, t, s, *condition):
        times = jnp.stack([t, s])
        angles = jnp.pi * jnp.arange(1, FREQUENCIES + 1) * times[:, None]
        parts = [x.ravel(), times, jnp.cos(angles).ravel(), jnp.sin(angles).ravel()]
        h = jnp.concatenate([*parts, *(jnp.reshape(c, (1,)) for c in condition)])
        for _ in range(self.depth - 1):
            h = nn.silu(nn.Dense(self.width)(h))
        last = nn.Dense(x.size, kernel_init=nn.initializers.zeros)
        output = last(h).reshape(x.shape)
        if self.skip:
            gate = nn.Dense(1, kernel_init=nn.initializers.zeros)
            output = output + gate(jnp.concatenate(parts[1:])) * x
        return output


class Student(NamedTuple):
    """A trained map.

    Attributes:
      maps: Averaged maps by number of steps, or one under 0 for all numbers.
      steps: Training steps.
      flops: Of one step.
      seconds: Of the training, without compilation.
      parameters: Number of parameters.
    """

    maps: dict[int, Any]
    steps: int
    flops: float
    seconds: float
    parameters: int

    def of(self, evaluations: int) -> Any:
        """The map to take for this number of evaluations."""
        return self.maps.get(evaluations, self.maps.get(0))


class _State(NamedTuple):
    params: Any
    moments: Any
    average: Any


def _network(task):
    return MapNetwork(task.width, skip=task.skip)


def map_of(task: Task, params: Any) -> Any:
    """The map x + (s − t) F(x, t, s) of the network's parameters."""
    net = jax.tree_util.Partial(_network(task).apply, params)
    return flow_maps.flow_map(task.schedule, net)


def learning_rates(peak: float, steps: int) -> np.ndarray:
    """A linear warm-up over a twentieth of the steps, then a cosine to 0, (steps,)."""
    share = np.arange(steps) / steps
    rates = peak * np.minimum(1, share * 20 + 1 / steps)
    return (rates * 0.5 * (1 + np.cos(np.pi * share))).astype(np.float32)


def train(
    task: Task,
    name: str,
    objective: Objective,
    *,
    budget: float,
    learning_rate: float,
    seed: int,
) -> Student:
    """Train a map by one objective until the FLOPs are spent.

    The number of steps follows from XLA's count of the FLOPs of one compiled step,
    in which the teacher's evaluations are.

    Args:
      task: The flow to follow.
      name: Of the objective.
      objective: A row of `OBJECTIVES`.
      budget: FLOPs.
      learning_rate: The peak rate of Adam.
      seed: Of the initial parameters and of training.

    Returns:
      The student.

    Raises:
      FloatingPointError: If the parameters are not finite in the end.
    """
    init_key, train_key = jax.random.split(jax.random.key(seed))
    t = jnp.zeros(())
    condition = (t,) if task.guided else ()
    net = _network(task)
    params = jax.jit(net.init)(init_key, jnp.zeros(task.shape), t, t, *condition)
    state = _State(params, _optimiser().init(params), params)
    inputs = _Inputs(*(np.zeros(BLOCK, np.float32) for _ in range(4)))
    block = functools.partial(_block, task, objective.loss)
    lowered = jax.jit(block).lower(state, params, train_key, inputs, task.pool)
    program = lowered.compile()
    flops = (program.cost_analysis() or {})["flops"]
    blocks = max(len(PROGRESSIVE_STEPS) + 1, round(budget / (flops * BLOCK)))
    steps = BLOCK * blocks
    rates = learning_rates(learning_rate, steps)
    staged, held, maps = name == "progressive", params, {}
    shares = np.linspace(0, blocks, len(PROGRESSIVE_STEPS) + 2)[2:]
    ends = shares.round().astype(int)
    begun = time.perf_counter()
    with cli.progress(steps, label=f"{task.name}: {name}") as bar:
        for i in range(blocks):
            stage = int(np.searchsorted(ends, i, side="right"))
            first = 0 if stage == 0 or not staged else ends[stage - 1]
            if staged:  # each stage has its own decay of the rate
                length = BLOCK * (ends[stage] - first)
                stage_rates = learning_rates(learning_rate, length)
                begin = BLOCK * (i - first)
                rate = stage_rates[begin : begin + BLOCK]
            else:
                rate = rates[BLOCK * i : BLOCK * (i + 1)]
            numbers = np.arange(BLOCK * i, BLOCK * (i + 1), dtype=np.float32)
            count = np.full(BLOCK, PROGRESSIVE_STEPS[stage], np.float32)
            inputs = _Inputs(numbers, rate, numbers / steps, count)
            state, loss = program(state, held, train_key, inputs, task.pool)
            if staged and i + 1 == ends[stage]:
                held = state.average
                maps[PROGRESSIVE_STEPS[stage]] = map_of(task, held)
            bar.set_postfix(refresh=False, loss=f"{float(loss):.3g}")
            bar.update(BLOCK)
    seconds = time.perf_counter() - begun
    leaves = jax.tree.leaves(state.average)
    if not all(np.isfinite(leaf).all() for leaf in leaves):
        raise FloatingPointError(f"{name} on {task.name}: parameters are not finite")
    count = sum(leaf.size for leaf in leaves)
    maps = maps or {0: map_of(task, state.average)}
    return Student(maps, steps, flops, seconds, count)


class _Inputs(NamedTuple):
    """Of each step of a block, (BLOCK,) each."""

    number: Any
    rate: Any
    progress: Any
    student_steps: Any


def _optimiser():
    return optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b2=0.99))


def _block(task, loss_of_one, state, held, key, inputs, pool):
    """`BLOCK` steps of training. XLA counts the FLOPs of a loop's body once."""

    def step(state, inputs):
        at = jax.random.fold_in(key, inputs.number.astype(jnp.int32))
        loss, gradient = jax.value_and_grad(_batch_loss)(
            state.params, task, loss_of_one, held, at, inputs, pool
        )
        updates, moments = _optimiser().update(gradient, state.moments)
        params = jax.tree.map(lambda p, u: p - inputs.rate * u, state.params, updates)
        # An average over the last 1 % of the steps, from the start on.
        decay = jnp.minimum(0.999, (inputs.number + 1) / (inputs.number + 10))
        average = jax.tree.map(
            lambda a, p: a + (1 - decay) * (p - a), state.average, params
        )
        return _State(params, moments, average), loss

    state, losses = jax.lax.scan(step, state, inputs)
    return state, jnp.mean(losses)


def _batch_loss(params, task, loss_of_one, held, key, inputs, pool):
    row, noise, times, scale = jax.random.split(key, 4)
    count = task.batch
    x0 = pool[jax.random.randint(row, (count,), 0, len(pool))]
    low, high = GUIDED_SCALES
    conditions = ()
    if task.guided:
        conditions = (jax.random.uniform(scale, (count,), minval=low, maxval=high),)
    draws = (
        x0,
        jax.random.normal(noise, x0.shape),
        jax.random.uniform(times, (count, 3)),
        conditions,
    )
    m, teacher = map_of(task, params), map_of(task, held)

    def one(x0, noise, u, condition):
        rest = inputs.progress, inputs.student_steps, teacher
        return loss_of_one(task, m, Draw(x0, noise, u, condition, *rest))

    return jnp.mean(jax.vmap(one)(*draws))
