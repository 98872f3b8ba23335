"""Methods that interpolate the denoiser's last answers: one evaluation a step at any order.

Each integrates the polynomial through its last answers against the flow's own weight, in the coordinate that it names.
From exact earlier answers the order is the one declared. The first steps have fewer answers to build on: on grids that
start where the flow is not yet nearly linear this caps the order at 2.
"""

import jax.numpy as jnp
import numpy as np

from .. import checks, schedules
from .affine import (
    Row,
    adams,
    decaying_moments,
    from_noise,
    growing_moments,
    in_log_ratio,
    in_ratio,
    multistep,
)
from .base import Solver, factory

# --------------------------------------------------------------------------------------------- noise prediction, in ρ


@factory
def adams_bashforth(order: int = 4, guarded: bool = True) -> Solver:
    """Adams–Bashforth of dy = ε̂ dρ on the grid's own spacing: k-diffusion's LMS, and DEIS's ρAB.

        y ← y + ∫ P(ρ) dρ over the step,    P the polynomial in ρ = σ/α through the last outputs ε̂

    Args:
      order: How many outputs the polynomial passes through, 1 to 4.
      guarded: Lower the order of a step where extrapolation may fail: to 2 where the step is longer than
        π/4 in λ = log α/σ, to 1 where it is longer than π, and where the earlier outputs weigh more than
        1.5 times the step. False is the published method.

    Returns:
      A solver of order `order` with one denoiser evaluation per step.

    Raises:
      ValueError: Unless 1 ≤ order ≤ 4.

    References:
      Hairer et al. 1993, section III.5. Zhang & Chen 2023, section 4.
    """
    checks.integer("order", order, 1, 4)
    return _in_rho(f"adams_bashforth({order}{_published(guarded)})", order, guarded)


def _in_rho(name, order, guarded):
    def predict(schedule, span):
        length = span.end.rho - span.start.rho
        moments = lambda n, steps: [length[steps] / (k + 1) for k in range(n)]
        return from_noise(
            span,
            adams(
                _ends(span, "rho"),
                order,
                moments,
                bounds=in_ratio(span) if guarded else None,
            ),
        )

    return multistep(name, order, order - 1, predict, "noise")


@factory
def deis(order: int = 3, coordinate: str = "t", guarded: bool = True) -> Solver:
    """DEIS: dy = ε̂ dρ with ε̂ a polynomial through the last outputs (Zhang & Chen 2023, eq. 15).

    Args:
      order: How many outputs the polynomial passes through, 1 to 3.
      coordinate: Of the polynomial. "t" is the paper's tAB-DEIS, its weights by 16-point
        Gauss–Legendre quadrature in log ρ. "rho" is ρAB-DEIS, which is `adams_bashforth`.
        "log_rho" is diffusers' DEIS, an exponential Adams method.
      guarded: Lower the order of a step where extrapolation may fail: where the earlier outputs weigh
        more than 1.5 times the step; in "t" and "rho" to 2 where the step is longer than π/4 in
        λ = log α/σ and to 1 where it is longer than π; in "log_rho" as `dpmpp_2m` does. False is the
        published method.

    Returns:
      A solver of order `order` with one denoiser evaluation per step.

    Raises:
      ValueError: Unless 1 ≤ order ≤ 3, and for another coordinate.
    """
    checks.integer("order", order, 1, 3)
    checks.choice("coordinate", coordinate, ("t", "rho", "log_rho"))
    name = f"deis({order}, {coordinate}{_published(guarded)})"
    if coordinate == "rho":
        return _in_rho(name, order, guarded)

    def predict(schedule, span):
        if coordinate == "log_rho":
            h, end = span.log_step, span.end.rho

            def moments(n, steps):
                return [-end[steps] * m for m in growing_moments(h[steps], n)]

            bounds = in_log_ratio(span) if guarded else None
            return from_noise(
                span, adams(-jnp.log(_ends(span, "rho")), order, moments, bounds=bounds)
            )
        v, weights = _time_quadrature(schedule, span)  # (N, Q)

        def moments_in_time(n, steps):
            return [jnp.sum(weights[steps] * v[steps] ** k, -1) for k in range(n)]

        bounds = in_ratio(span) if guarded else None
        return from_noise(
            span, adams(_ends(span, "t"), order, moments_in_time, bounds=bounds)
        )

    return multistep(name, order, order - 1, predict, "noise")


