"""Exponential integrators of one step: the linear part of the flow is solved exactly, the denoiser's answer is not.

In h = log ρ_t/ρ_s, with y = x/α and ρ = σ/α, the probability flow is y′ = −(y − D): data prediction; and (y/ρ)′ = y/ρ −
ε̂: noise prediction.
"""

import jax.numpy as jnp

from .. import checks
from ..numerics import phi
from .affine import Update, absent, noise_level_of_ratio, one_step
from .ancestral import ddim, split
from .base import Solver, factory


def _runge_kutta(name, order, nodes, weights, kind):
    """An exponential Runge–Kutta method in h: N_i = D or −ε̂ at c_i h, y_i = e^{z c_i} y + h Σ_j a_ij(z) N_j, z = ∓h.

    weights(p, nodes) gives the rows a_1, …, a_s, b of entries that p(k, c) = φ_k(c z) makes. Hochbruck & Ostermann
    2010, eq. 2.21. The nodes that it gets are those of the times to which the stages were rounded.
    """

    def tableau(schedule, steps):
        start, end, h = steps.start, steps.end, steps.log_step
        at = [
            start,
            *(
                end
                if c == 1
                else noise_level_of_ratio(schedule, start.rho * jnp.exp(-c * h))
                for c in nodes[1:]
            ),
            end,
        ]
        z = -h if kind == "data" else h
        actual = [
            c if c in (0, 1) else jnp.log(start.rho / there.rho) / h
            for c, there in zip(nodes, at, strict=False)
        ]

        def p(k, c=1.0):
            return phi(k, c * z)

        def row(there, entries):
            share = h if kind == "data" else -there.rho * h
            return Update(
                there, 1.0, [0 if absent(entry) else share * entry for entry in entries]
            )

        rows = weights(p, actual)
        return [
            Update(start, 1.0),
            *(row(there, entries) for there, entries in zip(at[1:], rows, strict=True)),
        ]

    return one_step(name, tableau, order=order, stages=len(nodes), kind=kind)


def _second_order(p, nodes):
    c = nodes[1]
    return [[c * p(1, c)], [(1 - 0.5 / c) * p(1), 0.5 / c * p(1)]]


def _third_order(p, nodes):
    _, c, d = nodes
    return [
        [c * p(1, c)],
        [d * (p(1, d) - d / c * p(2, d)), d**2 / c * p(2, d)],
        [p(1) - p(2) / d, 0, p(2) / d],
    ]


@factory
def dpm_solver(order: int = 2) -> Solver:
    """DPM-Solver-1, -2 or -3, singlestep: noise prediction, `order` evaluations a step, one on a step to 0.

    Order 1 is DDIM; order 2 is the exponential midpoint rule, y ← y + (ρ_s − ρ_t) ε̂(y_½)
    with y_½ DDIM's at h/2; order 3 asks at h/3 and 2h/3 and takes the line through the first and the last answer, y ← y
    + (ρ_s − ρ_t) ε̂_0 − (3/2) ρ_s h φ_2(h) (ε̂_⅔ − ε̂_0). Raises ValueError unless order is 1, 2 or 3. Lu et al. 2022,
    Algorithms 1 and 2.
    """
    checks.integer("order", order, 1, 3)
    if order == 1:
        return ddim()._replace(name="dpm_solver(1)")
    nodes, weights = (
        ((0.0, 0.5), _second_order)
        if order == 2
        else ((0.0, 1 / 3, 2 / 3), _third_order)
    )
    return _runge_kutta(f"dpm_solver({order})", order, nodes, weights, "noise")


@factory
def exponential_runge_kutta(order: int = 4) -> Solver:
    """Data prediction in the log-SNR: order 3 with three evaluations a step, order 4 with four; one on a step to 0.

    y_i = e^{−c_i h} y + h Σ_j a_ij(−h) D(y_j), the weights a_ij combinations of φ_k(−c_i h). Order 3 is Hochbruck &
    Ostermann 2005, eq. 5.8 with c_2 = 1/2, c_3 = 2/3; order 4 Krogstad 2005, eq. 51. Raises ValueError unless order is
    3 or 4.
    """
    checks.integer("order", order, 3, 4)
    nodes, weights = (
        ((0.0, 0.5, 2 / 3), _third_order)
        if order == 3
        else ((0.0, 0.5, 0.5, 1.0), _krogstad)
    )
    return _runge_kutta(
        f"exponential_runge_kutta({order})", order, nodes, weights, "data"
    )


