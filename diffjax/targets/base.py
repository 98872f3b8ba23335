"""The protocol of a target, and its distribution at a noise level."""

from typing import Any, Protocol

from .. import schedules
from ..distributions.base import as_array
from ..schedules import Schedule
from ..types import Array, Key, Scalar, as_one_program

__all__ = ["Target"]


class Target(Protocol):
    """A density of one example, closed under scaling and added Gaussian noise.

    Optional members, which `targets.denoiser` uses: `posterior_mean(x, alpha,
    sigma)` is E[x_0 | α x_0 + σ ε = x], and `mean()` is E[x_0].
    """

    def log_prob(self, x: Array) -> Array:
        """log p(x) in nats, shape ()."""
        ...

    def sample(self, key: Key) -> Array:
        """One draw."""
        ...

    def noised(self, schedule: Schedule, t: Scalar) -> "Target":
        """The distribution of α(t) x + σ(t) ε.

        Args:
          schedule: A schedule, for α and σ.
          t: A time, shape ().

        Returns:
          A target.
        """
        ...


def noised(target: Any, schedule: Schedule, t: Scalar) -> Any:
    """The distribution of α(t) x + σ(t) ε.

    Args:
      target: With `convolved(alpha, sigma)`.
      schedule: A schedule, for α and σ.
      t: A time, shape ().

    Returns:
      A target of the same kind.
    """
    schedules.check(schedule)
    return as_one_program(_convolved_at, target, schedule, as_array(t))


def _convolved_at(target, schedule, t):
    return target.convolved(schedule.alpha(t), schedule.sigma(t))
