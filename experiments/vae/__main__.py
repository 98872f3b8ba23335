"""Into how many bits does a variational autoencoder compress digits, and which
entries carry them?

    python -m experiments.vae
    python -m experiments.vae --decoder gaussian --out runs/vae_gaussian
    python -m experiments.vae --decoder bernoulli --out runs/vae_bernoulli   # 1 bit
    python -m experiments.vae --beta 4 --out runs/vae_beta

Trains a VAE of dense layers with one Gaussian latent. Prints the bound of the
test digits in bits/dim, the tighter one that weights many draws by importance,
and the score of independent histograms, which a decoder without a latent would
have. A run on the same OUT resumes. Figures in OUT:

- reconstructions.png: test digits, and the decoder's mean at the latent's
  mean.
- samples.png: test digits, the decoder's means at latents of the prior, and
  draws of the decoder.
- traversal.png: one test digit with its latents changed one at a time, one row
  per entry, for the entries that carry most nats.
- interpolation.png: between pairs of test digits, along great circles of their
  latents.
- loss.png: the bound of the training batches.

Hardware and time: 71 seconds of CPU time (2 to 3.5 minutes on 2 cores shared
with five other programs).

Expect a test bound of 1.86 ± 0.02 bits/dim (1.51 for the reconstruction, 0.35
for the latent), 1.79 weighted over 256 draws, where the histograms have 2.42.
Training digits have 1.66. Draws have a Fréchet distance of 1.00 from the test
digits and an energy distance of 0.036, where as many training digits, chosen
at random, have 0.54 and 0.023.
"""

import dataclasses
import math
import pathlib
from typing import Any, Literal

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import diffjax as dj
from diffjax import distributions, metrics, sampling
from diffjax.distributions.normal import gaussian_kl_entries
from diffjax.vaes import Perceptron, gaussian
from experiments.shared import cli, datasets, files, training
from experiments.shared.figures import image_grid, save_figure
from experiments.shared.mapping import map_examples

ROWS, FRAMES, TRAVERSED, REACH = 8, 9, 8, 2.5
LOG_STD_LIMIT = 4.0


@dataclasses.dataclass(frozen=True)
class Config(training.ImageTraining):
    """Train a VAE, bound its code length, reconstruct, sample, traverse and
    interpolate.
    """

    out: pathlib.Path = pathlib.Path("runs/vae")
    """Folder for config.json, metrics.json, figures and checkpoints. A run on the
    same folder resumes.
    """
    decoder: Literal["logistic", "gaussian", "bernoulli"] = "logistic"
    """Distribution of a pixel given the latent: a logistic or a Gaussian rounded
    to the levels, or a bit. Levels above the middle are then 1, and the
    figures are those of black and white images.
    """
    latent: int = 16
    """Entries of the latent."""
    width: int = 256
    """Features of the encoder and of the decoder."""
    depth: int = 2
    """Residual blocks of each."""
    dropout: float = 0.2
    """Dropout probability in training."""
    beta: float = 1.0
    """Weight of the KL in training. Scores are bounds for any weight."""
    free_bits: float = 0.0
    """Nats per entry of the latent that cost nothing in training."""
    steps: int = 4000
    """Training steps."""
    batch_size: int = 128
    """Examples per step."""
    learning_rate: float = 1e-3
    """Peak learning rate: linear warm-up over a tenth of the steps, then a cosine
    to 0.
    """
    ema_decay: float = 0.995
    """Decay of the averaged parameters, which are the ones sampled and scored."""
    save_every: int = 1000
    """Steps between checkpoints."""
    draws: int = 256
    """Draws of the latent for each test example."""
    chunk: int = 32
    """Examples at a time in scores and samples."""


_FIELDS = (
    "data",
    "decoder",
    "latent",
    "width",
    "depth",
    "dropout",
    "beta",
    "free_bits",
    "replaced",
)


# ----------------------------------------------------------------------- model


