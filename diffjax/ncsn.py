"""Noise-conditional score networks: ladders of noise levels, their forward chain, and the objective.

The ladder is a schedule, `schedules.from_sigmas`, whose index grows with the noise as time does everywhere here: Song &
Ermon's σ_1 > … > σ_L is read backwards. A network becomes a denoiser by `predictions.denoiser`, and
`solvers.annealed_langevin` samples it on `grids.from_indices(ladder, range(L, 0, -1))`. A chain of DDPM's is the ladder
`rescaled(chain)` seen in x/α.
"""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from . import checks, schedules, types
from .ddpm.gaussian import Gaussian
from .ddpm.kernels import check_chain, check_index, index_or_draw, state_at
from .ddpm.objectives import weighted_error
from .numerics import float_dtype
from .schedules import DiscreteChain, Indexed, NoiseLadder
from .schedules.arguments import sigmas_in_order
from .solvers.driver import Checked, check_example
from .types import (
    Array,
    ArrayLike,
    Denoiser,
    Key,
    as_pytree_callable,
    combine,
    partition,
)


def geometric_sigmas(levels: int, sigma_min: float, sigma_max: float) -> np.ndarray:
    """σ_i = σ_min (σ_max/σ_min)^{(i − 1)/(L − 1)}, increasing, (L,) in float64, for `schedules.from_sigmas`.

    sigma_min, sigma_max: data units; σ_max about the largest distance between data points (Song & Ermon 2020, technique
    1). Raises ValueError for fewer than 2 levels and unless 0 < sigma_min < sigma_max. Song & Ermon 2019, section 4.1.
    """
    levels = checks.integer("levels", levels, minimum=2)
    return np.geomspace(*sigmas_in_order(sigma_min, sigma_max), levels)


def overlapping_sigmas(
    dimension: int, sigma_min: float, sigma_max: float, overlap: float = 0.5
) -> np.ndarray:
    """The shortest geometric ladder whose neighbouring shells of noise overlap by at least `overlap`; (L,) in float64.

    ‖σ ε‖ is nearly N(√D σ, σ²/2) in D = dimension entries. Of the lesser of two levels at ratio γ, the mass within
    three standard deviations of the greater one's shell is Φ(√(2D)(γ − 1) + 3γ) − Φ(√(2D)(γ − 1) − 3γ): γ is solved for
    that = overlap. Raises ValueError for dimension < 5, where the second argument never grows and any γ would do, for
    an overlap outside [1e-6, 0.99], and for levels as in `geometric_sigmas`. Song & Ermon 2020, technique 2.
    """
    width = math.sqrt(2 * checks.integer("dimension", dimension, minimum=5))
    overlap = checks.within("overlap", overlap, 1e-6, 0.99)
    sigma_min, sigma_max = sigmas_in_order(sigma_min, sigma_max)

    def shared(ratio):
        middle = width * (ratio - 1)
        return 0.5 * (
            math.erf((middle + 3 * ratio) / math.sqrt(2))
            - math.erf((middle - 3 * ratio) / math.sqrt(2))
        )

    low, high = 1.0, (width + 10) / (width - 3)  # at `high` the second argument is 10
    for _ in range(64):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if shared(middle) > overlap else (low, middle)
    return geometric_sigmas(
        max(2, 1 + math.ceil(math.log(sigma_max / sigma_min) / math.log(low))),
        sigma_min,
        sigma_max,
    )


def rescaled(chain: DiscreteChain) -> NoiseLadder:
    """The ladder σ_i/α_i = √((1 − ᾱ_i)/ᾱ_i) of a DDPM chain: the law of x_i/√ᾱ_i, index by index.

    A denoiser of the chain is D(α y, t) on it, and its score α times the chain's. Raises TypeError for no chain.
    """
    xp = jnp if checks.is_traced(check_chain(chain)) else np
    if chain.zero_terminal:
        raise ValueError(
            "chain must hold signal at its last index to be seen in x/α, but β_T = 1"
        )
    return schedules.from_sigmas(xp.exp(-0.5 * xp.asarray(chain.log_snrs)))


