"""Does a score-based diffusion trained for two minutes model handwritten digits?

    python -m experiments.score_sde                        (or: make run)
    python -m experiments.score_sde --schedule ve --network mlp --out runs/ve
    python -m experiments.score_sde --data images.npz      (images, vectors)
    python -m experiments.score_sde --data eight_gaussians

Trains one denoiser, and samples it by the reverse SDE (Euler-Maruyama) and by
the probability-flow ODE. Then it scores the denoiser: test bits/dim beside two
baselines on the same split, Fréchet and kernel distance to the test set beside
those of the training set, and the nearest training neighbours of some samples.

Images of many levels, such as bytes in colour, get EDM's prediction and as many
samples and scored examples as their size allows (`experiments/shared/sizes.py`).
`--likelihood-error 0.01` scores until the standard error is that small. Beside
the score by the probability flow stands the variational bound.

A run on the same OUT resumes. Columns of a table are standardised one by one,
and its score is in nats per dimension in the units of the file.

Units: names with `bits_per_dim` are in bits per dimension, with `nats_per_dim`
in nats per dimension. `energy_distance_<set>` and `nearest_train_distance` are
in units of the scaled data (images from −1 to 1), `frechet_distance_<set>` in
these squared. `kernel_distance_<set>` is a squared MMD, without unit as
`final_loss`. `seconds_<part>` is in seconds.

Hardware and time: under 3 minutes on 2 CPU cores, more than half of them
training. Of 3000 colour images of 32 × 32 (`--network unet`) a step takes 4
seconds there, the score 80 and the samples 100.

Expect on digits 1.77 ± 0.012 test bits/dim, where independent histograms reach
2.42 and 30 diagonal Gaussians 2.65. Of the error 0.011 is that of 447 examples
and 0.004 that of 2 probes each. The solver's 16 steps add at most 0.003 (0.001
against 48 steps, on 32 digits).
"""

import dataclasses
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from diffjax import metrics, solvers
from experiments.score_sde import figures as score_figures
from experiments.score_sde.background import Ahead
from experiments.score_sde.model import Config, make_model, train
from experiments.shared import (
    cli,
    datasets,
    devices,
    files,
    mapping,
    sampling,
    scoring,
    sizes,
    training,
)
from experiments.shared.mapping import map_examples
from experiments.shared.training import DenoiserModel

# ------------------------------------------------------------ what is measured


SAMPLERS = {
    "sde": ("reverse SDE, Euler-Maruyama", solvers.euler_maruyama, "sde_steps"),
    "ode": ("probability flow, Heun", solvers.heun, "ode_steps"),
}
"""Title, solver and flag of the steps of each set of samples. Both end at noise
0.
"""


def sampler(config: Config, model: DenoiserModel, name: str) -> tuple[Callable, int]:
    """One of `SAMPLERS` for a model.

    Args:
      config: The flags.
      model: Has the schedule and the shape of a sample.
      name: "sde" or "ode".

    Returns:
      (`sampling.by_index`, evaluations per sample).
    """
    _, make, steps = SAMPLERS[name]
    solver = make()
    grid = dj.grids.to_zero(dj.grids.log_snr(model.schedule, getattr(config, steps)))
    draw = sampling.by_index(
        model.schedule, solver=solver, grid=grid, shape=model.data.shape
    )
    return draw, solver.evaluations(len(grid) - 1, to_zero=True)


def strip_grid(model: DenoiserModel) -> jax.Array:
    """Times of `denoising_strip`. Every second one is drawn."""
    return dj.grids.log_snr(model.schedule, 2 * (FRAMES - 1))


def denoising_strip(model: DenoiserModel) -> Callable:
    """A function that follows one sample down the probability flow.

    Returns:
      (denoiser, key) -> (states, denoised) at `FRAMES` noise levels.
    """
    grid = strip_grid(model)

    def draw(denoiser, key):
        path = dj.sample(
            key,
            denoiser,
            model.schedule,
            solver=solvers.heun(),
            grid=grid,
            shape=model.data.shape,
            path=True,
        )[::2]
        return path, jax.vmap(denoiser)(path, grid[::2])

    return draw


FRAMES = 10


