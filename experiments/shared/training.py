"""The flags, networks and resumable training of every experiment that trains."""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import diffjax as dj
from diffjax import training
from diffjax.networks import MLP, DiT, UNet
from experiments.shared import cli, datasets, devices, files, sizes
from experiments.shared.figures import save_figure
from experiments.shared.histories import History, RecordedCheckpoints

NETWORKS = {"dit": (DiT, 4), "unet": (UNet, 1), "mlp": (MLP, 4)}
"""Factory and default depth of each network. `sizes.network_fields` has the rest."""


@dataclasses.dataclass(frozen=True)
class Optimisation(devices.Devices):
    """The flags of every experiment whose training goes through `fit`."""

    seed: int = 0
    """Seed of the split, the initial parameters, training and samples."""
    steps: int = 1200
    """Training steps."""
    batch_size: int = 96
    """Examples per step."""
    learning_rate: float = 2e-3
    """Peak learning rate: linear warm-up over a tenth of the steps, then a cosine
    to 0.
    """
    ema_decay: float = 0.99
    """Decay of the averaged parameters, which are the ones sampled and scored."""
    save_every: int = 200
    """Steps between checkpoints."""


@dataclasses.dataclass(frozen=True)
class Training(Optimisation):
    """The flags of every experiment that trains one of `NETWORKS` on a data set."""

    held_out: int = 447
    """Test examples, which are held out of training. They are taken from the data
    at random (at most a quarter of a file).
    Toy densities have 2000.
    """
    network: Literal["auto", "dit", "unet", "mlp"] = "auto"
    """Network. auto is a patch transformer for images whose sides are even, an
    MLP otherwise.
    """
    width: int | None = None
    """Features of the network. Default 96 (dit), 256 (mlp), 48 (unet, 24 above 16
    pixels a side).
    """
    depth: int | None = None
    """Blocks of the network. Default 4 (dit, mlp), 1 per resolution (unet)."""
    dropout: float = 0.1
    """Dropout probability in training."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the network's arithmetic. State and solver stay in float32."""


FIELDS = tuple(
    field.name
    for field in dataclasses.fields(Training)
    if field.name not in ("save_every", *devices.NAMES)
)
"""The flags that a checkpoint belongs to. A run with other values cannot resume
from it.
"""


@dataclasses.dataclass(frozen=True)
class ImageTraining(Optimisation):
    """The flags of every experiment that compresses images of integers."""

    data: str = "digits"
    """"digits", or the path of an .npy or .npz file of integers (N, H, W[, C])."""
    held_out: int = 447
    """Test examples, at least 2, which are held out of training. They are taken
    from the data at random (at most a quarter of a file)."""
    replaced: float = 0.01
    """Share of the pixels of training images that a random level replaces. Other
    values of a pixel which is constant in training then keep some probability.
    Scores are of unchanged images."""


def check_optimisation(config: Optimisation) -> None:
    """Raise ValueError or TypeError for values of these flags that are not usable."""
    for name in ("steps", "batch_size", "save_every"):
        dj.checks.integer(name, getattr(config, name), 1)
    dj.checks.integer("seed", config.seed, 0, None)
    dj.checks.positive("learning_rate", config.learning_rate)
    dj.checks.within("ema_decay", config.ema_decay, 0.0, 1.0)


def check(config: Training) -> None:
    """Raise ValueError or TypeError for values of these flags that are not usable."""
    check_optimisation(config)
    dj.checks.integer("held_out", config.held_out, 1)
    dj.checks.within("dropout", config.dropout, 0.0, 0.9)


def check_images(config: ImageTraining) -> None:
    """Raise ValueError or TypeError for values of these flags that are not usable."""
    check_optimisation(config)
    dj.checks.integer("held_out", config.held_out, 1)
    dj.checks.within("replaced", config.replaced, 0.0, 1.0)


def image_loss(
    config: ImageTraining, data: datasets.Dataset, loss_of_one: Callable
) -> Callable:
    """The loss of a batch of images, some pixels of which random levels replace.

    Args:
      config: Has the share of the pixels.
      data: The data, with its levels.
      loss_of_one: (params, key, x) -> loss of one example.

    Returns:
      (params, key, batch) -> the mean over the batch.
    """

    def loss(params, key, batch):
        key_replaced, key_rest = jax.random.split(key)
        batch = datasets.with_replaced(
            key_replaced, batch, config.replaced, data.levels
        )
        keys = jax.random.split(key_rest, len(batch))
        return jnp.mean(
            jax.vmap(lambda key, x: loss_of_one(params, key, x))(keys, batch)
        )

    return loss


