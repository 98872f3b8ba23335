"""The objective of `train`: times, weights, conditions, and the loss of a batch."""

from collections.abc import Callable
from typing import Any

import jax

from diffjax import guidance, losses
from diffjax.losses import times, uncertainty
from experiments.train import augmentation
from experiments.train.config import TIMES, WEIGHTS, Config
from experiments.train.model import Model


def times_of(config: Config) -> Any:
    """The distribution of the training times that the flags select."""
    values = {"mean": config.times_mean, "std": config.times_std}
    values = {name: value for name, value in values.items() if value is not None}
    distribution = TIMES[config.times](**values)
    if config.times_shift == 1:
        return distribution
    return times.shifted(distribution, config.times_shift)


def weighting_of(config: Config) -> Any:
    """The weight of the error that the flags select."""
    make, parameter = WEIGHTS[config.weighting], config.weighting_parameter
    return make() if parameter is None else make(parameter)


def preparation(config: Config, model: Model) -> Callable:
    """The function that makes examples and their conditions of a stored batch.

    Args:
      config: The flags.
      model: The model.

    Returns:
      (key, batch) -> (x, condition): scaled and changed images (B, *shape), and
        a pytree of leading axis B or None.
    """
    change = augmentation.make(config, model.data)

    def one(key, x, label):
        key_change, key_drop = jax.random.split(key)
        changes = None
        if change is not None:
            x, changes = change(key_change, x)
        if model.classes is not None:
            label = guidance.drop_condition(
                key_drop, label, jax.numpy.asarray(model.classes), config.label_dropout
            )
        return x, model.condition(label, changes)

    def prepare(key, batch):
        x = model.data.scaled(batch["x"])
        keys = jax.random.split(key, len(x))
        return jax.vmap(one)(keys, x, batch.get("label"))

    return prepare


def loss_of(config: Config, model: Model) -> Callable:
    """The loss of a stored batch, for `training.make_step`.

    Args:
      config: The flags.
      model: The model.

    Returns:
      (params, key, batch) -> (loss, metrics). With u(σ) the metric `error` is
        the weighted loss without it.
    """
    prepare = preparation(config, model)
    settings = {"weighting": weighting_of(config), "times": times_of(config)}

    def loss(params, key, batch):
        key_prepare, key_loss = jax.random.split(key)
        x, condition = prepare(key_prepare, batch)
        u = params.get("uncertainty")
        value, values = losses.batch_loss(
            key_loss,
            model.denoiser(params["network"]),
            x,
            condition,
            uncertainty=u,
            dropout=config.dropout > 0,
            **settings,
        )
        return value, {} if u is None else {"error": values.mean()}

    return loss


def init(config: Config, model: Model, key: jax.Array) -> dict[str, Any]:
    """The parameters before the first step.

    Args:
      config: The flags.
      model: The model.
      key: Of the initialisation.

    Returns:
      Those of "network", and of "uncertainty" if it is trained.
    """
    params = {"network": model.init(key)}
    if config.uncertainty:
        params["uncertainty"] = uncertainty.fourier(seed=config.seed)
    return params
