"""Steps affine in the state, in the denoiser's answers and in the noise: what most samplers of the field are.

With y = x/α and ρ = σ/α every Gaussian schedule has the law y = x_0 + ρ ε, its probability flow is dy = ε̂ dρ with
ε̂ = (y − D)/ρ, and a sampler is a table of coefficients. Here such tables are turned into solvers of x: `one_step` for
methods with inner stages, `multistep` for those that remember earlier answers.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from .. import schedules
from ..numerics import phi
from ..types import Array
from .base import Solver, needs, per_step, unless_zero


class Levels(NamedTuple):
    """Where a state is: t, α, σ and ρ = σ/α, of one shape."""

    t: Any
    alpha: Any
    sigma: Any
    rho: Any


class Span(NamedTuple):
    """All steps of a grid, from `start` to `end`, fields of shape (N,).

    at_zero marks a step to exactly 0, None where there is none. Such a step is described as one that halves t and ρ, so
    that all coefficients and their gradients are finite; its result is D whatever they are.
    """

    start: Levels
    end: Levels
    at_zero: Any

    @property
    def log_step(self) -> Array:
        """h = log ρ_t/ρ_s > 0 on a decreasing grid: half the log-SNR gained."""
        return jnp.log(self.start.rho / self.end.rho)


class Row(NamedTuple):
    """A state y' = keep (ρ'/ρ) y + Σ_j gains_j F_j + Σ_k stds_k z_k at levels `at`; F_j are the answers so far.

    keep = 1 leaves the state's own noise at its share, as DDIM does. Entries that are the number 0 cost nothing.
    """

    at: Levels
    keep: Any
    gains: Sequence = ()
    stds: Sequence = ()


LARGEST_RATIO = 1e18
"""The greatest ρ = σ/α that is told from infinity. Its square is within the range of float32."""


def levels(schedule: Any, t: Array) -> Levels:
    """The levels at times t. Where α is 0 to rounding, as at a zero terminal SNR, ρ is `LARGEST_RATIO`.

    No coefficient of a step from there feels the difference: the share of the data in x is then below rounding. Where
    the schedule states its log-SNR λ, ρ goes on growing like −λ there, so that no two times have the same ρ. An α that
    rounding makes negative, as cos(π/2) is in float32, is 0.
    """
    alpha, sigma = jnp.maximum(schedule.alpha(t), 0), schedule.sigma(t)
    least = sigma / LARGEST_RATIO
    seen = alpha > least
    beyond = LARGEST_RATIO
    if hasattr(schedule, "log_snr"):
        beyond = LARGEST_RATIO * jnp.clip(
            -0.5 * schedule.log_snr(t) / math.log(LARGEST_RATIO), 1, 100
        )
    return Levels(
        t, alpha, sigma, jnp.where(seen, sigma / jnp.where(seen, alpha, 1), beyond)
    )


def at_ratio(schedule: Any, rho: Array) -> Levels:
    """The levels at which σ/α = rho to rounding, within the schedule's interval.

    The time is rounded, and α, σ, ρ are those of the rounded time, at which the denoiser is called. Near t_max they may
    differ from what was asked for by a percent: coefficients of the step must follow from the levels returned.
    """
    return levels(schedule, schedules.time_of_log_snr(schedule, -2 * jnp.log(rho)))


def span(problem: Any, ts: Array) -> Span:
    """The steps of the grid ts (N + 1,)."""
    t, s = ts[:-1], ts[1:]
    start = levels(problem.schedule, t)
    if not problem.zero_end:
        return Span(start, levels(problem.schedule, s), None)
    at_zero = s == 0
    half = jnp.where(at_zero, 0.5, 1)
    end = levels(problem.schedule, jnp.where(at_zero, t, s))
    return Span(
        start,
        Levels(half * end.t, end.alpha, half * end.sigma, half * end.rho),
        at_zero,
    )


# ---------------------------------------------------------------------------------------------------- answers, states


class _Query(NamedTuple):
    """A denoiser call at t and the answer F = by_state X + by_data D; F = D where both are None."""

    t: Any
    by_state: Any
    by_data: Any


class _Affine(NamedTuple):
    """x' = keep x + Σ gains F + Σ stds z; None for what is absent, keep = None for x itself."""

    keep: Any
    gains: tuple
    stds: tuple


KINDS = ("data", "noise")
"""What F is: the denoiser's D, or ε̂ = (x − αD)/σ."""


def _query(kind, at):
    return (
        _Query(at.t, None, None)
        if kind == "data"
        else _Query(at.t, 1 / at.sigma, -1 / at.rho)
    )