def open_images(config: ImageTraining) -> datasets.Dataset:
    """Open the data. Raises ValueError unless they are images of integers."""
    data = datasets.open_dataset(
        config.data, config.held_out, config.seed, least_test=2
    )
    if data.levels is None or not data.is_image:
        raise ValueError(
            "data must be images of integers of at most "
            f"{datasets.MAX_LEVELS} levels, {data.name} is not"
        )
    return data


@dataclasses.dataclass(frozen=True)
class DenoiserModel:
    """A network with the schedule and the prediction that make a denoiser of it.

    Attributes:
      data: The data set, with the shape, levels and spread of its examples.
      schedule: The noise schedule.
      module: A Linen module of one example.
      prediction: What the network predicts: "levels" or a kind of
        `predictions.denoiser`.
    """

    data: datasets.Dataset
    schedule: Any
    module: Any
    prediction: str

    def init(self, key, *condition):
        """Initial parameters, for an input of the right shape.

        Args:
          key: Of the initialisation.
          *condition: A condition, where the network takes one.

        Returns:
          The network's parameters.
        """
        return jax.jit(self.module.init)(
            key, jnp.zeros(self._input_shape()), jnp.zeros(()), *condition
        )

    def net(self, params, x, t, *condition, key=None):
        """Apply the network to one example.

        Args:
          params: The network's parameters.
          x: The input.
          t: The time, ().
          *condition: A condition, where the network takes one.
          key: Turns dropout on.

        Returns:
          The prediction.
        """
        return _Network(self.module)(params, x, t, *condition, key=key)

    def denoiser(self, params, key=None):
        """The denoiser D(x, t), or D(x, t, condition) where the network takes
        one.

        Args:
          params: The network's parameters, leaves of the denoiser.
          key: Turns dropout on, with the same mask in every call.

        Returns:
          A callable pytree.
        """
        # Not `self.net`: the arrays of all that a network reaches are leaves of a
        # denoiser, and those would be the data.
        net = jax.tree_util.Partial(_Network(self.module), params, key=key)
        if self.prediction == "levels":
            return dj.predictions.categorical(self.schedule, net, self.data.levels)
        spread = self.data.spread
        return dj.predictions.denoiser(
            self.schedule, net, self.prediction, sigma_data=spread, inputs="scaled"
        )

    def _input_shape(self):
        shape = self.data.shape
        return (
            (*shape[:-1], shape[-1] * len(self.data.levels))
            if self.prediction == "levels"
            else shape
        )


@dataclasses.dataclass(frozen=True)
class _Network:
    """The application of a module, see `DenoiserModel.net`."""

    module: Any

    def __call__(self, params, x, t, *condition, key=None):
        if key is None:
            return self.module.apply(params, x, t, *condition)
        return self.module.apply(
            params, x, t, *condition, train=True, rngs={"dropout": key}
        )


def make_module(
    config: Training, data: datasets.Dataset, num_classes: int | None = None
) -> Any:
    """Make the network that the flags select.

    Args:
      config: The flags.
      data: The data set.
      num_classes: Number of class labels of a conditional network.

    Returns:
      A Linen module.

    Raises:
      ValueError: If the network does not fit the shape of the data.
    """
    network, grid = config.network, len(data.shape) == 3
    if network == "auto":
        network = (
            "dit"
            if grid and data.shape[0] % 2 == 0 and data.shape[1] % 2 == 0
            else "mlp"
        )
    if network in ("dit", "unet"):
        sizes.check_images(network, data)
    factory, depth = NETWORKS[network]
    depth_name = "blocks" if network == "unet" else "depth"
    fields = sizes.network_fields(network, data.shape)
    if config.width is not None:
        fields["width"] = config.width
    depth = depth if config.depth is None else config.depth
    labels = {} if num_classes is None else {"num_classes": num_classes}
    return factory(
        dropout=config.dropout,
        dtype=jnp.dtype(config.dtype),
        **{depth_name: depth},
        **fields,
        **labels,
    )


