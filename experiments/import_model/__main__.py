"""Which solver suits a model that diffusers trained, and how good are its samples?

    python -m experiments.import_model --folder ddpm-cifar10-32
    python -m experiments.import_model --folder DiT-XL-2-256 --classes 207 360 \\
        --guidance 4 --compare                               (the extra `peers`)
    python -m experiments.import_model --folder sd --embeddings texts.npz \\
        --guidance 7.5 --size 64

Reads the folder of a diffusers pipeline (unet/ or transformer/, scheduler/, vae/),
or of one model with --scheduler. It writes samples of the scheduler's own solver, a
score in bits per dimension, and the errors of solvers on this model. Latents are
decoded by the autoencoder. Neither torch nor diffusers is imported without --compare.

- The score is log p along the probability flow of the denoiser, with guidance and
  without clipping. For images it bounds the code length in bits per dimension. Images
  come from --images, otherwise from the model's own samples. For latents it is the
  density at the least noise of the schedule, in nats and bits per dimension.
- Errors of solvers are root mean squares over samples and entries, in units of the
  state, against RK4 on a fine grid of the model's own flow. The reference's own error
  is estimated by its distance to UniPC with the same number of evaluations.
- "the scheduler" is the scheduler's solver on its own grid. The other solvers have the
  grids that `dj.grids.recommended` returns.
- --compare runs diffusers beside it from the same noise, and prints the greatest
  difference of the samples and the seconds of both, without compilation. It needs
  `pip install '.[peers]'`.
- Where the scheduler clips denoised samples, so does sampling here. Expect a large
  difference under --compare for DDIM with clip_sample, where diffusers clips x_0 and
  keeps the noise of the unclipped output.

Texts are given as embeddings. texts.npz holds `text` (N, L, D), as a text encoder
returns it, and `null_text` (L, D) for guidance. A model of Stable Diffusion XL takes
`pooled` (N, P), `null_pooled` (P,) and `sizes` (N, 6) too. Class indices are flags.

Units: `nats` is in nats per example, `bits_per_dim` in bits per dimension. `error` and
`reference_error` are in units of the state, `sampling_seconds`, `peer_seconds` and
`seconds` in seconds. `greatest_difference` is relative to the samples' size.
`parameters` and `evaluations` are counts.

Hardware and time: the 35.7 M parameters of DDPM on CIFAR-10 took 10 minutes of
processor time. Without a model at hand, `diffusers.initialised` and `diffusers.save`
make a folder of random weights. Their samples and scores mean nothing.

Expect differences from diffusers of about 1e-5 of the samples' size, and UniPC or
iPNDM among the least errors.
"""

import dataclasses
import pathlib
import textwrap
import time
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import ticker

import diffjax as dj
from experiments.import_model import compare, ranking
from experiments.import_model.parts import (
    Conditions,
    Parts,
    conditional,
    open_conditions,
    open_parts,
    scheduler_grid,
)
from experiments.shared import cli, files, scoring, solvers
from experiments.shared.figures import image_grid, save_figure

LEVELS = np.linspace(-1, 1, 256, dtype=np.float32)
"""Values of the 256 levels of an image."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Sample, score and rank solvers on a model of diffusers."""

    folder: pathlib.Path
    """Folder of a pipeline, or of a model."""
    out: pathlib.Path = pathlib.Path("runs/import_model")
    """Folder for config.json, metrics.json, samples.npy and figures."""
    seed: int = 0
    """Seed of all draws."""
    scheduler: pathlib.Path | None = None
    """Folder of scheduler_config.json. Default: FOLDER/scheduler."""
    scheduler_class: str | None = None
    """Read the scheduler's configuration as this class of diffusers."""
    variant: str | None = None
    """Part of the names of weight files, such as fp16."""
    size: int | None = None
    """Side of an example: of an image, or of a latent. Default: that of training."""
    samples: int = 16
    """Samples drawn."""
    steps: int = 20
    """Steps of the solver. Each has as many evaluations as the solver needs."""
    solver: str | None = None
    """Solver by name, such as unipc(3), on its recommended grid. Default: the one that
    equals the scheduler, on the scheduler's grid.
    """
    mu: float | None = None
    """Shift of a flow's scheduler with dynamic shifting."""
    classes: tuple[int, ...] | None = None
    """Class indices of the samples, in turn. Default: 0 1 2 3 if the model has any."""
    embeddings: pathlib.Path | None = None
    """.npz file of conditions: text, null_text, pooled, null_pooled, sizes, class."""
    guidance: float | None = None
    """Scale of classifier-free guidance. Default: no guidance."""
    compare: bool = False
    """Whether to run diffusers beside it."""
    images: pathlib.Path | None = None
    """.npy file of 8-bit images (N, H, W, C) to score. Image i has the condition of
    sample i, in turn.
    """
    scored: int = 4
    """Examples that are scored. 0 for no score."""
    likelihood_steps: int = 32
    """Runge-Kutta steps of the score, of four evaluations each."""
    probes: int = 1
    """Hutchinson probes of the score per example."""
    starts: int = 4
    """Samples on which solvers are ranked. 0 for no ranking."""
    budgets: tuple[int, ...] = (8, 16)
    """Evaluations within which solvers are ranked."""
    candidates: tuple[str, ...] = ("ddim", "dpmpp_2m", "ipndm(2)", "unipc(3)")
    """Solvers that are ranked, besides the scheduler's."""
    reference: int = 48
    """Runge-Kutta steps of the reference of the ranking."""


