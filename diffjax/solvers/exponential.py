"""Exponential integrators of one step: the linear part is solved exactly.

Below y = x/α, ρ = σ/α and h = log ρ_t/ρ_s. Data prediction integrates y′ = −(y
− D), noise prediction (y/ρ)′ = y/ρ − ε̂. With noise of level η the equation of
data prediction decays by a = h + E over a step, E = ∫ η² d log ρ.
"""

import jax.numpy as jnp

from .. import checks
from ..numerics import phi
from .affine import Update, absent, noise_level_of_ratio, one_step
from .ancestral import ddim, split
from .base import Solver, factory
from .eta import Eta, check_eta, integral, label, root

__all__ = ["dpm_solver", "dpmpp_2s", "dpmpp_sde", "exponential_runge_kutta", "seeds"]


def _runge_kutta(name, nodes, weights, *, order, kind, eta=0.0):
    """An exponential Runge–Kutta method (Hochbruck & Ostermann 2010, equation 2.21).

        y_i = e^{z c_i} y + |z| Σ_j a_ij(z) N_j,    z = −a or h

    N_i is D or −ε̂ at c_i h. weights(p, nodes) gives the rows a_1, …, a_s, b
    of entries that p(k, c) = φ_k(c z) makes. Its nodes are those of the times
    to which the stages were rounded, measured in a. With noise, kind "data"
    alone, each stage adds its part of one path.
    """

    def tableau(schedule, steps):
        start, end, h = steps.start, steps.end, steps.log_step

        def level(c):
            if c in (0, 1):
                return end if c else start
            return noise_level_of_ratio(schedule, start.rho * jnp.exp(-c * h))

        at = [level(c) for c in nodes]
        ends = [*at[1:], end]
        added = [integral(eta, start, there) if eta else 0 for there in ends]
        a = h + added[-1]
        z = -a if kind == "data" else h

        def rounded(c, there, more):
            if c in (0, 1):
                return c
            decay = jnp.log(start.rho / there.rho) + more
            # a step of few ulps may round its stages to its start
            inside = (decay > 0) & (a > 0)
            return jnp.where(inside, decay / jnp.where(inside, a, 1), c)

        reached = list(map(rounded, nodes, at, [0, *added]))

        def p(k, c=1.0):
            return phi(k, c * z)

        def update(there, row, more, draws):
            unit = a if kind == "data" else -there.rho * h
            gains = [0 if absent(w) else unit * w for w in row]
            std = there.rho * root(-jnp.expm1(-2 * more)) if eta else 0
            stds = [0 if absent(c) else std * c for c in draws]
            return Update(there, jnp.exp(-more) if eta else 1.0, gains, stds)

        draws = _draws(added) if eta else [()] * len(ends)
        stages = zip(ends, weights(p, reached), added, draws, strict=True)
        return [Update(start, 1.0), *(update(*stage) for stage in stages)]

    stages = len(nodes)
    return one_step(
        name, tableau, order=order, stages=stages, kind=kind, stochastic=bool(eta)
    )


def _draws(added):
    """Rows of coefficients of the draws, each the normalised noise of a stage.

    The noise of y ρ_t/(ρ e^{−E}) is a Brownian motion with the clock e^{2E} − 1.
    The last row is that of the whole step, draw 0.
    """

    def share(part, whole):
        """(e^{2E_i} − 1)/(e^{2E} − 1)."""
        gained = jnp.exp(2 * (part - whole)) * -jnp.expm1(-2 * part)
        return _share(gained, -jnp.expm1(-2 * whole))

    first, *second, whole = added
    theta = share(first, whole)
    if not second:
        return [_partial_noise(theta), [1]]
    # B at two parts of the step, given its end
    later = share(second[0], whole)
    ratio = share(first, second[0])
    left = _share(1 - later, 1 - theta)
    return [
        [root(theta), root(1 - theta)],
        [root(later), root(ratio * left * (1 - later)), root((1 - ratio) * left)],
        [1],
    ]


def _share(part, whole):
    """part/whole in [0, 1], which rounding leaves on a step of few ulps."""
    positive = whole > 0
    return jnp.where(positive, jnp.clip(part / jnp.where(positive, whole, 1), 0, 1), 0)


def _second_order(p, nodes):
    c = nodes[1]
    return [[c * p(1, c)], [(1 - 0.5 / c) * p(1), 0.5 / c * p(1)]]


def _stiff_second_order(p, nodes):
    c = nodes[1]
    return [[c * p(1, c)], [p(1) - p(2) / c, p(2) / c]]


def _third_order(p, nodes):
    _, c, d = nodes
    return [
        [c * p(1, c)],
        [d * (p(1, d) - d / c * p(2, d)), d**2 / c * p(2, d)],
        [p(1) - p(2) / d, 0, p(2) / d],
    ]


