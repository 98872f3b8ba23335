"""Multistep methods that interpolate D, as a polynomial in λ, at any noise level."""

import jax.numpy as jnp

from ... import checks
from ..affine import multistep
from ..base import Solver, factory
from ..eta import Eta, check_eta, integral, label
from ..interpolation import (
    adams,
    allows_line,
    decaying_moments,
    in_log_ratio,
)
from .parts import at_all_times, noisy_update, published

__all__ = ["dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m", "dpmpp_3m_sde", "sa_solver", "unipc"]


def _interpolated(steps, depth, moments, *, eta=0.0, guarded=True, ahead=False):
    """Gains of ∫_0^a e^{u−a} P(u) du, P the polynomial in λ through the last outputs.

    moments(a, count) gives the integrals of the powers of u/a.
    """
    a = steps.log_step + integral(eta, steps.start, steps.end)
    return adams(
        -jnp.log(at_all_times(steps, "rho")),
        depth,
        lambda n, window: moments(a[window], n),
        ahead=ahead,
        bounds=in_log_ratio(steps) if guarded else None,
    )


def _second_order_multistep(name, eta, guarded):
    """DPM-Solver++(2M) of noise level η, `dpmpp_2m` and `dpmpp_2m_sde`."""

    def predict(schedule, steps):
        h = steps.log_step
        h_prev = jnp.concatenate([jnp.full_like(h[:1], jnp.inf), h[:-1]])
        # 1 − e^{−a}
        first = -jnp.expm1(-(h + integral(eta, steps.start, steps.end)))
        # The second-order term is (1 − e^{−a}) c (D − D_prev) with c = 1/(2r) and
        # the paper's r = h_prev/h. It is 0 in the first step.
        c = h / (2 * h_prev)
        c = jnp.where(allows_line(steps, c), c, 0) if guarded else c
        return noisy_update(steps, [first * (1 + c), -first * c], eta)

    return multistep(name, predict, order=2, past=1, stochastic=bool(eta))


@factory
def dpmpp_2m(guarded: bool = True) -> Solver:
    """DPM-Solver++(2M) (Lu et al. 2022b, Algorithm 2).

        y ← e^{−h} y + (1 − e^{−h}) (D + (h/2h_prev) (D − D_prev))

    y = x/α, h = λ_s − λ_t. By default steps that are too long to extrapolate
    over are of first order. `guarded=False` is Algorithm 2 on any grid.

    Args:
      guarded: Lower the order of a step where extrapolation may fail: where
        the step is longer than π/4 in λ = log α/σ, an output lies more than
        π/2 before its end, or the earlier outputs weigh more than 1.5 times
        the step. False is the published method.

    Returns:
      A solver of order 2 with one denoiser evaluation per step.

    Example:
      >>> solver = dj.solvers.dpmpp_2m()
      >>> dj.sample(key, denoiser, schedule, solver=solver, grid=grid, shape=(2,)).shape
      (2,)
    """
    name = "dpmpp_2m" if guarded else "dpmpp_2m(published)"
    return _second_order_multistep(name, 0.0, guarded)


@factory
@checks.arguments(eta=check_eta)
def dpmpp_2m_sde(eta: Eta = 1.0, guarded: bool = True) -> Solver:
    """DPM-Solver++(2M) SDE (Lu et al. 2022b, appendix, Crowson 2022).

        y ← e^{−a} y + (1 − e^{−a}) (D + (h/2h_prev) (D − D_prev))
            + ρ_s √(1 − e^{−2η²h}) z,    a = (1 + η²) h

    It solves the reverse SDE of noise level η.

    Args:
      eta: η in [0, 1], or a function of the noise level as in `sa_solver`.
        k-diffusion's eta is its square.
      guarded: As in `dpmpp_2m`.

    Returns:
      A solver of weak order 2 with one denoiser evaluation per step.

    Raises:
      ValueError: If eta lies outside [0, 1].

    Example:
      >>> solver = dj.solvers.dpmpp_2m_sde(0.5)
      >>> dj.sample(key, denoiser, schedule, solver=solver, grid=grid, shape=(2,)).shape
      (2,)
    """
    name = f"dpmpp_2m_sde({label(eta)}{published(guarded)})"
    return _second_order_multistep(name, eta, guarded)


