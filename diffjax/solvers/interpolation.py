"""Gains of multistep methods, which interpolate the denoiser's last outputs.

A method integrates the polynomial against the weight of its own equation.
`adams` makes the gains of each output. Bounds lower the order of a step where
a polynomial through outputs that lie far back may leave the denoiser by any
factor.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from ..grids.steps import Steps
from ..numerics import phi
from ..types import Array

__all__ = [
    "adams",
    "allows_line",
    "decaying_moments",
    "growing_moments",
    "in_log_ratio",
    "in_ratio",
    "lagrange",
]

REACH = 0.5 * math.pi
"""The longest distance in λ = −log ρ from the end of a step to its outputs.

The denoiser of N(m, s²) is m + (y − m) s²/(s² + ρ²) at a given y. As a
function of λ it has poles at λ = −log s ± iπ/2, whatever m and s are. A Taylor
series about a point of the real axis converges within π/2 of it at worst, and
a polynomial through points that lie further back can leave the denoiser by any
factor.
"""

LONGEST = 0.25 * math.pi
"""The longest step in λ over which a multistep method extrapolates.

In ρ and t it may extrapolate by a straight line over longer ones. The denoiser
of two atoms at m ± a is m + a tanh(a (y − m)/ρ²) at a given y, the sharpest
choice between two modes. Its poles lie where a (y − m)/ρ² = iπ/2, at ±iπ/4
beside the real axis of λ = −log ρ. A series about the start of a step
converges to the end of a step of at most π/4.
"""

OVERSHOOT = 1.5
"""The greatest error of a step, relative to the range of its outputs.

With weights g_j of the outputs F_j, the newest first and Σ g_j = 1, a step
takes the mean output to be F_0 + Σ_{j≥1} s_j (F_j − F_{j−1}), s_j = Σ_{i≥j}
g_i. Where F is monotone from the oldest output to the end of the step and
ranges over V, the error of this mean is at most V max(1, max_j |s_j|).

