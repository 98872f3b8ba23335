"""Does a score-based diffusion trained for two minutes model handwritten digits, and by how much?

    python -m experiments.score_sde                       (or: make run)
    python -m experiments.score_sde --schedule ve --network mlp --prediction edm --out runs/ve
    python -m experiments.score_sde --data images.npz     (integer images, vectors, or eight_gaussians, checkerboard, …)

Trains one denoiser, samples it by the reverse SDE (Euler-Maruyama) and by the probability-flow ODE, and scores it: test
bits/dim beside two baselines on the same split, Fréchet and kernel distance to the test set beside those of the
training set, and the nearest training neighbours of some samples. Run again on the same OUT it resumes.

Hardware and time: about 4 minutes on 2 CPU cores. Expect on digits about 1.82 test bits/dim,
where independent histograms reach 2.42 and 30 diagonal Gaussians 2.65.
"""

import dataclasses
import functools
import math
import pathlib
import time
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from diffjax import losses, metrics, solvers, training
from experiments import datasets, models, record, score_figures
from experiments.models import Model

SCHEDULES = {
    "vp": dj.schedules.vp_linear,
    "vp_cosine": dj.schedules.vp_cosine,
    "sub_vp": dj.schedules.sub_vp,
    "ve": dj.schedules.ve,
    "edm": dj.schedules.edm,
    "rectified_flow": dj.schedules.rectified_flow,
}


@dataclasses.dataclass(frozen=True)
class Config(models.Training):
    """Train, sample and score a diffusion."""

    out: pathlib.Path = pathlib.Path("runs/score_sde")
    """Folder for config.json, metrics.json, figures and checkpoints; a run on the same folder resumes."""
    data: str = "digits"
    """"digits", eight_gaussians, checkerboard, circles, moons, or the path of an .npy or .npz file (N, ...)."""
    schedule: Literal["vp", "vp_cosine", "sub_vp", "ve", "edm", "rectified_flow"] = "vp"
    """Noise schedule."""
    noise_floor: float | None = None
    """σ/α at the least noise, in units of the scaled data; default a sixth of the levels' spacing, or 0.01."""
    prediction: Literal["auto", "levels", "noise", "data", "v", "score", "velocity", "edm"] = "auto"
    """What the network predicts; levels is a softmax over the data's levels (auto, where there are any), else edm."""
    weighting: Literal["edm", "likelihood", "uniform", "simple", "min_snr"] = "edm"
    """Weight of the loss over noise levels."""
    times: Literal["log_normal", "log_snr", "uniform"] = "log_normal"
    """Law of the training times: EDM's log-normal, or uniform in log-SNR or in t."""
    samples: int = 447
    """Samples drawn by each sampler."""
    sde_steps: int = 128
    """Euler-Maruyama steps of the reverse SDE."""
    ode_steps: int = 24
    """Heun steps of the probability flow, two evaluations each."""
    likelihood_steps: int = 24
    """Runge-Kutta steps of the probability flow upwards, four evaluations each, for log p."""
    likelihood_examples: int | None = None
    """Test examples scored; default all."""
    probes: int = 8
    """Hutchinson probes per test example."""
    chunk: int = 64
    """Examples at a time in sampling and scoring."""


# ---------------------------------------------------------------------------------------------------- what is trained


def make_schedule(name: str, floor: float) -> Any:
    """The schedule that ends where σ/α is `floor`."""
    if name == "edm":
        return dj.schedules.edm(sigma_min=floor)
    extra = {"sigma_min": min(0.01, floor / 2)} if name == "ve" else {}
    factory = functools.partial(SCHEDULES[name], **extra)
    return factory(t_min=float(dj.schedules.time_of_log_snr(factory(t_min=1e-6), -2 * math.log(floor))))


