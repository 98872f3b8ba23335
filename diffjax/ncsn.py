"""Noise-conditional score networks: ladders of noise levels and their objective.

A ladder is a schedule made by `schedules.from_sigmas`. Its index grows with
the noise, as time does everywhere here: Song & Ermon's σ_1 > … > σ_L is read
backwards. A network becomes a denoiser by `predictions.denoiser`.
`solvers.annealed_langevin` samples it on `grids.from_indices(ladder, range(L,
0, -1))`.

A DDPM chain is the ladder `rescaled(chain)` seen in x/α.
"""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from . import checks, schedules, types
from .ddpm.objectives import weighted_error
from .ddpm.transitions import CHAIN, index_or_draw, state_at
from .distributions.normal import Gaussian
from .numerics import array_module, float_dtype
from .schedules import DiscreteChain, Indexed, NoiseLadder
from .schedules.arguments import sigmas_in_order
from .solvers.requirements import Checked, check_example
from .types import (
    Array,
    ArrayLike,
    Denoiser,
    Key,
    as_pytree_callable,
    combine,
    partition,
)

__all__ = [
    "bound_weights",
    "forward_step",
    "geometric_sigmas",
    "overlapping_sigmas",
    "rescaled",
    "score_loss",
]


def __dir__() -> list[str]:
    return __all__


@checks.arguments(count=(checks.integer, 2))
def geometric_sigmas(count: int, sigma_min: float, sigma_max: float) -> np.ndarray:
    """Geometric ladder of noise levels (Song & Ermon 2019, section 4.1).

        σ_i = σ_min (σ_max/σ_min)^{(i − 1)/(L − 1)},    i = 1 … L

    Args:
      count: L, the number of noise levels.
      sigma_min: σ_1, in data units.
      sigma_max: σ_L, in data units. About the largest distance between data
        points (Song & Ermon 2020, technique 1).

    Returns:
      The noise levels, increasing, (L,) in float64, for
      `schedules.from_sigmas`.

    Raises:
      ValueError: If count is below 2, or not 0 < sigma_min < sigma_max.

    Example:
      >>> dj.ncsn.geometric_sigmas(3, 0.1, 10.0).round(6).tolist()
      [0.1, 1.0, 10.0]
    """
    # in float64, so that neighbours have one ratio to rounding
    return np.geomspace(*sigmas_in_order(sigma_min, sigma_max), count)


@checks.arguments(dimension=(checks.integer, 5), overlap=(checks.within, 1e-6, 0.99))
def overlapping_sigmas(
    dimension: int, sigma_min: float, sigma_max: float, overlap: float = 0.5
) -> np.ndarray:
    """Shortest geometric ladder with overlapping shells (Song & Ermon 2020).

    This is technique 2 of the paper. In D dimensions ‖σ ε‖ is nearly N(√D σ,
    σ²/2): the noise lies in a shell. For two neighbouring noise levels of
    ratio γ, the overlap is the mass of the lesser one within three standard
    deviations of the greater one's shell:

        Φ(√(2D)(γ − 1) + 3γ) − Φ(√(2D)(γ − 1) − 3γ)

    γ is solved for.

    Args:
      dimension: D, entries of one example, 5 or more. Below 5 the second
        argument of Φ never grows and any γ would do.
      sigma_min: Least noise level, in data units.
      sigma_max: Greatest noise level, in data units.
      overlap: Least overlap, in [1e-6, 0.99].

    Returns:
      The noise levels, increasing, (L,) in float64, for
      `schedules.from_sigmas`.

    Raises:
      ValueError: If an argument is out of range.

    Example:
      >>> len(dj.ncsn.overlapping_sigmas(3072, 0.01, 50.0, 0.566))
      232
    """
    width = math.sqrt(2 * dimension)
    sigma_min, sigma_max = map(float, sigmas_in_order(sigma_min, sigma_max))

    def shared(ratio):
        middle = width * (ratio - 1)
        upper = math.erf((middle + 3 * ratio) / math.sqrt(2))
        lower = math.erf((middle - 3 * ratio) / math.sqrt(2))
        return 0.5 * (upper - lower)

    # Bisection, since the overlap falls as the ratio grows. At `high` the second
    # argument of Φ is 10.
    low, high = 1.0, (width + 10) / (width - 3)
    for _ in range(64):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if shared(middle) > overlap else (low, middle)
    gaps = math.ceil(math.log(sigma_max / sigma_min) / math.log(low))
    return geometric_sigmas(max(2, 1 + gaps), sigma_min, sigma_max)


@checks.arguments(chain=CHAIN)
def rescaled(chain: DiscreteChain) -> NoiseLadder:
    """Ladder of a DDPM chain seen in x/α, index by index.

        σ_i/α_i = √((1 − ᾱ_i)/ᾱ_i)

    It has the distribution of x_i/√ᾱ_i. A denoiser D of the chain becomes (y,
    t) -> D(α y, t) on the ladder, and its score is α times the chain's.

    Raises:
      TypeError: If chain was not made by `schedules.from_betas`.
      ValueError: If β_T = 1, so that no signal is left at the last index.
    """
    xp = array_module(chain)
    message = "chain must hold signal at its last index to be seen in x/α, but β_T = 1"
    checks.require(not chain.zero_terminal, message)
    return schedules.from_sigmas(xp.exp(-0.5 * xp.asarray(chain.log_snrs)))


