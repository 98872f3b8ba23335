"""Solvers' loops written by hand: a scan over the steps of a batch, its
coefficients before it.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffjax import noise, schedules


class Coefficients(NamedTuple):
    """Coefficients at one time: α, σ, and a, b, g of the equation.

        dx = (a x + b D) dt + g dw̄

    a and b are those of the probability flow or of the reverse SDE.
    """

    t: Any
    alpha: Any
    sigma: Any
    a: Any
    b: Any
    g: Any


def coefficients(
    schedule: schedules.VPLinear, t: jax.Array, stochastic: bool
) -> Coefficients:
    """Coefficients of the drift with η = 1 (reverse SDE) or 0 (flow).

    f x − ½(1 + η²) g² s,    f = −½β,  g² = β,  s = (αD − x)/σ²
    """
    alpha, sigma, beta = schedule.alpha(t), schedule.sigma(t), schedule.beta(t)
    share = (1.0 if stochastic else 0.5) * beta / sigma**2
    return Coefficients(
        t, alpha, sigma, share - 0.5 * beta, -share * alpha, jnp.sqrt(beta)
    )


def slope(denoise, x, at):
    """a x + b D(x, t)."""
    return at.a * x + at.b * denoise(x, at)


def euler_by_hand(denoise, draw, x, at, dt):
    return x + dt * slope(denoise, x, at[0])


def heun_by_hand(denoise, draw, x, at, dt):
    first = slope(denoise, x, at[0])
    return x + 0.5 * dt * (first + slope(denoise, x + dt * first, at[2]))


def rk4_by_hand(denoise, draw, x, at, dt):
    k1 = slope(denoise, x, at[0])
    k2 = slope(denoise, x + 0.5 * dt * k1, at[1])
    k3 = slope(denoise, x + 0.5 * dt * k2, at[1])
    k4 = slope(denoise, x + dt * k3, at[2])
    return x + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def euler_maruyama_by_hand(denoise, draw, x, at, dt):
    return x + dt * slope(denoise, x, at[0]) + at[0].g * jnp.sqrt(-dt) * draw()


def stochastic_heun_by_hand(denoise, draw, x, at, dt):
    increment = jnp.sqrt(-dt) * draw()
    first = slope(denoise, x, at[0])
    second = slope(denoise, x + dt * first + at[0].g * increment, at[2])
    return x + 0.5 * dt * (first + second) + 0.5 * (at[0].g + at[2].g) * increment


def reverse_diffusion_by_hand(denoise, draw, x, at, dt):
    ratio = at[0].alpha / at[2].alpha
    variance = at[0].sigma ** 2 - (ratio * at[2].sigma) ** 2
    score = (at[0].alpha * denoise(x, at[0]) - x) / at[0].sigma ** 2
    return (2 - ratio) * x + variance * score + jnp.sqrt(variance) * draw()


BY_HAND = {
    "euler": euler_by_hand,
    "heun": heun_by_hand,
    "rk4": rk4_by_hand,
    "euler_maruyama": euler_maruyama_by_hand,
    "stochastic_heun": stochastic_heun_by_hand,
    "reverse_diffusion": reverse_diffusion_by_hand,
}
"""Steps (denoise, draw, x, at, dt) -> x at t + dt for a batch x.

`at` are the coefficients at t, t + dt/2 and t + dt.
"""


@functools.partial(jax.jit, static_argnums=(0, 1))
def loop_by_hand(
    name: str,
    denoise: Callable,
    arrays: Any,
    schedule: Any,
    key: jax.Array,
    x: jax.Array,
    ts: jax.Array,
):
    """A scan over the steps of one method, for a batch x (B, ...).

    All coefficients are computed before it. `denoise` maps (arrays, x, at) to
    D of the batch. Noise is that of `sample_many` for the same key.
    """
    stochastic = name in ("euler_maruyama", "stochastic_heun", "reverse_diffusion")
    t, dt = ts[:-1], jnp.diff(ts)
    at = tuple(coefficients(schedule, t + c * dt, stochastic) for c in (0, 0.5, 1))
    keys = example_keys(key, x)

    def body(x, step):
        i, at, dt = step
        draw = lambda: draw_by_hand(keys, i, 0, x)
        return BY_HAND[name](functools.partial(denoise, arrays), draw, x, at, dt), None

    return jax.lax.scan(body, x, (jnp.arange(dt.shape[0], dtype=jnp.uint32), at, dt))[0]


def example_keys(key, x):
    """The keys that `sample_many` gives the solver for each example of a batch."""
    return jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i))[0])(
        jnp.arange(x.shape[0])
    )


def draw_by_hand(keys, step, i, x):
    """The i-th draw of a step, for each example."""
    return jax.vmap(
        lambda k: noise.normal(k, step * noise.DRAWS_PER_STEP + i, x.shape[1:])
    )(keys)


@functools.partial(jax.jit, static_argnums=0)
def dpmpp_2m_by_hand(denoise, arrays, schedule, key, x, ts):
    """DPM-Solver++(2M) as a scan for a batch x (B, ...).

    x ← (σ_s/σ_t) x + α_s (1 − e^{−h}) (D + (h/2h_prev)(D − D_prev))
    """
    at = coefficients(schedule, ts, False)
    h = jnp.diff(jnp.log(at.alpha / at.sigma))
    extra = 0.5 * jnp.concatenate([jnp.zeros(1), h[1:] / h[:-1]])
    keep, gain = at.sigma[1:] / at.sigma[:-1], -at.alpha[1:] * jnp.expm1(-h)

    def body(carry, step):
        x, before = carry
        at, keep, gain, extra = step
        data = denoise(arrays, x, at)
        return (keep * x + gain * (data + extra * (data - before)), data), None

    steps = jax.tree.map(lambda c: c[:-1], at), keep, gain, extra
    return jax.lax.scan(body, (x, jnp.zeros_like(x)), steps)[0][0]