def forward_step(ladder: NoiseLadder, x: ArrayLike, index: Any) -> Gaussian:
    """q(x_i | x_{i−1} = x) = N(x, σ_i² − σ_{i−1}²), σ_0 = 0. x: one example. index: i in 1 … L.

    Raises TypeError for another schedule, ValueError for an index out of range. Song et al. 2021, eq. 8.
    """
    if not isinstance(ladder, NoiseLadder):
        raise TypeError(f"ladder must be made by schedules.from_sigmas, got {ladder!r}")
    return Gaussian(
        checks.real_array("x", x),
        jnp.asarray(ladder.increments)[check_index(index, ladder) - 1],
    )


def score_loss(
    key: Key,
    denoiser: Denoiser,
    ladder: Indexed,
    x: ArrayLike,
    index: Any = None,
    weight: Callable[[Array], Array] | None = None,
) -> Array:
    """½ λ(σ_i) ‖s(x_i, σ_i) − ∇log q(x_i | x)‖² of one example at one index, shape (): denoising score matching.

    s = (αD − x_i)/σ² is the denoiser's score and ∇log q = −ε/σ, so that with λ(σ) = σ² this is ½‖ε̂ − ε‖²,
    `ddpm.simple_loss` times half the number of entries, at the same draw of the key. Its mean over indices drawn
    uniformly is the paper's objective. ladder: made by `schedules.from_sigmas`, or a chain by `from_betas`. index:
    1 … L; default one drawn uniformly. weight: λ, a function of σ of shape (); default σ². Raises TypeError for a
    schedule without indices, ValueError for an index out of range. Vincent 2011; Song & Ermon 2019, eq. 5–6.
    """
    checks.key("key", key)
    checks.callable_("denoiser", denoiser, "denoiser(x, t)")
    if not isinstance(ladder, Indexed):
        raise TypeError(
            f"ladder must be made by schedules.from_sigmas or from_betas, got {ladder!r}"
        )
    if weight is not None:
        checks.callable_("weight", weight, "weight(sigma)")
    x, index = (
        check_example("x", x),
        None if index is None else check_index(index, ladder),
    )
    weight = None if weight is None else as_pytree_callable(weight)
    arrays, static = partition((Checked(as_pytree_callable(denoiser)), ladder, weight))
    return _score_loss(static, arrays, key, x, index)


@types.compiled(static_argnums=0)
def _score_loss(static, arrays, key, x, index):
    denoiser, ladder, weight = combine(arrays, static)
    index = index_or_draw(key, index, ladder)
    t = jnp.asarray(ladder.times)[index - 1]
    data = denoiser(state_at(key, ladder, x, index, t), t)
    sigma = ladder.sigma(t)
    share = 1.0 if weight is None else weight(sigma) / sigma**2
    return 0.5 * share * weighted_error("simple", ladder, t, x - data)


def bound_weights(chain: DiscreteChain) -> Array:
    """(1 − α_t)²/(2β̃_t α_t), α_t = 1 − β_t: the weight of ‖s − ∇log q(x_t | x_0)‖² in DDPM's bound, (T,).

    Times the score's squared error it is `ddpm.bound_loss` with the variance β̃ at the indices 2 … T. At 1, where β̃ = 0,
    it is infinite: the bound has the decoder's term in its place, and a weighted sum starts at 2. It is infinite at T
    too where β_T = 1: the score holds nothing of x_0 there. Raises TypeError for no chain. Ho et al. 2020, eq. 8 and
    12.
    """
    xp = jnp if checks.is_traced(check_chain(chain)) else np
    betas, variance = xp.asarray(chain.betas), xp.asarray(chain.posterior().variance)
    first = np.arange(betas.shape[0]) == 0
    with np.errstate(divide="ignore"):
        weights = betas**2 / (2 * xp.where(first, 1, variance) * (1 - betas))
    return jnp.asarray(
        xp.where(first, xp.inf, weights), None if xp is jnp else float_dtype()
    )
