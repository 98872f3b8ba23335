"""Which distribution does guidance sample, exactly and on digits as an
independent classifier reads them?

    python -m experiments.guidance [--scales 0 1 2 4 8] [--out DIR] [--seed N]
    python -m experiments.guidance --data images.npz      (arrays x, integer labels y)

Exact part (`densities.png`): the guided flow and SDE of two Gaussians and of a
two-class mixture beside the tilted density p(y|x)^γ p(x), whose guided score
they follow. For γ > 1 neither samples it.

Data part: trains a class-conditional denoiser whose condition is dropped at
random, a weaker one of the same kind and a classifier of noisy inputs. Draws
every class by classifier-free and by classifier guidance at several scales,
and by the other kinds of guidance at one.

A support vector machine fitted to clean examples says how often a sample is
recognised as its class (accuracy.png, samples.png, variants.png). Beside that
stands the Fréchet distance to the test set, where "train" is that of as many
training examples. A run on the same OUT resumes.

Hardware and time: about 4 minutes on 2 CPU cores, 90 seconds of them training
the denoiser.

Expect variances of the guided Gaussian at γ = 2 near 1/16 (flow) and 7/64
(SDE) where the tilted density has 1/7. On digits at least 97 % of the
classifier-free samples of scale 2 are recognised, about 95 % at scale 1. The
Fréchet distance is least there, 1.1. At scale 4 it is 4.8, which CFG++ and a
limited interval reduce to 2 and 3.

The classifier of noisy inputs is not exact, and needs scale 4 for 99 %.
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from diffjax import guidance, losses, metrics, solvers
from experiments.guidance import classifiers
from experiments.guidance import exact as guidance_exact
from experiments.guidance import figures as guidance_figures
from experiments.shared import cli, datasets, devices, files, training
from experiments.shared.schedules import with_noise_floor
from experiments.shared.training import DenoiserModel

Variant = Literal[
    "limited",
    "rescaled",
    "static_threshold",
    "dynamic_threshold",
    "autoguidance",
    "cfg_plus_plus",
    "ddim",
]
VARIANTS = get_args(Variant)
"""Kinds beside plain classifier-free guidance. ddim is the plain one with the
solver of CFG++.
"""

RESCALE, QUANTILE, CFG_PLUS_PLUS = 0.7, 0.95, 0.6
"""φ of the rescaled variant, quantile of the dynamic threshold, λ of CFG++."""


@dataclasses.dataclass(frozen=True)
class Config(training.Training):
    """Guide towards classes, exactly and on data."""

    out: pathlib.Path = pathlib.Path("runs/guidance")
    """Folder for config.json, metrics.json, figures and checkpoints. A run on the
    same folder resumes.
    """
    data: str = "digits"
    """"digits", or the path of an .npz file with examples x (N, ...) and integer
    labels y (N,).
    """
    steps: int = 800
    """Training steps."""
    drop: float = 0.15
    """Probability that a training example's label is dropped, from which the
    unconditional denoiser is learnt.
    """
    classifier_steps: int = 1500
    """Training steps of the classifier of noisy inputs."""
    weak_width: int = 48
    """Features of the weaker network for autoguidance."""
    weak_depth: int = 2
    """Blocks of the weaker network."""
    weak_steps: int = 200
    """Training steps of the weaker network."""
    kinds: tuple[Literal["classifier_free", "classifier"], ...] = (
        "classifier_free",
        "classifier",
    )
    """Guidances that are drawn at every scale."""
    scales: tuple[float, ...] = (0.0, 1.0, 2.0, 4.0, 8.0)
    """Guidance scales γ on data: (1 − γ) D_u + γ D_c. 0 is unguided, 1
    conditional. The exact part has a list that is fixed.
    """
    samples: int = 500
    """Samples at each scale, the classes in turn."""
    labels: tuple[int, ...] = ()
    """Classes to draw. Default: all."""
    sampling_steps: int = 24
    """Steps of unipc(3), uniform in log-SNR, before the last to noise 0, each of
    one evaluation.
    """
    variants: tuple[Variant, ...] = VARIANTS
    """Other kinds of classifier-free guidance, drawn at --variant-scale."""
    variant_scale: float = 4.0
    """Scale γ of the variants."""
    interval: tuple[float, float] = (0.1, 0.4)
    """Times between which the limited variant guides. 0.1 has σ/α = 0.34 and 0.4
    has 2.2.
    """
    exact: bool = True
    """Whether to run the part on exact distributions."""
    exact_samples: int = 20_000
    """Samples of each exact distribution, 2048 or more."""
    chunk: int = 250
    """Examples at a time in sampling."""


_FIELDS = ("data", "drop", "classifier_steps", "weak_width", "weak_depth", "weak_steps")
"""Flags that a run's checkpoints belong to, beside `training.FIELDS`."""