def _third_order_multistep(name, order, eta, corrected, guarded):
    """DPM-Solver++(3M) of noise level η, `dpmpp_3m` and `dpmpp_3m_sde`."""

    def moments(a, count):
        exact = decaying_moments(a, count)
        # as published the second difference has half the coefficient of a parabola
        return exact if corrected else [*exact[:2], *(0.5 * m for m in exact[2:])]

    def predict(schedule, steps):
        gains = _interpolated(steps, 3, moments, eta=eta, guarded=guarded)
        return noisy_update(steps, gains, eta)

    return multistep(name, predict, order=order, past=2, stochastic=bool(eta))


@factory
def dpmpp_3m(corrected: bool = True, guarded: bool = True) -> Solver:
    """DPM-Solver++(3M) (Lu et al. 2022b, appendix).

        y ← e^{−h} y + ∫_0^h e^{u−h} P(u) du

    P is the parabola in λ through D and the two outputs before it.

    Args:
      corrected: True for the exact weights of a parabola. As published (and in
        DPM-Solver's, diffusers' and k-diffusion's code) the second difference
        has half its coefficient.
      guarded: As in `dpmpp_2m`.

    Returns:
      A solver of order 3 where corrected and 2 otherwise, with one denoiser
      evaluation per step.

    Example:
      >>> solver = dj.solvers.dpmpp_3m()
      >>> dj.sample(key, denoiser, schedule, solver=solver, grid=grid, shape=(2,)).shape
      (2,)
    """
    name = f"dpmpp_3m({corrected}{published(guarded)})"
    return _third_order_multistep(name, 3 if corrected else 2, 0.0, corrected, guarded)


@factory
@checks.arguments(eta=check_eta)
def dpmpp_3m_sde(
    eta: Eta = 1.0, corrected: bool = True, guarded: bool = True
) -> Solver:
    """DPM-Solver++(3M) SDE (Crowson 2022, k-diffusion).

        y ← e^{−a} y + Σ_j w_j D_j + ρ_s √(1 − e^{−2η²h}) z

    It solves the reverse SDE of noise level η. w_j are those of `dpmpp_3m` for
    a = (1 + η²) h.

    Args:
      eta: As in `dpmpp_2m_sde`.
      corrected: As in `dpmpp_3m`.
      guarded: As in `dpmpp_2m`.

    Returns:
      A solver of weak order 2 with one denoiser evaluation per step.

    Raises:
      ValueError: If eta lies outside [0, 1].

    Example:
      >>> solver = dj.solvers.dpmpp_3m_sde(0.5)
      >>> dj.sample(key, denoiser, schedule, solver=solver, grid=grid, shape=(2,)).shape
      (2,)
    """
    name = f"dpmpp_3m_sde({label(eta)}, {corrected}{published(guarded)})"
    return _third_order_multistep(name, 2, eta, corrected, guarded)


