"""Methods that interpolate the denoiser's last answers: one evaluation a step at any order.

Each integrates the polynomial through its last answers against the flow's own weight, in the coordinate that it names.
From exact earlier answers the order is the one declared. The first steps have fewer answers to build on: on grids that
start where the flow is not yet nearly linear this caps the order at 2.
"""

import jax.numpy as jnp
import numpy as np

from .. import checks, schedules
from .affine import Row, adams, decaying_moments, growing_moments, multistep
from .base import Solver, factory

# --------------------------------------------------------------------------------------------- noise prediction, in ρ


@factory
def adams_bashforth(order: int = 4) -> Solver:
    """Adams–Bashforth of dy = ε̂ dρ on the grid's own spacing, the polynomial in ρ = σ/α: one evaluation a step.

    k-diffusion's LMS, and DEIS's ρAB. Raises ValueError unless 1 ≤ order ≤ 4. Hairer et al. 1993, section III.5; Zhang
    & Chen 2023, section 4.
    """
    checks.integer("order", order, 1, 4)
    return _in_rho(f"adams_bashforth({order})", order)


def _in_rho(name, order):
    def predict(schedule, span):
        length = span.end.rho - span.start.rho
        gains = adams(_ends(span, "rho"), order, lambda n, steps: [length[steps] / (k + 1) for k in range(n)])
        return _from_noise(span, gains)

    return multistep(name, order, order - 1, predict, "noise")


@factory
def deis(order: int = 3, coordinate: str = "t") -> Solver:
    """DEIS: dy = ε̂ dρ with ε̂ a polynomial in `coordinate` through the last `order` answers; one evaluation a step.

    coordinate: "t", the paper's tAB-DEIS, its weights by 16-point Gauss–Legendre quadrature in log ρ; "rho", ρAB-DEIS,
    which is `adams_bashforth`; "log_rho", diffusers' DEIS, an exponential Adams method. Raises ValueError unless 1 ≤
    order ≤ 3 and for another coordinate. Zhang & Chen 2023, eq. 15 and section 4.
    """
    checks.integer("order", order, 1, 3)
    checks.choice("coordinate", coordinate, ("t", "rho", "log_rho"))
    name = f"deis({order}, {coordinate})"
    if coordinate == "rho":
        return _in_rho(name, order)

    def predict(schedule, span):
        if coordinate == "log_rho":
            h, end = span.log_step, span.end.rho

            def moments(n, steps):
                return [-end[steps] * m for m in growing_moments(h[steps], n)]

            return _from_noise(span, adams(-jnp.log(_ends(span, "rho")), order, moments))
        v, weights = _time_quadrature(schedule, span)  # (N, Q)

        def moments_in_time(n, steps):
            return [jnp.sum(weights[steps] * v[steps] ** k, -1) for k in range(n)]

        return _from_noise(span, adams(_ends(span, "t"), order, moments_in_time))

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
def ipndm(order: int = 4) -> Solver:
    """DDIM's step with ε̂ extrapolated by the Adams–Bashforth weights of even spacing; one evaluation a step.

    (3, −1)/2, (23, −16, 5)/12, (55, −59, 37, −9)/24 whatever the grid: of order `order` only where its steps in ρ are
    even. On a grid whose neighbouring steps tend to equal length, as all of `grids` do, two answers give order 2 and
    more add none, which is declared. Raises ValueError unless 1 ≤ order ≤ 4. Liu et al. 2022 (PNDM), eq. 12; Zhang &
    Chen 2023, section 4 (iPNDM).
    """
    checks.integer("order", order, 1, 4)

    def predict(schedule, span):
        length = span.end.rho - span.start.rho
        even = jnp.arange(length.shape[0] + 1, dtype=length.dtype)
        gains = adams(even, order, lambda n, steps: [1 / (k + 1) for k in range(n)])
        return _from_noise(span, [length * gain for gain in gains])

    return multistep(f"ipndm({order})", min(order, 2), order - 1, predict, "noise")


def _ends(span, field):
    """A level at all N + 1 times."""
    return jnp.concatenate([getattr(span.start, field)[:1], getattr(span.end, field)])


def _from_noise(span, gains):
    """y ← y + Σ gains ε̂."""
    return Row(span.end, span.start.rho / span.end.rho, gains)


# ---------------------------------------------------------------------------- data prediction, in λ = −log ρ, any noise


def _data_row(span, order, moments, eta=0.0):
    """y_s = e^{−a} y + Σ gains D + ρ_s √(1 − e^{−2η²h}) z, a = (1 + η²) h: the reverse SDE of noise level η solved
    exactly for the D that interpolates."""
    h = span.log_step
    gains = adams(-jnp.log(_ends(span, "rho")), order, lambda n, steps: moments((1 + eta**2) * h[steps], n))
    stds = (span.end.rho * jnp.sqrt(-jnp.expm1(-2 * eta**2 * h)),) if eta else ()
    return Row(span.end, jnp.exp(-(eta**2) * h), gains, stds)


def _dpmpp(name, order, depth, moments, eta=0.0):
    checks.within("eta", eta, 0, 1)
    return multistep(
        name, order, depth - 1, lambda schedule, span: _data_row(span, depth, moments, eta), stochastic=eta > 0
    )


def _halved(a, count):
    """DPM-Solver++(2M)'s moments: the linear term has half the constant's weight."""
    first = decaying_moments(a, 1)
    return first + [0.5 * first[0]] * (count - 1)


def _published(a, count):
    """DPM-Solver++(3M)'s moments as published: the quadratic term has half its due."""
    moments = decaying_moments(a, count)
    return moments[:2] + [0.5 * m for m in moments[2:]]


