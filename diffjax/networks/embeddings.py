"""Features of a network's inputs: the time, the condition, and Fourier features of the state."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from .. import checks
from ..types import Array, ArrayLike, Scalar, one_program

TIME_FREQUENCIES = (0.02, 200.0)
"""Angular frequencies, per unit of t: the lowest still orders |t| ≤ 80, the highest turns by 1 within 0.005."""


def sinusoidal(
    t: ArrayLike,
    dim: int,
    min_frequency: float = TIME_FREQUENCIES[0],
    max_frequency: float = TIME_FREQUENCIES[1],
) -> Array:
    """[sin ω_i t, cos ω_i t], i = 1 … dim/2, with ω_i log-spaced from min_frequency to max_frequency inclusive.

    So ⟨e(t), e(s)⟩ = Σ cos ω_i (t − s), and ‖e(t)‖² = dim/2.

    t: any shape. dim: even. Frequencies: angular, in units of 1/t. Returns t.shape + (dim,), float32 or wider.
    Raises ValueError or TypeError for an odd dim, or frequencies that are not positive and in order.
    Vaswani et al. 2017, section 3.5 has ω from 1 down to 10⁻⁴ for integer positions; Ho et al. 2020 feed it the index
    1 … 1000. Here t has magnitude about 1, and the default range spans the same factor 10⁴ around it.
    """
    dim = even("dim", dim)
    frequency_range("min_frequency", min_frequency, "max_frequency", max_frequency)
    t = checks.real_array("t", t)
    return _waves(
        t, np.geomspace(min_frequency, max_frequency, dim // 2).astype(t.dtype)
    )


@one_program
def _waves(t, frequencies):
    """[sin ω t, cos ω t] of frequencies (K,), t.shape + (2 K,)."""
    angles = t[..., None] * frequencies  # t.shape + (K,)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def fourier_inputs(x: Array, count: int) -> Array:
    """[x, sin 2^k π x, cos 2^k π x], k = 0 … count − 1, along the last axis: what lets a network see fine detail in x.

    x: (..., C). Returns (..., C (1 + 2 count)); x itself where count is 0.
    Kingma et al. 2021 (VDM), appendix C, which keeps k = 7 and 8 only, for data of 256 levels in [−1, 1]: there
    take count=9. Data of fewer levels need a smaller count; frequencies beyond the data's detail only amplify noise.
    """
    count = checks.integer("count", count, 0, 64)  # 2⁶⁴ π is beyond every detail
    if not hasattr(x, "dtype") or x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(
            f"x must be an array of shape (..., C) with C at least 1, got {getattr(x, 'shape', x)}"
        )
    if count == 0:
        return x
    return _fourier_inputs(x, (np.pi * 2.0 ** np.arange(count)).astype(x.dtype))


@one_program
def _fourier_inputs(x, frequencies):
    angles = x[..., None] * frequencies  # (..., C, count)
    angles = angles.reshape(
        *x.shape[:-1], x.shape[-1] * angles.shape[-1]
    )  # (..., C count)
    return jnp.concatenate([x, jnp.sin(angles), jnp.cos(angles)], axis=-1)


class OneProgram:
    """Mixin of a Flax module whose `init` is one compiled program where no argument is traced."""

    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
        """The variables, as `flax.linen.Module.init` returns them."""
        return _variables(super().init, rngs, args, kwargs)


@one_program
def _variables(init, rngs, args, kwargs):
    return init(rngs, *args, **kwargs)


class FourierFeatures(OneProgram, nn.Module):
    """[sin 2π w_i t, cos 2π w_i t], w_i ~ N(0, scale²) drawn once: random Fourier features of the time.

    The frequencies are a function of `seed`, not variables: no optimiser, weight decay or moving average can touch
    them, no checkpoint need hold them, and the module has no parameters (`FourierFeatures(64).apply({}, t)`).

    t: any shape. Returns t.shape + (dim,), float32 or wider. scale: in units of 1/t.
    Raises ValueError or TypeError for an odd dim, a scale that is not positive or a negative seed.
    Tancik et al. 2020, equation 5; scale 16 on log σ as in Song et al. 2021, appendix C.1.
    """

    dim: int = 128
    scale: float = 16.0
    seed: int = 0

    def __post_init__(self):
        even("dim", self.dim)
        checks.positive("scale", self.scale)
        checks.integer("seed", self.seed, 0, 2**32 - 1)
        super().__post_init__()

    def __call__(self, t: ArrayLike) -> Array:
        t = checks.real_array("t", t)
        draws = np.random.RandomState(self.seed).standard_normal(
            self.dim // 2
        )  # a stream that NumPy keeps (NEP 19)
        return _waves(t, (2 * np.pi * self.scale * draws).astype(t.dtype))


class TimeEmbedding(OneProgram, nn.Module):
    """Dense(SiLU(Dense(features(t)))), the embedding of a time (or c_noise, or σ).

    dim: its width. frequencies: (lowest, highest) of the `sinusoidal` features, of which there are features_dim.
    features: another map (t of shape ()) -> (any,), such as `FourierFeatures()`, in place of those.
    dtype: of the dense layers; the features are always float32 or wider. None: that of the features.
    t: (). Returns (dim,).
    Raises ValueError or TypeError for a t that is not a scalar, or fields outside these ranges.
    Ho et al. 2020, appendix B.
    """

    dim: int
    frequencies: tuple[float, float] = TIME_FREQUENCIES
    features: Callable[[Array], Array] | None = None
    features_dim: int = 128
    dtype: Any = None

    def __post_init__(self):
        checks.width("dim", self.dim, 1)
        even("features_dim", self.features_dim)
        check_frequencies("frequencies", self.frequencies)
        super().__post_init__()

    @nn.compact
    def __call__(self, t: Scalar) -> Array:
        if np.shape(t) != ():
            raise ValueError(
                f"t must have shape (), got {np.shape(t)}; jax.vmap over a batch"
            )
        t = checks.real_array("t", t)
        features = (
            sinusoidal(t, self.features_dim, *self.frequencies)
            if self.features is None
            else self.features(t)
        )
        hidden = nn.silu(nn.Dense(self.dim, dtype=self.dtype)(features))
        return nn.Dense(self.dim, dtype=self.dtype)(hidden)


class ConditionEmbedding(OneProgram, nn.Module):
    """The embedding of a class label (a learned row each) or of a vector (a dense layer).

    Exactly one of the two fields is set.
    num_classes: the condition is an integer label of shape () in 0 … num_classes, where num_classes is the null token
        "no condition" of classifier-free guidance, as is None.
    condition_dim: the condition is a float vector (condition_dim,). None is the zero vector: drop a condition by
        multiplying it by 0, and give it an entry that is always 1 where 0 is a meaningful condition.
    Returns (dim,).
    Raises TypeError for a label that is not an integer, ValueError for a wrong shape or a label out of range (under
    jit, where values are unknown, a label above num_classes embeds as NaN).
    Ho & Salimans 2022, section 3.2 (the null token).
    """

    dim: int
    num_classes: int | None = None
    condition_dim: int | None = None
    dtype: Any = None

    def __post_init__(self):
        if self.num_classes is None and self.condition_dim is None:
            raise ValueError(
                "one of num_classes and condition_dim must be set, got None for both"
            )
        check_condition_fields(self.num_classes, self.condition_dim)
        super().__post_init__()

    @nn.compact
    def __call__(self, condition: ArrayLike | None = None) -> Array:
        if self.num_classes is not None:
            rows = nn.Embed(
                self.num_classes + 1, self.dim, dtype=self.dtype
            )  # the last row is the null token
            return rows(_label(condition, self.num_classes))
        if condition is None:
            vector = jnp.zeros(self.condition_dim)
        else:
            checks.one_of_shapes("condition", condition, [(self.condition_dim,)])
            vector = checks.real_array("condition", condition)
        return nn.Dense(self.dim, dtype=self.dtype)(vector)


class Conditioning(nn.Module):
    """SiLU(time embedding + condition embedding), the vector (dim,) that modulates every block of a network.

    Fields as in `TimeEmbedding` and `ConditionEmbedding`. Without num_classes and condition_dim the network is
    unconditional, and a condition other than None raises ValueError.
    """

    dim: int
    num_classes: int | None = None
    condition_dim: int | None = None
    time_frequencies: tuple[float, float] = TIME_FREQUENCIES
    time_features: Callable[[Array], Array] | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, t: Scalar, condition: ArrayLike | None = None) -> Array:
        embedding = TimeEmbedding(
            self.dim, self.time_frequencies, self.time_features, dtype=self.dtype
        )(t)
        if self.num_classes is not None or self.condition_dim is not None:
            embedding += ConditionEmbedding(
                self.dim, self.num_classes, self.condition_dim, self.dtype
            )(condition)
        elif condition is not None:
            raise ValueError(
                f"condition must be None where num_classes=None and condition_dim=None, got {condition!r}; "
                "set num_classes for integer labels or condition_dim for vectors"
            )
        return nn.silu(embedding)


def even(name: str, value: Any) -> int:
    """`value` as a Python int, refused unless positive and even."""
    value = checks.width(name, value, 2)
    if value % 2:
        raise ValueError(f"{name} must be even, got {value}")
    return value


def frequency_range(lower_name: str, lower: Any, upper_name: str, upper: Any) -> None:
    """Refuse two frequencies unless 0 < lower < upper."""
    checks.positive(lower_name, lower)
    checks.greater(upper_name, checks.positive(upper_name, upper), lower_name, lower)


def check_frequencies(name: str, value: Any) -> None:
    """Refuse a field that is not a pair 0 < lowest < highest."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise TypeError(
            f"{name} must be a pair (lowest, highest) of angular frequencies, got {value!r}"
        )
    frequency_range(f"{name}[0]", value[0], f"{name}[1]", value[1])