def _krogstad(p, nodes):
    c = nodes[1]
    inner = 2 * p(2) - 4 * p(3)
    return [
        [c * p(1, c)],
        [c * p(1, c) - p(2, c), p(2, c)],
        [p(1) - 2 * p(2), 0, 2 * p(2)],
        [p(1) - 3 * p(2) + 4 * p(3), inner, inner, 4 * p(3) - p(2)],
    ]


@factory
@checks.arguments(order=(checks.integer, 1, 3))
def dpm_solver(order: int = 2) -> Solver:
    """DPM-Solver-1, -2 or -3 (Lu et al. 2022, Algorithms 1 and 2).

    Noise prediction. Order 1 is DDIM. Order 2 is the exponential midpoint
    rule, with y_½ by DDIM at h/2. Order 3 evaluates at h/3 and 2h/3 and takes
    the line through the first and the last output:

        order 2    y ← y + (ρ_s − ρ_t) ε̂(y_½)
        order 3    y ← y + (ρ_s − ρ_t) ε̂_0 − (3/2) ρ_s h φ_2(h) (ε̂_⅔ − ε̂_0)

    Args:
      order: 1, 2 or 3.

    Returns:
      A solver of that order with `order` denoiser evaluations per step, one on
      a step to 0.

    Raises:
      ValueError: For another order.

    Example:
      >>> solver = dj.solvers.dpm_solver(2)
      >>> dj.sample(key, denoiser, schedule, solver=solver, grid=grid, shape=(2,)).shape
      (2,)
    """
    if order == 1:
        return ddim()._replace(name="dpm_solver(1)")
    nodes = (0.0, 0.5) if order == 2 else (0.0, 1 / 3, 2 / 3)
    weights = _second_order if order == 2 else _third_order
    name = f"dpm_solver({order})"
    return _runge_kutta(name, nodes, weights, order=order, kind="noise")


@factory
@checks.arguments(order=(checks.integer, 2, 4))
def exponential_runge_kutta(order: int = 4) -> Solver:
    """Exponential Runge–Kutta methods of order 2 to 4 with data prediction.

        y_i = e^{−c_i h} y + h Σ_j a_ij(−h) D(y_j)

    The weights a_ij are combinations of φ_k(−c_i h).

    Args:
      order: 2, 3 or 4.

    Returns:
      A solver of that order with `order` denoiser evaluations per step, one on
      a step to 0.

    Raises:
      ValueError: For another order.

    References:
      Order 2 is Hochbruck & Ostermann 2010, equation 2.39 with c_2 = 1/2, also known
      as RES (Zhang et al. 2023) and `res_2s`. Order 3 is Hochbruck & Ostermann 2005,
      equation 5.8 with c_2 = 1/2, c_3 = 2/3. Order 4 is Krogstad 2005, equation 51.

    Example:
      >>> solver = dj.solvers.exponential_runge_kutta(3)
      >>> dj.sample(key, denoiser, schedule, solver=solver, grid=grid, shape=(2,)).shape
      (2,)
    """
    nodes, weights = {
        2: ((0.0, 0.5), _stiff_second_order),
        3: ((0.0, 0.5, 2 / 3), _third_order),
        4: ((0.0, 0.5, 0.5, 1.0), _krogstad),
    }[order]
    name = f"exponential_runge_kutta({order})"
    return _runge_kutta(name, nodes, weights, order=order, kind="data")


@factory
@checks.arguments(eta=check_eta)
def dpmpp_2s(eta: Eta = 0.0) -> Solver:
    """DPM-Solver++(2S) (Lu et al. 2022b, Algorithm 1 with r = 1/2).

        y_½ ← √(ρ_↓/ρ_t) y + (1 − √(ρ_↓/ρ_t)) D(y)
        y   ← (ρ_↓/ρ_t) y + (1 − ρ_↓/ρ_t) D(y_½) + ρ_↑ z

    Data prediction with the second evaluation half-way in log-SNR, at √(ρ_t
    ρ_↓). For eta > 0 the step is split into ρ_↓ and noise ρ_↑ as
    `euler_ancestral` splits it.

    Args:
      eta: η in [0, 1], or a function of the noise level as in `ddim`. 0 is
        deterministic, ρ_↓ = ρ_s.

    Returns:
      A solver of order 2, weak for eta > 0, with two denoiser evaluations per
      step, one on a step to 0.

    Raises:
      ValueError: If eta lies outside [0, 1].

    Example:
      >>> solver = dj.solvers.dpmpp_2s()
      >>> dj.sample(key, denoiser, schedule, solver=solver, grid=grid, shape=(2,)).shape
      (2,)
    """

    def tableau(schedule, steps):
        start, end = steps.start, steps.end
        down, up = split(steps, eta)
        share = jnp.sqrt(down / start.rho)  # e^{−h/2} to the middle
        middle = noise_level_of_ratio(schedule, start.rho * share)
        to_end = -jnp.expm1(2 * jnp.log(share))  # 1 − ρ_↓/ρ_t
        return [
            Update(start, 1.0),
            Update(middle, 1.0, [1 - middle.rho / start.rho]),
            Update(end, down / end.rho, [0, to_end], [up if eta else 0]),
        ]

    name = f"dpmpp_2s({label(eta)})"
    return one_step(name, tableau, order=2, stages=2, stochastic=bool(eta))