def _ask(query, denoiser, x):
    """(D, F) at the state x."""
    data = denoiser(x, query.t)
    return (
        data,
        data if query.by_state is None else query.by_state * x + query.by_data * data,
    )


def _in_x(row, base):
    """A row of coefficients of y as one of x, relative to a state at levels `base`."""
    keep = None if row.at is base else row.keep * (row.at.sigma / base.sigma)
    # A noise ρ z of y is σ z of x even where α is below every float and ρ is not σ/α.
    scales = (row.gains, row.at.alpha), (row.stds, row.at.sigma / row.at.rho)
    return _Affine(
        keep,
        *(
            tuple(None if absent(c) else scale * c for c in entries)
            for entries, scale in scales
        ),
    )


def _in_data(rows):
    """Rows of a method in ε̂_j = (y_j − D_j)/ρ_j as rows in D_j.

    With D = 0 the flow is y ∝ ρ, and a consistent method follows it exactly. The tableau states that share as `keep`.
    In y_i = y_0 + Σ_j g_ij ε̂_j both terms are of the size of ρ_0: where α is small, what is left of them is rounding.
    """
    first, *others = rows
    data = []  # G_ik of y_i = (ρ_i/ρ_0) y_0 + Σ_k G_ik D_k
    for i, row in enumerate(others):
        gains = list(row.gains) + [0] * (i + 1 - len(row.gains))
        shares = [
            0 if absent(g) else g / r.at.rho for g, r in zip(gains, rows, strict=False)
        ]
        table = []
        for k in range(i + 1):
            terms = [
                c * data[j - 1][k]
                for j, c in enumerate(shares)
                if j > k and not absent(c)
            ]
            table.append(sum(terms) - shares[k])
        data.append(table)
    return [
        first,
        *(row._replace(gains=gains) for row, gains in zip(others, data, strict=True)),
    ]


def absent(coefficient):
    """Whether a coefficient is the number 0, which costs nothing."""
    return isinstance(coefficient, int | float) and coefficient == 0


def _apply(row, x, answers, draw):
    total = x if row.keep is None else row.keep * x
    for gain, answer in zip(row.gains, answers, strict=False):
        total = total if gain is None else total + gain * answer
    for i, std in enumerate(row.stds):
        total = total if std is None else total + std * draw(i)
    return total


# ----------------------------------------------------------------------------------------------------------- builders


def one_step(
    name: str,
    order: int,
    stages: int,
    tableau: Callable[[Any, Span], Sequence[Row]],
    kind: str = "data",
    stochastic: bool = False,
) -> Solver:
    """A method that asks the denoiser about `stages` ≥ 2 states a step, and on a step to 0 about the first alone.

    tableau(schedule, span) gives a row for each state and one for the result. The first row starts from the state
    itself, the others from the first row's. The gains of a row of kind "noise" are those of ε̂, and its `keep` is what
    they leave of the state where D = 0.
    """

    def prepare(problem, ts):
        steps = span(problem, ts)
        rows = tableau(problem.schedule, steps)
        rows = _in_data(rows) if kind == "noise" else rows
        bases = [steps.start] + [rows[0].at] * stages
        queries = [_query("data", row.at) for row in rows[:-1]]
        return (
            steps.at_zero,
            queries,
            [_in_x(row, base) for row, base in zip(rows, bases, strict=True)],
        )

    def step(problem, inputs, draw, x, state):
        at_zero, queries, rows = inputs
        x = _apply(rows[0], x, (), draw)
        data, first = _ask(queries[0], problem.denoiser, x)

        def finish(_):
            answers = [first]
            for query, row in zip(queries[1:], rows[1:-1], strict=True):
                answers.append(
                    _ask(query, problem.denoiser, _apply(row, x, answers, draw))[1]
                )
            return _apply(rows[-1], x, answers, draw)

        return unless_zero(at_zero, finish, data), state

    check_grid = needs(name, finite_start=True)
    return Solver(
        name,
        "denoiser",
        order,
        stochastic,
        per_step(stages),
        prepare,
        step,
        check_grid=check_grid,
    )