# ------------------------------------------------------------- what is trained


class Networks(NamedTuple):
    """The networks that guide.

    They are D(x, t) unconditionally and D(x, t, label), a weaker pair, log
    p(label | x_t), and the null label. A network that no selected guidance
    needs is None.
    """

    denoiser: Any
    weak: Any
    log_prob_y: Any
    null: Any


def make_model(config: Config, data: datasets.Dataset) -> DenoiserModel:
    """Make the class-conditional model that the flags select, on the linear VP
    schedule.
    """
    floor = 0.01 if data.levels is None else data.spacing / 6
    module = training.make_module(config, data, data.classes)
    return DenoiserModel(
        data,
        with_noise_floor("vp", floor),
        module,
        "edm" if data.levels is None else "levels",
    )


def conditional_loss(
    model: DenoiserModel, drop: float, dropout: bool, params: Any, key: Any, batch: Any
) -> Any:
    """The denoising loss of a batch (x_0, labels) (Ho & Salimans 2021).

    Each label is dropped with probability `drop`.
    """
    x0, labels = batch
    key_drop, key_loss = jax.random.split(key)
    null = jnp.asarray(model.data.classes, labels.dtype)
    kept = jax.vmap(guidance.drop_condition, (0, 0, None, None))(
        jax.random.split(key_drop, len(x0)), labels, null, drop
    )
    return losses.batch_loss(
        key_loss,
        model.denoiser(params),
        x0,
        kept,
        weighting="edm",
        times="log_normal",
        dropout=dropout,
    )[0]


def train(
    config: Config, model: DenoiserModel, out: pathlib.Path
) -> tuple[Networks, np.ndarray]:
    """Train the networks, resuming from the checkpoints in `out`.

    Returns:
      (networks, the denoiser's loss of every step).
    """
    data, null = model.data, jnp.asarray(model.data.classes, jnp.int32)
    arrays = (data.train, data.train_labels)

    def fit_denoiser(config, model, label, name=""):
        loss = functools.partial(
            conditional_loss, model, config.drop, config.dropout > 0
        )
        params, history = training.fit(
            config,
            out,
            loss,
            lambda key: model.init(key, null),
            arrays=arrays,
            fields=_FIELDS,
            label=f"training {label}",
            name=name,
        )
        return model.denoiser(params), history

    denoiser, history = fit_denoiser(config, model, "the denoiser")
    weak = None
    if "autoguidance" in config.variants:
        small = dataclasses.replace(
            config,
            width=config.weak_width,
            depth=config.weak_depth,
            steps=config.weak_steps,
        )
        weak, _ = fit_denoiser(
            small, make_model(small, data), "the weaker denoiser", "weak_"
        )
    log_prob_y = None
    if "classifier" in config.kinds:
        classifier = classifiers.NoisyClassifier(
            data, model.schedule, classifiers.ClassifierNetwork(data.classes)
        )
        longer, label = (
            dataclasses.replace(config, steps=config.classifier_steps),
            "training the noisy classifier",
        )
        fitted, _ = training.fit(
            longer,
            out,
            classifier.loss,
            classifier.init,
            arrays=arrays,
            fields=_FIELDS,
            label=label,
            name="classifier_",
        )
        log_prob_y = jax.tree_util.Partial(classifier.log_prob, fitted)
    # Each `fit` wrote the configuration of its network. This is that of the
    # whole run.
    files.write_config(out, config)
    return Networks(denoiser, weak, log_prob_y, null), history


# --------------------------------------------------------------------- samples


class Sampler(NamedTuple):
    """A guided denoiser with a solver and its grid."""

    denoiser: Any
    solver: solvers.Solver
    grid: Any