def _time_quadrature(schedule, span, nodes=16):
    """Nodes v = (τ − t)/(s − t) and weights of ∫ · dρ over each step, (N, Q) each."""
    points, weights = np.polynomial.legendre.leggauss(nodes)
    u = 0.5 * (1 + points)
    h = span.log_step[:, None]
    rho = span.start.rho[:, None] * jnp.exp(-h * u)
    tau = schedules.time_of_log_snr(schedule, -2 * jnp.log(rho))
    t, s = span.start.t[:, None], span.end.t[:, None]
    return (tau - t) / (s - t), -h * rho * (0.5 * weights)


@factory
def ipndm(order: int = 4, guarded: bool = True) -> Solver:
    """DDIM's step with ε̂ extrapolated by the Adams–Bashforth weights of even spacing (Liu et al. 2022, eq. 12).

        (3, −1)/2,    (23, −16, 5)/12,    (55, −59, 37, −9)/24    whatever the grid

    Args:
      order: How many outputs a step uses, 1 to 4.
      guarded: Use at most two outputs on a step that is longer than π/4 in λ = log α/σ, and one where it
        is longer than π: extrapolation may fail there. False is the published method.

    Returns:
      A solver with one denoiser evaluation per step. It has order `order` only where the grid's steps in
      ρ = σ/α are even. On a grid whose neighbouring steps tend to equal length, as all of `grids` do,
      two outputs give order 2 and more add none, which is declared.

    Raises:
      ValueError: Unless 1 ≤ order ≤ 4.

    References:
      Liu et al. 2022 (PNDM). Zhang & Chen 2023, section 4 (iPNDM).
    """
    checks.integer("order", order, 1, 4)

    def predict(schedule, span):
        length = span.end.rho - span.start.rho
        even = jnp.arange(length.shape[0] + 1, dtype=length.dtype)
        moments = lambda n, steps: [
            jnp.full_like(length[steps], 1 / (k + 1)) for k in range(n)
        ]
        gains = adams(even, order, moments, bounds=in_ratio(span) if guarded else None)
        return from_noise(span, [length * gain for gain in gains])

    name = f"ipndm({order}{_published(guarded)})"
    return multistep(name, min(order, 2), order - 1, predict, "noise")


def _ends(span, field):
    """A level at all N + 1 times."""
    return jnp.concatenate([getattr(span.start, field)[:1], getattr(span.end, field)])


# ---------------------------------------------------------------------------- data prediction, in λ = −log ρ, any noise


def _published(guarded):
    """What a solver's name says of the published, unguarded method."""
    return "" if guarded else ", published"


def _data_row(span, order, moments, eta, guarded):
    """y_s = e^{−a} y + Σ gains D + ρ_s √(1 − e^{−2η²h}) z, a = (1 + η²) h.

    The exact solution of the reverse SDE of noise level η for the interpolated D.
    """
    h, positions = span.log_step, -jnp.log(_ends(span, "rho"))
    bounds = in_log_ratio(span) if guarded else None
    gains = adams(
        positions,
        order,
        lambda n, steps: moments((1 + eta**2) * h[steps], n),
        bounds=bounds,
    )
    stds = (span.end.rho * jnp.sqrt(-jnp.expm1(-2 * eta**2 * h)),) if eta else ()
    return Row(span.end, jnp.exp(-(eta**2) * h), gains, stds)


def _dpmpp(name, order, depth, moments, guarded, eta=0.0):
    checks.within("eta", eta, 0, 1)

    def predict(schedule, span):
        return _data_row(span, depth, moments, eta, guarded)

    return multistep(name, order, depth - 1, predict, stochastic=eta > 0)


def _halved(a, count):
    """DPM-Solver++(2M)'s moments: the linear term has half the constant's weight."""
    first = decaying_moments(a, 1)
    return first + [0.5 * first[0]] * (count - 1)


def _halved_quadratic(a, count):
    """DPM-Solver++(3M)'s moments as published: the quadratic term has half the weight of the exact one."""
    moments = decaying_moments(a, count)
    return moments[:2] + [0.5 * m for m in moments[2:]]