@dataclasses.dataclass(frozen=True)
class Measures:
    """Samples and scores of the trained network, whose programs compile while it
    is trained.
    """

    config: Config
    model: DenoiserModel
    programs: dict[str, Callable]
    baselines: Any

    def samples(self, denoiser: Any) -> dict[str, np.ndarray]:
        """Samples by the reverse SDE and by the probability flow, if any are wanted.

        Sample i has the key fold_in(key, i), as in `sample_many`.
        """
        count: Any = self.config.samples  # `run` replaces None
        drawn = {}
        for i, (name, (label, _, _)) in enumerate(SAMPLERS.items() if count else ()):
            began = time.perf_counter()
            draw, evaluations = sampler(self.config, self.model, name)
            drawn[name] = map_examples(
                draw,
                (denoiser, jax.random.fold_in(self._key, i)),
                (np.arange(count),),
                chunk=scoring.chunk_size(count, self.config.chunk),
                label=label,
                unit="sample",
                program=self.programs[name],
            )
            print(
                f"{count} samples by {label}, {evaluations} evaluations: "
                f"{time.perf_counter() - began:.1f} s"
            )
        return drawn

    def score(self, denoiser: Any) -> dict[str, Any]:
        """`scoring.score` of the test examples, and the baselines beside it."""
        c, data = self.config, self.model.data
        key = jax.random.key(c.seed + 2)
        results = scoring.score(
            key,
            data,
            self.model.schedule,
            denoiser,
            steps=c.likelihood_steps,
            probes=c.probes,
            chunk=c.chunk,
            program=self.programs["likelihood"],
            examples=c.likelihood_examples,
            error=c.likelihood_error,
            bound_times=self.bound_times,
        )
        if data.target is not None:
            scored = scoring.order(key, len(data.stored_test))
            scored = scored[: results["test_examples_scored"]]
            test = data.loaded(data.stored_test, scored)
            return results | exact_score(data, test)
        return results | self.baselines.result()

    def strip(self, denoiser: Any) -> tuple[Any, list[str]]:
        """((states, denoised), labels) of `denoising_strip`."""
        states, denoised = self.programs["strip"](
            devices.whole(denoiser), jax.random.fold_in(self._key, 2)
        )
        times = strip_grid(self.model)[::2]
        ratios = np.exp(
            -0.5 * np.asarray(dj.schedules.log_snr(self.model.schedule, times))
        )
        return (np.asarray(states), np.asarray(denoised)), [
            f"{ratio:.2g}" for ratio in ratios
        ]

    @property
    def bound_times(self) -> int:
        """Noise levels of the variational bound. Other data than a lattice have
        none.
        """
        return 0 if self.model.data.levels is None else self.config.bound_times

    @property
    def _key(self):
        return jax.random.key(self.config.seed + 1)


def prepare(config: Config, model: DenoiserModel, thread: Ahead) -> Measures:
    """Begin to compile, in the thread, the programs that measure the trained
    network.

    Args:
      config: The flags.
      model: The model.
      thread: A thread that compiles in the background.

    Returns:
      The measures, which wait for their programs.
    """
    params = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(
        lambda p: jax.ShapeDtypeStruct(
            p.shape, jnp.promote_types(p.dtype, jnp.float32)
        ),
        params,
    )
    data, shapes = model.data, jax.eval_shape(model.denoiser, params)
    measures = Measures(config, model, {}, thread.submit(baselines, data))
    one = scoring.likelihood(
        data, model.schedule, probes=config.probes, bound_times=measures.bound_times
    )
    arguments = scoring.arguments(
        data,
        shapes,
        steps=config.likelihood_steps,
        chunk=config.chunk,
        count=min(config.likelihood_examples, len(data.stored_test)),
    )
    program = thread.compile(mapping.over_examples(one), *arguments)
    measures.programs["likelihood"] = program
    if not config.samples:
        return measures
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = devices.whole_shapes((shapes, key))
    size = scoring.chunk_size(config.samples, config.chunk)
    indices = jax.ShapeDtypeStruct((size,), int)
    for name in SAMPLERS:
        draw = mapping.over_examples(sampler(config, model, name)[0])
        measures.programs[name] = thread.compile(draw, state, indices)
    strip = denoising_strip(model)
    measures.programs["strip"] = thread.compile(strip, state[0], key)
    return measures


def baselines(data: datasets.Dataset) -> dict[str, Any]:
    """Test bits/dim of simple models on the same split, for data on a lattice."""
    if data.levels is None:
        return {}
    histograms = datasets.histograms(data)
    return {
        "histogram_bits_per_dim": histograms.bits,
        "histograms": histograms.kind,
        "gaussian_mixture_bits_per_dim": datasets.gaussian_mixture_bits(data),
    }


def exact_score(data: datasets.Dataset, test: np.ndarray) -> dict[str, float]:
    """Nats per dimension of test examples by the exact distribution."""
    exact = -jax.vmap(data.target.log_prob)(jnp.asarray(test)) / math.prod(data.shape)
    return {"exact_test_nats_per_dim": float(exact.mean())}


def distances(
    drawn: dict[str, np.ndarray], data: datasets.Dataset, seed: int
) -> dict[str, float | None]:
    """Fréchet, kernel and energy distance of samples to the test set.

    Args:
      drawn: Samples (N, *shape) by name.
      data: The data set. As many training examples give the distances to
        expect.
      seed: Seed of the choice of training examples.

    Returns:
      Distances by name, None for a single test example, which has no spread.
    """
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(data.stored_train))[: len(drawn["sde"])]
    sets = drawn | {"train": data.loaded(data.stored_train, rows)}
    measures = {
        "frechet": metrics.frechet_distance,
        "kernel": metrics.kernel_distance,
        "energy": metrics.energy_distance,
    }
    if len(data.test) < 2:
        print("one test example: no distances to the test set, and no standard error")
        return {f"{name}_distance_{key}": None for name in measures for key in sets}
    return {
        f"{name}_distance_{key}": float(distance(xs, data.test))
        for name, distance in measures.items()
        for key, xs in sets.items()
    }