def multistep(
    name: str,
    order: int,
    past: int,
    predict: Callable[[Any, Span], Row],
    kind: str = "data",
    stochastic: bool = False,
    correct: Callable[[Any, Span], Sequence] | None = None,
    check_grid: Callable | None = None,
) -> Solver:
    """A method with one evaluation a step that remembers the `past` answers before the newest.

    predict(schedule, span) gives the row of each step, gains for the newest output first. For kind "noise" these are
    the gain of D, then those of the differences ε̂_j − ε̂ to the earlier ones: see `from_noise`. correct(schedule,
    span), of a predictor–corrector, gives the gains by which the result of each step is corrected once D is known
    there: for that D, then for those that the step itself used, newest first.
    """

    def prepare(problem, ts):
        steps = span(problem, ts)
        query = _query(kind, steps.start)
        row = _at_zero(_in_x(predict(problem.schedule, steps), steps.start), steps)
        if correct is None:
            return query, row, None
        gains = [steps.end.alpha * gain for gain in correct(problem.schedule, steps)]
        return (
            query,
            row,
            [jnp.concatenate([jnp.zeros_like(gain[:1]), gain[:-1]]) for gain in gains],
        )

    def init(problem, x, inputs):
        zero = jnp.zeros_like(x)
        return (zero,) * past, zero if correct else None

    def step(problem, inputs, draw, x, state):
        query, row, correction = inputs
        earlier, predicted = state
        data, newest = _ask(query, problem.denoiser, x)
        answers = (newest, *earlier)
        terms = (
            answers
            if kind == "data"
            else (data, *(before - newest for before in earlier))
        )
        if (
            correction is not None
        ):  # the prediction's share is exchanged: what else moved x since then stays
            x = _apply(
                _Affine(None, tuple(correction), ()), x - predicted, answers, draw
            )
        base = _apply(_Affine(row.keep, (), row.stds), x, (), draw)
        x = _apply(_Affine(None, row.gains, ()), base, terms, draw)
        return x, (answers[:past], x - base if correct else None)

    check_grid = check_grid or needs(name, steps=2 if past else 1)
    memory = max(past, 1) if correct else past
    return Solver(
        name,
        "denoiser",
        order,
        stochastic,
        per_step(1),
        prepare,
        step,
        init,
        check_grid=check_grid,
        past=memory,
    )


def _at_zero(row, steps):
    """The row of a multistep method with x' = D on a step to 0."""
    if steps.at_zero is None:
        return row
    swap = lambda new, old: None if old is None else jnp.where(steps.at_zero, new, old)
    return _Affine(
        swap(0, row.keep),
        tuple(swap(1 if j == 0 else 0, old) for j, old in enumerate(row.gains)),
        tuple(swap(0, std) for std in row.stds),
    )


def from_noise(span: Span, gains: Sequence) -> Row:
    """The row of y' = y + Σ_j g_j ε̂_j in D and in the differences ε̂_j − ε̂_0, as `multistep` wants it.

    The gains of a constant ε̂ add up to ρ' − ρ, so that y' = (ρ'/ρ) y + (1 − ρ'/ρ) D + Σ_{j≥1} g_j (ε̂_j − ε̂_0). Nothing
    of the size of ρ cancels here.
    """
    return Row(span.end, 1.0, [-jnp.expm1(-span.log_step), *gains[1:]])


# ------------------------------------------------------------------------------------------------- interpolated answers


REACH = 0.5 * math.pi
"""How far back in λ = −log ρ an exponential multistep method may look from the end of a step.

The denoiser of N(m, s²) is m + (y − m) s²/(s² + ρ²) at a given y. As a function of λ it has poles at λ = −log s ± iπ/2,
whatever m and s are. A Taylor series about a point of the real axis converges within π/2 of it at worst, and a
polynomial through points that lie further back can leave the denoiser by any factor.
"""

LONGEST = 0.25 * math.pi
"""The longest step in λ over which a multistep method extrapolates, in ρ and t by more than a straight line.

The denoiser of two atoms at m ± a is m + a tanh(a (y − m)/ρ²) at a given y, the sharpest choice between two modes. Its
poles lie where a (y − m)/ρ² = iπ/2, at ±iπ/4 beside the real axis of λ = −log ρ. A series about the start of a step
converges to the end of a step of at most π/4.
"""

OVERSHOOT = 1.5
"""The greatest error of a step, in units of how far its outputs range, while they rise or fall steadily.

With weights g_j of the outputs F_j, the newest first and Σ g_j = 1, a step takes the mean output to be F_0 + Σ_{j≥1}
s_j (F_j − F_{j−1}), s_j = Σ_{i≥j} g_i. Where F is monotone from the oldest output to the end of the step and ranges
over V, the error of this mean is at most V max(1, max_j |s_j|). Without extrapolation, as in DDIM, it is at most V. On
even steps max |s_j| is 1/2, 11/12 and 31/24 for the Adams–Bashforth methods of order 2 to 4.
"""


