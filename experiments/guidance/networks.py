"""The networks that guide, and their training."""

import dataclasses
import functools
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import guidance, losses
from experiments.guidance import classifiers
from experiments.guidance.config import Config
from experiments.shared import datasets, files, training
from experiments.shared.schedules import with_noise_floor
from experiments.shared.training import DenoiserModel

_FIELDS = ("data", "drop", "classifier_steps", "weak_width", "weak_depth", "weak_steps")
"""Flags that a run's checkpoints belong to, beside `training.FIELDS`."""


class Networks(NamedTuple):
    """The networks that guide.

    They are D(x, t) unconditionally and D(x, t, label), a weaker pair, log
    p(label | x_t), and the null label. A network that no selected guidance
    needs is None.
    """

    denoiser: Any
    weak: Any
    log_prob_y: Any
    null: Any


def make_model(config: Config, data: datasets.Dataset) -> DenoiserModel:
    """Make the class-conditional model that the flags select, on the linear VP
    schedule.
    """
    floor = 0.01 if data.levels is None else data.spacing / 6
    module = training.make_module(config, data, data.classes)
    return DenoiserModel(
        data,
        with_noise_floor("vp", floor),
        module,
        "edm" if data.levels is None else "levels",
    )


def conditional_loss(
    model: DenoiserModel, drop: float, dropout: bool, params: Any, key: Any, batch: Any
) -> Any:
    """The denoising loss of a batch (x_0, labels) (Ho & Salimans 2021).

    Each label is dropped with probability `drop`.
    """
    x0, labels = batch
    key_drop, key_loss = jax.random.split(key)
    null = jnp.asarray(model.data.classes, labels.dtype)
    kept = jax.vmap(guidance.drop_condition, (0, 0, None, None))(
        jax.random.split(key_drop, len(x0)), labels, null, drop
    )
    return losses.batch_loss(
        key_loss,
        model.denoiser(params),
        x0,
        kept,
        weighting="edm",
        times="log_normal",
        dropout=dropout,
    )[0]


def train(
    config: Config, model: DenoiserModel, out: pathlib.Path
) -> tuple[Networks, np.ndarray]:
    """Train the networks, resuming from the checkpoints in `out`.

    Returns:
      (networks, the denoiser's loss of every step).
    """
    data, null = model.data, jnp.asarray(model.data.classes, jnp.int32)
    arrays = (data.train, data.train_labels)

    def fit_denoiser(config, model, label, name=""):
        loss = functools.partial(
            conditional_loss, model, config.drop, config.dropout > 0
        )
        params, history = training.fit(
            config,
            out,
            loss,
            lambda key: model.init(key, null),
            arrays=arrays,
            fields=_FIELDS,
            label=f"training {label}",
            name=name,
        )
        return model.denoiser(params), history

    denoiser, history = fit_denoiser(config, model, "the denoiser")
    weak = None
    if "autoguidance" in config.variants:
        small = dataclasses.replace(
            config,
            width=config.weak_width,
            depth=config.weak_depth,
            steps=config.weak_steps,
        )
        weak, _ = fit_denoiser(
            small, make_model(small, data), "the weaker denoiser", "weak_"
        )
    log_prob_y = None
    if "classifier" in config.kinds:
        classifier = classifiers.NoisyClassifier(
            data.shape,
            data.spread,
            model.schedule,
            classifiers.ClassifierNetwork(data.classes),
        )
        longer, label = (
            dataclasses.replace(config, steps=config.classifier_steps),
            "training the noisy classifier",
        )
        fitted, _ = training.fit(
            longer,
            out,
            classifier.loss,
            classifier.init,
            arrays=arrays,
            fields=_FIELDS,
            label=label,
            name="classifier_",
        )
        log_prob_y = jax.tree_util.Partial(classifier.log_prob, fitted)
    # Each `fit` wrote the configuration of its network. This is that of the
    # whole run.
    files.write_config(out, config)
    return Networks(denoiser, weak, log_prob_y, null), history