@factory
def dpmpp_2m() -> Solver:
    """DPM-Solver++(2M): y ← e^{−h} y + (1 − e^{−h}) (D + (h/2h_prev)(D − D_prev)): order 2, one evaluation a step.

    Lu et al. 2022b, Algorithm 2.
    """
    return _dpmpp("dpmpp_2m", 2, 2, _halved)


@factory
def dpmpp_3m(corrected: bool = True) -> Solver:
    """DPM-Solver++(3M): data prediction through the last three answers; one evaluation a step.

    y ← e^{−h} y + ∫_0^h e^{u−h} P(u) du, P the parabola in λ through D and the two answers before it.
    corrected: with the exact weights of a quadratic, order 3. As published (and in DPM-Solver's, diffusers' and
    k-diffusion's code) the second difference has half its coefficient, which is order 2. Lu et al. 2022b, appendix.
    """
    return _dpmpp(f"dpmpp_3m({corrected})", 3 if corrected else 2, 3, decaying_moments if corrected else _published)


@factory
def dpmpp_2m_sde(eta: float = 1.0) -> Solver:
    """DPM-Solver++(2M) for the reverse SDE of noise level η: weak order 2, one evaluation a step.

    y ← e^{−a} y + (1 − e^{−a}) (D + (h/2h_prev)(D − D_prev)) + ρ_s √(1 − e^{−2η²h}) z, a = (1 + η²) h. k-diffusion's
    eta is this η². Raises ValueError unless 0 ≤ eta ≤ 1. Lu et al. 2022b, appendix; Crowson 2022.
    """
    return _dpmpp(f"dpmpp_2m_sde({eta:g})", 2, 2, _halved, eta)


@factory
def dpmpp_3m_sde(eta: float = 1.0, corrected: bool = True) -> Solver:
    """DPM-Solver++(3M) for the reverse SDE of noise level η: weak order 2, one evaluation a step.

    y ← e^{−a} y + Σ_j w_j D_j + ρ_s √(1 − e^{−2η²h}) z, the w_j of `dpmpp_3m` for a = (1 + η²) h in place of h. eta as
    in `dpmpp_2m_sde`, corrected as in `dpmpp_3m`. Raises ValueError unless 0 ≤ eta ≤ 1. Crowson 2022
    (k-diffusion).
    """
    name = f"dpmpp_3m_sde({eta:g}, {corrected})"
    return _dpmpp(name, 2, 3, decaying_moments if corrected else _published, eta)


@factory
def unipc(order: int = 2, variant: str = "bh2") -> Solver:
    """UniPC: an exponential Adams predictor of `order` answers and a corrector that adds the next; order + 1.

    y ← e^{−h} y + ∫_0^h e^{u−h} P(u) du with P through the last `order` answers; then, once D is known there, the same
    with P through that one too. The answer is the next step's own: one evaluation a step, and no correction of the last
    state. variant: "bh1" B(h) = h, "bh2" B(h) = 1 − e^{−h}, which matters only where one unknown is left and the
    paper sets it to ½: the predictor of order 2 and the corrector of order 1. Raises ValueError unless 1 ≤ order ≤ 3.
    Zhao et al. 2023, Algorithms 1, 2 and eq. 9, data prediction.
    """
    checks.integer("order", order, 1, 3)
    checks.choice("variant", variant, ("bh1", "bh2"))

    def moments(a, count):
        exact = decaying_moments(a, count)
        return exact if count != 2 else [exact[0], 0.5 * (a if variant == "bh1" else exact[0])]

    return _predictor_corrector(f"unipc({order}, {variant})", order + 1, order, order, moments, 0.0)


@factory
def sa_solver(predictor_order: int = 2, corrector_order: int = 2, eta: float = 1.0) -> Solver:
    """SA-Solver: stochastic Adams predictor and corrector of the reverse SDE of noise level η; one evaluation a step.

    The predictor interpolates the last predictor_order answers in λ, the corrector corrector_order with the newest
    among them; both share a step's noise: y ← e^{−a} y + Σ_j w_j D_j + ρ_s √(1 − e^{−2η²h}) z, a = (1 + η²) h.
    corrector_order = 0: predictor alone. eta: the paper's constant τ; 0 is the probability flow, and the order the
    greater of the two; with noise weak order 2 at most. Raises ValueError unless 1 ≤ predictor_order ≤ 3, 0 ≤
    corrector_order ≤ 4, 0 ≤ eta ≤ 1. Xue et al. 2023, Algorithm 1 and eq. 14–17.
    """
    checks.integer("predictor_order", predictor_order, 1, 3)
    checks.integer("corrector_order", corrector_order, 0, 4)
    checks.within("eta", eta, 0, 1)
    name = f"sa_solver({predictor_order}, {corrector_order}, {eta:g})"
    order = max(predictor_order, corrector_order)
    order = min(order, 2) if eta else order
    return _predictor_corrector(name, order, predictor_order, corrector_order - 1, decaying_moments, eta)


def _predictor_corrector(name, order, answers, behind, moments, eta):
    """A predictor from the last `answers`, a corrector from the next one and `behind` before it (none where < 0)."""

    def predict(schedule, span):
        return _data_row(span, answers, moments, eta)

    def correct(schedule, span):
        h = (1 + eta**2) * span.log_step
        return adams(-jnp.log(_ends(span, "rho")), behind, lambda n, steps: moments(h[steps], n), ahead=True)

    return multistep(
        name, order, max(answers - 1, behind), predict, stochastic=eta > 0, correct=correct if behind >= 0 else None
    )