def check(config: Config) -> None:
    """Raise ValueError for flags that are not usable."""
    least = {
        1: ("samples", "steps", "probes", "likelihood_steps"),
        0: ("scored", "starts"),
        2: ("reference",) if config.solver is None else ("reference", "steps"),
    }
    for minimum, names in least.items():
        for name in names:
            dj.checks.integer(name, getattr(config, name), minimum)
    for name in (*config.candidates, *([config.solver] if config.solver else [])):
        dj.checks.choice("solver", name, solvers.SOLVERS)
    for name in config.candidates:
        countable = solvers.make(name).evaluations(1) is not None
        message = f"candidates must have fixed numbers of evaluations, got {name}"
        dj.checks.require(countable, message)
    for budget in config.budgets:
        dj.checks.integer("budgets", budget, 2)


def draw(
    config: Config, parts: Parts, denoiser: Any, conditions: Conditions
) -> dict[str, Any]:
    """Samples of the model, beside those of diffusers where they are wanted.

    Args:
      config: The flags.
      parts: The parts of the model.
      denoiser: The denoiser (x, t, condition).
      conditions: Of the samples.

    Returns:
      "samples" (N, H, W, C), "seconds" of a second run without compilation, and
      with --compare "peer" and "peer_seconds".
    """
    solver, grid = _solver_and_grid(config, parts)
    if parts.grid.options.get("clip_sample"):
        bound = parts.grid.options["clip_sample_range"]
        denoiser = dj.guidance.static_threshold(denoiser, -bound, bound)
    shape = (config.samples, *parts.shape)
    noise = np.asarray(jax.random.normal(jax.random.key(config.seed), shape))
    scale = dj.schedules.prior_std(parts.schedule)
    if config.compare:
        scale = compare.start_scale(config, parts, grid[0])
    sample = jax.jit(
        lambda denoiser, schedule, x, condition: dj.sample_many(
            jax.random.key(config.seed),
            config.samples,
            denoiser,
            schedule,
            solver=solver,
            grid=grid,
            x_init=x,
            condition=condition,
        )
    )
    arguments = denoiser, parts.schedule, noise * scale, conditions.rows
    drawn = _timed(sample, arguments)
    if config.compare:
        peer, seconds = compare.peer_samples(config, parts, conditions, noise)
        drawn |= {"peer": peer, "peer_seconds": seconds}
    return drawn


def _solver_and_grid(config, parts):
    """The solver and grid of the flags, or else of the scheduler."""
    if config.solver is None:
        return parts.solver, scheduler_grid(config, parts, config.steps)
    solver = solvers.make(config.solver)
    return solver, ranking.grid_of(parts.schedule, solver, config.steps)


def _timed(sample, arguments):
    """Samples, and the seconds of a second run."""
    samples = np.asarray(sample(*arguments))
    start = time.perf_counter()
    jax.block_until_ready(sample(*arguments))
    return {"samples": samples, "seconds": time.perf_counter() - start}


def decoded(parts: Parts, samples: np.ndarray) -> np.ndarray:
    """Images of samples, which the autoencoder makes of latents.

    Args:
      parts: Has the autoencoder, or None.
      samples: Images or latents, (N, H, W, C).

    Returns:
      Images (N, H, W, C) in [−1, 1].
    """
    if parts.coder is None:
        return samples
    images = jax.jit(lambda coder, z: jax.lax.map(coder.images, z))
    return np.asarray(images(parts.coder, jnp.asarray(samples)))