def make_model(config: Config, data: datasets.Dataset) -> Model:
    """The model that the flags ask for. Raises ValueError for a combination that cannot be."""
    prediction = config.prediction
    if prediction == "auto":
        prediction = "edm" if data.levels is None else "levels"
    if prediction == "levels" and data.levels is None:
        raise ValueError(f"prediction 'levels' needs data on a lattice, {data.name} is not; use edm, v, noise, …")
    default_floor = 0.01 if data.levels is None else data.spacing / 6
    floor = default_floor if config.noise_floor is None else config.noise_floor
    return Model(data, make_schedule(config.schedule, floor), models.make_module(config, data), prediction)


def load(folder: pathlib.Path, dtype: str | None = None) -> tuple[Model, Any]:
    """(model, denoiser with the averaged parameters) of a run that was trained into `folder`.

    dtype: of the network's parameters and arithmetic, default the run's own. Raises FileNotFoundError where there is no
    such run.
    """
    cure = "run again with the flags that it was trained with, which go on from its checkpoints"
    stored = record.read_json(folder / "config.json", cure, "data", "schedule", "network")
    known = {field.name for field in dataclasses.fields(Config)}
    config = Config(**{name: value for name, value in stored.items() if name in known and name != "out"})
    config = dataclasses.replace(config, dtype=dtype or config.dtype)
    model = make_model(config, datasets.open_dataset(config.data, config.held_out, config.seed))
    params = training.load_ema(folder / "checkpoints")
    return model, model.denoiser(jax.tree.map(lambda p: p.astype(dtype) if dtype else p, params))


def train(config: Config, model: Model, out: pathlib.Path) -> tuple[Any, np.ndarray]:
    """(averaged parameters, loss of every step), resuming from the checkpoints in `out`."""

    def loss(params, key, batch):
        denoiser = model.denoiser(params)
        return losses.batch_loss(
            key, denoiser, batch, None, config.weighting, config.times, dropout=config.dropout > 0
        )[0]

    print(f"{type(model.module).__name__} predicting {model.prediction} on {model.schedule}")
    return models.fit(config, out, loss, model.init, model.data.train, _FIELDS)


_FIELDS = ("data", "schedule", "noise_floor", "prediction", "weighting", "times")


# --------------------------------------------------------------------------------------------------- what is measured


def draw_samples(config: Config, model: Model, denoiser: Any) -> dict[str, np.ndarray]:
    """Samples by the reverse SDE and by the probability flow, both ending with the denoised last bit."""
    samplers = {
        "sde": ("reverse SDE, Euler-Maruyama", solvers.euler_maruyama(), config.sde_steps),
        "ode": ("probability flow, Heun", solvers.heun(), config.ode_steps),
    }
    drawn = {}
    for i, (name, (what, solver, steps)) in enumerate(samplers.items()):
        grid = dj.grids.to_zero(dj.grids.log_snr(model.schedule, steps))
        began = time.perf_counter()
        key = jax.random.fold_in(jax.random.key(config.seed + 1), i)
        xs = dj.sample_many(
            key, config.samples, denoiser, model.schedule, solver, grid, model.data.shape, chunk=config.chunk
        )
        drawn[name] = np.asarray(xs)
        seconds = time.perf_counter() - began
        print(f"{config.samples} samples by {what}, {solver.evaluations(grid)} evaluations: {seconds:.1f} s")
    return drawn


def baselines(data: datasets.Dataset, test_count: int | None) -> dict[str, float]:
    """What simple models reach on the same split, or the exact law's own score."""
    if data.target is not None:
        test = jnp.asarray(data.test[:test_count])
        exact = -jax.vmap(data.target.log_prob)(test) / math.prod(data.shape)
        return {"exact_test_nats_per_dim": float(exact.mean())}
    if data.levels is None:
        return {}
    return {
        "histogram_bits_per_dim": datasets.histogram_bits(data),
        "gaussian_mixture_bits_per_dim": datasets.gaussian_mixture_bits(data),
    }


def distances(drawn: dict[str, np.ndarray], data: datasets.Dataset, seed: int) -> dict[str, float]:
    """Fréchet, kernel and energy distance to the test set of each set of samples, and of as many training examples."""
    rng = np.random.default_rng(seed)
    sets = drawn | {"train": data.train[rng.permutation(len(data.train))[: len(drawn["sde"])]]}
    return {
        f"{name}_distance_{key}": float(distance(xs, data.test))
        for name, distance in (
            ("frechet", metrics.frechet_distance),
            ("kernel", metrics.kernel_distance),
            ("energy", metrics.energy_distance),
        )
        for key, xs in sets.items()
    }


