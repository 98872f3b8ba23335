"""Training an energy: score matching that needs no normaliser, and contrastive divergence with persistent chains.

A model is a log density up to a constant, −E(x): anything with `log_prob` (as `targets.energy(function)` makes of a
network) or a function x -> (); the score-matching objectives take `langevin.score_only(score)` too. Every objective is
of one example and differentiable in the model's parameters; average it over a batch by `jax.vmap`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from . import checks, langevin, losses, numerics, predictions, schedules, targets
from .langevin.chains import Chains
from .langevin.densities import as_density, as_log_density
from .langevin.kernels import Kernel
from .numerics import float_dtype
from .types import (
    Array,
    ArrayLike,
    Key,
    Scalar,
    as_pytree_callable,
    combine,
    compiled,
    one_program,
    partition,
    pytree,
)


@pytree
class Reconstruction:
    """−½ ‖(x − f(x))/scale‖². See `reconstruction`."""

    function: Any
    scale: Any

    def __call__(self, x: Array) -> Array:
        """The log density up to a constant, shape ()."""
        image = self.function(x)
        if jnp.shape(image) != x.shape:
            raise ValueError(
                f"function must return its example's shape {x.shape}, got {jnp.shape(image)}"
            )
        return -0.5 * jnp.sum(((x - image) / self.scale) ** 2)


def reconstruction(
    function: Callable[[Array], Array], scale: Scalar = 1.0
) -> targets.Energy:
    """The density ∝ exp(−½ ‖(x − f(x))/scale‖²) of a network f from x to x's shape, as a `targets.energy`.

    It is integrable where f is bounded, as a network is whose last layer follows a layer norm, and its tails are those
    of N(0, scale²); where f is 0, as `networks.MLP` is at first, it is that law. At the scale σ of denoising score
    matching f comes near the denoiser. Raises TypeError for what cannot be called, ValueError unless scale > 0, and for
    another shape when it is evaluated. Salimans & Ho 2021, eq. 7.
    """
    checks.callable_("function", function, "function(x) -> array of x's shape")
    return targets.energy(
        Reconstruction(as_pytree_callable(function), checks.positive("scale", scale))
    )


# ------------------------------------------------------------------------------------------------------ score matching


def exact(model: Any, x: ArrayLike) -> Array:
    """tr ∂s/∂x + ½‖s(x)‖² of the model's score s at one example of the data, shape ().

    Its expectation under the data is ½E‖s − ∇log p‖² − ½E‖∇log p‖², by parts, if p s vanishes at infinity. The trace
    costs as many pullbacks as x has entries. Hyvärinen 2005, eq. 4.
    """
    return _exact(as_density("model", model), _example(x))


@one_program
def _exact(density, x):
    score, trace = numerics.divergence(density.score, x)
    return trace + 0.5 * jnp.sum(score**2)


def sliced(key: Key, model: Any, x: ArrayLike, probes: int = 1) -> Array:
    """The mean of εᵀ(∂s/∂x)ε + ½‖s(x)‖² over `probes` random signs ε, shape (): an unbiased estimate of `exact`.

    One pullback a probe in place of one an entry. Raises ValueError for fewer than 1 probe. Song et al. 2019 (sliced
    score matching), eq. 8, the form with reduced variance.
    """
    checks.key("key", key)
    return _sliced(
        key,
        as_density("model", model),
        _example(x),
        checks.integer("probes", probes, 1),
    )


@one_program
def _sliced(key, density, x, probes):
    directions = jax.random.rademacher(key, (probes, *x.shape), x.dtype)
    score, traces = numerics.hutchinson(density.score, x, directions)
    return traces.mean() + 0.5 * jnp.sum(score**2)


def denoising(key: Key, model: Any, x: ArrayLike, sigma: Scalar) -> Array:
    """½‖σ s(x + σε) + ε‖², shape (): ½σ²‖s − ∇log p(x̃ | x)‖² at one draw of ε.

    Its minimum is the score of the data with noise N(0, σ²) added, not the data's own: a bias that vanishes with σ,
    while the objective's variance grows. First derivatives of the score are not needed. It is `losses.denoising_loss`
    of a network that predicts the score at σ, weighted by "simple", times half the number of entries. Raises ValueError
    unless σ > 0. Vincent 2011, eq. 11.
    """
    checks.key("key", key)
    x, sigma = _example(x), checks.positive("sigma", sigma)
    prediction = predictions.denoiser(
        schedules.edm(), _AtAnyTime(as_density("model", model)), "score"
    )
    return _denoising(key, prediction, x, sigma)


@pytree
class _AtAnyTime:
    """(x, t) -> the score of a density."""

    density: Any

    def __call__(self, x, t):
        return self.density.score(x)


@one_program
def _denoising(key, prediction, x, sigma):
    noise = jax.random.normal(key, x.shape, x.dtype)
    return (
        0.5
        * x.size
        * losses.denoising_loss(prediction, x, noise, sigma, weighting="simple")
    )


# ----------------------------------------------------------------------------------------------- contrastive divergence


def contrastive(
    model: Any, x: ArrayLike, x_model: ArrayLike, penalty: Scalar = 0.0
) -> Array:
    """log p̃(x⁻) − log p̃(x) + a (log p̃(x)² + log p̃(x⁻)²), shape (), of an example x and a draw x⁻ of the model.

    For a = penalty = 0 and x⁻ of the model's own law its gradient is in expectation that of −log p(x); its value is not
    that loss and tells nothing of progress. x⁻ is held fixed. The penalty keeps log densities from drifting, which
    their differences do not see. Raises ValueError for a penalty < 0 and examples of differing shape. Hinton 2002;
    Du & Mordatch 2019, section 3.4.
    """
    penalty = checks.non_negative("penalty", penalty)
    density, x, x_model = as_log_density("model", model), _example(x), _example(x_model)
    if x.shape != x_model.shape:
        raise ValueError(
            f"x_model must have the example's shape {x.shape}, got {x_model.shape}"
        )
    return _contrastive(density, x, x_model, penalty)


@one_program
def _contrastive(density, x, x_model, penalty):
    positive, negative = (
        density.log_prob(x),
        density.log_prob(jax.lax.stop_gradient(x_model)),
    )
    return negative - positive + penalty * (positive**2 + negative**2)


class PersistentChains(NamedTuple):
    """Chains that go on from one update of the model to the next. xs: (N, *shape). updates: (), how many were made."""

    xs: Array
    updates: Array


def persistent_chains(xs: ArrayLike) -> PersistentChains:
    """Persistent chains that start at xs, (N, *shape): draws of a broad law, or data; ValueError unless finite."""
    xs = checks.real_array("xs", xs)
    checks.finite("xs", xs)
    if xs.ndim == 0 or xs.shape[0] == 0:
        raise ValueError(
            f"xs must have shape (N, ...) with N at least 1, got {xs.shape}"
        )
    return PersistentChains(xs.astype(float_dtype(xs)), jnp.zeros((), jnp.int32))


def advance(
    key: Key,
    chains: PersistentChains,
    kernel: Kernel,
    steps: int = 10,
    *,
    restarts: Any = None,
    share: Scalar = 0.05,
) -> tuple[PersistentChains, Chains]:
    """The chains after `steps` steps of a kernel of the present model, and what `langevin.run_many` says of the run.

    A pure function, to be called between updates of the model, with the kernel's state made anew: the density at a
    place changes with the model. The same key may serve all updates: their number is folded in. restarts: a law with
    `sample(key)`; each chain then starts there anew with probability `share`, which lets them find modes that they
    cannot cross to; TypeError for what has no `sample`, ValueError for draws that are not of a chain's shape. A
    diverged chain holds NaN, so that the loss is NaN too, and `diverged_at` of the run tells which. Raises ValueError
    for a share outside [0, 1] and as `run_many`. Tieleman 2008; Du & Mordatch 2019, section 3.2.
    """
    checks.key("key", key)
    checks.made_by("chains", chains, PersistentChains, "persistent_chains")
    renewed = None if restarts is None else checks.within("share", share, 0.0, 1.0)
    if restarts is not None and not callable(getattr(restarts, "sample", None)):
        raise TypeError(f"restarts must have sample(key), got {restarts!r}")
    arrays, static = partition(restarts)
    xs, key_run, updates = _restarted(static, arrays, key, chains, renewed)
    result = langevin.run_many(key_run, kernel, xs, steps, thinning=steps)
    return PersistentChains(result.state.x, updates), result


@compiled
def _restarted(static, arrays, key, chains, share):
    """(positions, of which some are drawn anew, the key of the run, updates made after it)."""
    restarts, xs = combine(arrays, static), chains.xs
    key_restart, key_run = jax.random.split(jax.random.fold_in(key, chains.updates))
    if restarts is not None:
        key_where, key_fresh = jax.random.split(key_restart)
        fresh = jax.vmap(restarts.sample)(jax.random.split(key_fresh, len(xs)))
        if fresh.shape != xs.shape:
            raise ValueError(
                f"restarts must draw places of the chains' shape {xs.shape[1:]}, got {fresh.shape[1:]}"
            )
        again = jax.random.bernoulli(key_where, share, (len(xs),)).reshape(
            -1, *[1] * (xs.ndim - 1)
        )
        xs = jnp.where(again, fresh, xs)
    return xs, key_run, chains.updates + 1


def _example(x):
    x = checks.real_array("x", x)
    return x.astype(float_dtype(x))
