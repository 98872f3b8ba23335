"""Does pairing the noise with the data straighten the flow that flow matching
learns?

    python -m experiments.flow_matching [--target digits] [--pairings independent]

One small network per pairing is fitted to straight paths between noise and
samples of a 2-D density, or digits. Under independent pairs the paths cross,
and the flow of their mean velocity bends.

Under optimal transport within each batch they hardly cross. Reflow fits a
second network to the pairs that the flow of independent pairs makes. A
straighter flow needs fewer steps of a solver.

Figures in OUT:

- paths.png: paths from noise to data, and samples by 1, 2, 4 and 32 Euler
  steps, over the density, one row per pairing.
- error.png: against evaluations of Euler and midpoint, how far a sample lies
  from the one that many steps make of the same noise, and the squared sliced
  Wasserstein distance to exact samples beside that of other exact samples.
- log_prob.png: error of log p against evaluations, of Euler, Heun, RK4 and the
  adaptive solver, on the exact velocity.
- samples.png, of digits in place of the first and the last: images of the same
  noise by 1, 2, 4, 8 and 32 steps.

Units: `curvature`, `cost`, `sliced_wasserstein` and the distances of
`exact_sets` are in squared data units, `path_error` in data units.
`nats_above_floor` and `error` of `log_prob_error` are in nats, `seconds` in
seconds. `evaluations` and `count` are counts. Data units of digits are those
of pixels from −1 to 1.

Hardware and time: a minute and a half on 2 CPU cores, with `--target digits`
four minutes of processor time. A run resumes from its checkpoints.

Expect on eight Gaussians, for independent pairs, optimal ones and reflow,
curvature 1.8, 0.01 and 0.001 squared data units. The root mean square error of
a sample is 2.8, 0.24 and 0.11 data units by one Euler step, 0.38, 0.08 and
0.05 by four. On average log p is within 0.05, 0.05 and 0.07 nats of the exact
one, since the networks are alike.

On the exact velocity log p is off by 1e-2 nats by Heun and by RK4 with 64
evaluations, by 3e-5 with 256 of RK4 or 100 of the adaptive solver.

Expect on digits, with a residual MLP, for the same three pairings curvature
8.6, 2.6 and 0.39 on a scale of pixels from −1 to 1, and an error of a sample
of 4.0, 1.8 and 0.9 by one Euler step, 1.2, 0.59 and 0.26 by four. The squared
sliced Wasserstein distance to the test images is 0.22, 0.040 and 0.006 by one
step, 0.016, 0.009 and 0.006 by four.

Training images have 0.004 to 0.006. One step of the independent flow paints
the mean digit, one step of the others digits.
"""

import dataclasses
import pathlib
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

import diffjax as dj
from diffjax import flows
from experiments.flow_matching import figures, measures
from experiments.flow_matching.figures import TITLES
from experiments.flow_matching.problem import (
    DEFAULTS,
    DIGITS_DEFAULTS,
    MatchingTask,
    key_of,
    open_problem,
)
from experiments.shared import cli, datasets, files, training
from experiments.shared.figures import save_figure


@dataclasses.dataclass(frozen=True)
class Config(training.Optimisation):
    """Flow matching under several pairings of noise and data: straightness and
    errors.
    """

    out: pathlib.Path = pathlib.Path("runs/flow_matching")
    """Folder for figures, config.json, metrics.json and checkpoints."""
    seed: int = 0
    """Seed of data, networks, training and samples."""
    target: Literal[datasets.ToyName, "digits"] = "eight_gaussians"
    """The data: exact samples of a density, or the digits."""
    pairings: Annotated[
        tuple[Literal["independent", "sinkhorn", "optimal", "reflow"], ...],
        tyro.conf.arg(aliases=["--couplings"]),
    ] = (
        "independent",
        "optimal",
        "reflow",
    )
    """The pairings to compare. reflow needs independent before it."""
    regularisation: float = 0.5
    """ε of the entropic pairing, in squared data units."""
    examples: int | None = None
    """Exact samples to train on and pairs of reflow, default 65536. Of digits
    pairs of reflow only, default 8192.
    """
    width: int | None = None
    """Features of the network, default 128, 384 for digits."""
    depth: int | None = None
    """Layers of the network, default 4. For digits residual blocks, default 3."""
    steps: int = 2000
    """Training steps of each network."""
    batch_size: int = 128
    """Pairs per step. An optimal pairing is optimal among these."""
    save_every: int = 1000
    """Steps between checkpoints."""
    samples: int = 4096
    """Samples by each solver, and exact ones that they are compared with. Of
    digits the 447 test images.
    """
    likelihoods: int = 1024
    """Exact samples whose log p is computed, and paths whose curvature is."""


