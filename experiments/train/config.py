"""The flags of `experiments.train`, and the checks of their values."""

import dataclasses
import inspect
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import jax

import diffjax as dj
from diffjax import training
from diffjax.losses import times, weights
from experiments.shared import devices, schedules, solvers
from experiments.shared.training import Optimisation, check_optimisation

PresetName = Literal["patches32", "digits_best", "cifar10", "imagenet64", "latents32"]

NetworkName = Literal[
    "ddpmpp",
    "adm",
    "unet",
    "dit",
    "mlp",
    "dit_s_2",
    "dit_s_4",
    "dit_s_8",
    "dit_b_2",
    "dit_b_4",
    "dit_b_8",
    "dit_l_2",
    "dit_l_4",
    "dit_l_8",
    "dit_xl_2",
    "dit_xl_4",
    "dit_xl_8",
    "edm2",
    "edm2_xs",
    "edm2_s",
    "edm2_m",
    "edm2_l",
    "edm2_xl",
    "edm2_xxl",
]
"""Networks by name. Those with a size have the published one."""

TIMES: dict[str, Callable[..., Any]] = {
    "log_normal": times.log_normal,
    "logit_normal": times.logit_normal,
    "log_snr": times.log_snr,
    "uniform": times.uniform,
}
"""The distribution of the training times by its flag."""

WEIGHTS: dict[str, Callable[..., Any]] = {
    "edm": weights.edm,
    "likelihood": weights.likelihood,
    # That of the network's own error, whatever it predicts, has no function.
    "uniform": lambda: "uniform",
    "simple": weights.simple,
    "min_snr": weights.min_snr,
    "p2": weights.p2,
    "sigmoid": weights.sigmoid,
}
"""The weight of the error by its flag."""


