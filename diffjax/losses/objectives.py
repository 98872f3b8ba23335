"""The denoising loss of one example, and of a batch at random times."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks, schedules, types
from ..numerics import float_dtype
from ..predictions import NetworkDenoiser
from ..types import (
    Array,
    ArrayLike,
    Key,
    PyTree,
    Scalar,
    as_pytree_callable,
    combine,
    partition,
)
from . import times as time_distributions
from . import uncertainty as uncertainties
from .times import TimeDistribution, sample_times, time_density
from .weights import WEIGHTINGS

__all__ = ["batch_loss", "denoising_loss"]


PREDICTION = (checks.made_by, NetworkDenoiser, "predictions.denoiser or categorical")


def _check_weighting(name, value):
    return value if callable(value) else checks.choice(name, value, WEIGHTINGS)


_OBJECTIVE = {"prediction": PREDICTION, "weighting": _check_weighting}


@checks.arguments(
    x0=checks.real_array, noise=checks.real_array, t=checks.number, **_OBJECTIVE
)
def denoising_loss(
    prediction: NetworkDenoiser,
    x0: Array,
    noise: Array,
    t: Scalar,
    *condition: Any,
    weighting: str | Callable = "uniform",
    density: Scalar = 1.0,
    **net_kwargs: Any,
) -> Array:
    """Weighted denoising loss of one example at one time (Vincent 2011, eq. 11).

        w(t) ‖D(x_t, t) − x_0‖²/D,    x_t = α x_0 + σ ε

    It is computed from the error of the network F, so that nothing cancels at
    little noise:

        w(t) c² ‖F − target‖²/D,    D − x_0 = c (F − target)

    Args:
      prediction: Made by `predictions.denoiser`.
      x0: One example.
      noise: ε, standard normal noise of its shape.
      t: Time, shape ().
      *condition: Passed to the network as net(x, t, *condition).
      weighting: A name of `WEIGHTINGS`, one of `losses.weights`, or a function
        (schedule, t, sigma_data) -> w.
      density: Of the distribution of t, at t. Only "likelihood" divides by it.
        Its expectation is then ½∫|dSNR/dt| E‖D − x_0‖² dt / D (nats per
        dimension, Song et al. 2021, eq. 7) under any distribution of t. The
        variance is great under one that hardly visits some noise levels, such
        as log_normal.
      **net_kwargs: Passed to the network.

    Returns:
      The loss, shape ().

    Raises:
      TypeError: If prediction is another kind of denoiser.
      ValueError: If weighting is unknown, or the shapes differ.

    Example:
      >>> net = lambda x, t: 0 * x
      >>> prediction = dj.predictions.denoiser(schedule, net, "noise")
      >>> float(dj.losses.denoising_loss(prediction, jnp.zeros(2), jnp.ones(2), 0.5))
      1.0
    """
    checks.one_of_shapes("noise", noise, [np.shape(x0)])
    return _denoising_loss(
        prediction, x0, noise, t, condition, weighting, density, net_kwargs
    )


@types.one_program
def _denoising_loss(
    prediction, x0, noise, t, condition, weighting, density, net_kwargs
):
    x_t = schedules.perturb(prediction.schedule, x0, t, noise)
    predicted = prediction.predict(x_t, t, *condition, **net_kwargs)
    error = predicted - prediction.target(x0, noise, t)
    return _weight_of_network(prediction, t, weighting, density) * jnp.mean(error**2)


@checks.arguments(
    key=checks.key,
    x0=checks.batch,
    times=time_distributions.argument,
    uncertainty=checks.optional(checks.callable_, "u(log_sigma) -> u"),
    **_OBJECTIVE,
)
def batch_loss(
    key: Key,
    prediction: NetworkDenoiser,
    x0: ArrayLike,
    condition: PyTree = None,
    *,
    weighting: str | Callable = "uniform",
    times: str | TimeDistribution = "uniform",
    uncertainty: Callable | None = None,
    dropout: bool = False,
) -> tuple[Array, Array]:
    """`denoising_loss` of a batch at stratified random times.

    Args:
      key: A typed key, of times, noise and dropout.
      prediction: Made by `predictions.denoiser`.
      x0: Data, (B, *shape).
      condition: Pytree of leading axis B, passed as net(x, t, condition_i).
      weighting: As in `denoising_loss`.
      times: Distribution of the times, one of `losses.times` or a name of
        `TIME_DISTRIBUTIONS`.
      uncertainty: u(log σ/α), one of `losses.uncertainty`. The mean is then
        that of loss e^−u + u. Take its gradient in u's parameters too.
      dropout: True passes the network a different key for each example, as
        net(…, key=key).

    Returns:
      (mean, losses), shapes () and (B,). NaN in the data makes the mean NaN.
      The losses are those without u.

    Raises:
      TypeError: If prediction is another kind of denoiser.
      ValueError: For unknown names and leading axes that differ.

    Example:
      >>> net = lambda x, t: 0 * x
      >>> prediction = dj.predictions.denoiser(schedule, net, "noise")
      >>> loss, losses = dj.losses.batch_loss(key, prediction, jnp.zeros((4, 2)))
      >>> losses.shape
      (4,)
    """
    checks.leading_axis("condition", condition, "x0", x0.shape[0])
    times = time_distributions.named(times)
    time_distributions.check(times, prediction.schedule)
    functions = [
        as_pytree_callable(f) if callable(f) else f for f in (weighting, uncertainty)
    ]
    arrays, static = partition((prediction, times, *functions))
    return _batch_loss((static, bool(dropout)), arrays, key, x0, condition)


@types.compiled(static_argnums=0)
def _batch_loss(settings, arrays, key, x0, condition):
    static, dropout = settings
    prediction, times, weighting, uncertainty = combine(arrays, static)
    count, schedule = x0.shape[0], prediction.schedule
    key_time, key_noise, key_net = jax.random.split(key, 3)
    t = sample_times(key_time, count, schedule, times)
    density = time_density(schedule, t, times)
    noise = jax.random.normal(key_noise, x0.shape, float_dtype(x0))
    conditions = () if condition is None else (condition,)
    extra = {"key": jax.random.split(key_net, count)} if dropout else {}

    def one(x0, noise, t, density, conditions, extra):
        return denoising_loss(
            prediction,
            x0,
            noise,
            t,
            *conditions,
            weighting=weighting,
            density=density,
            **extra,
        )

    losses = jax.vmap(one)(x0, noise, t, density, conditions, extra)
    if uncertainty is None:
        return jnp.mean(losses), losses
    u = jax.vmap(lambda t: uncertainties.at_time(uncertainty, schedule, t))(t)
    return jnp.mean(uncertainties.with_uncertainty(losses, u)), losses


_NOISE_SCALES: dict[str, Callable] = {
    "noise": lambda schedule, t: 1.0,
    "score": lambda schedule, t: schedule.sigma(t),
}
"""Error of the noise per unit of the network's error, for kinds that predict noise."""


def _weight_of_network(prediction, t, weighting, density):
    weight = WEIGHTINGS[weighting] if isinstance(weighting, str) else weighting
    if weight is None:
        return 1.0
    schedule, sigma_data = prediction.schedule, prediction.sigma_data
    if prediction.kind in _NOISE_SCALES and hasattr(weight, "of_noise_error"):
        scale = weight.of_noise_error(schedule, t, sigma_data)
        scale = scale * _NOISE_SCALES[prediction.kind](schedule, t) ** 2
    else:
        scale = weight(schedule, t, sigma_data) * prediction.output_scale(t) ** 2
    return scale / density if getattr(weight, "over_time", False) else scale
