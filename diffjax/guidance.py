"""Guidance: denoisers made of denoisers. What follows from D, score, noise and velocity, follows from the guided one.

For γ other than 0 and 1 the guided field (1 − γ) s_u + γ s_c is the score of p_u^{1−γ} p_c^γ at each noise level, but
those densities are not one law under growing noise: what a sampler draws is its own law, which differs between the
probability flow and each reverse SDE. On VE with p_u = N(0, S²), p_c = N(m, s²) and σ(t_max) → ∞ the flow's variance is
S^{2(1−γ)} s^{2γ}, where p_u^{1−γ} p_c^γ has 1/((1 − γ)/S² + γ/s²).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import checks, grids, predictions, schedules
from .schedules import Schedule
from .types import (
    Array,
    ArrayLike,
    Denoiser,
    Key,
    PyTree,
    Scalar,
    as_one_program,
    as_pytree_callable,
    pytree,
    static_field,
)

# ------------------------------------------------------------------------------------------------- by a classifier


@pytree
class Classifier:
    """D + γ (σ²/α) ∇_x log p(y | x_t). See `classifier`."""

    schedule: Any
    denoiser: Any
    log_prob_y: Any
    scale: Any

    def __call__(self, x: Array, t: Scalar, *condition: Any) -> Array:
        """The guided D, shape of x; a condition is the classifier's."""

        def log_prob(x):
            value = self.log_prob_y(x, t, *condition)
            if jnp.shape(value) != ():
                raise ValueError(
                    f"log_prob_y must return a scalar, got shape {jnp.shape(value)}"
                )
            return value

        data = checks.denoised(self.denoiser(x, t), x)
        return shifted(
            self.schedule, t, data, _at(self.scale, t) * jax.grad(log_prob)(x)
        )


def shifted(schedule: Schedule, t: Scalar, data: Array, gradient: Array) -> Array:
    """D + (σ²/α) ∇, the denoiser of the score s + ∇; shape of data. Tweedie's formula."""
    return data + schedule.sigma(t) ** 2 / schedule.alpha(t) * gradient


def classifier(
    schedule: Schedule,
    denoiser: Denoiser,
    log_prob_y: Callable,
    scale: Scalar | Callable = 1.0,
) -> Classifier:
    """D + γ (σ²/α) ∇_x log p(y | x_t): the score is s + γ ∇_x log p(y | x_t), by Bayes' rule p_t(x | y)'s at γ = 1.

    log_prob_y: (x, t) -> (), log p(y | x_t = x) in nats up to a constant, of a classifier trained on noisy x; a
    condition given by `sample_many` is passed to it as a third argument. scale: γ, a number or a function of t. One
    denoiser call, one gradient of the classifier. Raises TypeError for what cannot be called, ValueError for a scale
    that is not finite or a schedule with α(t_max) = 0, where the shift has no value, TypeError for a denoiser marked
    `coupled`. Song et al. 2021, section 5; Dhariwal & Nichol 2021, Algorithm 2.
    """
    check_signal(schedule)
    predictions.check_independent("classifier guidance", denoiser)
    denoiser, log_prob_y = (
        _denoiser("denoiser", denoiser),
        checks.callable_("log_prob_y", log_prob_y, "f(x, t)"),
    )
    return Classifier(schedule, denoiser, as_pytree_callable(log_prob_y), _scale(scale))


# ----------------------------------------------------------------------------------- by a second, weaker denoiser


@pytree
class Extrapolated:
    """(1 − γ) D_− + γ D_+, rescaled where asked for. See `classifier_free` and `autoguidance`."""

    better: Any
    worse: Any
    scale: Any
    rescale: Any
    shared: bool = static_field()

    def __call__(self, x: Array, t: Scalar, *condition: Any) -> Array:
        """The guided D, shape of x; a condition goes to the better denoiser, and to both where it is shared."""
        better = checks.denoised(self.better(x, t, *condition), x)
        worse = checks.denoised(
            self.worse(x, t, *condition) if self.shared else self.worse(x, t), x
        )
        return _extrapolate(better, worse, _at(self.scale, t), self.rescale)