@dataclasses.dataclass(frozen=True)
class Config(Optimisation):
    """Train a diffusion of images, with the values of a preset as defaults."""

    preset: PresetName = "patches32"
    """Defaults of all other flags. `--preset NAME --help` shows them."""
    out: pathlib.Path = pathlib.Path("runs/train")
    """Folder for config.json, metrics.json, metrics.jsonl, figures and
    checkpoints. A run on the same folder resumes.
    """
    tensorboard: bool = False
    """Whether to write the metrics for TensorBoard too, in OUT/tensorboard."""

    # ---- data

    data: str = "patches32"
    """"patches32", "patches64", "digits", an .npy or .npz file (N, H, W, C), a
    folder of images, or "random" for noise, with which speed is measured.
    """
    size: int | None = None
    """Side to which the images of a folder are cut and reduced."""
    held_out: int = 1564
    """Test images, which are held out of training, at random (at most a quarter of
    a file)."""
    validation: int = 0
    """Training images that take the place of the test images, at random, to choose
    settings by them. The test images are then not used.
    """
    random_shape: tuple[int, int, int] = (32, 32, 3)
    """Shape of an example of random data."""
    random_classes: int = 10
    """Classes of random data."""
    labels: bool = False
    """Whether the network is conditioned on the class of an image."""
    label_dropout: float = 0.1
    """Probability that a label is left out in training. Guidance, and scores
    without a class, need it.
    """
    augment: Literal["none", "flip", "edm", "digits"] = "none"
    """Changes of training images. flip: mirrored half of the time. edm: EDM's
    non-leaking ones. digits: small affine maps, rounded to the levels. The
    parameters of edm and digits condition the network, and are 0 in samples.
    """
    augment_probability: float = 0.12
    """Probability of each group of changes of edm, and of a change of digits."""

    # ---- network

    network: NetworkName = "ddpmpp"
    """Network."""
    width: int | None = None
    """Features of the network. None for the network's own default."""
    depth: int | None = None
    """Blocks of a transformer or MLP, blocks per resolution of a U-Net. None for
    the network's own default.
    """
    multipliers: tuple[int, ...] | None = None
    """Factors of the width of a U-Net, from the full resolution down."""
    attention_resolutions: tuple[int, ...] | None = None
    """Resolutions of a U-Net that have attention: 0 for the full one, 1 for half
    of it, and so on.
    """
    patch: int | None = None
    """Side of a patch of the transformer dit."""
    heads: int | None = None
    """Attention heads of dit or unet."""
    head_channels: int | None = None
    """Channels of an attention head of ddpmpp, adm or edm2."""
    dropout: float = 0.1
    """Dropout probability in training."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the network's arithmetic. State, averages, loss and solver
    stay in float32.
    """
    remat: Literal["none", "blocks", "dots"] = "none"
    """Activations that the backward pass computes again to save memory: none, all
    of a block, or all but those of dense layers and convolutions.
    """

    # ---- objective

    prediction: Literal[
        "auto", "edm", "v", "noise", "data", "velocity", "score", "levels"
    ] = "auto"
    """Prediction of the network. auto is a softmax over levels where they are
    few, else EDM's preconditioning.
    """
    schedule: schedules.ScheduleName = "edm"
    """Noise schedule."""
    noise_floor: float | None = None
    """Least σ/α of the schedule, in units of the scaled data. Default: a sixth of
    the levels' spacing, or 0.002 for other data.
    """
    times: Literal["log_normal", "logit_normal", "log_snr", "uniform"] = "log_normal"
    """Distribution of the training times: of log σ/α, of the logit of a rectified
    flow's time, uniform in log-SNR, or in t.
    """
    times_mean: float | None = None
    """Mean of log_normal (default -1.2) or logit_normal (0)."""
    times_std: float | None = None
    """Standard deviation of log_normal (default 1.2) or logit_normal (1)."""
    times_shift: float = 1.0
    """Factor of σ/α at all training times. Above 1 for more noise."""
    weighting: Literal[
        "edm", "likelihood", "uniform", "simple", "min_snr", "p2", "sigmoid"
    ] = "edm"
    """Weight of the loss over noise levels."""
    weighting_parameter: float | None = None
    """γ of min_snr (default 5) and of p2 (1), or the bias of sigmoid (-2)."""
    uncertainty: bool = False
    """Whether a function u(σ), trained with the network, scales the loss of each
    noise level to the same size.
    """

    # ---- optimisation

    learning_rate: float = 1e-3
    """Peak learning rate."""
    warmup: int | None = None
    """Steps of the linear warm-up. Default: a tenth of all."""
    decay: Literal["cosine", "inverse_sqrt", "constant"] = "cosine"
    """Decay of the learning rate after the warm-up: to 0 at the last step, as
    1/√step from --decay-after on, or none.
    """
    decay_after: int | None = None
    """Step at which the decay inverse_sqrt begins."""
    beta_2: float = 0.999
    """Decay of Adam's second moment."""
    weight_decay: float = 0.0
    """Decay of the weights, times the learning rate."""
    clip_norm: float | None = 1.0
    """Greatest norm of the gradient. None for no clipping."""
    accumulate: int = 1
    """Micro-batches of which a batch is made, one after the other."""
    averages: tuple[float, ...] = ()
    """Relative lengths of power-function averages kept beside the average of
    --ema-decay, such as 0.05 0.10. Any other length follows from their snapshots.
    """
    snapshot_every: int | None = None
    """Steps between snapshots of these averages, at checkpoints alone. Default: a
    hundredth of all, --save-every at least.
    """

    # ---- evaluation during training

    evaluate_every: int | None = 500
    """Steps between evaluations. None for none."""
    evaluate_examples: int = 256
    """Held-out images whose loss is measured, at fixed times and noise."""
    evaluate_samples: int = 16
    """Samples drawn for the grid of each evaluation, from fixed seeds."""
    evaluate_frechet: int = 0
    """Samples drawn at each evaluation for the Fréchet distance of pixels to
    held-out images. 0 for none.
    """

    # ---- at the end

    final: Literal["last", "best"] = "last"
    """Whether the last average or that of least held-out loss is sampled and
    scored. The score of the best on these images is then optimistic.
    """
    average: float | None = None
    """Relative length of the power-function average that is sampled and scored.
    Default: the average of --ema-decay.
    """
    guidance: float = 1.0
    """Scale of classifier-free guidance in samples. 1 for none."""
    samples: int | None = None
    """Samples drawn at the end. None for 447, or fewer where images are large. 0
    for no samples.
    """
    solver: str = "unipc(3)"
    """Solver of the samples, by its name in docs/pages/solvers/reference.md."""
    solver_steps: int = 32
    """Steps of the solver, before the last to noise 0."""
    likelihood_examples: int | None = None
    """Held-out images scored at most. None for all, or fewer where images are
    large. 0 for no score.
    """
    likelihood_error: float | None = None
    """Stop scoring at this standard error over images, in bits/dim."""
    likelihood_steps: int | None = None
    """Runge-Kutta steps of the score, of four evaluations each. None for 96 for 8-bit
    images, else 16.
    """
    bound_times: int = 32
    """Noise levels of the variational bound of an image. 0 for no bound."""
    probes: int = 2
    """Hutchinson probes of the score per image."""
    chunk: int | None = None
    """Images at a time, on all devices, in sampling and scoring, which no result
    depends on. Default: as suits their size and the device.
    """


