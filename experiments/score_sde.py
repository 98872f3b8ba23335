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
import hashlib
import json
import math
import pathlib
import time
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from diffjax import losses, metrics, solvers, training
from diffjax.networks import MLP, DiT, UNet
from experiments import datasets, record, score_figures

SCHEDULES = {
    "vp": dj.schedules.vp_linear,
    "vp_cosine": dj.schedules.vp_cosine,
    "sub_vp": dj.schedules.sub_vp,
    "ve": dj.schedules.ve,
    "edm": dj.schedules.edm,
    "rectified_flow": dj.schedules.rectified_flow,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Train, sample and score a diffusion."""

    out: pathlib.Path = pathlib.Path("runs/score_sde")
    """Folder for config.json, metrics.json, figures and checkpoints; a run on the same folder resumes."""
    data: str = "digits"
    """"digits", eight_gaussians, checkerboard, circles, moons, or the path of an .npy or .npz file (N, ...)."""
    held_out: int = 447
    """Test examples, taken from the data at random (at most a quarter of a file; toy densities have 2000)."""
    seed: int = 0
    """Seed of the split, the initial parameters, training and samples."""
    schedule: Literal["vp", "vp_cosine", "sub_vp", "ve", "edm", "rectified_flow"] = "vp"
    """Noise schedule."""
    noise_floor: float | None = None
    """σ/α at the least noise, in units of the scaled data; default a sixth of the levels' spacing, or 0.01."""
    network: Literal["auto", "dit", "unet", "mlp"] = "auto"
    """Network; auto is a patch transformer for images whose sides are even, an MLP otherwise."""
    prediction: Literal["auto", "levels", "noise", "data", "v", "score", "velocity", "edm"] = "auto"
    """What the network predicts; levels is a softmax over the data's levels (auto, where there are any), else edm."""
    weighting: Literal["edm", "likelihood", "uniform", "simple", "min_snr"] = "edm"
    """Weight of the loss over noise levels."""
    times: Literal["log_normal", "log_snr", "uniform"] = "log_normal"
    """Law of the training times: EDM's log-normal, or uniform in log-SNR or in t."""
    width: int | None = None
    """Features of the network; default 96 (dit), 48 (unet), 256 (mlp)."""
    depth: int | None = None
    """Blocks of the network; default 4 (dit, mlp), 1 a level (unet)."""
    dropout: float = 0.1
    """Dropout probability in training."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the network's arithmetic; state and solver stay in float32."""
    steps: int = 1200
    """Training steps."""
    batch_size: int = 96
    """Examples a step."""
    learning_rate: float = 2e-3
    """Peak learning rate: linear warm-up over a tenth of the steps, then a cosine to 0."""
    ema_decay: float = 0.99
    """Decay of the averaged parameters, which are the ones sampled and scored."""
    save_every: int = 200
    """Steps between checkpoints."""
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


@dataclasses.dataclass(frozen=True)
class Model:
    """A network with what turns its parameters into a denoiser."""

    data: datasets.Dataset
    schedule: Any
    module: Any
    prediction: str

    def init(self, key):
        """Parameters, from an example of the input's shape."""
        return jax.jit(self.module.init)(key, jnp.zeros(self._input_shape()), jnp.zeros(()))

    def net(self, params, x, t, key=None):
        """The network as a function of one example; a key turns dropout on."""
        if key is None:
            return self.module.apply(params, x, t)
        return self.module.apply(params, x, t, train=True, rngs={"dropout": key})

    def denoiser(self, params):
        """D(x, t) as a pytree with the parameters as leaves."""
        net = jax.tree_util.Partial(self.net, params)
        if self.prediction == "levels":
            return dj.predictions.categorical(self.schedule, net, self.data.levels)
        spread = float(self.data.train.std())
        return dj.predictions.denoiser(self.schedule, net, self.prediction, sigma_data=spread, inputs="scaled")

    def _input_shape(self):
        shape = self.data.shape
        return (*shape[:-1], shape[-1] * len(self.data.levels)) if self.prediction == "levels" else shape


def make_model(config: Config, data: datasets.Dataset) -> Model:
    """The model that the flags ask for. Raises ValueError for a combination that cannot be."""
    prediction = config.prediction
    if prediction == "auto":
        prediction = "edm" if data.levels is None else "levels"
    if prediction == "levels" and data.levels is None:
        raise ValueError(f"prediction 'levels' needs data on a lattice, {data.name} is not; use edm, v, noise, …")
    network, grid = config.network, len(data.shape) == 3
    if network == "auto":
        network = "dit" if grid and data.shape[0] % 2 == 0 and data.shape[1] % 2 == 0 else "mlp"
    if network in ("dit", "unet") and not grid:
        raise ValueError(
            f"network {network!r} needs images (H, W, C), {data.name} has examples of shape {data.shape}; use mlp"
        )
    sizes = {"dit": (DiT, 96, 4), "unet": (UNet, 48, 1), "mlp": (MLP, 256, 4)}
    factory, width, depth = sizes[network]
    depth_name = "blocks" if network == "unet" else "depth"
    width = width if config.width is None else config.width
    depth = depth if config.depth is None else config.depth
    module = factory(width=width, dropout=config.dropout, dtype=jnp.dtype(config.dtype), **{depth_name: depth})
    default_floor = 0.01 if data.levels is None else data.spacing / 6
    floor = default_floor if config.noise_floor is None else config.noise_floor
    return Model(data, make_schedule(config.schedule, floor), module, prediction)


def load(folder: pathlib.Path, dtype: str | None = None) -> tuple[Model, Any]:
    """(model, denoiser with the averaged parameters) of a run that was trained into `folder`.

    dtype: of the network's parameters and arithmetic, default the run's own. Raises FileNotFoundError where there is no
    such run.
    """
    stored = json.loads((folder / "config.json").read_text())
    known = {field.name for field in dataclasses.fields(Config)}
    config = Config(**{name: value for name, value in stored.items() if name in known and name != "out"})
    config = dataclasses.replace(config, dtype=dtype or config.dtype)
    model = make_model(config, datasets.open_dataset(config.data, config.held_out, config.seed))
    params = training.load_ema(folder / "checkpoints")
    return model, model.denoiser(jax.tree.map(lambda p: p.astype(dtype) if dtype else p, params))


def train(config: Config, model: Model, out: pathlib.Path) -> tuple[Any, np.ndarray]:
    """(averaged parameters, loss of every step), resuming from the checkpoints in `out`."""
    key_init, key_train = jax.random.split(jax.random.key(config.seed))

    def loss(params, key, batch):
        value, _ = losses.batch_loss(
            key, model.denoiser(params), batch, None, config.weighting, config.times, dropout=config.dropout > 0
        )
        return value, {}

    optimiser = training.optimiser(
        config.learning_rate, warmup_steps=max(1, config.steps // 10), total_steps=config.steps + 1
    )
    step = training.make_steps(training.make_step(loss, optimiser, config.ema_decay))
    state = training.init(key_train, model.init(key_init), optimiser)
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    print(f"{type(model.module).__name__} of {size:,} parameters predicting {model.prediction} on {model.schedule}")
    batches = training.Batches(model.data.train, config.batch_size, config.seed)
    stored = {k: v for k, v in record.as_dict(config).items() if k in _TRAINING_FIELDS}
    stored["data_digest"] = hashlib.sha256(model.data.train.tobytes()).hexdigest()[:16]
    with training.Checkpoints(out / "checkpoints", stored) as checkpoints:
        record.write_config(out, config)  # not before the checkpoints were found to be of this configuration
        state = checkpoints.restore_latest(state) or state
        history = _read_history(out, int(state.step))
        if int(state.step):
            print(f"resuming after step {int(state.step)}")
        with record.progress(config.steps, int(state.step), "training") as bar:

            def show(step, values):
                history.extend(values["loss"].tolist())
                bar.set_postfix(loss=f"{np.mean(values['loss']):.4f}")
                bar.update(step - bar.n)
                record.write_json(out / "losses.json", {"loss": history})

            state = training.fit(
                state, step, batches, config.steps, checkpoints, block=50, save_every=config.save_every, on_block=show
            )
    return state.ema, np.array(history)


_TRAINING_FIELDS = (
    "data", "held_out", "seed", "schedule", "noise_floor", "network", "prediction", "weighting", "times", "width",
    "depth", "dropout", "dtype", "steps", "batch_size", "learning_rate", "ema_decay",
)  # fmt: skip


def _read_history(out, step):
    """The losses of the steps before `step`: they are written before each checkpoint."""
    path = out / "losses.json"
    if not step:
        return []
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing beside checkpoints of step {step}; restore it or choose another OUT"
        )
    return json.loads(path.read_text())["loss"][:step]


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


def likelihood_grid(schedule: Any, steps: int) -> jax.Array:
    """Uniform in log-SNR, but a quarter as dense where σ/α > 5, where the denoiser barely moves; (steps + 1,).

    The levels of lattice data resolve within a few units of log-SNR at little noise: there an open grid gives too good
    a log p.
    """
    low, high = (float(dj.schedules.log_snr(schedule, t)) for t in (schedule.t_max, schedule.t_min))
    knee = min(max(-2 * math.log(5.0), low), high)
    coarse = (knee - low) / 4
    place = np.linspace(0, coarse + high - knee, steps + 1)
    values = np.where(place < coarse, low + 4 * place, knee + place - coarse)
    grid = dj.schedules.time_of_log_snr(schedule, values)
    return grid.at[0].set(schedule.t_max).at[-1].set(schedule.t_min)


def log_likelihoods(config: Config, model: Model, denoiser: Any, test: np.ndarray, steps: int) -> tuple[Any, Any]:
    """Of each test example (log p, its standard error over probes), in nats per dimension, on a grid of `steps`."""
    data, grid = model.data, likelihood_grid(model.schedule, steps)
    flow: dict[str, Any] = {"divergence": "hutchinson", "probes": config.probes, "solver": solvers.rk4(), "grid": grid}
    arrays, structure = jax.tree.flatten(denoiser)

    @jax.jit
    def evaluate(arrays, keys, xs):
        exact = jax.tree.unflatten(structure, arrays)

        def one(key, x):
            if data.levels is None:
                return dj.log_prob(exact, model.schedule, x, key, info=True, **flow)
            return dj.likelihood.lattice_log_prob(key, exact, model.schedule, x, data.levels, info=True, **flow)

        values, details = jax.vmap(one)(keys, xs)
        return values, details.standard_error

    keys = jax.random.split(jax.random.key(config.seed + 2), len(test))
    found = []
    with record.progress(len(test), what=f"test likelihood, {steps} steps", unit="example") as bar:
        for start in range(0, len(test), config.chunk):
            rows = np.minimum(np.arange(start, start + config.chunk), len(test) - 1)  # the last chunk is padded
            kept = min(config.chunk, len(test) - start)
            found.append([np.asarray(part)[:kept] for part in evaluate(arrays, keys[rows], test[rows])])
            bar.update(kept)
    values, errors = (np.concatenate(part) / math.prod(data.shape) for part in zip(*found, strict=True))
    if not np.isfinite(values).all():
        raise FloatingPointError(f"{np.sum(~np.isfinite(values))} of {len(values)} test log-likelihoods are not finite")
    return values, errors


def score(config: Config, model: Model, denoiser: Any) -> dict[str, float]:
    """Test score: bits/dim of lattice data by Gaussian dequantisation, nats per dimension otherwise.

    Beside it stand the standard errors over examples and over probes, and by how much the first chunk's score differs
    from that on a grid of half the steps: a grid too coarse gives any score.
    """
    test = model.data.test[: config.likelihood_examples]
    values, errors = log_likelihoods(config, model, denoiser, test, config.likelihood_steps)
    few = test[: config.chunk]
    coarse, _ = log_likelihoods(config, model, denoiser, few, max(1, config.likelihood_steps // 2))
    unit = 1.0 if model.data.levels is None else 1 / math.log(2)
    name = "test_nats_per_dim" if model.data.levels is None else "test_bits_per_dim"
    results = {
        name: -unit * float(values.mean()),
        f"{name}_standard_error": float(unit * values.std(ddof=1) / math.sqrt(len(values))),
        f"{name}_standard_error_of_probes": float(unit * np.sqrt(np.sum(errors**2)) / len(values)),
        f"{name}_change_from_half_the_steps": float(unit * (coarse.mean() - values[: len(few)].mean())),
        "test_examples_scored": len(values),
    }
    if abs(results[f"{name}_change_from_half_the_steps"]) > 0.1:
        print(f"warning: {name} still moves with the grid; raise --likelihood-steps above {config.likelihood_steps}")
    return results


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
    at_least = {
        1: ("held_out", "steps", "batch_size", "save_every", "sde_steps", "ode_steps", "likelihood_steps", "chunk"),
        2: ("samples", "probes", "likelihood_examples"),  # below, a standard error or distance has no meaning
    }
    for minimum, names in at_least.items():
        for name in names:
            if getattr(config, name) is not None:
                dj.checks.integer(name, getattr(config, name), minimum)
    dj.checks.positive("learning_rate", config.learning_rate)
    dj.checks.within("ema_decay", config.ema_decay, 0.0, 1.0)
    dj.checks.within("dropout", config.dropout, 0.0, 0.9)
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
    results: dict[str, Any] = score(config, model, denoiser) | baselines(data, config.likelihood_examples)
    indices, near = neighbours(drawn["sde"], data)
    results |= distances(drawn, data, config.seed) | near | {"final_loss": float(np.mean(history[-50:]))}
    score_figures.draw_loss(config, history, out)
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
    width = max(map(len, results))
    print(
        "\n".join(
            f"{name:{width}}  {value:.4f}" if isinstance(value, float) else f"{name:{width}}  {value}"
            for name, value in results.items()
        )
    )
    return results


if __name__ == "__main__":
    record.main(run, Config, __doc__)