def neighbours(drawn: np.ndarray, data: datasets.Dataset) -> tuple[np.ndarray, dict[str, float]]:
    """Indices (N, 3) of the nearest training examples of samples, and the mean distances that show memorising."""
    indices, nearest = metrics.nearest_neighbours(drawn, data.train, k=min(3, len(data.train)))
    _, test_nearest = metrics.nearest_neighbours(data.test, data.train, k=1)
    return np.asarray(indices), {
        "nearest_train_distance_of_samples": float(nearest[:, 0].mean()),
        "nearest_train_distance_of_test": float(test_nearest.mean()),
    }


def denoising_strip(config: Config, model: Model, denoiser: Any, frames: int = 10) -> tuple[Any, list[str]]:
    """((states, denoised), labels) of one sample at `frames` noise levels of the probability flow."""
    grid = dj.grids.log_snr(model.schedule, 2 * (frames - 1))
    key = jax.random.fold_in(jax.random.key(config.seed + 1), 2)
    path = dj.sample(key, denoiser, model.schedule, solvers.heun(), grid, model.data.shape, path=True)[::2]
    times = grid[::2]
    denoised = jax.jit(jax.vmap(denoiser))(path, times)
    ratios = np.exp(-0.5 * np.asarray(dj.schedules.log_snr(model.schedule, times)))
    return (np.asarray(path), np.asarray(denoised)), [f"{ratio:.2g}" for ratio in ratios]


# --------------------------------------------------------------------------------------------------------------- main


def check(config: Config) -> None:
    """Refuse flags that cannot be, before any work."""
    models.check(config)
    at_least = {
        1: ("sde_steps", "ode_steps", "likelihood_steps", "chunk"),
        2: ("samples", "probes", "likelihood_examples"),  # below, a standard error or distance has no meaning
    }
    for minimum, names in at_least.items():
        for name in names:
            if getattr(config, name) is not None:
                dj.checks.integer(name, getattr(config, name), minimum)
    if config.noise_floor is not None:
        dj.checks.within("noise_floor", config.noise_floor, 1e-4, 1.0)


def run(config: Config) -> dict[str, Any]:
    """Train, sample, score and draw; the metrics, which are also in OUT/metrics.json."""
    began = time.perf_counter()
    check(config)
    data = datasets.open_dataset(config.data, config.held_out, config.seed)
    model = make_model(config, data)
    out = record.open_folder(config)
    print(f"{data.name}: {len(data.train)} training and {len(data.test)} test examples of shape {data.shape}")
    params, history = train(config, model, out)
    trained = time.perf_counter()
    denoiser = model.denoiser(params)
    drawn = draw_samples(config, model, denoiser)
    results: dict[str, Any] = models.score(
        jax.random.key(config.seed + 2),
        model,
        denoiser,
        data.test[: config.likelihood_examples],
        config.likelihood_steps,
        config.probes,
        config.chunk,
    )
    results |= baselines(data, config.likelihood_examples)
    indices, near = neighbours(drawn["sde"], data)
    results |= distances(drawn, data, config.seed) | near | {"final_loss": float(np.mean(history[-50:]))}
    models.draw_loss(history, f"loss, {config.weighting} weighting", f"Training, {config.data}", out / "loss.png")
    strip, labels = denoising_strip(config, model, denoiser)
    if data.is_image:
        score_figures.draw_images(data, drawn, indices, strip, labels, out)
    else:
        score_figures.draw_points(data, drawn, strip, labels, out)
    results |= {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "seconds_training": round(trained - began, 1),
        "seconds_total": round(time.perf_counter() - began, 1),
        "device": jax.devices()[0].device_kind,
    }
    record.write_json(out / "metrics.json", results)
    models.print_results(results)
    return results


if __name__ == "__main__":
    record.main(run, Config, __doc__)
