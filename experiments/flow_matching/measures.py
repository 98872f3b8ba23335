"""Straightness of a flow of `flow_matching`, and distances of its samples and
densities from exact ones.
"""

from typing import Any

import jax
import numpy as np

from diffjax import (
    distributions,
    flows,
    grids,
    metrics,
    numerics,
    predictions,
    schedules,
    solvers,
    targets,
)
from experiments.flow_matching.problem import MatchingTask, exact_samples, key_of
from experiments.shared.mapping import map_examples

STEPS = (1, 2, 4, 8, 16, 32)
FINE_STEPS = 32
"""Steps of RK4 for the reference samples, paths, curvature and log p."""
SHOWN = 2000
PATHS = 48
LOG_PROB_STEPS = (8, 16, 32, 64)
TOLERANCES = (1e-3, 1e-5, 1e-7)


def measure(
    config: Any, problem: MatchingTask, velocity: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measure one flow with n samples of it, in data units.

    - curvature: mean ∫‖(x_1 − x_0) − u‖² dt, squared units.
    - cost: mean ‖x_1 − x_0‖²/2, squared units.
    - path_error: root mean square of ‖x_0 − x̂_0‖ between few steps and
      FINE_STEPS of RK4 from the same noise.
    - sliced_wasserstein: squared distance to the exact examples.
    - nats_above_floor: the mean of log p − log p_flow over exact samples,
      KL(p‖flow), with its standard error, where p is known.

    Returns:
      (numbers, arrays to draw).
    """
    noise = np.asarray(jax.random.normal(key_of(config, "noise"), problem.exact.shape))
    fine = flows.continuous(velocity, FINE_STEPS)
    ends = forward(fine, noise)
    few = noise[: config.likelihoods]
    curvatures = map_examples(flows.curvature, fine, (few,), chunk=len(few))
    numbers: dict[str, Any] = {
        "curvature": float(np.mean(curvatures)),
        "cost": float(np.sum((ends - noise) ** 2) / (2 * len(noise))),
        "path_error": {"euler": {}, "midpoint": {}},
        "sliced_wasserstein": {
            "euler": {},
            "midpoint": {},
            "fine": distance(config, ends, problem.exact),
        },
    }
    shown = {}
    for solver, evaluations in ((solvers.euler(), 1), (solvers.midpoint(), 2)):
        for count in STEPS:
            samples = forward(flows.continuous(velocity, count, solver), noise)
            error = np.sqrt(np.sum((samples - ends) ** 2) / len(noise))
            numbers["path_error"][solver.name][count * evaluations] = float(error)
            near = distance(config, samples, problem.exact)
            numbers["sliced_wasserstein"][solver.name][count * evaluations] = near
            if solver.name == "euler":
                shown[count] = samples[:SHOWN]
    if problem.target is not None:
        gap = log_prob_gap(config, problem.target, fine)
        numbers["nats_above_floor"] = float(gap.mean())
        numbers["nats_above_floor_standard_error"] = float(numerics.standard_error(gap))
    states = np.asarray(
        jax.jit(jax.vmap(fine.path))(noise[:PATHS])
    )  # (PATHS, N + 1, *shape)
    return numbers, {"paths": states, "samples": shown}


def forward(bijector: Any, x1: Any, chunk: int = 16384) -> np.ndarray:
    """Map many examples from base to data, (n, *shape)."""
    return map_examples(_forward, bijector, (x1,), chunk=chunk)


def _forward(bijector, x1):
    return bijector.forward(x1)


def distance(config: Any, x: np.ndarray, y: np.ndarray) -> float:
    """Squared sliced Wasserstein distance, with the same directions each time."""
    return float(metrics.sliced_wasserstein(key_of(config, "directions"), x, y))


def exact_sets(config: Any, problem: MatchingTask) -> dict[str, float]:
    """Least, mean and largest distance of further sets of exact examples from the
    reference set.
    """
    distances = [distance(config, other, problem.exact) for other in problem.others]
    return {
        "count": len(distances),
        "least": min(distances),
        "mean": float(np.mean(distances)),
        "largest": max(distances),
    }


def log_prob_gap(config: Any, target: Any, bijector: Any) -> np.ndarray:
    """log p − log p_flow of exact samples, in nats."""
    x = exact_samples(key_of(config, "likelihood"), target, config.likelihoods)
    flow = flows.flow(distributions.standard_normal(x.shape[1:]), bijector)
    log_p, log_q = (
        map_examples(_log_prob, distribution, (x,), chunk=len(x))
        for distribution in (target, flow)
    )
    gap = log_p - log_q
    if not np.isfinite(gap).all():
        raise FloatingPointError(
            f"{np.sum(~np.isfinite(gap))} of {len(gap)} log-likelihoods are not finite"
        )
    return gap


def _log_prob(distribution, x):
    return distribution.log_prob(x)


def log_prob_errors(config: Any, target: Any) -> dict[str, list[dict[str, float]]]:
    """Mean |log p − exact| in nats against evaluations, one list per solver.

    The velocity is the exact one of independent pairs. The flow runs on
    rectified flow's interval, from p at t_max to p at t_min, both exact, with
    steps uniform in log-SNR.
    """
    schedule = schedules.rectified_flow()
    velocity = predictions.velocity(schedule, targets.denoiser(target, schedule))
    base, end = (
        target.noised(schedule, schedule.t_max),
        target.noised(schedule, schedule.t_min),
    )
    x = jax.vmap(end.sample)(
        jax.random.split(key_of(config, "likelihood"), min(256, config.likelihoods))
    )
    exact = jax.vmap(end.log_prob)(x)

    def both(bijector, x):
        solved = flows.transport(bijector, x)
        return base.log_prob(solved.x) + solved.log_det, solved.run.evaluations

    def row(bijector):
        ours, evaluations = map_examples(both, bijector, (x,), chunk=len(x))
        return {
            "evaluations": float(np.mean(evaluations)),
            "error": float(np.mean(np.abs(ours - exact))),
        }

    errors: dict[str, list[dict[str, float]]] = {}
    for solver in (solvers.euler(), solvers.heun(), solvers.rk4()):
        errors[solver.name] = [
            row(
                flows.continuous(
                    velocity, solver=solver, times=grids.log_snr(schedule, steps)
                )
            )
            for steps in LOG_PROB_STEPS
        ]
    ends = (float(schedule.t_max), float(schedule.t_min))
    errors["adaptive"] = [
        row(
            flows.continuous(
                velocity, solver=solvers.adaptive(tolerance, tolerance), times=ends
            )
        )
        for tolerance in TOLERANCES
    ]
    return errors


def print_results(results: dict[str, Any], titles: dict[str, str]) -> None:
    """Print the tables.

    Args:
      results: Numbers by pairing.
      titles: Titles by pairing.
    """
    head = "".join(f"{count:>9}" for count in STEPS)
    print(
        f"\n{'':24}{'curvature':>10}{'cost':>8}{'nats':>8}   error of a sample by so "
        "many Euler steps"
    )
    print(f"{'':50}   {head}")
    for name, row in results["couplings"].items():
        errors = "".join(
            f"{value:9.4f}" for value in row["path_error"]["euler"].values()
        )
        nats = (
            f"{row['nats_above_floor']:8.3f}"
            if "nats_above_floor" in row
            else f"{'':8}"
        )
        print(
            f"{titles[name]:24}{row['curvature']:10.4f}{row['cost']:8.3f}{nats}   "
            f"{errors}"
        )
    print(f"\nsliced Wasserstein² to exact examples{'':16}{head}")
    for name, row in results["couplings"].items():
        print(
            f"{titles[name]:53}"
            + "".join(f"{v:9.4f}" for v in row["sliced_wasserstein"]["euler"].values())
        )
    print(
        (
            "{count} other exact sets, least to largest: {least:.4f} to {largest:.4f}"
        ).format(**results["exact_sets"])
    )
    if "log_prob_error" in results:
        print(
            "\nmean |error| of log p in nats at so many evaluations, on the exact "
            "velocity"
        )
        for name, rows in results["log_prob_error"].items():
            print(
                f"{name:10}"
                + "".join(
                    f"{row['evaluations']:8.0f}: {row['error']:.1e}" for row in rows
                )
            )