def samplers(
    config: Config, model: DenoiserModel, networks: Networks
) -> dict[str, Callable[[float], Sampler]]:
    """A function scale -> Sampler for each kind of guidance."""
    schedule, (denoiser, weak, log_prob_y, null) = model.schedule, networks
    grid = dj.grids.to_zero(dj.grids.log_snr(schedule, config.sampling_steps))

    def free(scale: Any, **extra: Any) -> Any:
        return guidance.classifier_free_batched(denoiser, None, null, scale, **extra)

    def by(
        make: Callable[[float], Any], solver: Any = None
    ) -> Callable[[float], Sampler]:
        return lambda scale: Sampler(make(scale), solver or solvers.unipc(3), grid)

    return {
        "classifier_free": by(free),
        "classifier": by(
            lambda scale: guidance.classifier(schedule, denoiser, log_prob_y, scale)
        ),
        "limited": by(
            lambda scale: guidance.limited(
                schedule, free(scale), free(1.0), config.interval
            )
        ),
        "rescaled": by(lambda scale: free(scale, rescale=RESCALE)),
        "static_threshold": by(
            lambda scale: guidance.static_threshold(free(scale), *_range(model.data))
        ),
        "dynamic_threshold": by(
            lambda scale: guidance.dynamic_threshold(
                free(scale), QUANTILE, max(map(abs, _range(model.data)))
            )
        ),
        "autoguidance": by(lambda scale: guidance.autoguidance(denoiser, weak, scale)),
        "cfg_plus_plus": by(
            lambda scale: free(
                guidance.cfg_plus_plus_scale(schedule, grid, CFG_PLUS_PLUS)
            ),
            solvers.ddim(),
        ),
        "ddim": by(free, solvers.ddim()),
    }


def _range(data: datasets.Dataset) -> tuple[float, float]:
    return float(data.train.min()), float(data.train.max())


def draw(
    config: Config, model: DenoiserModel, sampler: Sampler, labels: np.ndarray
) -> np.ndarray:
    """One sample per label, (N, *shape), every kind and scale from the same
    starts.
    """
    return devices.on_host(
        dj.sample_many(
            jax.random.key(config.seed + 1),
            len(labels),
            sampler.denoiser,
            model.schedule,
            solver=sampler.solver,
            grid=sampler.grid,
            shape=model.data.shape,
            condition=jnp.asarray(labels, jnp.int32),
            chunk=config.chunk,
            mesh=devices.mesh(),
        )
    )


# --------------------------------------------------------------------- numbers


class Judges(NamedTuple):
    """Two classifiers of samples.

    Attributes:
      train: Fitted to the training set, tested on the test set.
      held_out: The other way round.
    """

    train: classifiers.Judge
    held_out: classifiers.Judge


def make_judges(data: datasets.Dataset) -> Judges:
    """Two support vector machines. The second saw no example that a network was
    trained on.
    """
    train, test = (data.train, data.train_labels), (data.test, data.test_labels)
    return Judges(
        classifiers.make_judge(train, test), classifiers.make_judge(test, train)
    )