def forward_step(ladder: NoiseLadder, x: ArrayLike, index: Any) -> Gaussian:
    """One step of the forward chain (Song et al. 2021, eq. 8).

        q(x_i | x_{i−1} = x) = N(x, σ_i² − σ_{i−1}²),    σ_0 = 0

    Args:
      ladder: Made by `schedules.from_sigmas`.
      x: x_{i−1}, one example.
      index: i in 1 … L.

    Returns:
      The distribution of x_i.

    Raises:
      TypeError: If ladder is another schedule.
      ValueError: If index is out of range.

    Example:
      >>> ladder = dj.schedules.from_sigmas([1.0, 2.0])
      >>> dj.ncsn.forward_step(ladder, jnp.zeros(2), 2).variance().tolist()
      [3.0, 3.0]
    """
    checks.made_by("ladder", ladder, NoiseLadder, "schedules.from_sigmas")
    index = checks.index("index", index, ladder.steps)
    variance = jnp.asarray(ladder.increments)[index - 1]
    return Gaussian(checks.real_array("x", x), variance)


@checks.arguments(
    key=checks.key,
    denoiser=checks.denoiser,
    ladder=(checks.made_by, Indexed, "schedules.from_sigmas or from_betas"),
    x=check_example,
    weight=checks.optional(checks.callable_, "weight(sigma)"),
)
def score_loss(
    key: Key,
    denoiser: Denoiser,
    ladder: Indexed,
    x: ArrayLike,
    *,
    index: Any = None,
    weight: Callable[[Array], Array] | None = None,
) -> Array:
    """Denoising score matching at one noise level (Song & Ermon 2019, eq. 5–6).

        ½ λ(σ_i) ‖s(x_i, σ_i) − ∇log q(x_i | x)‖²

    s = (αD − x_i)/σ² is the denoiser's score and ∇log q = −ε/σ (Vincent 2011).
    With λ(σ) = σ² the loss is ½‖ε̂ − ε‖², which is `ddpm.simple_loss` times
    half the number of entries, at the same draw of the key. Its mean over
    indices drawn uniformly is the paper's objective.

    Args:
      key: A typed key.
      denoiser: (x, t) -> E[x_0 | x_t = x].
      ladder: Made by `schedules.from_sigmas`, or a chain by `from_betas`.
      x: One example.
      index: i in 1 … L. Default one drawn uniformly.
      weight: λ, a function of σ of shape (). Default σ².

    Returns:
      The loss, shape ().

    Raises:
      TypeError: If ladder is a schedule without indices.
      ValueError: If index is out of range.

    Example:
      >>> ladder = dj.schedules.from_sigmas(dj.ncsn.geometric_sigmas(4, 0.1, 5.0))
      >>> exact = dj.targets.denoiser(target, ladder)
      >>> dj.ncsn.score_loss(key, exact, ladder, jnp.zeros(2)).shape
      ()
    """
    index = None if index is None else checks.index("index", index, ladder.steps)
    weight = None if weight is None else as_pytree_callable(weight)
    arrays, static = partition((Checked(as_pytree_callable(denoiser)), ladder, weight))
    return _score_loss(static, arrays, key, x, index)


@types.compiled(static_argnums=0)
def _score_loss(static, arrays, key, x, index):
    denoiser, ladder, weight = combine(arrays, static)
    # an index left out is drawn from the same key as `ddpm.simple_loss` draws it from
    index = index_or_draw(key, index, ladder)
    t = jnp.asarray(ladder.times)[index - 1]
    denoised = denoiser(state_at(key, ladder, x, index, time=t), t)
    sigma = ladder.sigma(t)
    # the error of the noise has the weight σ² already
    share = 1.0 if weight is None else weight(sigma) / sigma**2
    return 0.5 * share * weighted_error("simple", ladder, t, x - denoised)


@checks.arguments(chain=CHAIN)
def bound_weights(chain: DiscreteChain) -> Array:
    """Weights of the score's squared errors in DDPM's bound (Ho et al. 2020).

        w_t = (1 − α_t)²/(2β̃_t α_t),    α_t = 1 − β_t

    Equations 8 and 12. w_t ‖s − ∇log q(x_t | x_0)‖² is `ddpm.bound_loss` with
    the variance β̃ at the indices 2 … T. At index 1, where β̃ = 0, it is
    infinite: the bound has the decoder's term in its place, and a weighted sum
    starts at 2. It is infinite at T too where β_T = 1, since the score holds
    nothing of x_0 there.

    Returns:
      w, (T,).

    Raises:
      TypeError: If chain was not made by `schedules.from_betas`.
    """
    # in float64 on the host where the chain is concrete
    xp = array_module(chain)
    betas, variance = xp.asarray(chain.betas), xp.asarray(chain.posterior().variance)
    first = np.arange(betas.shape[0]) == 0
    with np.errstate(divide="ignore"):
        weights = betas**2 / (2 * xp.where(first, 1, variance) * (1 - betas))
    dtype = None if xp is jnp else float_dtype()
    return jnp.asarray(xp.where(first, xp.inf, weights), dtype)