@factory
@checks.arguments(eta=check_eta)
def dpmpp_sde(eta: Eta = 1.0) -> Solver:
    """DPM-Solver++ (SDE) with r = 1/2 (Lu et al. 2022b, Crowson 2022).

        y_½ ← (ρ_↓½/ρ_t) y + (1 − ρ_↓½/ρ_t) D(y) + ρ_↑½ z_½
        y   ← (ρ_↓/ρ_t) y + (1 − ρ_↓/ρ_t) D(y_½) + ρ_↑ z

    The middle lies at half the log-SNR. Both the step to the middle and the
    whole step are split as `euler_ancestral` splits them. Their noises z_½ and
    z are those of one path, B(1/ρ²), as the reverse SDE's are.

    Args:
      eta: η in [0, 1], or a function of the noise level as in `ddim`.

    Returns:
      A solver of weak order 2 with two denoiser evaluations per step, one on a
      step to 0.

    Raises:
      ValueError: If eta lies outside [0, 1].

    References:
      As a sampler of two stages it is k-diffusion's.

    Example:
      >>> solver = dj.solvers.dpmpp_sde(0.5)
      >>> dj.sample(key, denoiser, schedule, solver=solver, grid=grid, shape=(2,)).shape
      (2,)
    """

    def tableau(schedule, steps):
        start, end = steps.start, steps.end
        middle = noise_level_of_ratio(schedule, jnp.sqrt(start.rho * end.rho))
        down_half, up_half = split(steps._replace(end=middle), eta)
        down, up = split(steps, eta)
        clock = lambda there: jnp.expm1(2 * jnp.log(start.rho / there.rho))
        parts = _partial_noise(_share(clock(middle), clock(end)))
        half_noise = [up_half * c if eta else 0 for c in parts]
        half = [1 - down_half / start.rho]
        whole = [0, 1 - down / start.rho]
        return [
            Update(start, 1.0),
            Update(middle, down_half / middle.rho, half, half_noise),
            Update(end, down / end.rho, whole, [up if eta else 0]),
        ]

    name = f"dpmpp_sde({label(eta)})"
    return one_step(name, tableau, order=2, stages=2, stochastic=bool(eta))


def _partial_noise(theta):
    """Coefficients c of the increment of B over the first part θ of a step.

    Σ c_k z_k is that increment, normalised, where the whole one is z_0. θ is
    measured in the clock of B. The bridge between them is √3 √(θ(1−θ)) z_1, as
    far as ∫ B determines it, and an independent draw z_2.
    """
    spread = theta * (1 - theta)
    bridge = root(1 - theta)
    by_area = root(3 * spread)
    return root(theta), bridge * by_area, bridge * jnp.sqrt(1 - 3 * spread)


@factory
@checks.arguments(order=(checks.integer, 2, 3), eta=check_eta)
def seeds(order: int = 2, eta: Eta = 1.0) -> Solver:
    """SEEDS-2 and SEEDS-3 with data prediction (Gonzalez et al. 2023).

        y_i = e^{−a_i} y + a Σ_j w_ij(−a) D(y_j) + ρ_i √(1 − e^{−2E_i}) z_i

    An exponential Runge–Kutta method for the reverse SDE of noise level η. a_i
    = c_i h + E_i is the decay up to stage i and E_i the integral of η² over
    log ρ. The weights are those of DPM-Solver++(2S) at c = 1/2, and of order 3
    at c = 1/3, 2/3. The noises z_i of the stages are those of one path, with
    their exact correlations.

    At η = 1 SEEDS-2 is `dpmpp_sde(1.0)`, to rounding and draw by draw. For
    other η > 0 that method splits the noise of a step as DDIM does. At η = 0
    SEEDS-2 is `dpmpp_2s` and SEEDS-3 an `exponential_runge_kutta` of order 3
    with other nodes.

    Args:
      order: 2 or 3, the number of stages.
      eta: η in [0, 1], or a function of the noise level as in `sa_solver`. The
        paper has 1. The `eta` of ComfyUI's `seeds_2` and `seeds_3` is the
        square of this one.

    Returns:
      A solver with `order` denoiser evaluations per step, one on a step to 0.
      Its order is `order` at η = 0, and weak 2 for noise.

    Raises:
      ValueError: For another order, or if eta lies outside [0, 1].

    Example:
      >>> solver = dj.solvers.seeds(3, 0.5)
      >>> dj.sample(key, denoiser, schedule, solver=solver, grid=grid, shape=(2,)).shape
      (2,)
    """
    nodes = (0.0, 0.5) if order == 2 else (0.0, 1 / 3, 2 / 3)
    weights = _second_order if order == 2 else _third_order
    name = f"seeds({order}, {label(eta)})"
    order = min(order, 2) if eta else order
    return _runge_kutta(name, nodes, weights, order=order, kind="data", eta=eta)
