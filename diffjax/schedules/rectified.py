"""The straight schedule of rectified flow and flow matching."""

import jax

from .. import checks
from ..types import Scalar, pytree
from .arguments import interval
from .derived import of_time


@pytree
class RectifiedFlow:
    """α = 1 − t, σ = t. See `rectified_flow`."""

    t_min: Scalar
    t_max: Scalar

    @of_time
    def alpha(self, t):
        """1 − t."""
        return 1 - t

    @of_time
    def sigma(self, t):
        """t."""
        return t

    def time_of_log_snr(self, log_snr):
        """sigmoid(−λ/2)."""
        return jax.nn.sigmoid(-0.5 * log_snr)


def rectified_flow(t_max: Scalar = 0.999, t_min: Scalar = 1e-3) -> RectifiedFlow:
    """Rectified flow (flow matching with t = 1 the noise): α = 1 − t, σ = t.

    f = −1/(1 − t) and g² = 2t/(1 − t) diverge at t = 1, and a noise or score prediction cannot give D there: t_max = 1
    serves the data and velocity kinds with probability-flow solvers on grids uniform in t. Raises ValueError unless 0 <
    t_min < t_max ≤ 1. Liu et al. 2023, eq. 1; Lipman et al. 2023, eq. 20.
    """
    t_min, t_max = interval(t_min, t_max)
    checks.within("t_max", t_max, 0.0, 1.0)
    return RectifiedFlow(t_min, t_max)
