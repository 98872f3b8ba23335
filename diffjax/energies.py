"""Training of energies: score matching without log Z, and contrastive divergence.

A model is a log density up to a constant, −E(x): anything with `log_prob`,
such as `targets.energy(function)` of a network, or a function x -> (). The
score-matching objectives take `langevin.score_only(score)` too. Each objective
is of one example and differentiable in the model's parameters. Average it over
a batch by `jax.vmap`.
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

__all__ = [
    "PersistentChains",
    "Reconstruction",
    "advance",
    "contrastive",
    "denoising",
    "exact",
    "persistent_chains",
    "reconstruction",
    "sliced",
]


def __dir__() -> list[str]:
    return __all__


def _example(name, x):
    x = checks.real_array(name, x)
    return x.astype(float_dtype(x))


@pytree
class Reconstruction:
    """−½ ‖(x − f(x))/scale‖². See `reconstruction`."""

    function: Any
    scale: Any

    def __call__(self, x: Array) -> Array:
        """The log density up to a constant, ()."""
        image = checks.example_shaped("function", self.function(x), x)
        return -0.5 * jnp.sum(((x - image) / self.scale) ** 2)


@checks.arguments(function=(checks.callable_, "function(x)"), scale=checks.positive)
def reconstruction(
    function: Callable[[Array], Array], scale: Scalar = 1.0
) -> targets.Energy:
    """Density of a network's reconstruction error (Salimans & Ho 2021, equation 7).

        p(x) ∝ exp(−½ ‖(x − f(x))/scale‖²)

    It can be normalised where f is bounded, such as a network whose last layer
    follows a layer norm. Its tails are those of N(0, scale²). Where f is 0, as
    `networks.MLP` is at first, it is that distribution. If scale is the σ of
    denoising score matching, f comes near the denoiser.

    Args:
      function: f, from x to an array of x's shape. Another shape raises
        ValueError when the density is evaluated.
      scale: In units of x.

    Returns:
      The density, a `targets.energy`.

    Raises:
      TypeError: If `function` cannot be called.
      ValueError: If `scale` is not positive.

    Example:
      >>> model = dj.energies.reconstruction(jnp.tanh, scale=0.5)
    """
    return targets.energy(Reconstruction(as_pytree_callable(function), scale))


# ---- score matching

AT_RANDOM = {"key": checks.key, "model": as_density, "x": _example}
"""Rules of the arguments of an objective that is drawn at one example."""


@checks.arguments(model=as_density, x=_example)
def exact(model: Any, x: ArrayLike) -> Array:
    """Score matching objective at one example (Hyvärinen 2005, equation 4).

        tr ∂s/∂x + ½ ‖s(x)‖²,    s = ∇log p̃

    By parts, its expectation under the data is ½ E‖s − ∇log p‖² − ½ E‖∇log
    p‖², if p s vanishes at infinity. The trace costs as many pullbacks as x
    has entries.

    Args:
      model: A log density or a score, see the module.
      x: One example of the data, of any shape.

    Returns:
      The objective, ().

    Raises:
      TypeError: If `model` states no density, or x holds no real numbers.

    Example:
      >>> value = dj.energies.exact(target, jnp.zeros(2))
    """
    return _exact(model, x)


@one_program
def _exact(density, x):
    score, trace = numerics.divergence(density.score, x)
    return trace + 0.5 * jnp.sum(score**2)


@checks.arguments(**AT_RANDOM, probes=(checks.integer, 1))
def sliced(key: Key, model: Any, x: ArrayLike, probes: int = 1) -> Array:
    """Sliced score matching with reduced variance (Song et al. 2019, equation 8).

        mean of εᵀ (∂s/∂x) ε + ½ ‖s(x)‖² over random signs ε

    It is an unbiased estimate of `exact`, with one pullback per probe instead
    of one per entry of x.

    Args:
      key: A typed key.
      model: A log density or a score, see the module.
      x: One example of the data, of any shape.
      probes: Number of random signs ε.

    Returns:
      The estimate, ().

    Raises:
      ValueError: If there are fewer than 1 probes.
      TypeError: If `model` states no density, or x holds no real numbers.

    Example:
      >>> value = dj.energies.sliced(key, target, jnp.zeros(2))
    """
    return _sliced(key, model, x, probes)


@one_program
def _sliced(key, density, x, probes):
    directions = jax.random.rademacher(key, (probes, *x.shape), x.dtype)
    score, traces = numerics.hutchinson(density.score, x, directions)
    return traces.mean() + 0.5 * jnp.sum(score**2)


@checks.arguments(**AT_RANDOM, sigma=checks.positive)
def denoising(key: Key, model: Any, x: ArrayLike, sigma: Scalar) -> Array:
    """Denoising score matching objective at one example (Vincent 2011, equation 11).

        ½ ‖σ s(x + σ ε) + ε‖² = ½ σ² ‖s − ∇log p(x̃ | x)‖²

    Its minimum is the score of the data with noise N(0, σ²) added, not that of
    the data. This bias vanishes with σ, while the objective's variance grows.
    First derivatives of the score are not needed.

    It is `losses.denoising_loss` of a network that predicts the score at σ,
    weighted by "simple", times half the number of entries.

    Args:
      key: A typed key, for the one draw of ε.
      model: A log density or a score, see the module.
      x: One example of the data, of any shape.
      sigma: σ, in units of x.

    Returns:
      The objective, ().

    Raises:
      ValueError: If σ is not positive.
      TypeError: If `model` states no density, or x holds no real numbers.

    Example:
      >>> value = dj.energies.denoising(key, target, jnp.zeros(2), 0.1)
    """
    prediction = predictions.denoiser(schedules.edm(), _AtAnyTime(model), "score")
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
    loss = losses.denoising_loss(prediction, x, noise, sigma, weighting="simple")
    return 0.5 * x.size * loss


# ---- contrastive divergence


@checks.arguments(
    penalty=checks.non_negative, model=as_log_density, x=_example, x_model=_example
)
def contrastive(
    model: Any, x: ArrayLike, x_model: ArrayLike, penalty: Scalar = 0.0
) -> Array:
    """Contrastive divergence of an example x and a draw x⁻ of the model (Hinton 2002).

        log p̃(x⁻) − log p̃(x) + a (log p̃(x)² + log p̃(x⁻)²)

    For a = 0 and x⁻ of the model's distribution, its gradient is in
    expectation that of −log p(x). Its value is not that loss and does not
    measure progress. The penalty keeps log densities from drifting, which
    their differences do not see (Du & Mordatch 2019, section 3.4).

    Args:
      model: A log density, see the module.
      x: One example of the data, of any shape.
      x_model: x⁻, of the same shape. No gradient passes through it.
      penalty: a ≥ 0.

    Returns:
      The objective, ().

    Raises:
      ValueError: If `penalty` is negative or the shapes differ.
      TypeError: If `model` states no log density.

    Example:
      >>> value = dj.energies.contrastive(target, jnp.zeros(2), jnp.ones(2))
    """
    checks.one_of_shapes("x_model", x_model, [jnp.shape(x)])
    return _contrastive(model, x, x_model, penalty)


@one_program
def _contrastive(density, x, x_model, penalty):
    positive = density.log_prob(x)
    negative = density.log_prob(jax.lax.stop_gradient(x_model))
    return negative - positive + penalty * (positive**2 + negative**2)


class PersistentChains(NamedTuple):
    """Chains that go on from one update of the model to the next.

    Attributes:
      xs: Positions, (N, *shape).
      updates: Number of calls of `advance` so far, ().
    """

    xs: Array
    updates: Array


@checks.arguments(xs=checks.finite_batch)
def persistent_chains(xs: ArrayLike) -> PersistentChains:
    """Persistent chains before the first update.

    Args:
      xs: First positions (N, *shape), such as draws of a broad distribution,
        or data.

    Returns:
      The chains, for `advance`.

    Raises:
      ValueError: If there is no chain, or a position is not finite.
    """
    return PersistentChains(xs.astype(float_dtype(xs)), jnp.zeros((), jnp.int32))


@checks.arguments(
    key=checks.key,
    chains=(checks.made_by, PersistentChains, "persistent_chains"),
    restarts=checks.optional(checks.has_methods, "sample(key)"),
    share=(checks.within, 0.0, 1.0),
)
def advance(
    key: Key,
    chains: PersistentChains,
    kernel: Kernel,
    steps: int = 10,
    *,
    restarts: Any = None,
    share: Scalar = 0.05,
) -> tuple[PersistentChains, Chains]:
    """Advance persistent chains by a kernel of the present model (Tieleman 2008).

    A pure function, to be called between updates of the model. The kernel's
    state is made anew, because the density at a position changes with the
    model.

    With `restarts`, chains find modes that they cannot cross to (Du & Mordatch
    2019, section 3.2). A diverged chain holds NaN, so that the loss is NaN
    too.

    Args:
      key: A typed key. The same may serve all updates, because their number is
        folded in.
      chains: From `persistent_chains` or from the last call.
      kernel: Of `langevin`, for the present model.
      steps: Number of steps.
      restarts: A distribution with `sample(key)` from which chains start anew.
        None for no restarts.
      share: Probability with which each chain starts anew.

    Returns:
      The chains after the steps, and the result of `langevin.run_many`, whose
      `diverged_at` has the chains that diverged.

    Raises:
      ValueError: If `share` lies outside [0, 1], or draws of `restarts` have
        another shape than a chain. Also as `run_many`.
      TypeError: If `restarts` has no `sample`, or `chains` are no
        `PersistentChains`.

    Example:
      >>> chains = dj.energies.persistent_chains(jnp.zeros((4, 2)))
      >>> kernel = dj.langevin.mala(target, 0.1)
      >>> chains, run = dj.energies.advance(key, chains, kernel, steps=2)
    """
    arrays, static = partition(restarts)
    renewed = None if restarts is None else share
    xs, key_run, updates = _restarted(static, arrays, key, chains, renewed)
    result = langevin.run_many(key_run, kernel, xs, steps, thinning=steps)
    return PersistentChains(result.state.x, updates), result


@compiled
def _restarted(static, arrays, key, chains, share):
    """Positions, some of them drawn anew, the key of the run, and the next count."""
    restarts, xs = combine(arrays, static), chains.xs
    key_restart, key_run = jax.random.split(jax.random.fold_in(key, chains.updates))
    if restarts is not None:
        key_where, key_fresh = jax.random.split(key_restart)
        fresh = jax.vmap(restarts.sample)(jax.random.split(key_fresh, len(xs)))
        checks.one_of_shapes("a draw of restarts", fresh[0], [xs.shape[1:]])
        again = jax.random.bernoulli(key_where, share, (len(xs),))
        again = again.reshape(-1, *[1] * (xs.ndim - 1))  # (N,) -> (N, 1, …, 1)
        xs = jnp.where(again, fresh, xs)
    return xs, key_run, chains.updates + 1