Without extrapolation, as in DDIM, it is at most V. On even steps max |s_j| is
1/2, 11/12 and 31/24 for the Adams–Bashforth methods of order 2 to 4.
"""


def adams(
    positions: Array,
    depth: int,
    moments: Callable[[int, slice], Sequence],
    *,
    ahead: bool = False,
    bounds: Callable[..., Array] | None = None,
) -> list[Array]:
    """Gains of ∫ w(v) P(v) dv, where the polynomial P interpolates the last outputs.

    v runs from 0 at the start of a step to 1 at its end, in the coordinate of
    `positions`. A step uses as many of the last `depth` outputs as there are
    and as the bounds allow.

    Args:
      positions: Times in the coordinate of the polynomial, (N + 1,).
      depth: Most outputs that a step uses.
      moments: (nodes, window) -> [∫ w v^k dv for k < nodes], on a slice of the
        steps.
      ahead: Whether P also passes through the output at the end of the step.
        Its gain then comes first.
      bounds: Limits the outputs of a step: `in_log_ratio(steps)`,
        `in_ratio(steps)`, or None.

    Returns:
      Gains (N,) of each output, the newest first, 0 for those that a step does
      not use.
    """
    count = positions.shape[0] - 1
    table = jnp.zeros((depth + ahead, count), positions.dtype)
    # lower orders first: each overwrites the one before where it is allowed
    for used in range(min(depth, 1), min(depth, count) + 1):
        first = max(used - 1, 0)
        window = slice(first, count)
        length = positions[first + 1 :] - positions[window]
        nodes = [
            (positions[first - j : count - j] - positions[window]) / length
            for j in range(used)
        ]
        nodes = [jnp.ones_like(length), *nodes] if ahead else nodes
        weights = moments(len(nodes), window)
        gains = [
            sum(c * m for c, m in zip(row, weights, strict=True))
            for row in lagrange(nodes)
        ]
        allowed = True
        if bounds and used > 1:
            allowed = bounds(used, window, gains, gains[1 + ahead :])
        gains += [jnp.zeros_like(length)] * (depth - used)
        rows = jnp.stack(jnp.broadcast_arrays(*gains))  # (depth + ahead, steps)
        table = table.at[:, window].set(jnp.where(allowed, rows, table[:, window]))
    return list(table)


def in_log_ratio(steps: Steps) -> Callable[..., Array]:
    """The bounds of methods whose polynomial is in λ.

    They are `REACH`, `LONGEST` and `OVERSHOOT` for any earlier output.
    """
    h = steps.log_step

    def allowed(used, window, gains, earlier):
        count = h.shape[0]
        back = sum(h[used - 1 - j : count - j] for j in range(used))
        return (
            (back <= REACH) & (h[window] <= LONGEST) & _within_overshoot(gains, earlier)
        )

    return allowed


def in_ratio(steps: Steps) -> Callable[..., Array]:
    """The bounds of methods whose polynomial is of ε̂, in ρ or t.

    They are `OVERSHOOT`, 2 `REACH` at order 2 and `LONGEST` above it. A series
    about the middle of a step converges on all of it where half of its length
    is at most `REACH`.
    """
    h = steps.log_step

    def allowed(used, window, gains, earlier):
        longest = 2 * REACH if used == 2 else LONGEST
        return (h[window] <= longest) & _within_overshoot(gains, earlier)

    return allowed


def allows_line(steps: Steps, weight: Array) -> Array:
    """Whether the bounds in λ allow D + weight (D − D_prev), (N,).

    Args:
      steps: Steps between noise levels.
      weight: Of D − D_prev, (N,).

    Returns:
      A mask (N,). False in the first step, which has no earlier output.
    """
    window = slice(1, None)
    earlier = -weight[window]
    allowed = in_log_ratio(steps)(2, window, [1 - earlier, earlier], [earlier])
    return jnp.concatenate([jnp.zeros(1, bool), allowed])


def _within_overshoot(gains, earlier):
    """Whether |s_j| ≤ OVERSHOOT for the gains of the outputs before the newest."""
    total, tail, within = jnp.abs(sum(gains)), 0, True
    for gain in reversed(earlier):
        tail = tail + gain
        within &= jnp.abs(tail) <= OVERSHOOT * total
    return within


def lagrange(nodes: Sequence[Array]) -> list[list[Any]]:
    """Coefficients c[j][k] of v^k in ℓ_j, which is 1 at node j and 0 at others."""
    rows = []
    for j, node in enumerate(nodes):
        row = [jnp.ones_like(node)]
        for m, other in enumerate(nodes):
            if m != j:  # times (v − v_m)/(v_j − v_m)
                raised, held = [0, *row], [*row, 0]
                row = [
                    (up - other * down) / (node - other)
                    for up, down in zip(raised, held, strict=True)
                ]
        rows.append(row)
    return rows


def decaying_moments(a: Array, count: int) -> list[Array]:
    """The weights of D in y′ = −a (y − D).

        a ∫_0^1 e^{−a(1 − v)} v^k dv = a k! φ_{k+1}(−a),    k < count

    Args:
      a: The decay over a step, of any shape.
      count: How many moments.

    Returns:
      The moments, of a's shape each.
    """
    return [-jnp.expm1(-a)] + [
        a * math.factorial(k) * phi(k + 1, -a) for k in range(1, count)
    ]


def growing_moments(h: Array, count: int) -> list[Array]:
    """The weights of −ρ_s ε̂ in dy = ε̂ dρ.

        h ∫_0^1 e^{h(1 − v)} v^k dv = h k! φ_{k+1}(h),    k < count

    Args:
      h: The step in λ, of any shape.
      count: How many moments.

    Returns:
      The moments, of h's shape each.
    """
    return [jnp.expm1(h)] + [
        h * math.factorial(k) * phi(k + 1, h) for k in range(1, count)
    ]