@pytree
class Batched:
    """(1 − γ) D(x, t, ∅) + γ D(x, t, c) by one call on a batch of two. See `classifier_free_batched`."""

    denoiser: Any
    condition: Any
    null: Any
    scale: Any
    rescale: Any

    def __call__(self, x: Array, t: Scalar, *condition: Any) -> Array:
        """The guided D, shape of x; a condition given here takes the place of the bound one."""
        condition = _given(condition, self.condition)
        _check_alike(condition, self.null)
        pair = jax.tree.map(
            lambda *leaves: jnp.stack(leaves), condition, self.null
        )  # (2, *shape) each
        better, worse = jax.vmap(lambda c: checks.denoised(self.denoiser(x, t, c), x))(
            pair
        )
        return _extrapolate(better, worse, _at(self.scale, t), self.rescale)


@pytree
class Conditioned:
    """D(x, t, c) for a bound condition c."""

    denoiser: Any
    condition: Any

    def __call__(self, x: Array, t: Scalar, *condition: Any) -> Array:
        """D, shape of x; a condition given here takes the place of the bound one."""
        return self.denoiser(x, t, _given(condition, self.condition))


def classifier_free(
    conditional: Denoiser,
    unconditional: Denoiser,
    scale: Scalar | Callable,
    *,
    rescale: Scalar | None = None,
) -> Denoiser:
    """(1 − γ) D_u + γ D_c; the same holds of scores and noises, (1 − γ) s_u + γ s_c.

    scale: γ, a number or a function of t; 0 is unconditional, 1 conditional (the number 1 returns `conditional`
    itself), more than 1 extrapolates. rescale: φ in [0, 1], D ← D (φ std D_c / std D + 1 − φ) with standard deviations
    over the entries of the example (Lin et al. 2024, section 3.4, of a prediction; here of D). A condition given by
    `sample_many` goes to the conditional one. Two denoiser calls; `classifier_free_batched` makes one. Raises
    ValueError for a scale that is not finite or a rescale outside [0, 1]. Ho & Salimans 2021, eq. 6, whose w is γ − 1.
    """
    conditional, unconditional = (
        _denoiser("conditional", conditional),
        _denoiser("unconditional", unconditional),
    )
    scale, rescale = _scale(scale), _fraction(rescale)
    return (
        conditional
        if _is_one(scale)
        else Extrapolated(conditional, unconditional, scale, rescale, shared=False)
    )


def classifier_free_batched(
    denoiser: Denoiser,
    condition: PyTree,
    null_condition: PyTree,
    scale: Scalar | Callable,
    *,
    rescale: Scalar | None = None,
) -> Denoiser:
    """`classifier_free` of one network D(x, t, condition), called once a step on the stacked pair (c, ∅).

    condition: a pytree of one example's condition, or None where `sample_many` gives one to each example.
    null_condition: ∅, of the same structure and shapes, as trained with `drop_condition`. scale, rescale as in
    `classifier_free`; the number 1 makes one plain call on the condition alone. Raises ValueError for conditions that
    differ in structure or shape, a scale that is not finite or a rescale outside [0, 1]. Ho & Salimans 2021, Algorithm
    2.
    """
    denoiser = _denoiser("denoiser", denoiser, "denoiser(x, t, condition)")
    condition, null = (
        checks.arrays("condition", condition),
        checks.arrays("null_condition", null_condition),
    )
    if condition is not None:
        _check_alike(condition, null)
    scale, rescale = _scale(scale), _fraction(rescale)
    return (
        Conditioned(denoiser, condition)
        if _is_one(scale)
        else Batched(denoiser, condition, null, scale, rescale)
    )


