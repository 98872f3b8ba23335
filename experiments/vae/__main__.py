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

Units: names with `bits_per_dim` are in bits per dimension, `kl_of_each_entry`
is in nats. On a scale of pixels from −1 to 1, `frechet_<set>` is in squared
units and `energy_<set>` in units. `seconds` is in seconds.

Hardware and time: 71 seconds of processor time.

Expect a test bound of 1.86 ± 0.02 bits/dim (1.51 for the reconstruction, 0.35
for the latent), 1.79 weighted over 256 draws, where the histograms have 2.42.
Training digits have 1.66. Draws have a Fréchet distance of 1.00 from the test
digits and an energy distance of 0.036, where as many training digits, chosen
at random, have 0.54 and 0.023.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from diffjax import distributions, metrics
from diffjax.distributions.normal import gaussian_kl_entries
from diffjax.vaes import gaussian
from experiments.shared import cli, datasets, files, training
from experiments.shared.figures import save_figure
from experiments.shared.mapping import map_examples
from experiments.vae.autoencoder import AutoencoderModel, train
from experiments.vae.config import Config
from experiments.vae.figures import (
    interpolation_figure,
    reconstruction_figure,
    sample_figure,
    traversal_figure,
)


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
