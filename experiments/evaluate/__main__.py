"""Are the samples of a trained diffusion as good as held-out data, and are they new?

    python -m experiments.evaluate --run runs/score_sde
    python -m experiments.evaluate --run runs/train --samples 50000 \\
        --features inception --weights pt_inception-2015-12-05-6726825d.pth

Opens the folder of any experiment whose config.json names it, draws samples on
all devices, and compares them with the training images in features: pixels,
Inception's or DINOv2's. Held-out images stand beside them. Their numbers are
what a perfect sampler would get with as many images.

- Fréchet distance (FID on Inception's features): of all samples, without its
  bias in the number of samples by the jackknife and by extrapolation, with its
  standard error. The training images are a fixed reference.
- Kernel distance (KID), unbiased, with its standard error.
- Precision, recall, density and coverage.
- Memorisation: the share of samples whose nearest image is a training one, and
  the probability that a sample is nearer to the training set than a held-out
  image, beside what fresh draws of the data would get. More is a sign of
  copies, less of samples that are unlike the data.
- With --bits, the test score in bits/dim.

A corrected Fréchet distance needs several times as many images as features.
Pixels are reduced to 64 principal components first.

Units: `frechet` and all that begin with it are in squared units of the
features, `frechet_slope` in these times images. `kernel` is a squared MMD,
without unit. `precision`, `recall`, `coverage` and `value` are shares or
probabilities, `density` a ratio, `z_score` a number of deviations.
`test_bits_per_dim` is in bits per dimension, `seconds` in seconds.

Hardware and time: about half a minute on 2 CPU cores for `score_sde` on digits.
Inception's features need an accelerator. A sample of the default solver costs one
evaluation of the network per step.

With --bits every test example costs 4 evaluations per likelihood step, and as many
derivatives for each probe. This takes minutes for digits and hours for 1500 images
of 32 × 32. --likelihood-examples 32 or --likelihood-error 0.1 ends it sooner.

Expect there a corrected Fréchet distance of 0.18 ± 0.04 where held-out digits
have 0.04 ± 0.05, though without correction these are 0.47 and 0.34. Samples
have precision 0.56 and coverage 0.33, held-out digits 0.95 and 0.80. No sign of
copies: the nearest share is 0.75 where 0.75 ± 0.02 is expected.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

import diffjax as dj
from diffjax import metrics, training
from experiments.evaluate import features as networks
from experiments.evaluate import figures
from experiments.shared import cli, devices, files, measures, sampling, scoring, solvers
from experiments.shared.datasets import Dataset
from experiments.shared.runs import Run, open_run


@dataclasses.dataclass(frozen=True)
class Config(devices.Devices):
    """Sample a trained denoiser and measure the samples."""

    run: pathlib.Path = pathlib.Path("runs/score_sde")
    """Folder of the run."""
    out: pathlib.Path | None = None
    """Folder for config.json, metrics.json and figures. Default: RUN/evaluate."""
    seed: int = 0
    """Seed of the samples and of the order of the training images."""
    samples: int | None = None
    """Samples drawn. Default: as many as there are held-out images."""
    solver: str = "unipc(3)"
    """Solver, by its name in the standings, such as heun or dpmpp_2m_sde."""
    steps: int = 32
    """Steps of the solver on its recommended grid, before the last to noise 0."""
    features: networks.FeaturesName = "pixels"
    """Features in which images are compared."""
    weights: pathlib.Path | None = None
    """File of the weights of inception or dinov2."""
    reference: int = 50_000
    """Most training images that samples are compared with, at random."""
    components: int | None = None
    """Principal components for the Fréchet distance. Default: 64 of pixels, all
    features of a network.
    """
    groups: int = 10
    """Groups of images of the jackknife and the extrapolation."""
    pairs: int = 5000
    """Most samples and real images of which all pairs are visited."""
    k: int = 5
    """Neighbour that the balls of precision, recall, density and coverage reach."""
    bits: bool = False
    """Whether to score the test examples too."""
    likelihood_examples: int | None = None
    """Test examples that are scored. None for all."""
    likelihood_error: float | None = None
    """Stop scoring at this standard error over examples."""
    likelihood_steps: int | None = None
    """Runge-Kutta steps of the score, of four evaluations each. None for 96 for 8-bit
    images, else 16.
    """
    probes: int = 2
    """Hutchinson probes of the score per test example."""
    chunk: int = 64
    """Examples at a time on each device."""


def check(config: Config) -> None:
    """Raise ValueError for flags that are not usable."""
    least = {
        1: ("steps", "k", "chunk", "components"),
        2: ("probes", "likelihood_examples", "likelihood_steps"),
        5: ("groups",),
    }
    # Two examples a group, for the jackknife, and k neighbours.
    smallest = max(2 * config.groups, config.k + 1)
    least[smallest] = (*least.get(smallest, ()), "samples", "reference", "pairs")
    for minimum, names in least.items():
        for name in names:
            if getattr(config, name) is not None:
                dj.checks.integer(name, getattr(config, name), minimum)
    dj.checks.integer("seed", config.seed, 0, None)
    if config.likelihood_error is not None:
        dj.checks.positive("likelihood_error", config.likelihood_error)
    if config.solver not in solvers.SOLVERS:
        raise ValueError(
            f"solver must be one of {', '.join(solvers.SOLVERS)}, got {config.solver!r}"
        )


def check_counts(config: Config, data: Dataset) -> None:
    """Raise ValueError unless there are enough examples for the flags."""
    smallest = max(2 * config.groups, config.k + 1)
    if min(len(data.stored_test), len(data.stored_train)) < smallest:
        raise ValueError(
            f"run must have at least {smallest} training and held-out examples for "
            f"{config.groups} groups and k = {config.k} neighbours; {data.sizes}. "
            "Train on more images, or give fewer --groups and a smaller --k"
        )


def chunk_of(config: Config) -> int:
    """Examples at a time, on all devices together."""
    return config.chunk * devices.mesh().size


def draw(run: Run, config: Config, count: int) -> np.ndarray:
    """Draw samples, on all devices. Sample i depends on the seed and i alone.

    Args:
      run: The run.
      config: The flags.
      count: Number of samples.

    Returns:
      (count, *shape), rounded to the levels of lattice data.

    Raises:
      FloatingPointError: If a sample is not finite.
    """
    data, schedule = run.model.data, run.model.schedule
    return sampling.draw(
        sampling.by_name(schedule, config.solver, config.steps, data.shape),
        (run.denoiser, jax.random.key(config.seed)),
        (np.arange(count),),
        data,
        chunk=chunk_of(config),
        label=f"samples by {config.solver}, {config.steps} steps",
        unit="sample",
    )


def score(run: Run, config: Config) -> dict[str, Any]:
    """The score of the test examples, see `scoring.score`."""
    return scoring.score(
        jax.random.key(config.seed + 1),
        run.model.data,
        run.model.schedule,
        run.denoiser,
        steps=config.likelihood_steps,
        probes=config.probes,
        chunk=chunk_of(config),
        examples=config.likelihood_examples,
        error=config.likelihood_error,
    )


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of the samples, the held-out and the training images.

    Attributes:
      samples: (n, D).
      held_out: (H, D).
      reference: Those of the training images.
      rows: Their indices in the training set.
    """

    samples: np.ndarray
    held_out: np.ndarray
    reference: measures.Reference
    rows: np.ndarray


