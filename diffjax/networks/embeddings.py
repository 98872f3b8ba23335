"""Features of a network's inputs: time, condition, Fourier features of the state."""

from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from .. import checks
from ..types import Array, ArrayLike, Scalar, one_program
from . import fields

__all__ = [
    "TIME_FREQUENCIES",
    "ConditionEmbedding",
    "Conditioning",
    "FourierFeatures",
    "OneProgram",
    "TimeEmbedding",
    "condition_parts",
    "fourier_inputs",
    "sinusoidal",
]

TIME_FREQUENCIES = (0.02, 200.0)
"""Lowest and highest angular frequency, per unit of t.

The lowest still orders |t| ≤ 80. The highest turns by 1 within 0.005.
"""


@checks.arguments(t=checks.real_array, dim=checks.even)
def sinusoidal(
    t: ArrayLike,
    dim: int,
    min_frequency: float = TIME_FREQUENCIES[0],
    max_frequency: float = TIME_FREQUENCIES[1],
) -> Array:
    """Sinusoidal features of a time.

        [sin ω_i t, cos ω_i t],    i = 1 … dim/2

    with ω_i spaced evenly in log ω. So ⟨e(t), e(s)⟩ = Σ cos ω_i (t − s), and
    ‖e(t)‖² = dim/2.

    Args:
      t: Times, of any shape.
      dim: Number of features, even.
      min_frequency: The least ω, an angular frequency in units of 1/t.
      max_frequency: The greatest ω.

    Returns:
      The features, t.shape + (dim,), in float32 or wider.

    Raises:
      ValueError: If `dim` is odd, or not 0 < `min_frequency` <
        `max_frequency`.

    References:
      Vaswani et al. 2017, section 3.5, has ω from 1 down to 10⁻⁴ for integer
      positions. Ho et al. 2020 use it with the index 1 … 1000. Here t has
      magnitude about 1, and the default range spans the same factor 10⁴ around
      it.

    Example:
      >>> dj.networks.sinusoidal(0.5, 8).shape
      (8,)
    """
    checks.ordered("min_frequency", min_frequency, "max_frequency", max_frequency)
    omega = np.geomspace(min_frequency, max_frequency, dim // 2)
    return _waves(t, omega.astype(t.dtype))


@one_program
def _waves(t, frequencies):
    """[sin ω t, cos ω t] of frequencies (K,), t.shape + (2 K,)."""
    angles = t[..., None] * frequencies  # t.shape + (K,)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


# 2⁶⁴ π is a frequency beyond every detail of data.
@checks.arguments(count=(checks.integer, 0, 64))
def fourier_inputs(x: Array, count: int) -> Array:
    """Fourier features of a state, with which a network sees fine detail in x.

        [x, sin 2^k π x, cos 2^k π x],    k = 0 … count − 1

    along the last axis (Kingma et al. 2021, VDM, appendix C). VDM keeps k = 7
    and 8 only, for data of 256 levels in [−1, 1], where count = 9 is right.
    Data of fewer levels need a smaller count. Frequencies beyond the data's
    detail only amplify noise.

    Args:
      x: (..., C).
      count: Number of frequencies, from 0 to 64.

    Returns:
      (..., C (1 + 2 count)). For count = 0 that is x unchanged.

    Raises:
      ValueError: If x has no last axis, or C is 0.

    Example:
      >>> dj.networks.fourier_inputs(jnp.zeros((4, 4, 1)), 3).shape
      (4, 4, 7)
    """
    shape = getattr(x, "shape", ())
    message = f"x must be an array of shape (..., C) with C at least 1, got {shape}"
    checks.require(shape and shape[-1] > 0, message)
    if count == 0:
        return x
    return _fourier_inputs(x, (np.pi * 2.0 ** np.arange(count)).astype(x.dtype))


@one_program
def _fourier_inputs(x, frequencies):
    angles = x[..., None] * frequencies  # (..., C, count)
    # (..., C, count) -> (..., C count)
    angles = angles.reshape(*x.shape[:-1], x.shape[-1] * angles.shape[-1])
    return jnp.concatenate([x, jnp.sin(angles), jnp.cos(angles)], axis=-1)


class OneProgram:
    """Mixin of a Flax module that compiles an eager `init` as one program."""

    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
        """Initialise the variables, as `flax.linen.Module.init` does.

        Args:
          rngs: As there.
          *args: As there.
          **kwargs: As there.

        Returns:
          The variables.
        """
        return _variables(super().init, rngs, args, kwargs)


@one_program
def _variables(init, rngs, args, kwargs):
    return init(rngs, *args, **kwargs)


class FourierFeatures(OneProgram, nn.Module):
    """Random Fourier features of a time (Tancik et al. 2020, equation 5).

        [sin 2π w_i t, cos 2π w_i t],    w_i ~ N(0, scale²), drawn once

    The frequencies are a function of `seed`, not variables. So no optimiser,
    weight decay or moving average can touch them, no checkpoint need hold
    them, and the module has no parameters: `FourierFeatures(64).apply({}, t)`.

    Args:
      dim: Number of features, even.
      scale: Standard deviation of w, in units of 1/t. 16 on log σ is that of
        Song et al. 2021, appendix C.1.
      seed: Seed of the frequencies, at least 0.

    Raises:
      ValueError: If a field is out of range.

    Example:
      >>> dj.networks.FourierFeatures(16).apply({}, 0.5).shape
      (16,)
    """

    dim: int = 128
    scale: float = 16.0
    seed: int = 0

    def __post_init__(self):
        rules = {"scale": checks.positive, "seed": (checks.integer, 0, 2**32 - 1)}
        checks.attributes(self, dim=checks.even, **rules)
        super().__post_init__()

    def __call__(self, t: ArrayLike) -> Array:
        """The features, t.shape + (dim,) in float32 or wider, of times of any shape."""
        t = checks.real_array("t", t)
        # RandomState, because NumPy keeps its stream (NEP 19).
        draws = np.random.RandomState(self.seed).standard_normal(self.dim // 2)
        return _waves(t, (2 * np.pi * self.scale * draws).astype(t.dtype))


class TimeEmbedding(OneProgram, nn.Module):
    """Embedding of a time, or of c_noise, or of σ (Ho et al. 2020, appendix B).

        Dense(SiLU(Dense(features(t))))

    Args:
      dim: Width of the embedding.
      frequencies: Lowest and highest frequency of the `sinusoidal` features.
      features: Another map from t of shape () to (any,), such as
        `FourierFeatures()`, in place of those.
      features_dim: Number of the `sinusoidal` features.
      dtype: Of the dense layers. None for that of the features, which are
        always float32 or wider.

    Raises:
      ValueError: If a field is out of range.
      TypeError: If `frequencies` are no pair.

    Example:
      >>> embedding = dj.networks.TimeEmbedding(8)
      >>> params = embedding.init(key, 0.5)
    """

    dim: int
    frequencies: tuple[float, float] = TIME_FREQUENCIES
    features: Callable[[Array], Array] | None = None
    features_dim: int = 128
    dtype: Any = None

    def __post_init__(self):
        rules = {"features_dim": checks.even, "frequencies": fields.frequencies}
        checks.attributes(self, dim=(checks.width, 1), **rules)
        super().__post_init__()

    @nn.compact
    def __call__(self, t: Scalar) -> Array:
        """The embedding (dim,) of one time t. Raises ValueError if t is no scalar."""
        t = checks.real_shaped("t", t, ())
        if self.features is None:
            features = sinusoidal(t, self.features_dim, *self.frequencies)
        else:
            features = self.features(t)
        hidden = nn.silu(nn.Dense(self.dim, dtype=self.dtype)(features))
        return nn.Dense(self.dim, dtype=self.dtype)(hidden)


class ConditionEmbedding(OneProgram, nn.Module):
    """Embedding of a class label, of a vector, or of both.

    A label has a learned row. A vector, for example of EDM's augmentation,
    passes through a dense layer. At least one of `num_classes` and
    `condition_dim` is set.

    Where both are, the condition is a pair (label,
    vector) and the embedding is the sum. Either entry may be None, and a None
    in place of the pair is both. `guidance.drop_condition` of the label alone
    drops it in training, and keeps the vector.

    Args:
      dim: Width of the embedding.
      num_classes: The condition is an integer label of shape () in 0 …
        num_classes. The last is the null token "no condition" of
        classifier-free guidance (Ho & Salimans 2022, section 3.2), and so is
        None.
      condition_dim: The condition is a float vector (condition_dim,). None is
        the zero vector. Drop a condition by multiplying it by 0, and give it
        an entry that is always 1 where 0 is a meaningful condition.
      dtype: Of the computation.

    Raises:
      ValueError: If none of the fields is set, or one is out of range.
    """

    dim: int
    num_classes: int | None = None
    condition_dim: int | None = None
    dtype: Any = None

    def __post_init__(self):
        one = self.num_classes is not None or self.condition_dim is not None
        message = "one of num_classes and condition_dim must be set, got None for both"
        checks.require(one, message)
        fields.condition(self)
        super().__post_init__()

    @nn.compact
    def __call__(self, condition: ArrayLike | None = None) -> Array:
        """The embedding (dim,).

        Raises TypeError for a label that is no integer, and ValueError for a
        wrong shape or a label out of range. Under jit, where values are
        unknown, a label above num_classes embeds as NaN.
        """
        label, vector = condition_parts(condition, self.num_classes, self.condition_dim)
        embedding = None
        if self.num_classes is not None:
            # The last row is the null token.
            rows = nn.Embed(self.num_classes + 1, self.dim, dtype=self.dtype)
            embedding = rows(label)
        if self.condition_dim is not None:
            dense = nn.Dense(self.dim, dtype=self.dtype)(vector)
            embedding = dense if embedding is None else embedding + dense
        return embedding


def condition_parts(
    condition: Any, num_classes: int | None, condition_dim: int | None
) -> tuple[Array | None, Array | None]:
    """The label and the vector of a condition, checked.

    Args:
      condition: A label, a vector, or a pair of both where both are wanted.
        None is the null label and the zero vector, in a pair too.
      num_classes: Number of classes. None for no label.
      condition_dim: Number of entries of the vector. None for no vector.

    Returns:
      (label of shape () or None, vector (condition_dim,) or None).

    Raises:
      TypeError: If a label is no integer, or the condition no pair where both
        are wanted.
      ValueError: If a shape is another one, a label out of range, or there
        is a condition where none is wanted.
    """
    if num_classes is None and condition_dim is None:
        checks.require(
            condition is None,
            "condition must be None unless num_classes (for labels) or "
            f"condition_dim (for vectors) is set, got {condition!r}",
        )
        return None, None
    label = vector = condition
    if num_classes is not None and condition_dim is not None:
        pair = (None, None) if condition is None else condition
        accepted = "condition must be a pair (label, vector), as num_classes and "
        got = f"condition_dim are set, got {condition!r}"
        is_pair = isinstance(pair, tuple | list) and len(pair) == 2
        checks.require(is_pair, accepted + got, TypeError)
        label, vector = pair
    label = None if num_classes is None else _label(label, num_classes)
    if condition_dim is None:
        return label, None
    if vector is None:
        return label, jnp.zeros(condition_dim)
    return label, checks.real_shaped("condition", vector, (condition_dim,))


def _label(condition: Any, num_classes: int) -> Array:
    """The label as an integer array of shape (), the null token for None."""
    if condition is None:
        return jnp.asarray(num_classes)
    accepted = (
        "condition must be an integer label of shape () in 0 … num_classes="
        f"{num_classes} (the null token)"
    )
    dtype, shape = jnp.result_type(condition), np.shape(condition)
    integral = jnp.issubdtype(dtype, jnp.integer)
    checks.require(integral, f"{accepted}, got dtype {dtype}", TypeError)
    checks.require(shape == (), f"{accepted}, got shape {shape}; jax.vmap over a batch")
    inside = checks.is_traced(condition) or 0 <= int(condition) <= num_classes
    checks.require(inside, f"{accepted}, got {condition}")
    return jax.lax.stop_gradient(jnp.asarray(condition))


class Conditioning(nn.Module):
    """The vector (dim,) that modulates every block of a network.

        SiLU(time embedding + condition embedding)

    Without num_classes and condition_dim the network is unconditional.

    Args:
      dim: Width of the vector.
      num_classes: See `ConditionEmbedding`.
      condition_dim: See `ConditionEmbedding`.
      time_frequencies: See `TimeEmbedding`, `frequencies`.
      time_features: See `TimeEmbedding`, `features`.
      dtype: Of the computation.
    """

    dim: int
    num_classes: int | None = None
    condition_dim: int | None = None
    time_frequencies: tuple[float, float] = TIME_FREQUENCIES
    time_features: Callable[[Array], Array] | None = None
    dtype: Any = None

    @classmethod
    def of(cls, network: Any, dim: int, dtype: Any) -> Self:
        """The module for a network that has all its other fields.

        Args:
          network: The network.
          dim: As the field.
          dtype: As the field.

        Returns:
          The module.
        """
        return cls(
            dim,
            network.num_classes,
            network.condition_dim,
            network.time_frequencies,
            network.time_features,
            dtype,
        )

    @nn.compact
    def __call__(self, t: Scalar, condition: ArrayLike | None = None) -> Array:
        """The vector. A condition of an unconditional network is a ValueError."""
        embedding = TimeEmbedding(
            self.dim, self.time_frequencies, self.time_features, dtype=self.dtype
        )(t)
        if self.num_classes is None and self.condition_dim is None:
            condition_parts(condition, None, None)
        else:
            embedding += ConditionEmbedding(
                self.dim, self.num_classes, self.condition_dim, self.dtype
            )(condition)
        return nn.silu(embedding)
