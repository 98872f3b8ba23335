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
    state = _initial(task, init_key)
    shared = _Shared(state.params, train_key, task.pool)
    program = _compiled(task, objective, state, shared)
    flops = (program.cost_analysis() or {})["flops"]
    blocks = max(len(PROGRESSIVE_STEPS) + 1, round(budget / (flops * BLOCK)))
    steps, maps = BLOCK * blocks, {}
    begun = time.perf_counter()
    with cli.progress(steps, label=f"{task.name}: {name}") as bar:
        for stage in stages(name, blocks):
            for inputs in _inputs(stage, learning_rate, steps):
                state, loss = program(state, inputs, shared)
                bar.set_postfix(refresh=False, loss=f"{float(loss):.3g}")
                bar.update(BLOCK)
            maps[stage.student_steps] = map_of(task, state.average)
            shared = shared._replace(held=state.average)
    seconds = time.perf_counter() - begun
    leaves = jax.tree.leaves(state.average)
    if not all(np.isfinite(leaf).all() for leaf in leaves):
        raise FloatingPointError(f"{name} on {task.name}: parameters are not finite")
    return Student(maps, steps, flops, seconds, sum(leaf.size for leaf in leaves))


class Stage(NamedTuple):
    """A part of the training with its own decay of the rate.

    Attributes:
      begin: Its first block of steps.
      end: The block after its last one.
      student_steps: Steps of the student of progressive distillation, 0 for others.
    """

    begin: int
    end: int
    student_steps: int


def stages(name: str, blocks: int) -> list[Stage]:
    """One stage per student of progressive distillation, and one for others.

    Args:
      name: Of the objective.
      blocks: Number of blocks of all stages.
    """
    if name != "progressive":
        return [Stage(0, blocks, 0)]
    # The first stage takes two shares.
    shares = np.linspace(0, blocks, len(PROGRESSIVE_STEPS) + 2)[2:]
    ends = [int(end) for end in shares.round()]
    return list(map(Stage, [0, *ends[:-1]], ends, PROGRESSIVE_STEPS))


class _Inputs(NamedTuple):
    """Of each step of a block, (BLOCK,) each."""

    number: Any
    rate: Any
    progress: Any
    student_steps: Any


class _Shared(NamedTuple):
    """Arrays that all steps of a stage share."""

    held: Any  # parameters of the stage before
    key: Any
    pool: Any


def _inputs(stage, learning_rate, steps):
    """The inputs of each block of a stage, of `steps` steps in all."""
    rates = learning_rates(learning_rate, BLOCK * (stage.end - stage.begin))
    for i, rate in enumerate(rates.reshape(-1, BLOCK), stage.begin):
        numbers = np.arange(BLOCK * i, BLOCK * (i + 1), dtype=np.float32)
        count = np.full(BLOCK, stage.student_steps, np.float32)
        yield _Inputs(numbers, rate, numbers / steps, count)


def _initial(task, key):
    t = jnp.zeros(())
    condition = (t,) if task.guided else ()
    params = jax.jit(_network(task).init)(key, jnp.zeros(task.shape), t, t, *condition)
    return _State(params, _optimiser().init(params), params)


def _compiled(task, objective, state, shared):
    inputs = _Inputs(*(np.zeros(BLOCK, np.float32) for _ in range(4)))
    block = functools.partial(_block, task=task, loss_of_one=objective.loss)
    return jax.jit(block).lower(state, inputs, shared).compile()


def _optimiser():
    return optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b2=0.99))


def _block(state, inputs, shared, *, task, loss_of_one):
    """`BLOCK` steps of training. XLA counts the FLOPs of a loop's body once."""

    def step(state, inputs):
        loss, gradient = jax.value_and_grad(_batch_loss)(
            state.params, inputs, shared, task=task, loss_of_one=loss_of_one
        )
        updates, moments = _optimiser().update(gradient, state.moments)
        params = jax.tree.map(lambda p, u: p - inputs.rate * u, state.params, updates)
        # Step k of n has a weight of about 9 k⁸/n⁹: the average reaches back over
        # a ninth of the steps so far, however many these are.
        decay = (inputs.number + 1) / (inputs.number + 10)
        average = jax.tree.map(
            lambda a, p: a + (1 - decay) * (p - a), state.average, params
        )
        return _State(params, moments, average), loss

    state, losses = jax.lax.scan(step, state, inputs)
    return state, jnp.mean(losses)


def _batch_loss(params, inputs, shared, *, task, loss_of_one):
    key = jax.random.fold_in(shared.key, inputs.number.astype(jnp.int32))
    row, noise, times, scale = jax.random.split(key, 4)
    count = task.batch
    x0 = shared.pool[jax.random.randint(row, (count,), 0, len(shared.pool))]
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
    m, teacher = map_of(task, params), map_of(task, shared.held)

    def one(x0, noise, u, condition):
        rest = inputs.progress, inputs.student_steps, teacher
        return loss_of_one(task, m, Draw(x0, noise, u, condition, *rest))

    return jnp.mean(jax.vmap(one)(*draws))
