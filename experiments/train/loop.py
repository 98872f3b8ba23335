"""The training of `train`: state, checkpoints, records, and evaluations at stops."""

import contextlib
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from diffjax import training
from experiments.shared import cli, datasets, devices, files
from experiments.shared.histories import RecordedCheckpoints
from experiments.train import model as models
from experiments.train import objective, optimisation, speed
from experiments.train.config import Config, belonging
from experiments.train.data import training_arrays
from experiments.train.evaluation import Evaluation
from experiments.train.model import Model
from experiments.train.records import Records, keep_best


class Trained(NamedTuple):
    """The end of a training.

    Attributes:
      params: Averaged parameters of the network, the last or the best.
      records: Its records.
    """

    params: Any
    records: Records


def stops(config: Config) -> list[int]:
    """The steps after which the training stops for an evaluation, and its end."""
    if config.evaluate_every is None:
        return [config.steps]
    every = config.evaluate_every
    return [*range(every, config.steps, every), config.steps]


def describe(config: Config, model: Model, operations: int, count: int) -> str:
    """One line on the network, the cost of a step, and the work to be done.

    Args:
      config: The flags.
      model: The model.
      operations: Of one step.
      count: Number of the network's parameters.

    Returns:
      The line.
    """
    examples = len(model.data.stored_train)
    epochs = config.steps * config.batch_size / examples
    batches = f"batches of {config.batch_size}"
    if config.accumulate > 1:
        batches += f" in {config.accumulate} parts"
    evaluated = ""
    if config.evaluate_every is not None:
        evaluated = f", evaluated every {config.evaluate_every} and at the end"
    return (
        f"{config.network}, {count:,} parameters, prediction {model.prediction}, "
        f"schedule {config.schedule}; {operations / 1e9:.4g} GFLOP per step; "
        f"{config.steps} steps on {batches}, {epochs:.3g} epochs{evaluated}"
    )


def train(
    config: Config, model: Model, out: pathlib.Path, evaluation: Evaluation
) -> Trained:
    """Train, resuming from the checkpoints in `out`.

    Args:
      config: The flags.
      model: The model.
      out: The folder.
      evaluation: Measures the averaged parameters.

    Returns:
      The averaged parameters and the records.
    """
    mesh, arrays = devices.mesh(), training_arrays(config, model.data)
    operations = speed.step_operations(config, model, arrays)
    peak = speed.peak(jax.devices()[0].device_kind)
    records = Records(
        out,
        batch_size=config.batch_size,
        learning_rate=optimisation.learning_rate(config),
        operations=operations,
        peak=None if peak is None else peak * mesh.size,
        tensorboard=config.tensorboard,
    )
    key_init, key_train = jax.random.split(jax.random.key(config.seed))
    params = objective.init(config, model, key_init)
    count = sum(leaf.size for leaf in jax.tree.leaves(params["network"]))
    print(describe(config, model, operations, count))
    state = training.init(
        key_train, params, optimisation.optimiser(config), averages=config.averages
    )
    if mesh.size > 1:  # so that each process restores the parts of its devices
        state = training.shard_state(state, mesh)
    stored = belonging(config) | {"data_digest": datasets.digest(arrays)}
    with (
        _snapshots(config, out) as snapshots,
        RecordedCheckpoints(
            out / "checkpoints", stored, records.flush, snapshots
        ) as checkpoints,
    ):
        # Not earlier: the checkpoints must belong to this configuration.
        files.write_config(out, config, models.about(config, model))
        state = checkpoints.restore_latest(state) or state
        if int(state.step):
            print(f"resuming after step {int(state.step)}")
        records.open(int(state.step))
        run = _Run(config, model, arrays, mesh, checkpoints, records, evaluation)
        state = _to_the_end(run, state)
        records.close()
    if config.final == "best" or config.average is not None:
        return Trained(models.load_params(out, config), records)
    return Trained(devices.whole(state.ema["network"]), records)


def _snapshots(config, out):
    """A context of the snapshots of the averages, or of None."""
    if not config.averages:
        return contextlib.nullcontext()
    every = config.snapshot_every or max(config.save_every, config.steps // 100)
    return training.Snapshots(out / models.AVERAGES, every=every)


class _Run(NamedTuple):
    """Settings, data and records of a training, but not its state."""

    config: Config
    model: Model
    arrays: dict[str, Any]
    mesh: Mesh
    checkpoints: RecordedCheckpoints
    records: Records
    evaluation: Evaluation


def _to_the_end(run: _Run, state: training.TrainState) -> training.TrainState:
    """Train from stop to stop, and evaluate at each."""
    config, records = run.config, run.records
    steps = optimisation.make_steps(config, objective.loss_of(config, run.model))
    batches = training.Batches(run.arrays, config.batch_size, config.seed)
    step = int(state.step)
    with cli.progress(config.steps, step, "training") as bar:
        if step < config.steps:
            bar.set_postfix_str("compiling the training step ...")

        def show(step, values):
            records.block(step, values)
            bar.set_postfix(loss=f"{np.mean(values['loss']):.4f}")
            bar.update(step - bar.n)

        for stop in stops(config):
            if stop < step:
                continue
            state = training.fit(
                state,
                steps,
                batches,
                stop,
                checkpoints=run.checkpoints,
                save_every=config.save_every,
                on_block=show,
                mesh=None if run.mesh.size == 1 else run.mesh,
                donate=True,
            )
            records.pause()
            if config.evaluate_every is not None and not records.evaluated(stop):
                _evaluate(run, state, stop, bar)
    return state


def _evaluate(run: _Run, state: training.TrainState, stop: int, bar: Any) -> None:
    """Measure the averaged parameters, and keep the checkpoint if it is the best."""
    bar.set_postfix_str(f"evaluating after step {stop} ...")
    values = run.evaluation(state.ema["network"], stop)
    best = run.records.best()
    if best is None or values["held_out_loss"] < best["held_out_loss"]:
        run.checkpoints.wait()
        keep_best(run.checkpoints.folder(stop), run.evaluation.out / "best")
    run.records.evaluation(stop, values)
    bar.set_postfix(held_out_loss=f"{values['held_out_loss']:.4f}")