def measure_features(
    config: Config, run: Run, drawn: np.ndarray, extract: Any
) -> Features:
    """Compute the features of all images.

    Args:
      config: The flags.
      run: The run.
      drawn: The samples.
      extract: As `features.extractor` returns it.

    Returns:
      The features.
    """
    data = run.model.data
    order = np.random.default_rng(config.seed).permutation(len(data.stored_train))
    rows = np.sort(order[: config.reference])

    def features(x, name, scale):
        label, chunk = f"features of {name}", chunk_of(config)
        return networks.features_of(extract, x, scale=scale, label=label, chunk=chunk)

    chosen = training.Rows(data.stored_train, rows)
    train = features(chosen, "training images", data.scaled)
    shuffled = np.random.default_rng(config.seed + 1).permutation(len(rows))
    components = config.components
    if components is None and config.features == "pixels":
        components = measures.PIXEL_COMPONENTS
    return Features(
        features(drawn, "samples", lambda x: x),
        features(data.stored_test, "held-out images", data.scaled),
        measures.reference_of(train[shuffled], components, config.seed),
        rows[shuffled],
    )


def compare(
    config: Config, values: Features
) -> dict[str, tuple[dict[str, float], metrics.Extrapolation]]:
    """`measures.distances` of the samples and of held-out images, by set.

    Where there are more samples than held-out images, as many samples as these
    are a set of their own.
    """
    count = len(values.held_out)
    sets = {"samples": values.samples, "held-out": values.held_out}
    if len(values.samples) > count:
        sets = {"samples": values.samples, f"{count} samples": values.samples[:count]}
        sets["held-out"] = values.held_out
    dimension = values.reference.moments.mean.size
    least = min(map(len, sets.values()))
    if least < 2 * dimension:
        print(
            f"warning: {least} images for {dimension} features; corrected Fréchet "
            "distances and their errors need several times as many"
        )
    settings = {"groups": config.groups, "pairs": config.pairs, "k": config.k}
    return {
        name: measures.distances(features, values.reference, **settings)
        for name, features in sets.items()
    }


