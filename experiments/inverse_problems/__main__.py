"""Which posterior sampler is right on exact posteriors, and on digits half hidden
or downsampled?

    python -m experiments.inverse_problems [--model runs/score_sde] [--images 24]

Exact part (posteriors.png): a correlated Gaussian and two moons, one
coordinate observed with noise. The exact posterior's denoiser, ΠGDM, DPS by
its likelihood and by its paper's steps, replacement and RePaint are compared
with exact samples of the posterior: mean, covariance and energy distance.

Digits part: the denoiser of a run of `score_sde`, which is trained here where
the folder has none. Test images with their lower half hidden (inpainting.png)
or averaged over 2 × 2 pixels (downsampling.png), both with noise τ, are drawn
several times by each method.

For an exact posterior sampler the measurement residual ‖y − A x‖ is √D τ in
root mean square for the truth, and the error of a sample √2 times the spread
of the samples. A method that ends in y has residual 0. Beside them stands the
prior of the training images alone, whose posterior is exact.

Units: in `exact`, `mean`, `mean_error` and `energy_distance` are in data
units, `covariance` and `covariance_error` in squared ones. In `images`,
`error`, `mean_error` and `spread` are in units of pixels from −1 to 1,
`calibration` and `residual` are ratios. `seconds_after_training` is in
seconds. `operators` has shapes.

Hardware and time: about 2 minutes on 2 CPU cores, and the training of
`score_sde`, about 2, where there is none.

Expect in the exact part the exact denoiser at the floor and ΠGDM next. DPS by
its likelihood is far too narrow in x_1, and too far off in x_2. Replacement
lets y say too little about x_2 on the Gaussian: 0.75 for a mean of 1.15.

On digits expect errors of 0.65 in a hidden half and 0.45 of 2 × 2 means, 1.0
to 1.2 times √2 the spread. The training images alone are sure and wrong: 6.8
times.
"""

import dataclasses
import functools
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import diffjax as dj
from diffjax import grids, inverse, solvers
from experiments.inverse_problems import exact as inverse_exact
from experiments.score_sde import model as score_sde
from experiments.shared import cli, datasets, devices, files
from experiments.shared.figures import image_grid, save_figure
from experiments.shared.mapping import map_examples
from experiments.shared.training import DenoiserModel

TASKS = ("inpainting", "downsampling")
METHODS = {
    "pigdm": "ΠGDM",
    "dps_steps": "DPS, paper's steps",
    "dps": "DPS",
    "replacement": "replacement",
    "repaint": "RePaint",
}
"""Titles of the methods on images."""


@dataclasses.dataclass(frozen=True)
class Config(devices.Devices):
    """Sample posteriors of exact distributions and of digits."""

    out: pathlib.Path = pathlib.Path("runs/inverse_problems")
    """Folder for config.json, metrics.json and figures."""
    model: pathlib.Path = pathlib.Path("runs/score_sde")
    """Folder of a run of `score_sde` on images. It is trained with its default
    flags where there is none.
    """
    seed: int = 0
    """Seed of the measurement noise and of all samples."""
    tasks: tuple[Literal["inpainting", "downsampling"], ...] = TASKS
    """Measurements of images: the upper half of the rows, or means of 2 × 2 pixels."""
    methods: tuple[
        Literal["pigdm", "dps_steps", "dps", "replacement", "repaint"], ...
    ] = (
        "pigdm",
        "dps_steps",
        "dps",
        "replacement",
        "repaint",
    )
    """Posterior samplers of images."""
    noise_std: float = 0.1
    """Standard deviation τ of the measurement noise, in units of the scaled data,
    which span [−1, 1].
    """
    images: int = 24
    """Test images that are measured."""
    draws: int = 6
    """Posterior samples of each image by each method."""
    steps: int = 50
    """Steps of each solver, uniform in log-SNR, before the last to noise 0."""
    step_size: float = 1.0
    """Step size ζ of DPS by its paper's steps, on images."""
    repeats: int = 5
    """Times that RePaint takes each step."""
    exact: bool = True
    """Whether to run the part on exact posteriors."""
    exact_samples: int = 2000
    """Samples of each method on an exact problem."""
    exact_steps: int = 100
    """Steps of each solver on an exact problem."""
    chunk: int = 72
    """Samples at a time."""


# -------------------------------------------------------------------- problems


