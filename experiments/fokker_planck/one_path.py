"""Rates of log p along a path of the probability flow and at a fixed point."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import schedules, sde, solvers, targets
from experiments.fokker_planck.processes import over_line


@dataclasses.dataclass(frozen=True)
class Path:
    """A path x(t) of VP's probability flow and a fixed point, with log p and its
    rates at both.

    Attributes are (N + 1,) each. `along` and `fixed` are the rates by the
    formula of the flow. `edges` and `heat` are p_t(x) on cells, for the
    picture.
    """

    ts: np.ndarray
    x: np.ndarray
    point: float
    log_p_along: np.ndarray
    log_p_fixed: np.ndarray
    along: np.ndarray
    fixed: np.ndarray
    edges: np.ndarray
    heat: np.ndarray
    metrics: dict[str, float]


PATH_TIMES, PATH_STEPS = (0.01, 0.8), 400


def along_a_path() -> Path:
    """Solve a path of the flow by RK4, and take both rates by formula and by
    central differences.
    """
    schedule = schedules.vp_linear()
    target = targets.gaussian_mixture([0.35, 0.65], [[-1.5], [1.0]], [0.25, 0.5])
    flow = sde.probability_flow(schedule, targets.denoiser(target, schedule))
    ts = jnp.linspace(*PATH_TIMES, PATH_STEPS + 1)
    start = jnp.array([-1.3])

    def log_p(x, t):
        return target.noised(schedule, t).log_prob(x)

    @jax.jit
    def everything():
        xs = solvers.integrate(None, solvers.rk4(), flow, x=start, ts=ts, path=True)
        along = jax.vmap(sde.rate_along_flow(flow))(xs, ts)
        fixed = jax.vmap(
            lambda t: sde.fokker_planck(sde.forward(schedule), log_p)(start, t)
        )(ts)
        return (
            xs[:, 0],
            jax.vmap(log_p)(xs, ts),
            jax.vmap(lambda t: log_p(start, t))(ts),
            along,
            fixed,
        )

    x, log_p_along, log_p_fixed, along, fixed = (np.asarray(a) for a in everything())
    edges = np.linspace(-3, 3, 241)
    heat = np.asarray(jax.jit(over_line(log_p))(0.5 * (edges[1:] + edges[:-1]), ts))
    ts = np.asarray(ts)
    metrics = {
        "largest_rate": float(np.abs(along).max()),
        "along_error": gap(log_p_along, ts, along),
        "along_error_twice_the_step": gap(log_p_along[::2], ts[::2], along[::2]),
        "fixed_error": gap(log_p_fixed, ts, fixed),
        "largest_difference_of_the_two": float(np.abs(along - fixed).max()),
    }
    return Path(
        ts,
        x,
        float(start[0]),
        log_p_along,
        log_p_fixed,
        along,
        fixed,
        edges,
        heat,
        metrics,
    )


def differences(values: np.ndarray, ts: np.ndarray) -> np.ndarray:
    """Central differences at the inner times."""
    return (values[2:] - values[:-2]) / (ts[2:] - ts[:-2])


def gap(values: np.ndarray, ts: np.ndarray, rate: np.ndarray) -> float:
    """Largest distance of the differences from the rate, in nats per unit of t."""
    return float(np.abs(differences(values, ts) - rate[1:-1]).max())