FREE = {
    *("preset", "out", "tensorboard", "save_every", "snapshot_every", *devices.NAMES),
    *("evaluate_every", "evaluate_examples", "evaluate_samples", "evaluate_frechet"),
    *("final", "average", "guidance", "samples", "solver", "solver_steps", "chunk"),
    *("likelihood_examples", "likelihood_error", "likelihood_steps", "bound_times"),
    "probes",
}
"""Flags that may change when a run resumes. The checkpoints belong to the others."""

_AT_LEAST = {
    0: ("validation", "evaluate_samples", "bound_times", "likelihood_examples"),
    1: (
        *("accumulate", "chunk", "evaluate_every", "evaluate_examples", "warmup"),
        *("size", "random_classes", "snapshot_every", "decay_after", "devices"),
    ),
    2: ("held_out", "probes", "likelihood_steps", "solver_steps"),
}


def check(config: Config) -> None:
    """Raise ValueError or TypeError for values of the flags that are not usable."""
    check_optimisation(config)
    for least, names in _AT_LEAST.items():
        for name in names:
            if getattr(config, name) is not None:
                dj.checks.integer(name, getattr(config, name), least)
    shape = dj.checks.integer_tuple("random_shape", config.random_shape, 1, None)
    dj.checks.image("random_shape", shape)
    for name in ("dropout", "label_dropout", "augment_probability"):
        dj.checks.within(name, getattr(config, name), 0.0, 1.0)
    training.averages.lengths("averages", config.averages)
    _check_objective(config)
    _check_optimiser(config)
    _check_end(config)


def _check_objective(config):
    for name in ("times_mean", "times_std"):
        _require(
            getattr(config, name) is None or _has_parameters(TIMES[config.times]),
            f"{name} must be left out with times {config.times!r}, which has none",
        )
    if config.times_std is not None:
        dj.checks.positive("times_std", config.times_std)
    dj.checks.positive("times_shift", config.times_shift)
    others = [name for name, make in WEIGHTS.items() if _has_parameters(make)]
    _require(
        config.weighting_parameter is None or config.weighting in others,
        f"weighting_parameter must be left out with weighting {config.weighting!r}, "
        f"got {config.weighting_parameter}; {', '.join(others)} have one",
    )
    _require(
        not config.labels or config.label_dropout > 0,
        "label_dropout must be above 0 with labels: the score without a class, and "
        "guidance, need a network that was trained without them too",
    )
    dj.checks.number("guidance", config.guidance)
    _require(
        config.guidance == 1 or config.labels,
        f"guidance must be 1 without --labels, got {config.guidance}",
    )


def _has_parameters(make):
    return bool(inspect.signature(make).parameters)


def _check_optimiser(config):
    dj.checks.non_negative("weight_decay", config.weight_decay)
    if config.clip_norm is not None:
        dj.checks.positive("clip_norm", config.clip_norm)
    dj.checks.within("beta_2", config.beta_2, 0.0, 1.0)
    _require(config.beta_2 < 1, f"beta_2 must be below 1, got {config.beta_2}")
    _require(
        (config.decay == "inverse_sqrt") == (config.decay_after is not None),
        "decay_after must be given with decay 'inverse_sqrt', and with no other, got "
        f"{config.decay_after} with {config.decay!r}",
    )
    count = config.devices or jax.device_count()
    for name, part in (("accumulate", config.accumulate), ("devices", count)):
        _require(
            config.batch_size % part == 0,
            f"batch_size must be a multiple of {name}={part}, got {config.batch_size}",
        )


def _check_end(config):
    _require(
        config.solver in solvers.SOLVERS,
        f"solver must be one of {', '.join(solvers.SOLVERS)}, got {config.solver!r}",
    )
    # One sample has no covariance.
    for name in ("samples", "evaluate_frechet"):
        count = getattr(config, name)
        _require(
            count is None or count == 0 or count >= 2,
            f"{name} must be 0, or 2 or more, got {count}",
        )
    if config.likelihood_error is not None:
        dj.checks.positive("likelihood_error", config.likelihood_error)
    if config.average is not None:
        training.averages.lengths("average", (config.average,))
    _require(
        config.average is None or (config.averages and config.final == "last"),
        f"average must be left out without --averages, and with final {config.final!r}"
        f", got {config.average}",
    )
    every = config.evaluate_every
    _require(
        config.final == "last" or (every is not None and every <= config.steps),
        "evaluate_every must be given, and be at most the number of steps, for "
        f"final 'best', got {every}",
    )


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def belonging(config: Config) -> dict[str, Any]:
    """The flags that checkpoints belong to, by name."""
    return {k: v for k, v in dataclasses.asdict(config).items() if k not in FREE}