def check_condition_fields(num_classes: Any, condition_dim: Any) -> None:
    """Refuse fields that describe no condition: counts below 1, or both set."""
    if num_classes is not None and condition_dim is not None:
        raise ValueError(
            f"num_classes and condition_dim exclude each other, got num_classes={num_classes}, "
            f"condition_dim={condition_dim}"
        )
    for name, value in (("num_classes", num_classes), ("condition_dim", condition_dim)):
        if value is not None:
            checks.width(name, value, 1)


def _label(condition: Any, num_classes: int) -> Array:
    """The label as an integer array of shape (), the null token for None."""
    if condition is None:
        return jnp.asarray(num_classes)
    accepted = f"condition must be an integer label of shape () in 0 … num_classes={num_classes} (the null token)"
    if not jnp.issubdtype(jnp.result_type(condition), jnp.integer):
        raise TypeError(f"{accepted}, got dtype {jnp.result_type(condition)}")
    if np.shape(condition) != ():
        raise ValueError(
            f"{accepted}, got shape {np.shape(condition)}; jax.vmap over a batch"
        )
    if not checks.is_traced(condition) and not 0 <= int(condition) <= num_classes:
        raise ValueError(f"{accepted}, got {int(condition)}")
    return jax.lax.stop_gradient(jnp.asarray(condition))
