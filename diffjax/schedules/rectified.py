"""The straight schedule of rectified flow and flow matching."""

import jax

from .. import checks
from ..types import Scalar, pytree
from .arguments import interval
from .protocol import of_time

__all__ = ["RectifiedFlow", "rectified_flow"]


@pytree
class RectifiedFlow:
    """The schedule α = 1 − t, σ = t, made by `rectified_flow`."""

    t_min: Scalar
    t_max: Scalar

    @of_time
    def alpha(self, t):
        """1 − t."""
        return 1 - t

    @of_time
    def sigma(self, t):
        """The time t itself."""
        return t

    def time_of_log_snr(self, log_snr):
        """sigmoid(−λ/2)."""
        return jax.nn.sigmoid(-0.5 * log_snr)


def rectified_flow(t_max: Scalar = 0.999, t_min: Scalar = 1e-3) -> RectifiedFlow:
    """Rectified flow, or flow matching with the noise at t = 1.

        α = 1 − t,    σ = t,    f = −1/(1 − t),    g² = 2t/(1 − t)

    f and g² diverge at t = 1, and a prediction of the noise or the score does
    not give D there. So t_max = 1 is for the kinds "data" and "velocity", with
    solvers of the probability flow, on grids uniform in t.

    Args:
      t_max: The greatest time, (), at most 1.
      t_min: The least time, ().

    Returns:
      The schedule on [t_min, t_max].

    Raises:
      ValueError: Unless 0 < t_min < t_max ≤ 1.

    References:
      Liu et al. 2023, equation 1. Lipman et al. 2023, equation 20.

    Example:
      >>> float(dj.schedules.rectified_flow().alpha(0.25))
      0.75
    """
    t_min, t_max = interval(t_min, t_max)
    checks.within("t_max", t_max, 0.0, 1.0)
    return RectifiedFlow(t_min, t_max)