@factory
def dpmpp_2m(guarded: bool = True) -> Solver:
    """DPM-Solver++(2M) (Lu et al. 2022b, Algorithm 2).

        y ← e^{−h} y + (1 − e^{−h}) (D + (h/2h_prev) (D − D_prev)),    y = x/α, h = λ_s − λ_t

    Args:
      guarded: Lower the order of a step where extrapolation may fail: where the step is longer than π/4
        in λ = log α/σ, an output lies more than π/2 before its end, or the earlier outputs weigh more
        than 1.5 times the step. False is the published method.

    Returns:
      A solver of order 2 with one denoiser evaluation per step.
    """
    name = "dpmpp_2m" if guarded else "dpmpp_2m(published)"
    return _dpmpp(name, 2, 2, _halved, guarded)


@factory
def dpmpp_3m(corrected: bool = True, guarded: bool = True) -> Solver:
    """DPM-Solver++(3M): data prediction through the last three outputs (Lu et al. 2022b, appendix).

        y ← e^{−h} y + ∫_0^h e^{u−h} P(u) du,    P the parabola in λ through D and the two before it

    Args:
      corrected: True for the exact weights of a parabola. As published (and in DPM-Solver's, diffusers'
        and k-diffusion's code) the second difference has half its coefficient.
      guarded: Lower the order of a step where extrapolation may fail: where the step is longer than π/4
        in λ = log α/σ, an output lies more than π/2 before its end, or the earlier outputs weigh more
        than 1.5 times the step. False is the published method.

    Returns:
      A solver of order 3 where corrected and 2 otherwise, with one denoiser evaluation per step.
    """
    moments = decaying_moments if corrected else _halved_quadratic
    return _dpmpp(
        f"dpmpp_3m({corrected}{_published(guarded)})",
        3 if corrected else 2,
        3,
        moments,
        guarded,
    )


@factory
def dpmpp_2m_sde(eta: float = 1.0, guarded: bool = True) -> Solver:
    """DPM-Solver++(2M) for the reverse SDE of noise level η (Lu et al. 2022b, appendix; Crowson 2022).

        y ← e^{−a} y + (1 − e^{−a}) (D + (h/2h_prev) (D − D_prev)) + ρ_s √(1 − e^{−2η²h}) z,    a = (1 + η²) h

    Args:
      eta: Noise level η in [0, 1]. k-diffusion's eta is its square.
      guarded: Lower the order of a step where extrapolation may fail: where the step is longer than π/4
        in λ = log α/σ, an output lies more than π/2 before its end, or the earlier outputs weigh more
        than 1.5 times the step. False is the published method.

    Returns:
      A solver of weak order 2 with one denoiser evaluation per step.

    Raises:
      ValueError: If eta lies outside [0, 1].
    """
    return _dpmpp(
        f"dpmpp_2m_sde({eta:g}{_published(guarded)})", 2, 2, _halved, guarded, eta
    )


@factory
def dpmpp_3m_sde(
    eta: float = 1.0, corrected: bool = True, guarded: bool = True
) -> Solver:
    """DPM-Solver++(3M) for the reverse SDE of noise level η (Crowson 2022, k-diffusion).

        y ← e^{−a} y + Σ_j w_j D_j + ρ_s √(1 − e^{−2η²h}) z,    w_j of `dpmpp_3m` for a = (1 + η²) h

    Args:
      eta: Noise level η in [0, 1]. k-diffusion's eta is its square.
      corrected: As in `dpmpp_3m`.
      guarded: Lower the order of a step where extrapolation may fail: where the step is longer than π/4
        in λ = log α/σ, an output lies more than π/2 before its end, or the earlier outputs weigh more
        than 1.5 times the step. False is the published method.

    Returns:
      A solver of weak order 2 with one denoiser evaluation per step.

    Raises:
      ValueError: If eta lies outside [0, 1].
    """
    moments = decaying_moments if corrected else _halved_quadratic
    return _dpmpp(
        f"dpmpp_3m_sde({eta:g}, {corrected}{_published(guarded)})",
        2,
        3,
        moments,
        guarded,
        eta,
    )