def _krogstad(p, nodes):
    c = nodes[1]
    return [
        [c * p(1, c)],
        [c * p(1, c) - p(2, c), p(2, c)],
        [p(1) - 2 * p(2), 0, 2 * p(2)],
        [
            p(1) - 3 * p(2) + 4 * p(3),
            2 * p(2) - 4 * p(3),
            2 * p(2) - 4 * p(3),
            4 * p(3) - p(2),
        ],
    ]


@factory
def dpmpp_2s(eta: float = 0.0) -> Solver:
    """DPM-Solver++(2S): data prediction, the second evaluation half-way in log-SNR; two a step, one on a step to 0.

    y ← (ρ_↓/ρ) y + (1 − ρ_↓/ρ) D(y_½), y_½ likewise with D(y) at √(ρ ρ_↓), then noise ρ_↑ z. eta = 0 is deterministic
    and of order 2; for eta > 0 the step is split as `euler_ancestral` splits it, weak order 2. Raises ValueError unless
    0 ≤ eta ≤ 1. Lu et al. 2022b, Algorithm 1 with r = 1/2.
    """
    checks.within("eta", eta, 0, 1)

    def tableau(schedule, steps):
        start = steps.start
        down, up = split(steps, eta)
        share = jnp.sqrt(down / start.rho)  # e^{−h/2} to the middle
        middle = noise_level_of_ratio(schedule, start.rho * share)
        return [
            Update(start, 1.0),
            Update(middle, 1.0, [1 - middle.rho / start.rho]),
            Update(
                steps.end,
                down / steps.end.rho,
                [0, -jnp.expm1(2 * jnp.log(share))],
                [up if eta else 0],
            ),
        ]

    return one_step(
        f"dpmpp_2s({eta:g})", tableau, order=2, stages=2, stochastic=eta > 0
    )


@factory
def dpmpp_sde(eta: float = 1.0) -> Solver:
    """DPM-Solver++ (SDE): a stochastic two-evaluation step with the middle at half the log-SNR, weak order 2.

    Both the step to the middle and the whole step are split as `euler_ancestral` splits them, with D(y) in the first
    and D(y_½) in the second; their noises are one path's, B(1/ρ²), as the reverse SDE's are. One evaluation on a step
    to 0. Raises ValueError unless 0 ≤ eta ≤ 1. Lu et al. 2022b; as made a sampler of two stages in k-diffusion
    (Crowson 2022), r = 1/2.
    """
    checks.within("eta", eta, 0, 1)

    def tableau(schedule, steps):
        start, end = steps.start, steps.end
        middle = noise_level_of_ratio(schedule, jnp.sqrt(start.rho * end.rho))
        to_middle, to_end = split(steps._replace(end=middle), eta), split(steps, eta)
        return [
            Update(start, 1.0),
            Update(middle, to_middle[0] / middle.rho, [1 - to_middle[0] / start.rho],
                [to_middle[1] * c if eta else 0 for c in _partial_noise(start.rho, middle.rho, end.rho)]),
            Update(end, to_end[0] / end.rho, [0, 1 - to_end[0] / start.rho], [to_end[1] if eta else 0]),
        ]  # fmt: skip

    return one_step(
        f"dpmpp_sde({eta:g})", tableau, order=2, stages=2, stochastic=eta > 0
    )


def _partial_noise(rho, middle, end):
    """c with Σ c_k z_k the normalised increment of B over the first part θ of a step whose whole increment is z_0.

    θ in the clock 1/ρ². The bridge between is √3 √(θ(1−θ)) z_1, as far as ∫ B tells, and a draw of its own.
    """
    theta = jnp.expm1(2 * jnp.log(rho / middle)) / jnp.expm1(2 * jnp.log(rho / end))
    spread = theta * (1 - theta)
    bridge = jnp.sqrt(1 - theta)
    return (
        jnp.sqrt(theta),
        bridge * jnp.sqrt(3 * spread),
        bridge * jnp.sqrt(1 - 3 * spread),
    )