@dataclasses.dataclass(frozen=True, eq=False)
class AutoencoderModel:
    """The two networks, with the distributions that their outputs describe."""

    config: Config
    data: datasets.Dataset

    @property
    def networks(self):
        """(encoder, decoder): (2, latent) of an image, and (1 or 2, *shape) of a
        latent.
        """
        c = self.config
        outputs = (1 if c.decoder == "bernoulli" else 2, *self.data.shape)
        sizes = {"width": c.width, "depth": c.depth, "dropout": c.dropout}
        return Perceptron((2, c.latent), **sizes), Perceptron(outputs, **sizes)

    def init(self, key):
        """Initial parameters of both."""
        keys = jax.random.split(key)
        inputs = jnp.zeros(self.data.shape), jnp.zeros(self.config.latent)
        return tuple(
            net.init(k, x)
            for net, k, x in zip(self.networks, keys, inputs, strict=True)
        )

    def encode(self, params, key, x):
        """(mean, log_std) of z. A key turns dropout on."""
        mean, log_std = _apply(self.networks[0], params, key, x)
        return mean, LOG_STD_LIMIT * jnp.tanh(log_std / LOG_STD_LIMIT)

    def decode(self, params, key, z):
        """The distribution of an image. A key turns dropout on."""
        raw = _apply(self.networks[1], params, key, z)
        if self.config.decoder == "bernoulli":
            return distributions.bernoulli(raw[0])
        distribution = (
            distributions.discretised_logistic
            if self.config.decoder == "logistic"
            else distributions.discretised_gaussian
        )
        return distribution(raw[0], raw[1] - 1.0, self.data.levels)

    def bound(self, params, key=None):
        """(encoder, decoder) as pytrees with the parameters as leaves."""
        keys = (None, None) if key is None else jax.random.split(key)
        parts = zip((self.encode, self.decode), params, keys, strict=True)
        return tuple(
            jax.tree_util.Partial(part, part_params, key)
            for part, part_params, key in parts
        )


def _apply(network, params, key, x):
    if key is None:
        return network.apply(params, x)
    return network.apply(params, x, train=True, rngs={"dropout": key})


def train(
    config: Config, data: datasets.Dataset, model: AutoencoderModel, out: pathlib.Path
) -> tuple[Any, np.ndarray]:
    """Train both networks, resuming from the checkpoints in `out`.

    Returns:
      (averaged parameters, loss of every step in bits/dim).
    """
    bits = 1 / (math.prod(data.shape) * math.log(2))

    def one(params, key, x):
        key_noise, key_dropout = jax.random.split(key)
        encoder, decoder = model.bound(params, key_dropout)
        return (
            -bits
            * gaussian.elbo(
                key_noise,
                encoder,
                decoder,
                x,
                prior=None,
                beta=config.beta,
                free_bits=config.free_bits,
            ).total
        )

    loss = training.image_loss(config, data, one)
    return training.fit(
        config, out, loss, model.init, arrays=data.train, fields=_FIELDS
    )  # type: ignore


# ------------------------------------------------------------ what is measured


def score(
    config: Config,
    model: AutoencoderModel,
    params: Any,
    examples: np.ndarray,
    label: str,
) -> dict[str, Any]:
    """Mean bits/dim of the bound and of the weighted bound.

    The bound comes with its two parts and the standard error over examples.

    Raises:
      FloatingPointError: If a bound is not finite.
    """

    def one(bound, key, x):
        key_elbo, key_weighted = jax.random.split(key)
        keys = jax.random.split(key_elbo, 16)
        terms = jax.tree.map(
            jnp.mean, jax.vmap(lambda key: gaussian.elbo(key, *bound, x))(keys)
        )
        weighted = gaussian.importance_weighted_bound(
            key_weighted, *bound, x, samples=config.draws
        )
        q = gaussian.encode(bound[0], x)
        return terms, weighted, gaussian_kl_entries(q.var, 1.0, q.loc)

    keys = jax.random.split(jax.random.key(config.seed + 2), len(examples))
    terms, weighted, entries = map_examples(
        one, model.bound(params), (keys, examples), chunk=config.chunk, label=label
    )
    if not np.isfinite(terms.total).all():
        raise FloatingPointError(
            f"{np.sum(~np.isfinite(terms.total))} of {len(terms.total)} bounds are not "
            "finite"
        )
    bits = 1 / (examples[0].size * math.log(2))
    return {
        "bits_per_dim": float(-bits * terms.total.mean()),
        "bits_per_dim_standard_error": float(
            bits * dj.numerics.standard_error(terms.total)
        ),
        "bits_per_dim_reconstruction": float(-bits * terms.reconstruction.mean()),
        "bits_per_dim_kl": float(bits * terms.kl.mean()),
        "bits_per_dim_importance_weighted": float(-bits * weighted.mean()),
        "kl_of_each_entry": entries.mean(0),
    }