def open_model(folder: pathlib.Path) -> tuple[DenoiserModel, Any]:
    """Load the model and denoiser that `score_sde` trained into `folder`.

    Where there is no run, one is trained with the default flags.

    Raises:
      ValueError: If the run has other flags and was cut short, its data are no
        images, or its data have changed since.
    """
    wanted = score_sde.Config(out=folder)
    asked = _read(folder / "config.json") or files.as_dict(wanted)
    # On which devices a run was trained makes no difference.
    flags, defaults = (
        {name: value for name, value in values.items() if name not in devices.NAMES}
        for values in (asked, files.as_dict(wanted))
    )
    for name in (files.EXPERIMENT, score_sde.DESCRIPTION, score_sde.PREDICTION):
        flags.pop(name, None)
    if not _is_finished(folder, asked) and flags | {"out": str(folder)} == defaults:
        data = datasets.open_dataset(wanted.data, wanted.held_out, wanted.seed)
        same = dataclasses.replace(wanted, devices=devices.mesh().size)
        score_sde.train(same, score_sde.make_model(same, data), files.open_folder(same))
    if not _is_finished(folder, asked):
        raise ValueError(
            f"model must be a finished run, {folder} is not: run score_sde with its "
            "flags again"
        )
    model, denoiser = score_sde.load(folder, examples=True)
    if len(model.data.shape) != 3:
        raise ValueError(
            f"model must be of images (H, W, C), {folder} has examples of shape "
            f"{model.data.shape}"
        )
    return model, denoiser


def _read(path):
    cure = "run score_sde again with the flags that the model was trained with"
    return files.read_json(path, cure) if path.exists() else None


def _is_finished(folder, flags):
    """Whether as many losses are written as the flags have steps."""
    return len((_read(folder / "losses.json") or {}).get("loss", [])) >= flags["steps"]