def score(
    config: Config, parts: Parts, denoiser: Any, conditions: Conditions, x: np.ndarray
) -> dict[str, float]:
    """The log-likelihood of examples along the probability flow.

    Args:
      config: The flags.
      parts: The parts of the model.
      denoiser: The denoiser (x, t, condition).
      conditions: Of the samples. The examples take them in turn.
      x: (N, H, W, C), images in [−1, 1] or latents.

    Returns:
      Means over examples and their standard error.
    """
    log_p = jax.jit(_log_p(config, parts))
    keys = jax.random.split(jax.random.key(config.seed + 2), len(x))
    state, values = (denoiser, parts.schedule), []
    with cli.progress(len(x), label="score", unit="example") as bar:
        for i, (key, example) in enumerate(zip(keys, x, strict=True)):
            condition = _row(conditions.rows, i)
            values.append(float(log_p(state, key, example, condition)))
            bar.update(1)
    return _summary(np.asarray(values), x[0].size, parts.coder is not None)


def _row(rows, i):
    """The condition of example i. They are taken in turn."""
    return jax.tree.map(lambda value: value[i % len(value)], rows)


def _log_p(config, parts):
    """The function of one example that `score` calls."""
    finite = dj.schedules.is_finite(parts.schedule)
    grid_of = scoring.likelihood_grid if finite else dj.grids.uniform
    settings = {
        "divergence": "hutchinson_forward",
        "probes": config.probes,
        "grid": grid_of(parts.schedule, config.likelihood_steps),
    }

    def log_p(state, key, x, condition):
        denoiser, schedule = state
        bound = denoiser
        if condition is not None:
            bound = lambda x, t: denoiser(x, t, condition)
        if parts.coder is not None:
            return dj.log_prob(bound, schedule, x, key=key, **settings)
        return dj.likelihood.lattice_log_prob(
            key, bound, schedule, x, levels=LEVELS, **settings
        )

    return log_p


def _summary(log_p, size, latent):
    """Means in nats and bits per dimension, with standard errors."""
    bits = -log_p / (size * np.log(2))
    name = "bits_per_dim_of_latents" if latent else "bits_per_dim"
    results = {"nats": float(log_p.mean()), name: float(bits.mean())}
    if len(bits) > 1:
        error = bits.std(ddof=1) / np.sqrt(len(bits))
        results[f"{name}_standard_error"] = float(error)
    return results


def scored_examples(config: Config, parts: Parts, samples: np.ndarray) -> np.ndarray:
    """The examples to score: images of the file, or the first samples.

    Args:
      config: The flags.
      parts: The parts of the model.
      samples: The samples of the model.

    Returns:
      (N, H, W, C), images at their levels or latents.

    Raises:
      ValueError: If the images do not fit the model.
    """
    if config.images is None:
        x = samples[: config.scored]
    else:
        images = np.load(config.images, mmap_mode="r")[: config.scored]
        message = (
            f"images must be uint8 (N, H, W, C), got {images.dtype} {images.shape}"
        )
        dj.checks.require(images.dtype == np.uint8 and images.ndim == 4, message)
        x = LEVELS[images]
        if parts.coder is not None:
            encode = jax.jit(lambda coder, x: jax.lax.map(coder.latents, x))
            x = np.asarray(encode(parts.coder, x))
        message = f"images must be of the model's {parts.shape}, got {x.shape[1:]}"
        dj.checks.require(x.shape[1:] == parts.shape, message)
    if parts.coder is not None:
        return x
    return LEVELS[np.clip(np.rint((x + 1) * 127.5), 0, 255).astype(int)]


def draw_samples(config: Config, images: np.ndarray) -> None:
    """Draw the samples.

    Args:
      config: The flags.
      images: (N, H, W, C) in [−1, 1].
    """
    figure, axis = plt.subplots(figsize=(5, 5.5))
    image_grid(axis, images, None, (-1.0, 1.0))
    solver = config.solver or "the scheduler's solver"
    title = f"samples of {config.folder.name}, {config.steps} steps of {solver}"
    if config.classes is not None:
        title += f", classes {' '.join(map(str, config.classes))} in turn"
    if config.guidance is not None:
        title += f", guidance {config.guidance:g}"
    axis.set_title(textwrap.fill(title, 60), fontsize=9)
    save_figure(figure, config.out / "samples.png")