@factory
def unipc(order: int = 2, variant: str = "bh2", guarded: bool = True) -> Solver:
    """UniPC: an exponential Adams predictor and a corrector (Zhao et al. 2023, Algorithms 1, 2, eq. 9).

        y ← e^{−h} y + ∫_0^h e^{u−h} P(u) du

    The predictor's P passes through the last `order` outputs. Once D is known at the end of the step, the corrector
    repeats the step with P through that output too. It is the next step's own output, so there is one evaluation per
    step, and no correction of the last state.

    Args:
      order: How many outputs the predictor uses, 1 to 3.
      variant: "bh1" for B(h) = h, "bh2" for B(h) = 1 − e^{−h}. It matters only where one unknown is left
        and the paper sets it to ½: the predictor of order 2 and the corrector of order 1.
      guarded: Lower the order of a step where extrapolation may fail: where the step is longer than π/4
        in λ = log α/σ, an output lies more than π/2 before its end, or the earlier outputs weigh more
        than 1.5 times the step. False is the published method.

    Returns:
      A solver of order `order` + 1 with one denoiser evaluation per step.

    Raises:
      ValueError: Unless 1 ≤ order ≤ 3, and for another variant.
    """
    checks.integer("order", order, 1, 3)
    checks.choice("variant", variant, ("bh1", "bh2"))

    def moments(a, count):
        exact = decaying_moments(a, count)
        return (
            exact
            if count != 2
            else [exact[0], 0.5 * (a if variant == "bh1" else exact[0])]
        )

    name = f"unipc({order}, {variant}{_published(guarded)})"
    return _predictor_corrector(name, order + 1, order, order, moments, 0.0, guarded)


@factory
def sa_solver(
    predictor_order: int = 2,
    corrector_order: int = 2,
    eta: float = 1.0,
    guarded: bool = True,
) -> Solver:
    """SA-Solver: stochastic Adams predictor and corrector of the reverse SDE of noise level η (Xue et al. 2023).

        y ← e^{−a} y + Σ_j w_j D_j + ρ_s √(1 − e^{−2η²h}) z,    a = (1 + η²) h

    The predictor interpolates the last `predictor_order` outputs in λ, the corrector `corrector_order` of them with the
    newest, D at the end of the step, among them. Both share the noise of the step. Algorithm 1 and eq. 14–17.

    With p = predictor_order and c = corrector_order the order without noise is p for c = 0, else min(c, p + 1): the
    corrector's own, unless the predictor's, raised by the factor h of its weight in the corrector, is less. With noise
    it is the least of that and 2, in the weak sense.

    Args:
      predictor_order: p, 1 to 3.
      corrector_order: c, 0 to 4. 0 is the predictor alone.
      eta: Noise level in [0, 1], the paper's constant τ. 0 is the probability flow.
      guarded: Lower the order of a step where extrapolation may fail: where the step is longer than π/4
        in λ = log α/σ, an output lies more than π/2 before its end, or the earlier outputs weigh more
        than 1.5 times the step. False is the published method.

    Returns:
      A solver with one denoiser evaluation per step.

    Raises:
      ValueError: Unless 1 ≤ predictor_order ≤ 3, 0 ≤ corrector_order ≤ 4 and 0 ≤ eta ≤ 1.
    """
    checks.integer("predictor_order", predictor_order, 1, 3)
    checks.integer("corrector_order", corrector_order, 0, 4)
    checks.within("eta", eta, 0, 1)
    name = (
        f"sa_solver({predictor_order}, {corrector_order}, {eta:g}{_published(guarded)})"
    )
    order = (
        min(corrector_order, predictor_order + 1)
        if corrector_order
        else predictor_order
    )
    order = min(order, 2) if eta else order
    return _predictor_corrector(
        name,
        order,
        predictor_order,
        corrector_order - 1,
        decaying_moments,
        eta,
        guarded,
    )


def _predictor_corrector(name, order, answers, behind, moments, eta, guarded):
    """A predictor from the last `answers`, a corrector from the next one and `behind` before it (none where < 0)."""

    def predict(schedule, span):
        return _data_row(span, answers, moments, eta, guarded)

    def correct(schedule, span):
        h = (1 + eta**2) * span.log_step
        positions = -jnp.log(_ends(span, "rho"))
        bounds = in_log_ratio(span) if guarded else None
        return adams(
            positions,
            behind,
            lambda n, steps: moments(h[steps], n),
            ahead=True,
            bounds=bounds,
        )

    return multistep(
        name,
        order,
        max(answers - 1, behind),
        predict,
        stochastic=eta > 0,
        correct=correct if behind >= 0 else None,
    )