def neighbours(
    drawn: np.ndarray, data: datasets.Dataset
) -> tuple[np.ndarray, dict[str, float]]:
    """The nearest training examples of samples, which show memorising.

    Args:
      drawn: Samples (N, *shape).
      data: The data set.

    Returns:
      (indices (N, 3), mean distances of samples and of test examples).
    """
    indices, nearest = nearest_training(drawn, data, min(3, len(data.stored_train)))
    _, test_nearest = nearest_training(data.test, data, 1)
    return indices, {
        "nearest_train_distance_of_samples": float(nearest[:, 0].mean()),
        "nearest_train_distance_of_test": float(test_nearest.mean()),
    }


def nearest_training(
    x: np.ndarray, data: datasets.Dataset, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """`metrics.nearest_neighbours` among the training examples, piece by piece.

    Args:
      x: Examples (N, *shape).
      data: The data set.
      k: Number of neighbours, at most that of training examples.

    Returns:
      (indices, distances), (N, k) both.
    """
    indices, gaps, first = [], [], 0
    for piece in data.loaded_pieces(data.stored_train):
        nearest = metrics.nearest_neighbours(x, piece, min(k, len(piece)))
        indices.append(np.asarray(nearest[0]) + first)
        gaps.append(np.asarray(nearest[1]))
        first += len(piece)
    index, gap = np.concatenate(indices, 1), np.concatenate(gaps, 1)
    # The lower index first in a tie, as in one piece.
    order = np.argsort(gap, 1, kind="stable")[:, :k]
    return np.take_along_axis(index, order, 1), np.take_along_axis(gap, order, 1)


UNITS = {
    "frechet_distance": "squared scaled units",
    "kernel_distance": "squared MMD",
    "energy_distance": "scaled units",
    "nearest_train_distance": "scaled units",
}
"""Units that the names of results lack, by their first words. Scaled units are
those of the data that the network sees.
"""


# ------------------------------------------------------------------------ main


def check(config: Config) -> None:
    """Raise ValueError for flags that are not usable."""
    training.check(config)
    at_least = {
        1: ("sde_steps", "ode_steps", "chunk"),
        # One has no standard error and no grid of half the steps.
        2: ("probes", "likelihood_examples", "likelihood_steps"),
    }
    for minimum, names in at_least.items():
        for name in names:
            if getattr(config, name) is not None:
                dj.checks.integer(name, getattr(config, name), minimum)
    if config.samples == 1:  # has no distance
        raise ValueError("samples must be 0, or 2 or more, got 1")
    for name in ("samples", "bound_times"):
        if getattr(config, name) is not None:
            dj.checks.integer(name, getattr(config, name), 0)
    if config.likelihood_error is not None:
        dj.checks.positive("likelihood_error", config.likelihood_error)


def compare(
    data: datasets.Dataset,
    drawn: dict[str, np.ndarray],
    strip: Any,
    *,
    seed: int,
    out: pathlib.Path,
) -> dict[str, Any]:
    """Measure samples, and draw their figures.

    Args:
      data: The data set.
      drawn: Samples (N, *shape) by name.
      strip: `Measures.strip`.
      seed: Seed of the choice of training examples.
      out: The folder.

    Returns:
      Distances by name.
    """
    indices, near = neighbours(drawn["sde"], data)
    if data.is_image:
        score_figures.draw_images(data, drawn, indices, *strip, out)
    else:
        score_figures.draw_points(data, drawn, *strip, out)
    return distances(drawn, data, seed) | near


def run(config: Config) -> dict[str, Any]:
    """Train, sample, score and draw.

    Returns:
      The metrics, which are also in OUT/metrics.json.
    """
    clock = cli.Clock()
    check(config)
    data = datasets.open_dataset(config.data, config.held_out, config.seed)
    model = make_model(config, data)
    out = files.open_folder(config)
    print(f"{data.sizes} of shape {data.shape}")
    if model.prediction == "levels" != sizes.default_prediction(data):
        print(sizes.levels_cost(data, config.batch_size))
    with Ahead() as thread:
        measures = prepare(sizes.with_sizes(config, data), model, thread)
        params, history = train(config, model, out)
        clock.lap("training")
        denoiser = model.denoiser(params)
        results = measures.score(denoiser)
        clock.lap("score")
        drawn = measures.samples(denoiser)
        strip = measures.strip(denoiser) if drawn else None
        clock.lap("samples")
    if drawn:
        results |= compare(data, drawn, strip, seed=config.seed, out=out)
    results["final_loss"] = float(np.mean(history[-50:]))
    training.draw_loss(
        history,
        f"loss, {config.weighting} weighting",
        f"Training, {config.data}",
        out / "loss.png",
    )
    clock.lap("figures")
    results |= {
        "prediction": model.prediction,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        **{f"seconds_{name}": seconds for name, seconds in clock.laps.items()},
        "seconds_total": round(sum(clock.laps.values()), 1),
    }
    files.write_results(out, results)
    cli.print_results(results, UNITS)
    return results


if __name__ == "__main__":
    cli.main(run, Config, __doc__)