def draw_errors(config: Config, rows: list[ranking.Row], floor: float) -> None:
    """Draw the errors of solvers against evaluations.

    Args:
      config: The flags.
      rows: Rows of the ranking.
      floor: Error of its reference.
    """
    figure, axis = plt.subplots(figsize=(7, 3.8), layout="constrained")
    for name in dict.fromkeys(row.solver for row in rows):
        pairs = sorted((r.evaluations, r.error) for r in rows if r.solver == name)
        axis.loglog(*zip(*pairs, strict=True), marker="o", label=name)
    axis.axhline(floor, color="grey", linestyle=":", label="error of the reference")
    counts = sorted({row.evaluations for row in rows})
    axis.set_xticks(counts, list(map(str, counts)))
    axis.xaxis.set_minor_locator(ticker.NullLocator())
    if min(row.error for row in rows) <= floor:
        title = "the reference is too coarse to rank these solvers"
        axis.set_title(title, fontsize=9)
    axis.set_xlabel("evaluations of the denoiser per sample")
    axis.set_ylabel("root mean square error (units of the state)")
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    save_figure(figure, config.out / "errors.png")


def print_ranking(rows: list[ranking.Row], floor: float) -> None:
    """Print the errors, and the best solver within each number of evaluations.

    Args:
      rows: Of the ranking.
      floor: Error of its reference.
    """
    print(f"\n{'solver':16}{'evaluations':>12}{'error':>12}")
    for row in rows:
        print(f"{row.solver:16}{row.evaluations:12}{row.error:12.2e}")
    print(f"error of the reference {floor:.1e}")
    for count in dict.fromkeys(row.evaluations for row in rows):
        best = min((r for r in rows if r.evaluations <= count), key=lambda r: r.error)
        if best.error > floor:
            print(f"within {count} evaluations take {best.solver}")
        else:
            print(
                f"within {count} evaluations the reference is too coarse to rank "
                "solvers: raise --reference"
            )


def run(config: Config) -> dict[str, Any]:
    """Read the folder, then sample, score and rank."""
    check(config)
    clock = cli.Clock()
    parts = open_parts(config)
    conditions = open_conditions(config, parts.model)
    if config.compare:
        compare.check(parts)
    files.start(config)
    count = sum(leaf.size for leaf in jax.tree.leaves(parts.model.params))
    name = parts.model.config["_class_name"]
    print(f"{name} of {count:,} parameters, {parts.kind} on {parts.shape}")
    print(f"drawing {config.samples} samples, the first call compiles …", flush=True)
    denoiser = conditional(config, parts, conditions)
    clock.lap("load")
    drawn = draw(config, parts, denoiser, conditions)
    clock.lap("sample")
    images = decoded(parts, drawn["samples"])
    np.save(config.out / "samples.npy", images)
    results: dict[str, Any] = {
        "parameters": count,
        "sampling_seconds": drawn["seconds"],
    }
    if config.compare:
        results |= _difference(drawn)
    draw_samples(config, images)
    if config.scored:
        x = scored_examples(config, parts, drawn["samples"])
        results |= score(config, parts, denoiser, conditions, x)
        clock.lap("score")
    cli.print_results(results, {"nats": "nats", "sampling": "s", "peer": "s"})
    if config.starts and config.budgets:
        rows, floor = ranking.rank(config, parts, denoiser, conditions.rows)
        clock.lap("ranking")
        print_ranking(rows, floor)
        draw_errors(config, rows, floor)
        results |= {"ranking": [r._asdict() for r in rows], "reference_error": floor}
    results["seconds"] = clock.laps
    files.write_results(config.out, results)
    return results


def _difference(drawn):
    """The greatest difference from diffusers' samples, in units of their size."""
    size = float(np.sqrt(np.mean(drawn["peer"] ** 2)))
    difference = float(np.abs(drawn["peer"] - drawn["samples"]).max()) / size
    print(f"greatest difference from diffusers {difference:.1e} of the samples' size")
    return {
        "peer_seconds": drawn["peer_seconds"],
        "greatest_difference": difference,
    }


if __name__ == "__main__":
    cli.main(run, Config, __doc__)