def autoguidance(
    denoiser: Denoiser,
    worse: Denoiser,
    scale: Scalar | Callable,
    *,
    rescale: Scalar | None = None,
) -> Denoiser:
    """(1 − γ) D_− + γ D_+: away from a worse model of the same law, smaller or less trained, both with the condition.

    scale, rescale and what is raised as in `classifier_free`, which it is with `worse` in place of the unconditional
    denoiser. Karras et al. 2024 (autoguidance), eq. 3.
    """
    denoiser, worse = _denoiser("denoiser", denoiser), _denoiser("worse", worse)
    scale, rescale = _scale(scale), _fraction(rescale)
    return (
        denoiser
        if _is_one(scale)
        else Extrapolated(denoiser, worse, scale, rescale, shared=True)
    )


def _extrapolate(better, worse, scale, rescale):
    guided = (1 - scale) * worse + scale * better
    if rescale is None:
        return guided
    spread = jnp.var(guided)
    known = (spread > 0) & (jnp.var(better) > 0)  # the root of 0 has no gradient
    ratio = jnp.sqrt(jnp.where(known, jnp.var(better), 1) / jnp.where(known, spread, 1))
    ratio = jnp.where(jnp.var(better) > 0, ratio, 0)
    return guided * jnp.where(spread > 0, rescale * ratio + 1 - rescale, 1)


# ----------------------------------------------------------------------------------------- when, and how far at most


@pytree
class Limited:
    """One denoiser for low < t ≤ high, another elsewhere. See `limited`."""

    guided: Any
    otherwise: Any
    low: Any
    high: Any

    def __call__(self, x: Array, t: Scalar, *condition: Any) -> Array:
        """D of the one that t picks, shape of x."""
        run = [
            lambda x, t, d=d: checks.denoised(d(x, t, *condition), x).astype(x.dtype)
            for d in (self.guided, self.otherwise)
        ]
        return jax.lax.cond((self.low < t) & (t <= self.high), *run, x, t)


def limited(
    schedule: Schedule,
    guided: Denoiser,
    otherwise: Denoiser,
    interval: tuple[Scalar, Scalar],
) -> Limited:
    """`guided` for t_low < t ≤ t_high and `otherwise`, as a rule the conditional denoiser alone, at other times.

    Only the one that t picks is evaluated, as long as the examples of a batch share t (an adaptive solver's do not:
    both run there). interval: (t_low, t_high), times of the schedule; on an EDM schedule t is σ. Raises ValueError
    unless t_min ≤ t_low < t_high ≤ t_max. Kynkäänniemi et al. 2024, section 3.
    """
    schedules.check(schedule)
    guided, otherwise = _denoiser("guided", guided), _denoiser("otherwise", otherwise)
    if not isinstance(interval, tuple | list) or len(interval) != 2:
        raise TypeError(f"interval must be a pair (t_low, t_high), got {interval!r}")
    low, high = (
        checks.number(name, value)
        for name, value in zip(("t_low", "t_high"), interval, strict=True)
    )
    checks.greater("t_high", high, "t_low", low)
    if not checks.is_traced(schedule, low, high):
        ends = float(schedule.t_min), float(schedule.t_max)
        slack = 4 * np.finfo(np.float32).eps
        if not ends[0] * (1 - slack) <= low < high <= ends[1] * (1 + slack):
            raise ValueError(
                f"interval must lie within the schedule's [{ends[0]}, {ends[1]}], got {(low, high)}"
            )
    return Limited(guided, otherwise, low, high)


@pytree
class Thresholded:
    """D clipped to [low, high]. See `static_threshold`."""

    denoiser: Any
    low: Any
    high: Any

    def __call__(self, x: Array, t: Scalar, *condition: Any) -> Array:
        """The clipped D, shape of x."""
        return jnp.clip(
            checks.denoised(self.denoiser(x, t, *condition), x), self.low, self.high
        )


@pytree
class DynamicThreshold:
    """clip(D, −s, s) bound/s, s = max(quantile of |D|, bound). See `dynamic_threshold`."""

    denoiser: Any
    quantile: Any
    bound: Any

    def __call__(self, x: Array, t: Scalar, *condition: Any) -> Array:
        """The thresholded D, shape of x."""
        data = checks.denoised(self.denoiser(x, t, *condition), x)
        reach = jnp.maximum(jnp.quantile(jnp.abs(data), self.quantile), self.bound)
        return jnp.clip(data, -reach, reach) * (self.bound / reach)