def draw_samples(
    config: Config, decoder: Any, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """(means, draws) of the decoder at the same latents of the prior, `count` of
    each.
    """
    prior = distributions.standard_normal((config.latent,))

    def one(decoder, key):
        key_prior, key_data = jax.random.split(key)
        distribution = decoder(prior.sample(key_prior))
        return distribution.mean(), distribution.sample(key_data)

    keys = jax.random.split(jax.random.key(config.seed + 1), count)
    return map_examples(one, decoder, (keys,), chunk=config.chunk, label="samples")


def distances(
    config: Config, data: datasets.Dataset, images: np.ndarray
) -> dict[str, float]:
    """Distances of images and of as many random training images, the floor, from
    the test set.
    """
    results, rows = {}, np.random.default_rng(config.seed).permutation(len(data.train))
    for name, others in (
        ("samples", images),
        ("training_images", data.train[rows[: len(data.test)]]),
    ):
        results[f"frechet_{name}"] = float(metrics.frechet_distance(others, data.test))
        results[f"energy_{name}"] = float(metrics.energy_distance(others, data.test))
    return results


# --------------------------------------------------------------------- figures


def mosaic(
    axis: Any, data: datasets.Dataset, images: np.ndarray, columns: int, title: str
) -> None:
    """Draw images in the grey levels of the data, under a title."""
    image_grid(axis, images, columns, (float(data.levels[0]), float(data.levels[-1])))  # type: ignore
    axis.set_title(title, fontsize=10)


def sample_figure(data: datasets.Dataset, means: np.ndarray, drawn: np.ndarray) -> Any:
    """Draw test images, means and draws."""
    figure, axes = plt.subplots(1, 3, figsize=(10.2, 3.7))
    for axis, images, title in zip(
        axes,
        (data.test, means, drawn),
        ("test images", "means at latents of the prior", "draws there"),
        strict=True,
    ):
        mosaic(axis, data, images[:64], 8, title)
    return figure


def reconstruction_figure(data: datasets.Dataset, bound: Any) -> Any:
    """Draw test images, and the decoder's means at their latents' means."""
    figure, axes = plt.subplots(1, 2, figsize=(6.8, 3.7))
    shown = data.test[:64]
    means = jax.jit(
        jax.vmap(lambda x: bound[1](gaussian.encode(bound[0], x).loc).mean())
    )(shown)
    mosaic(axes[0], data, shown, 8, "test images")
    mosaic(axes[1], data, np.asarray(means), 8, "reconstructions")
    return figure


def traversal_figure(data: datasets.Dataset, bound: Any, kl: np.ndarray) -> Any:
    """Draw images with one entry of the latent changed from −REACH to REACH, one
    row per entry.

    Entries with most nats come first. The others are those of one image.
    """
    entries = np.argsort(-kl)[:TRAVERSED]
    values = jnp.linspace(-REACH, REACH, FRAMES)
    z = gaussian.encode(bound[0], data.test[0]).mean()
    latents = jnp.stack(
        [z.at[entry].set(value) for entry in entries for value in values]
    )
    figure, axis = plt.subplots(figsize=(0.6 * FRAMES + 1.4, 0.6 * len(entries) + 0.8))
    mosaic(
        axis,
        data,
        np.asarray(jax.jit(jax.vmap(lambda z: bound[1](z).mean()))(latents)),
        FRAMES,
        "one test image, one entry of its latent changed a row",
    )
    label_grid(
        axis,
        data,
        [f"{value:.1f}" for value in values],
        [f"{kl[entry]:.1f} nats" for entry in entries],
    )
    axis.set_xlabel("value of the entry, whose prior is N(0, 1)")
    return figure


def interpolation_figure(data: datasets.Dataset, bound: Any) -> Any:
    """Draw one row per pair of test images, whose reconstructions are its outer
    frames.
    """
    rows, weights = min(ROWS, len(data.test) // 2), jnp.linspace(0, 1, FRAMES)

    def between(a, b):
        ends = (gaussian.encode(bound[0], x).loc for x in (a, b))
        start, end = ends
        return jax.vmap(
            lambda weight: bound[1](sampling.spherical(start, end, weight)).mean()
        )(weights)

    frames = np.asarray(
        jax.jit(jax.vmap(between))(data.test[:rows], data.test[rows : 2 * rows])
    )
    figure, axis = plt.subplots(figsize=(0.6 * FRAMES + 0.8, 0.6 * rows + 0.8))
    mosaic(
        axis,
        data,
        frames.reshape(-1, *data.shape),
        FRAMES,
        "between two test images, spherically in the latent",
    )
    label_grid(axis, data, [f"{weight:.2f}" for weight in weights], [])
    axis.set_xlabel("weight of the right image")
    return figure


def label_grid(
    axis: Any, data: datasets.Dataset, columns: list[str], rows: list[str]
) -> None:
    """Label the columns and rows of a mosaic."""
    axis.set_axis_on()
    axis.set_xticks(
        (np.arange(len(columns)) + 0.5) * (data.shape[1] + 1) - 1, columns, fontsize=8
    )
    axis.set_yticks(
        (np.arange(len(rows)) + 0.5) * (data.shape[0] + 1) - 1, rows, fontsize=8
    )
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)


# ------------------------------------------------------------------------ main


def check(config: Config) -> datasets.Dataset:
    """Open the data. Raises ValueError for flags that are not usable."""
    training.check_images(config)
    for name in ("latent", "width", "draws", "chunk"):
        dj.checks.integer(name, getattr(config, name), 1)
    dj.checks.integer("depth", config.depth, 0)
    for name in ("beta", "free_bits"):
        dj.checks.non_negative(name, getattr(config, name))
    dj.checks.within("dropout", config.dropout, 0.0, 0.9)
    data = training.open_images(config)
    return black_and_white(data) if config.decoder == "bernoulli" else data


def black_and_white(data: datasets.Dataset) -> datasets.Dataset:
    """Images of 1 where the level is above the middle of its range, 0 elsewhere."""
    middle = 0.5 * (data.levels[0] + data.levels[-1])  # type: ignore
    train, test = ((x > middle).astype(np.float32) for x in (data.train, data.test))
    levels = np.array([0.0, 1.0], np.float32)
    return dataclasses.replace(
        data,
        stored_train=train,
        stored_test=test,
        levels=levels,
        shift=0.0,
        scale=1.0,
        scaling=None,
    )


def run(config: Config) -> dict[str, Any]:
    """Train, bound, sample and draw.

    Returns:
      The metrics, which are also in OUT/metrics.json.
    """
    data = check(config)
    out = files.open_folder(config)
    print(f"{data.sizes} of shape {data.shape}")
    clock, model = cli.Clock(), AutoencoderModel(config, data)
    params, history = train(config, data, model, out)
    clock.lap("training")
    results: dict[str, Any] = {
        "test": score(config, model, params, data.test, "test bound"),
        "train": score(
            config, model, params, data.train[: len(data.test)], "training bound"
        ),
        "histogram_bits_per_dim": datasets.histogram_bits(data),
    }
    clock.lap("bounds")
    bound = model.bound(params)
    means, drawn = draw_samples(config, bound[1], max(64, len(data.test)))
    results |= distances(config, data, drawn[: len(data.test)])
    clock.lap("samples")
    training.draw_loss(
        history, "training loss, bits/dim", f"Training, {config.data}", out / "loss.png"
    )
    save_figure(sample_figure(data, means, drawn), out / "samples.png")
    save_figure(reconstruction_figure(data, bound), out / "reconstructions.png")
    save_figure(
        traversal_figure(data, bound, results["test"]["kl_of_each_entry"]),
        out / "traversal.png",
    )
    save_figure(interpolation_figure(data, bound), out / "interpolation.png")
    clock.lap("figures")
    results["seconds"] = clock.laps
    files.write_results(out, results)
    print_results(config, results)
    return results


def print_results(config: Config, results: dict[str, Any]) -> None:
    """Print bits/dim of the bounds beside the histograms', and distances beside
    the training images'.
    """
    for name in ("test", "train"):
        row = results[name]
        print(
            f"{name:5} bits/dim {row['bits_per_dim']:.4f} ± "
            f"{row['bits_per_dim_standard_error']:.4f} "
            f"(reconstruction {row['bits_per_dim_reconstruction']:.3f} + KL "
            f"{row['bits_per_dim_kl']:.3f}); "
            f"weighted over {config.draws} draws "
            f"{row['bits_per_dim_importance_weighted']:.4f}"
        )
    print(f"independent histograms {results['histogram_bits_per_dim']:.4f}")
    for name in ("frechet", "energy"):
        print(
            f"{name} distance to the test set: samples "
            f"{results[f'{name}_samples']:.3f}, "
            f"as many training images {results[f'{name}_training_images']:.3f}"
        )


if __name__ == "__main__":
    cli.main(run, Config, __doc__)