def draw_figures(
    config: Config, run: Run, drawn: np.ndarray, values: Features, out: pathlib.Path
) -> None:
    """Draw the images and the samples' nearest training images, if they are images.

    Args:
      config: The flags.
      run: The run.
      drawn: The samples.
      values: The features of all images.
      out: The folder.
    """
    data = run.model.data
    if not data.is_image:
        return
    # Stored examples may be sorted.
    order = np.random.default_rng(config.seed).permutation(len(data.stored_test))
    mixed = np.asarray(data.scaled(data.stored_test[np.sort(order[:64])]))
    figures.draw_images({"held-out": mixed, "samples": drawn}, data.limits, out)
    few = values.samples[: config.pairs]
    reference = values.reference.features
    indices, gaps = map(
        np.asarray, metrics.nearest_neighbours(few, reference, min(3, len(reference)))
    )
    shown = np.argsort(gaps[:, 0], kind="stable")[:12]
    nearest = data.loaded(data.stored_train, values.rows[indices[shown]])
    figures.draw_neighbours(drawn[shown], nearest, data.limits, out)


def run(config: Config) -> dict[str, Any]:
    """Sample, measure and draw.

    Returns:
      The metrics, which are also in OUT/metrics.json.
    """
    clock = cli.Clock()
    check(config)
    opened = open_run(config.run)
    data = opened.model.data
    check_counts(config, data)
    # Before the samples, which take long.
    extract = networks.extractor(config.features, config.weights, data)
    config = dataclasses.replace(config, out=config.out or config.run / "evaluate")
    out = files.start(config)
    print(f"{opened.experiment}, {data.sizes}")
    drawn = draw(opened, config, config.samples or len(data.stored_test))
    clock.lap("samples")
    values = measure_features(config, opened, drawn, extract)
    clock.lap("features")
    print(f"distances to {len(values.rows)} training images ...", flush=True)
    compared = compare(config, values)
    clock.lap("distances")
    copying = measures.memorisation(
        values.samples[: config.pairs], values.reference, values.held_out
    )
    clock.lap("memorisation")
    columns = {name: numbers for name, (numbers, _) in compared.items()}
    results: dict[str, Any] = {"sets": columns, "memorisation": copying}
    if config.bits:
        results |= score(opened, config)
        clock.lap("score")
    lines = {name: line for name, (_, line) in compared.items()}
    title = f"{config.run.name}, {config.features}"
    figures.draw_extrapolation(lines, title, out)
    draw_figures(config, opened, drawn, values, out)
    clock.lap("figures")
    results["seconds"] = clock.laps
    files.write_results(out, results)
    print_results(results)
    return results


def print_results(results: dict[str, Any]) -> None:
    """Print the tables with their units, and the other numbers."""
    cli.print_table(results["sets"], "compared with training images", measures.UNITS)
    cli.print_table(results["memorisation"], "memorisation", measures.COPYING_UNITS)
    print(
        "above the expected share or probability: samples like training images, "
        "copies perhaps. Below: farther from them than held-out images are"
    )
    cli.print_results({k: v for k, v in results.items() if not isinstance(v, dict)})


if __name__ == "__main__":
    cli.main(run, Config, __doc__)