def static_threshold(
    denoiser: Denoiser, low: Scalar = -1.0, high: Scalar = 1.0
) -> Thresholded:
    """D clipped to [low, high], the range of the data; noise and score are re-derived from the clipped D.

    Raises ValueError unless low < high. Saharia et al. 2022 (Imagen), section 2.3.
    """
    low, high = checks.number("low", low), checks.number("high", high)
    checks.greater("high", high, "low", low)
    return Thresholded(_denoiser("denoiser", denoiser), low, high)


def dynamic_threshold(
    denoiser: Denoiser, quantile: Scalar = 0.995, bound: Scalar = 1.0
) -> DynamicThreshold:
    """clip(D, −s, s) bound/s with s = max(quantile of |D| over the example's entries, bound), for data in [−bound,
    bound].

    Raises ValueError unless 0 ≤ quantile ≤ 1 and bound > 0. Saharia et al. 2022 (Imagen), section 2.3.
    """
    quantile, bound = (
        checks.within("quantile", quantile, 0, 1),
        checks.positive("bound", bound),
    )
    return DynamicThreshold(_denoiser("denoiser", denoiser), quantile, bound)


# ------------------------------------------------------------------------------------------------------------ CFG++


@pytree
class StepScale:
    """A scale for each step of a grid, looked up by the step's starting time. See `cfg_plus_plus_scale`."""

    times: Array  # (N,)
    values: Array  # (N,)

    def __call__(self, t: Scalar) -> Array:
        """γ of the step that starts at the grid time nearest to t, shape ()."""
        return self.values[jnp.argmin(jnp.abs(self.times - t))]


def cfg_plus_plus_scale(
    schedule: Schedule, grid: ArrayLike, scale: Scalar
) -> StepScale:
    """γ(t) = λ / (1 − ρ_s/ρ_t), ρ = σ/α, for each step from t to s of a decreasing grid: CFG++ as a `scale`.

    CFG++ steps to x_s = α_s ((1 − λ) D_u + λ D_c) + σ_s ε̂_u: guided data, unguided noise. That is the `ddim()` step of
    `classifier_free(…, scale=cfg_plus_plus_scale(schedule, grid, λ))` on the same grid, for as many calls. As steps
    shrink γ grows without bound: CFG++ belongs to its grid and is no discretisation of a flow. scale: λ, 0 or more, as
    a rule at most 1. The grid may end at 0. Raises ValueError otherwise. Chung et al. 2024 (CFG++), Algorithm 2.
    """
    scale = checks.non_negative("scale", scale)
    steps = ratio_of_steps(schedule, grid)
    return StepScale(steps.start, scale / steps.gap)


class Ratios(NamedTuple):
    """Start t, end s, value ρ_s/ρ_t and gap 1 − ρ_s/ρ_t, ρ = σ/α, of each step of a grid, (N,) each.

    The value is 0 where s = 0 or α(t) = 0.
    """

    start: Array
    end: Array
    value: Array
    gap: Array


def ratio_of_steps(schedule: Schedule, grid: ArrayLike) -> Ratios:
    """ρ_s/ρ_t of each step from t to s of a decreasing grid, which may end at 0. Raises ValueError for another grid."""
    grid = grids.check("grid", grid, schedules.check(schedule), zero_end=True)
    if not checks.is_traced(grid):
        first, last = np.asarray(grid)[[0, -1]]
        if first < last:
            raise ValueError(f"grid must decrease, got {first} … {last}")
    return as_one_program(_ratios, schedule, grid)