_FIELDS = ("target", "regularisation", "examples", "width", "depth")


def run(config: Config) -> dict[str, Any]:
    """Train, measure and draw.

    Returns:
      The metrics, which are also in OUT/metrics.json.
    """
    config = check(config)
    out = files.open_folder(config)
    clock, problem = cli.Clock(), open_problem(config)
    fitted = train(config, out, problem)
    clock.lap("training")
    measured = {
        name: measures.measure(config, problem, velocity)
        for name, velocity in fitted.items()
    }
    drawn = {name: parts for name, (_, parts) in measured.items()}
    results = {
        # The entry is named as in earlier result files.
        "couplings": {name: numbers for name, (numbers, _) in measured.items()},
        "exact_sets": measures.exact_sets(config, problem),
    }
    clock.lap("sampling")
    if problem.target is not None:
        results["log_prob_error"] = measures.log_prob_errors(config, problem.target)
        clock.lap("log p")
    results["seconds"] = clock.laps
    files.write_results(out, results)
    if problem.target is None:
        save_figure(
            figures.draw_images(problem.name, problem.exact, drawn), out / "samples.png"
        )
    else:
        save_figure(
            figures.draw_paths(problem.name, problem.target, drawn), out / "paths.png"
        )
        save_figure(
            figures.draw_log_prob(results["log_prob_error"]), out / "log_prob.png"
        )
    save_figure(figures.draw_errors(results), out / "error.png")
    measures.print_results(results, TITLES)
    return results


def check(config: Config) -> Config:
    """Fill in the defaults of the target, and raise ValueError for flags that are
    not usable.
    """
    defaults = DIGITS_DEFAULTS if config.target == "digits" else DEFAULTS
    config = dataclasses.replace(
        config, **{k: v for k, v in defaults.items() if getattr(config, k) is None}
    )
    dj.checks.choice("target", config.target, (*datasets.TOYS, "digits"))
    training.check_optimisation(config)
    for name in ("width", "depth"):
        dj.checks.integer(name, getattr(config, name), 1)
    for name in ("samples", "likelihoods"):
        dj.checks.integer(name, getattr(config, name), 2 * measures.PATHS)
    dj.checks.integer("examples", config.examples, config.batch_size)
    dj.checks.positive("regularisation", config.regularisation)
    names = config.pairings
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"pairings must name at least one of {list(TITLES)}, each once, got {names}"
        )
    if "reflow" in names and "independent" not in names[: names.index("reflow")]:
        raise ValueError(
            "pairings must name independent before reflow, which is made of it, got "
            f"{names}"
        )
    return config


def train(config: Config, out: pathlib.Path, problem: MatchingTask) -> dict[str, Any]:
    """Fit one velocity per pairing."""
    pairings = {
        "independent": flows.independent(),
        "sinkhorn": flows.sinkhorn(config.regularisation),
        "optimal": flows.optimal_assignment(),
        "reflow": flows.fixed_pairs(),
    }
    template = problem.neural_velocity(jax.random.key(0))
    interpolant, fitted = flows.interpolant(), {}

    def velocity(params):
        return jax.tree_util.Partial(template.func, params)

    def init(key):
        return problem.neural_velocity(key).args[0]

    for name in config.pairings:
        arrays = (
            reflowed(config, problem, fitted["independent"])
            if name == "reflow"
            else (problem.train,)
        )

        def loss(params, key, batch, pairing=pairings[name]):
            x0, x1 = (*batch, None)[:2]
            return flows.matching_loss(
                key, velocity(params), interpolant, x0, x1=x1, pairing=pairing
            )[0]

        params, _ = training.fit(
            config,
            out,
            loss,
            init,
            arrays=arrays,
            fields=_FIELDS,
            label=TITLES[name],
            name=f"{name}_",
        )
        fitted[name] = velocity(params)
    return fitted


def reflowed(
    config: Config, problem: MatchingTask, velocity: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (x_0, x_1) of noise and its image under a flow, as many as there are
    examples.
    """
    x1 = np.asarray(
        jax.random.normal(key_of(config, "reflow"), (config.examples, *problem.shape))
    )
    return measures.forward(flows.continuous(velocity, problem.pair_steps), x1), x1


if __name__ == "__main__":
    cli.main(run, Config, __doc__)