@factory
@checks.arguments(order=(checks.integer, 1, 3), variant=(checks.choice, ("bh1", "bh2")))
def unipc(order: int = 2, variant: str = "bh2", guarded: bool = True) -> Solver:
    """UniPC, an exponential Adams method (Zhao et al. 2023, Algorithms 1 and 2).

        y ← e^{−h} y + ∫_0^h e^{u−h} P(u) du

    The predictor's P passes through the last `order` outputs. Once D is known
    at the end of the step, the corrector repeats the step with P through that
    output too. It is the next step's own output, so there is one evaluation
    per step, and no correction of the last state.

    Args:
      order: How many outputs the predictor uses, 1 to 3.
      variant: "bh1" for B(h) = h, "bh2" for B(h) = 1 − e^{−h}. It matters only
        where one unknown is left and the paper sets it to ½: the predictor of
        order 2 and the corrector of order 1.
      guarded: As in `dpmpp_2m`.

    Returns:
      A solver of order `order` + 1 with one denoiser evaluation per step.

    Raises:
      ValueError: Unless 1 ≤ order ≤ 3, and for another variant.

    Example:
      >>> solver = dj.solvers.unipc(3)
      >>> dj.sample(key, denoiser, schedule, solver=solver, grid=grid, shape=(2,)).shape
      (2,)
    """

    def moments(h, count):
        exact = decaying_moments(h, count)
        if count != 2:
            return exact
        return [exact[0], 0.5 * (h if variant == "bh1" else exact[0])]  # B(h)/2

    def predict(schedule, steps):
        return noisy_update(
            steps, _interpolated(steps, order, moments, guarded=guarded), 0.0
        )

    def correct(schedule, steps):
        return _interpolated(steps, order, moments, guarded=guarded, ahead=True)

    name = f"unipc({order}, {variant}{published(guarded)})"
    return multistep(name, predict, order=order + 1, past=order, correct=correct)


@factory
@checks.arguments(
    predictor_order=(checks.integer, 1, 3),
    corrector_order=(checks.integer, 0, 4),
    eta=check_eta,
)
def sa_solver(
    predictor_order: int = 2,
    corrector_order: int = 2,
    eta: Eta = 1.0,
    guarded: bool = True,
) -> Solver:
    """SA-Solver, a stochastic Adams method (Xue et al. 2023, Algorithm 1).

        y ← e^{−a} y + Σ_j w_j D_j + ρ_s √(1 − e^{−2E}) z,    a = h + E

    It solves the reverse SDE of noise level η. E = ∫ η² dλ over the step, which
    is η² h for a constant.

    The predictor interpolates the last `predictor_order` outputs in λ, the
    corrector `corrector_order` of them with the newest, D at the end of the
    step, among them. Both share the noise of the step (equations 14–17).

    With p = predictor_order and c = corrector_order the order without noise is
    p for c = 0, else min(c, p + 1): the corrector's own, unless the
    predictor's, raised by the factor h of its weight in the corrector, is
    less. With noise it is the least of that and 2, in the weak sense.

    Args:
      predictor_order: p, 1 to 3.
      corrector_order: c, 0 to 4. 0 is the predictor alone.
      eta: η in [0, 1], the paper's constant τ, or a function of the noise level
        such as `eta_between`. 0 is the probability flow. Decay and variance of
        a step are exact for any function. The weights w_j are those of its
        mean η² over the step, as for the paper's piecewise constant τ.
      guarded: As in `dpmpp_2m`.

    Returns:
      A solver with one denoiser evaluation per step.

    Raises:
      ValueError: Unless 1 ≤ predictor_order ≤ 3, 0 ≤ corrector_order ≤ 4 and 0
        ≤ eta ≤ 1.

    Example:
      >>> solver = dj.solvers.sa_solver(eta=0.5)
      >>> dj.sample(key, denoiser, schedule, solver=solver, grid=grid, shape=(2,)).shape
      (2,)
    """
    behind = corrector_order - 1  # outputs of the corrector besides the newest
    settings = {"eta": eta, "guarded": guarded}

    def predict(schedule, steps):
        gains = _interpolated(steps, predictor_order, decaying_moments, **settings)
        return noisy_update(steps, gains, eta)

    def correct(schedule, steps):
        return _interpolated(steps, behind, decaying_moments, **settings, ahead=True)

    order = predictor_order
    if corrector_order:
        order = min(corrector_order, predictor_order + 1)
    orders = f"{predictor_order}, {corrector_order}"
    name = f"sa_solver({orders}, {label(eta)}{published(guarded)})"
    return multistep(
        name,
        predict,
        order=min(order, 2) if eta else order,
        past=max(predictor_order - 1, behind),
        stochastic=bool(eta),
        correct=correct if corrector_order else None,
    )