def _ratios(schedule, grid):
    t, s = grid[:-1], grid[1:]
    end = jnp.where(s == 0, t, s)
    noise, signal = (
        schedule.sigma(end) * schedule.alpha(t),
        schedule.alpha(end) * schedule.sigma(t),
    )
    # α may underflow where the log-SNR is still finite: products of small numbers would be 0/0
    by_levels = 0.5 * (
        schedules.log_snr(schedule, t) - schedules.log_snr(schedule, end)
    )
    small = (
        jnp.minimum(noise, signal)
        < jnp.finfo(noise.dtype).tiny / jnp.finfo(noise.dtype).eps
    )
    known = jnp.where(
        jnp.isfinite(by_levels), by_levels, -jnp.inf
    )  # from α = 0 every step is a whole one
    safe = jnp.where(small, 1, signal)
    value = jnp.where(small, jnp.exp(known), noise / safe)
    gap = jnp.where(small, -jnp.expm1(known), (signal - noise) / safe)
    return Ratios(t, s, jnp.where(s == 0, 0, value), jnp.where(s == 0, 1, gap))


# --------------------------------------------------------------------------------------------------------- training


def drop_condition(
    key: Key, condition: PyTree, null_condition: PyTree, probability: Scalar = 0.1
) -> PyTree:
    """∅ with the given probability, else the condition: what one example of a network for both is trained on.

    condition, null_condition: pytrees of one structure and one shape; the whole condition is dropped or kept. Over a
    batch: `jax.vmap(drop_condition, (0, 0, None, None))`. Raises ValueError where they differ or the probability is
    outside [0, 1]. Ho & Salimans 2021, Algorithm 1.
    """
    checks.key("key", key)
    probability = checks.within("probability", probability, 0, 1)
    condition, null = (
        checks.arrays("condition", condition),
        checks.arrays("null_condition", null_condition),
    )
    _check_alike(condition, null)
    drop = jax.random.bernoulli(key, probability)
    return jax.tree.map(
        lambda c, n: jnp.where(drop, n.astype(c.dtype), c), condition, null
    )


# ------------------------------------------------------------------------------------------------------- arguments


def check_signal(schedule: Schedule) -> Schedule:
    """`schedule`. Raises ValueError if α(t_max) is 0 or rounds to it, where the gradient's factor σ²/α has no value."""
    schedules.check(schedule)
    if not checks.is_traced(schedule):
        with jax.ensure_compile_time_eval():
            level, alpha = map(float, as_one_program(_first_level, schedule))
        if not math.isfinite(level) or not alpha >= float(np.finfo(np.float32).tiny):
            raise ValueError(
                f"schedule must have α(t_max) > 0, but α = {alpha:.3g} at t_max={schedule.t_max}, 0 to rounding: "
                "lower t_max"
            )
    return schedule


def _first_level(schedule):
    """(λ(t_max), α(t_max))."""
    return schedules.log_snr(schedule, schedule.t_max), schedule.alpha(schedule.t_max)


def _denoiser(name, value, signature="denoiser(x, t)"):
    return as_pytree_callable(checks.callable_(name, value, signature))


def _scale(value):
    return (
        as_pytree_callable(value) if callable(value) else checks.number("scale", value)
    )


def _fraction(value):
    return None if value is None else checks.within("rescale", value, 0, 1)


def _is_one(scale):
    return not callable(scale) and not checks.is_traced(scale) and float(scale) == 1


def _at(scale, t):
    """γ at t, refused unless of shape ()."""
    value = scale(t) if callable(scale) else scale
    if jnp.shape(value) != ():
        raise ValueError(f"scale(t) must return a scalar, got shape {jnp.shape(value)}")
    return value


def _given(condition, bound):
    if condition:
        return condition[0]
    if bound is None:
        raise ValueError(
            "condition must be given: bound to the denoiser, or by sample_many(condition=…)"
        )
    return bound


def _check_alike(condition, null):
    """Refuse conditions of different structure or shapes, which cannot be stacked."""
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (condition, null)]
    if (
        jax.tree.structure(condition) != jax.tree.structure(null)
        or shapes[0] != shapes[1]
    ):
        raise ValueError(
            f"condition and null_condition must agree in structure and shape, got {shapes[0]}, {shapes[1]}"
        )
    for given, none in zip(
        jax.tree.leaves(condition), jax.tree.leaves(null), strict=True
    ):
        if jnp.result_type(given, none) != given.dtype:
            raise TypeError(
                f"null_condition must fit the condition's dtype {given.dtype}, got {none.dtype}"
            )
