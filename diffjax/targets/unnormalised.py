"""Densities of energies, known up to their normaliser."""

from typing import Any

from .. import checks
from ..types import Array, Scalar, as_pytree_callable, one_program, pytree

__all__ = ["Energy", "energy"]


@pytree
class Energy:
    """The density e^{function(x)} / Z, a continuous softmax. See `energy`."""

    function: Any
    log_normaliser: Any

    def log_prob(self, x: Array) -> Array:
        """function(x) − log Z in nats, shape ()."""
        return _energy_log_prob(self, x)


@one_program
def _energy_log_prob(energy, x):
    value = checks.scalar_of("an energy's function", energy.function(x))
    return value - energy.log_normaliser


@checks.arguments(
    function=(checks.callable_, "function(x) -> ()"), log_normaliser=checks.number
)
def energy(function: Any, log_normaliser: Scalar = 0.0) -> Energy:
    """Density of an energy, e^{function(x)} / Z.

    With log Z left at 0 it is known up to a constant, which is enough for
    chains. Its distribution under added noise is not known, so it has no exact
    denoiser.

    Args:
      function: x -> (), the unnormalised log density in nats.
      log_normaliser: log Z in nats, shape ().

    Returns:
      A pytree with `log_prob(x)`.

    Raises:
      TypeError: For a function that cannot be called.
      ValueError: From `log_prob`, unless the function returns a scalar.

    Example:
      >>> energy = dj.targets.energy(lambda x: -jnp.sum(x**4))
      >>> float(energy.log_prob(jnp.ones(2)))
      -2.0
    """
    return Energy(as_pytree_callable(function), log_normaliser)