def make_operator(task: str, shape: tuple[int, ...]) -> inverse.LinearOperator:
    """The measurement of one image of `shape`. Raises ValueError for odd sides in
    downsampling.
    """
    if task == "downsampling":
        return inverse.downsampling(shape, 2)
    mask = np.zeros(shape, bool)
    mask[: shape[0] // 2] = True
    return inverse.inpainting(mask)


class ImageMethod(NamedTuple):
    """A function y -> denoiser of an exact or approximate posterior, and the
    solver for it.
    """

    make: Callable[[Any], Any]
    solver: solvers.Solver


def methods(
    config: Config, model: DenoiserModel, denoiser: Any, operator: Any, grid: Any
) -> dict[str, ImageMethod]:
    """Every approximate method of `diffjax.inverse` for a trained denoiser."""
    schedule, tau = model.schedule, config.noise_std
    variance = inverse.gaussian_variance(schedule, model.data.spread)
    return {
        "pigdm": ImageMethod(
            lambda y: inverse.pigdm(
                schedule, denoiser, operator, y, noise_std=tau, variance=variance
            ),
            solvers.ddpm(),
        ),
        "dps_steps": ImageMethod(
            lambda y: inverse.dps_steps(
                schedule, denoiser, operator, y, grid=grid, step_size=config.step_size
            ),
            solvers.ddpm(),
        ),
        "dps": ImageMethod(
            lambda y: inverse.dps(schedule, denoiser, operator, y, noise_std=tau),
            solvers.ddpm(),
        ),
        "replacement": ImageMethod(
            lambda y: inverse.replacement(denoiser, operator, y), solvers.ddpm()
        ),
        "repaint": ImageMethod(
            lambda y: inverse.replacement(denoiser, operator, y),
            inverse.repaint(repeats=config.repeats),
        ),
    }


def measured(config: Config, operator: Any, images: np.ndarray) -> np.ndarray:
    """y = A x + τ n of each image."""
    clean = forward(operator, images)
    return clean + config.noise_std * np.asarray(
        jax.random.normal(jax.random.key(config.seed), clean.shape)
    )


def forward(operator: Any, xs: np.ndarray) -> np.ndarray:
    """A x of each of the images (N, *shape)."""
    return np.asarray(_forward(operator, xs))


@jax.jit
def _forward(operator, xs):
    return jax.vmap(operator.forward)(xs)


def draw(
    config: Config,
    model: DenoiserModel,
    denoiser: Any,
    operator: Any,
    ys: np.ndarray,
    name: str,
    label: str,
) -> Any:
    """Posterior samples by one method, (images, draws, *shape)."""
    grid = grids.to_zero(grids.log_snr(model.schedule, config.steps))

    def one(denoiser, key, y):
        method = methods(config, model, denoiser, operator, grid)[name]
        return dj.sample(
            key,
            method.make(y),
            model.schedule,
            solver=method.solver,
            grid=grid,
            shape=model.data.shape,
        )

    count = len(ys) * config.draws
    keys = jax.vmap(
        functools.partial(jax.random.fold_in, jax.random.key(config.seed + 1))
    )(jnp.arange(count))
    drawn = map_examples(
        one,
        denoiser,
        (keys, np.repeat(ys, config.draws, 0)),
        chunk=config.chunk,
        label=label,
    )
    return drawn.reshape(len(ys), config.draws, *model.data.shape)


# --------------------------------------------------------------------- numbers


def measure(
    operator: Any, noise_std: float, images: np.ndarray, ys: np.ndarray, xs: np.ndarray
) -> dict[str, float]:
    """Measure posterior samples xs (images, draws, *shape), with lengths in units
    of the scaled data.

    - error, mean_error: root mean square error of a sample and of the mean of
      the draws, per pixel that is not observed alone (of all pixels, where
      none is).
    - spread: standard deviation of the draws there.
    - calibration: error/(√2 spread), 1 for an exact posterior.
    - residual: ‖y − A x‖ in root mean square, over √D τ.
    """
    hidden = np.abs(
        forward(
            operator,
            np.eye(images[0].size, dtype=np.float32).reshape(-1, *images.shape[1:]),
        )
    )
    # A pixel that A copies is observed alone and does not count.
    hidden = hidden.reshape(images[0].size, -1).max(1) < 1
    flat = xs.reshape(*xs.shape[:2], -1)[..., hidden]  # (images, draws, hidden)
    truth = images.reshape(len(images), 1, -1)[..., hidden]
    root = lambda values: float(np.sqrt(np.mean(values)))
    error, spread = root((flat - truth) ** 2), root(flat.var(1, ddof=1))
    measured_again = forward(operator, xs.reshape(-1, *xs.shape[2:])).reshape(
        *xs.shape[:2], *ys.shape[1:]
    )
    misfit = (measured_again - ys[:, None]).reshape(*xs.shape[:2], -1)
    return {
        "error": error,
        "mean_error": root((flat.mean(1, keepdims=True) - truth) ** 2),
        "spread": spread,
        "calibration": error / (math.sqrt(2) * spread) if spread > 0 else math.inf,
        "residual": root(np.sum(misfit**2, -1))
        / (noise_std * math.sqrt(misfit.shape[-1])),
    }


def from_training_images(
    config: Config,
    operator: Any,
    data: datasets.Dataset,
    ys: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Draws (images, draws, *shape) of the exact posterior under the training
    images as prior.
    """
    clean = forward(operator, data.train).reshape(len(data.train), -1)
    distances = np.sum(
        (ys.reshape(len(ys), 1, -1) - clean) ** 2, -1
    )  # (images, training images)
    log_weights = -0.5 * distances / config.noise_std**2
    weights = np.exp(log_weights - log_weights.max(1, keepdims=True))
    chosen = [rng.choice(len(w), config.draws, p=w / w.sum()) for w in weights]
    return data.train[np.array(chosen)]


# ------------------------------------------------------------------------ main


def run_task(
    config: Config, model: DenoiserModel, denoiser: Any, task: str, out: pathlib.Path
) -> dict[str, dict[str, float]]:
    """Solve one measurement of the test images by every method, and draw the
    figure.

    Returns:
      The numbers by method.
    """
    data, operator = model.data, make_operator(task, model.data.shape)
    images = data.test[: config.images]
    ys = measured(config, operator, images)
    drawn = {
        METHODS[name]: draw(
            config, model, denoiser, operator, ys, name, f"{task}, {METHODS[name]}"
        )
        for name in config.methods
    }
    drawn["training images alone"] = from_training_images(
        config, operator, data, ys, np.random.default_rng(config.seed)
    )
    results = {
        name: measure(operator, config.noise_std, images, ys, xs)
        for name, xs in drawn.items()
    }
    residual = (forward(operator, images) - ys) / config.noise_std
    results["truth"] = {"residual": float(np.sqrt(np.mean(residual**2)))}
    save_figure(
        draw_task(config, data, operator, task, images, ys, drawn), out / f"{task}.png"
    )
    return results


def print_results(results: dict[str, dict[str, dict[str, float]]]) -> None:
    """Print one table per task."""
    for task, rows in results.items():
        print(
            f"\n{task:24}{'error':>8}{'of mean':>9}{'spread':>8}"
            f"{'error/√2 spread':>17}{'residual/√D τ':>15}"
        )
        for name, row in rows.items():
            cells = "".join(
                f"{row[key]:{width}.3f}" if key in row else " " * width
                for key, width in (
                    ("error", 8),
                    ("mean_error", 9),
                    ("spread", 8),
                    ("calibration", 17),
                    ("residual", 15),
                )
            )
            print(f"{name:24}{cells}")


def draw_task(
    config: Config,
    data: Any,
    operator: Any,
    task: str,
    images: Any,
    ys: Any,
    drawn: Any,
) -> Any:
    """Draw truth and measurement, then some samples and the mean of each method,
    one row per image.
    """
    rows, few = min(6, len(images)), min(3, config.draws)
    limits = (float(data.train.min()), float(data.train.max()))
    first = np.array(_back(operator, ys[:rows]))
    if task == "inpainting":
        # The lower half is not measured, and drawn blank.
        first[:, data.shape[0] // 2 :] = np.nan
    widths = [2, *[few + 1] * len(drawn)]
    figure, axes = plt.subplots(
        1,
        len(widths),
        figsize=(0.5 * sum(widths) + 1, 0.52 * rows + 1),
        width_ratios=widths,
        layout="constrained",
    )
    pairs = np.stack([images[:rows], first], 1).reshape(-1, *data.shape)
    image_grid(axes[0], pairs, 2, limits)
    axes[0].set_title("truth,\nmeasured", fontsize=9)
    for axis, (name, xs) in zip(axes[1:], drawn.items(), strict=True):
        shown = np.concatenate([xs[:rows, :few], xs[:rows].mean(1, keepdims=True)], 1)
        image_grid(axis, shown.reshape(-1, *data.shape), few + 1, limits)
        axis.set_title(f"{name}:\n{few} samples, mean of {config.draws}", fontsize=9)
    figure.suptitle(
        f"{task}, noise τ = {config.noise_std:g} of data in [{limits[0]:g}, "
        f"{limits[1]:g}]",
        fontsize=11,
    )
    return figure


@jax.jit
def _back(operator, ys):
    return jax.vmap(lambda y: operator.transpose(operator.solve(y, 1.0, 0.0)))(ys)


def check(config: Config) -> None:
    """Raise ValueError for flags that are not usable."""
    for name, minimum in (
        ("images", 1),
        ("draws", 2),
        ("steps", 1),
        ("repeats", 1),
        ("exact_steps", 1),
        ("chunk", 1),
    ):
        dj.checks.integer(name, getattr(config, name), minimum)
    dj.checks.integer("exact_samples", config.exact_samples, 32)
    dj.checks.integer("seed", config.seed, 0, None)
    dj.checks.positive("noise_std", config.noise_std)
    dj.checks.non_negative("step_size", config.step_size)


def run(config: Config) -> dict[str, Any]:
    """Run both parts.

    Returns:
      The metrics, which are also in OUT/metrics.json.
    """
    check(config)
    out = files.start(config)
    model, denoiser = open_model(config.model) if config.tasks else (None, None)
    # Made first, so that shapes that do not fit are reported before any work.
    operators = [make_operator(task, model.data.shape) for task in config.tasks]
    began = time.perf_counter()
    results: dict[str, Any] = {
        "operators": {
            t: o.measured for t, o in zip(config.tasks, operators, strict=True)
        }
    }
    if config.exact:
        results["exact"] = inverse_exact.run(
            out, config.seed, config.exact_samples, config.exact_steps
        )
    results["images"] = {
        task: run_task(config, model, denoiser, task, out) for task in config.tasks
    }
    results["seconds_after_training"] = round(time.perf_counter() - began, 1)
    files.write_results(out, results)
    print_results(results["images"])
    return results


if __name__ == "__main__":
    cli.main(run, Config, __doc__)