def measure(
    judges: Judges, data: datasets.Dataset, xs: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
    """Measure samples: how many are recognised, and how far they are from the
    test set.

    Returns:
      Share recognised and its standard error, that by the other judge, Fréchet
        distance, range.
    """
    recognised = judges.train.recognised(xs, labels)
    # Smoothed: where all are recognised a standard error of 0 would be false.
    smoothed = (recognised.sum() + 1) / (len(xs) + 2)
    return {
        "accuracy": float(recognised.mean()),
        "accuracy_standard_error": float(np.sqrt(smoothed * (1 - smoothed) / len(xs))),
        "accuracy_by_held_out_judge": float(
            judges.held_out.recognised(xs, labels).mean()
        ),
        "frechet_distance": float(metrics.frechet_distance(xs, data.test)),
        "greatest_value": float(np.abs(xs).max()),
    }


def compare(
    config: Config, model: DenoiserModel, networks: Networks, judges: Judges
) -> tuple[list[dict], dict, np.ndarray]:
    """Draw and measure both guidances at every scale, and every variant at its
    scale.

    Returns:
      (rows, samples by (kind, scale), labels).
    """
    data, makers = model.data, samplers(config, model, networks)
    classes = config.labels or tuple(range(data.classes))
    labels = np.resize(np.array(classes), config.samples)
    asked = [(kind, scale) for kind in config.kinds for scale in config.scales]
    asked += [(kind, config.variant_scale) for kind in config.variants]
    rows, drawn = [], {}
    with cli.progress(len(asked), label="sampling", unit="set") as bar:
        for kind, scale in asked:
            bar.set_postfix_str(f"{kind} {scale:g}")
            began = time.perf_counter()
            xs = drawn[kind, scale] = draw(config, model, makers[kind](scale), labels)
            seconds = round(time.perf_counter() - began, 1)
            rows.append(
                {
                    "kind": kind,
                    "scale": scale,
                    **measure(judges, data, xs, labels),
                    "seconds": seconds,
                }
            )
            bar.update()
    return rows, drawn, labels


def references(
    config: Config, data: datasets.Dataset, judges: Judges
) -> dict[str, Any]:
    """Results for real examples: the judges' test accuracies, and the distance of
    training examples.
    """
    few = np.random.default_rng(config.seed).permutation(len(data.train))[
        : config.samples
    ]
    return {
        "judge_test_accuracy": judges.train.accuracy,
        "held_out_judge_test_accuracy": judges.held_out.accuracy,
        "frechet_distance_train": float(
            metrics.frechet_distance(data.train[few], data.test)
        ),
    }


def print_rows(rows: list[dict], real: dict[str, Any]) -> None:
    """Print the table of all kinds and scales."""
    print(
        f"\n{'guidance':20}{'scale':>6}{'recognised':>18}{'held-out judge':>16}"
        f"{'Fréchet':>9}{'max |x|':>9}"
    )
    for row in rows:
        scale = (
            f"λ={CFG_PLUS_PLUS:g}"
            if row["kind"] == "cfg_plus_plus"
            else f"{row['scale']:g}"
        )
        accuracy, error = (
            100 * row[name] for name in ("accuracy", "accuracy_standard_error")
        )
        accuracy = f"{accuracy:.1f} ± {error:.1f} %"
        print(
            f"{row['kind']:20}{scale:>6}{accuracy:>18}"
            f"{100 * row['accuracy_by_held_out_judge']:14.1f} %"
            f"{row['frechet_distance']:9.2f}{row['greatest_value']:9.2f}"
        )
    print(
        f"{'real examples':20}{'':6}{100 * real['judge_test_accuracy']:16.1f} %"
        f"{100 * real['held_out_judge_test_accuracy']:14.1f} "
        f"%{real['frechet_distance_train']:9.2f}"
    )


# ------------------------------------------------------------------------ main


def check(config: Config) -> None:
    """Raise ValueError for flags that are not usable."""
    training.check(config)
    for name in (
        "classifier_steps",
        "weak_width",
        "weak_depth",
        "weak_steps",
        "sampling_steps",
        "chunk",
    ):
        dj.checks.integer(name, getattr(config, name), 1)
    dj.checks.integer("samples", config.samples, 2)
    dj.checks.integer("exact_samples", config.exact_samples, guidance_exact.COMPARED)
    dj.checks.within("drop", config.drop, 0.01, 0.99)
    for name in ("scales", "kinds"):
        if not getattr(config, name):
            raise ValueError(f"{name} must hold at least one, got none")
    for scale in config.scales:
        dj.checks.non_negative("scales", scale)
    dj.checks.non_negative("variant_scale", config.variant_scale)


def check_against(config: Config, model: DenoiserModel) -> None:
    """Raise ValueError for flags that do not fit the data or the schedule.

    These are labels that are no classes of the data, sets of one class, and an
    interval outside of the schedule.
    """
    for label in config.labels:
        dj.checks.integer("labels", label, 0, model.data.classes - 1)
    for part, count in (
        ("training", model.data.train_labels),
        ("test", model.data.test_labels),
    ):
        if len(np.unique(count)) < 2:
            raise ValueError(
                f"data must hold several classes in the {part} set, by which samples "
                f"are judged, {model.data.name} has "
                f"{len(np.unique(count))} among {len(count)} examples there; change "
                "held_out or seed"
            )
    guidance.limited(model.schedule, lambda x, t: x, lambda x, t: x, config.interval)


def run(config: Config) -> dict[str, Any]:
    """Run both parts.

    Returns:
      The metrics, which are also in OUT/metrics.json.
    """
    began = time.perf_counter()
    check(config)
    data = datasets.open_dataset(
        config.data, config.held_out, config.seed, least_test=2
    )
    model = make_model(config, data)
    check_against(config, model)
    out = files.open_folder(config)
    print(f"{data.sizes} of {data.classes} classes")
    results: dict[str, Any] = {}
    if config.exact:
        results["exact"] = guidance_exact.run(out, config.seed, config.exact_samples)
    started = time.perf_counter()
    networks, history = train(config, model, out)
    trained = time.perf_counter()
    judges = make_judges(data)
    rows, drawn, labels = compare(config, model, networks, judges)
    real = references(config, data, judges)
    training.draw_loss(
        history, "loss, edm weighting", f"Training, {config.data}", out / "loss.png"
    )
    guidance_figures.draw(data, rows, drawn, labels, real, out)
    results |= {"rows": rows, **real}
    results |= {
        "seconds_exact": round(started - began, 1),
        "seconds_training": round(trained - started, 1),
        "seconds_total": round(time.perf_counter() - began, 1),
    }
    files.write_results(out, results)
    print_rows(rows, real)
    return results


if __name__ == "__main__":
    cli.main(run, Config, __doc__)
