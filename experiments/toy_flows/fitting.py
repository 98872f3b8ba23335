"""Fits of flows to samples of a density that is known."""

import dataclasses
import functools
import pathlib
import time

import jax
import numpy as np

from diffjax import flows
from experiments.shared import files, training
from experiments.toy_flows.config import Config
from experiments.toy_flows.kinds import KINDS, likelihood
from experiments.toy_flows.measures import CURVE, CURVE_EXAMPLES, measure, samples


@dataclasses.dataclass(frozen=True)
class FitConfig(training.Optimisation):
    """The settings of one fit, to which its checkpoints belong."""

    target: str = ""
    flow: str = ""
    save_every: int = 1000


def fit(
    config: Config, out: pathlib.Path, name: str, kind: str
) -> tuple[flows.density.Flow, list[dict[str, float]]]:
    """Fit one flow to one target, resuming from its folder in `out`.

    Seconds count training and compilation, without those after the last point
    of the curve that a killed run had reached.

    Returns:
      (flow with averaged parameters, its gap and seconds at `CURVE`).
    """
    _, make, steps, learning_rate, batch_size, loss = KINDS[kind]
    task = FitConfig(
        seed=config.seed,
        steps=config.steps or steps,
        batch_size=batch_size,
        learning_rate=config.learning_rate or learning_rate,
        target=name,
        flow=kind,
    )
    folder = out / "fits" / f"{name}_{kind}"
    path, xs = folder / "curve.json", samples(config, name, 0, config.train)
    curve = (
        files.read_json(path, "remove it, and the curve begins anew", "curve")["curve"]
        if path.exists()
        else []
    )
    start = time.perf_counter()

    def note(step, flow):
        nonlocal start
        seconds = time.perf_counter() - start + (curve[-1]["seconds"] if curve else 0.0)
        # By all processes, since only the first has the curve of an earlier run.
        measured = measure(config, name, flow, CURVE_EXAMPLES)
        if all(point["steps"] < step for point in curve):
            point = {"steps": step, "seconds": round(seconds, 1)}
            curve.append(
                point | {part: measured[part] for part in ("gap", "standard_error")}
            )
            files.write_json(path, {"curve": curve})
        start = time.perf_counter()

    stops = sorted({max(50, round(share * task.steps / 50) * 50) for share in CURVE})
    model, _ = training.fit(
        task,
        folder,
        loss or likelihood,
        lambda key: _initialised(make, key, xs),
        arrays=np.asarray(xs),
        fields=("target", "flow"),
        label=f"{name.replace('_', ' ')}, {kind}",
        stops=stops,
        on_stop=note,
    )  # type: ignore
    return model, curve


@functools.partial(jax.jit, static_argnums=0)
def _initialised(make, key, xs):
    return flows.initialise(make(key), xs)