def fit(
    config: Optimisation,
    out: pathlib.Path,
    loss: Callable,
    init: Callable,
    *,
    arrays: Any,
    convert: Callable[[Any], Any] | None = None,
    fields: Sequence[str] = (),
    label: str = "training",
    name: str = "",
    stops: Sequence[int] = (),
    on_stop: Callable[[int, Any], None] | None = None,
    before: Callable | None = None,
    about: dict[str, Any] | None = None,
) -> tuple[Any, np.ndarray]:
    """Train a network, resuming from the checkpoints in `out`.

    Args:
      config: The flags of the training.
      out: The folder of checkpoints and losses.
      loss: (params, key, batch) -> ().
      init: key -> params.
      arrays: A pytree of training arrays with one leading axis, in the type
        that they are stored in.
      convert: batch -> batch, on the device in the compiled step, such as
        `data.scaled` for `data.stored_train`.
      fields: Flags beside `FIELDS` that the checkpoints belong to.
      label: Text before the progress bar.
      name: Prefix of the checkpoints' folder and the losses' file, where `out`
        holds several networks.
      stops: Steps at which `on_stop` is called, increasing.
      on_stop: (step, averaged parameters) -> None. Called after the checkpoint
        is saved, and again where a run resumes from just there.
      before: (params, key, step) -> params, called ahead of each step. It
        changes what does not follow the gradient, such as Markov chains kept
        among the parameters.
      about: Entries of config.json beside the flags.

    Returns:
      (averaged parameters, loss of every step).
    """
    devices.check_batch("batch_size", config.batch_size)
    key_init, key_train = jax.random.split(jax.random.key(config.seed))
    optimiser = training.optimiser(
        config.learning_rate,
        warmup_steps=max(1, config.steps // 10),
        total_steps=config.steps + 1,
    )
    steps = _steps(config, optimiser, loss, convert, before)
    state = training.init(key_train, init(key_init), optimiser)
    if devices.mesh().size > 1:  # so that each process restores its own part
        state = training.shard_state(state, devices.mesh())
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    print(f"{label}: {count:,} parameters")
    batches = training.Batches(arrays, config.batch_size, config.seed)
    stored = {k: v for k, v in files.as_dict(config).items() if k in (*FIELDS, *fields)}
    stored["data_digest"] = datasets.digest(arrays)
    history = History(out / f"{name}losses.json")
    folder = out / f"{name}checkpoints"
    with RecordedCheckpoints(folder, stored, history.write) as checkpoints:
        # Not earlier: the checkpoints must belong to this configuration.
        files.write_config(out, config, about)
        state = checkpoints.restore_latest(state) or state
        history.resume(int(state.step))
        with _shown(config, state, history, label) as show:
            train_to = functools.partial(
                training.fit,
                checkpoints=checkpoints,
                save_every=config.save_every,
                on_block=show,
                mesh=devices.mesh(),
                donate=True,
            )
            for stop in (*stops, config.steps):
                if stop < int(state.step):
                    continue
                state = train_to(state, steps, batches, stop)
                if stop in stops and on_stop is not None:
                    on_stop(stop, devices.whole(state.ema))
    return devices.whole(state.ema), np.array(history.losses)


def _steps(config, optimiser, loss, convert, before):
    """The training steps of `fit`, which take several batches."""

    def loss_fn(params, key, batch):
        return loss(params, key, batch if convert is None else convert(batch)), {}

    one = training.make_step(loss_fn, optimiser, config.ema_decay)
    return training.make_steps(
        one if before is None else functools.partial(_after, before, one)
    )


@contextlib.contextmanager
def _shown(config, state, history, label):
    """A progress bar, and the function that adds the losses of a block to it and to
    the history.
    """
    begun = int(state.step)
    with cli.progress(config.steps, begun, label) as bar:
        if begun < config.steps:
            bar.set_postfix_str("compiling the training step ...")

        def show(step, values):
            history.losses.extend(values["loss"].tolist())
            mean = f"{np.mean(values['loss']):.4f}"
            bar.set_postfix(refresh=False, loss=mean)
            bar.update(step - bar.n)

        yield show


def _after(before, step, state, batch, take=True):
    """The training step after `before` changed the parameters. Steps that are not
    taken change nothing.
    """
    key = jax.random.fold_in(jax.random.fold_in(state.key, 1), state.step)
    changed = dataclasses.replace(state, params=before(state.params, key, state.step))
    moved, metrics = step(changed, batch, take)
    good = take & metrics["finite"]
    params = jax.tree.map(
        lambda new, old: jnp.where(good, new, old), moved.params, state.params
    )
    return dataclasses.replace(moved, params=params), metrics


def draw_loss(history: np.ndarray, ylabel: str, title: str, path: pathlib.Path) -> None:
    """Draw the loss of every step and its running mean.

    Args:
      history: (steps,), the losses.
      ylabel: Label of the vertical axis.
      title: Title.
      path: The file.
    """
    figure, axis = plt.subplots(figsize=(6, 3.5))
    window = max(1, len(history) // 40)
    smooth = np.convolve(history, np.ones(window) / window, "valid")
    axis.plot(history, color="#b9cfe4", lw=0.8, label="each step")
    axis.plot(
        np.arange(len(smooth)) + (window - 1) / 2,
        smooth,
        color="#1f4e79",
        label=f"mean of {window}",
    )
    axis.set(xlabel="training step", ylabel=ylabel, title=title)
    axis.legend(frameon=False)
    save_figure(figure, path)