def adams(
    positions: Array,
    depth: int,
    moments: Callable[[int, slice], Sequence],
    ahead: bool = False,
    bounds: Callable[..., Array] | None = None,
) -> list[Array]:
    """Gains of ∫ w(v) P(v) dv, where the polynomial P interpolates the last denoiser outputs over each step.

    v runs from 0 at the start of a step to 1 at its end, in the coordinate of `positions`. A step uses as many of the
    last `depth` outputs as there are and as the bounds allow.

    Args:
      positions: Times in the coordinate of the polynomial, (N + 1,).
      depth: Most outputs that a step uses.
      moments: (nodes, steps) -> [∫ w v^k dv for k < nodes], each (steps,), on a slice of the steps.
      ahead: Whether P also passes through the output at the end of the step. Its gain then comes first.
      bounds: What limits the outputs of a step: `in_log_ratio(…)`, `in_ratio(…)`, or None for nothing.

    Returns:
      Gains (N,) of each output, the newest first, 0 for those that a step does not use.
    """
    count = positions.shape[0] - 1
    table = jnp.zeros((depth + ahead, count), positions.dtype)
    for used in range(min(depth, 1), min(depth, count) + 1):
        first = max(used - 1, 0)
        steps = slice(first, count)
        length = positions[first + 1 :] - positions[steps]
        nodes = [
            (positions[first - j : count - j] - positions[steps]) / length
            for j in range(used)
        ]
        nodes = [jnp.ones_like(length), *nodes] if ahead else nodes
        weights = moments(len(nodes), steps)
        gains = [
            sum(c * m for c, m in zip(row, weights, strict=True))
            for row in lagrange(nodes)
        ]
        allowed = (
            bounds(used, steps, gains, gains[1 + ahead :])
            if bounds and used > 1
            else True
        )
        gains += [jnp.zeros_like(length)] * (depth - used)
        table = table.at[:, steps].set(
            jnp.where(allowed, jnp.stack(jnp.broadcast_arrays(*gains)), table[:, steps])
        )
    return list(table)


def in_log_ratio(span: Span) -> Callable[..., Array]:
    """The bounds of methods whose polynomial is in λ: `REACH`, `LONGEST` and `OVERSHOOT` for any earlier output."""
    h = span.log_step

    def allowed(used, steps, gains, earlier):
        count = h.shape[0]
        back = sum(h[used - 1 - j : count - j] for j in range(used))
        return (
            (back <= REACH) & (h[steps] <= LONGEST) & _within_overshoot(gains, earlier)
        )

    return allowed


def in_ratio(span: Span) -> Callable[..., Array]:
    """The bounds of methods whose polynomial is of ε̂, in ρ or t: `OVERSHOOT`, `LONGEST` above order 2, 2 `REACH` at 2.

    A series about the middle of a step converges on all of it where half of its length is at most `REACH`.
    """
    h = span.log_step

    def allowed(used, steps, gains, earlier):
        longest = 2 * REACH if used == 2 else LONGEST
        return (h[steps] <= longest) & _within_overshoot(gains, earlier)

    return allowed


def _within_overshoot(gains, earlier):
    """earlier: The gains of the outputs before the newest."""
    total, tail, within = jnp.abs(sum(gains)), 0, True
    for gain in reversed(earlier):
        tail = tail + gain
        within &= jnp.abs(tail) <= OVERSHOOT * total
    return within


def lagrange(nodes: Sequence[Array]) -> list[list[Any]]:
    """Coefficients c[j][k] of v^k in the polynomials ℓ_j that are 1 at node j and 0 at the others."""
    rows = []
    for j, own in enumerate(nodes):
        row = [jnp.ones_like(own)]
        for m, other in enumerate(nodes):
            if m != j:  # times (v − v_m)/(v_j − v_m)
                raised, held = [0, *row], [*row, 0]
                row = [
                    (up - other * down) / (own - other)
                    for up, down in zip(raised, held, strict=True)
                ]
        rows.append(row)
    return rows


def decaying_moments(a: Array, count: int) -> list[Array]:
    """a ∫_0^1 e^{−a(1 − v)} v^k dv = a k! φ_{k+1}(−a) for k < count: the weights of D in y′ = −a(y − D)."""
    return [-jnp.expm1(-a)] + [
        a * math.factorial(k) * phi(k + 1, -a) for k in range(1, count)
    ]


def growing_moments(h: Array, count: int) -> list[Array]:
    """h ∫_0^1 e^{h(1 − v)} v^k dv = h k! φ_{k+1}(h) for k < count: the weights of −ρ_s ε̂ in dy = ε̂ dρ."""
    return [jnp.expm1(h)] + [
        h * math.factorial(k) * phi(k + 1, h) for k in range(1, count)
    ]
