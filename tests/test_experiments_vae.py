"""The VAE experiments at their smallest: their files, the meaning of their
numbers, resuming, and their errors.
"""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.progressive_vae import __main__ as progressive_vae
from experiments.progressive_vae.layers import Layers
from experiments.shared import datasets
from experiments.vae import __main__ as vae
from tests.families import assert_raises

SMALL = vae.Config(
    latent=3,
    width=8,
    depth=1,
    steps=4,
    batch_size=16,
    save_every=2,
    held_out=12,
    draws=4,
    chunk=6,
)
SMALL_LAYERS = progressive_vae.Config(
    latents=(4, 3),
    width=8,
    depth=1,
    steps=4,
    prior_steps=4,
    prior_batch_size=16,
    prior_width=8,
    seeds=2,
    sets=2,
    batch_size=16,
    save_every=2,
    held_out=12,
    chunk=6,
)


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["logistic", "gaussian", "bernoulli"])
def test_vae_writes_what_it_promises(decoder, tmp_path):
    """Figures and metrics appear, the bound is its two parts, the KL the sum of
    its entries, and images of bits cost less than a bit a pixel.
    """
    config = dataclasses.replace(SMALL, out=tmp_path, decoder=decoder)
    vae.run(config)
    figures = {"loss", "samples", "reconstructions", "traversal", "interpolation"}
    assert {path.stem for path in tmp_path.glob("*.png")} == figures
    stored = json.loads((tmp_path / "metrics.json").read_text())
    for row in (stored["test"], stored["train"]):
        parts = row["bits_per_dim_reconstruction"] + row["bits_per_dim_kl"]
        np.testing.assert_allclose(row["bits_per_dim"], parts, rtol=1e-5)
        nats = row["bits_per_dim_kl"] * 64 * math.log(2)
        np.testing.assert_allclose(np.sum(row["kl_of_each_entry"]), nats, rtol=1e-4)
    if decoder == "bernoulli":
        assert stored["histogram_bits_per_dim"] < 1


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
def test_progressive_vae_writes_what_it_promises(shared, tmp_path):
    """Figures and metrics appear, contrastive bounds are at most log N, Gaussian
    ones at most the capacity, and every prior has its scores and distances.
    """
    changes = {"shared": True, "latents": (4, 4, 4)} if shared else {}
    config = dataclasses.replace(SMALL_LAYERS, out=tmp_path, **changes)
    progressive_vae.run(config)
    figures = {
        "loss",
        "loss_flow",
        "loss_diffusion",
        "reconstructions",
        "samples",
        "latents",
        "information",
    }
    assert {path.stem for path in tmp_path.glob("*.png")} == figures
    stored = json.loads((tmp_path / "metrics.json").read_text())
    assert json.loads((tmp_path / "config.json").read_text())["steps"] == config.steps
    assert (
        len(stored["information"])
        == len(config.latents)
        == len(stored["reconstruction_rmse"])
    )
    for row in stored["information"]:
        assert row["contrastive"] <= math.log(12) + 1e-5
        assert row["gaussian"] <= row["capacity"]
    assert set(stored["priors"]) == {"gaussian", "flow", "diffusion"}
    assert set(stored["distances"]) == {*stored["priors"], "training_images"}
    assert len(stored["priors"]["diffusion"]["bits_per_dim"]) == config.seeds


def test_shared_parameters_enter_the_kernels_of_every_level_above_the_first():
    """Each array of the shared parameters, moved alone, moves the kernels of
    layers 2 and 3 and no other kernel.

    Each array of the first layer moves that layer alone. Encoders and decoders
    have separate parameters.
    """
    config = dataclasses.replace(SMALL_LAYERS, latents=(4, 4, 4), shared=True)
    images = np.zeros((2, 4, 4, 1), np.float32)
    layers = Layers(
        config,
        datasets.Dataset("blank", images, images, np.array([-1.0, 0.0, 1.0]), 0.0, 1.0),
    )
    shapes, structure = jax.tree.flatten(jax.eval_shape(layers.init, jax.random.key(0)))
    paths = [
        path
        for path, _ in jax.tree_util.tree_leaves_with_path(structure.unflatten(shapes))
    ]
    draws = np.random.default_rng(0)
    point = [np.float32(0.3 * draws.standard_normal(leaf.shape)) for leaf in shapes]
    below, z = (
        draws.uniform(0.2, 1, (4, 4, 1)).astype(np.float32),
        np.float32([0.3, -0.4, 0.5, 0.9]),
    )

    @jax.jit
    @jax.vmap
    def returned(leaves):
        encoders, kernels = layers.bound(structure.unflatten(leaves))
        distributions = [
            encoders[0](below),
            *(kernel(z) for kernel in (*encoders[1:], *kernels)),
        ]
        return [
            jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(distribution)])
            for distribution in distributions
        ]

    steps = [
        np.float32(0.3 * draws.standard_normal(leaf.shape)) for leaf in shapes
    ]  # a constant one no layer norm feels
    moved = [
        np.stack([leaf, *(leaf + step * (i == j) for j in range(len(point)))])
        for i, (leaf, step) in enumerate(zip(point, steps, strict=True))
    ]
    gaps = [
        np.abs(values[1:] - values[0]).max(-1)
        for values in map(np.asarray, returned(moved))
    ]
    for path, changed in zip(
        paths, np.stack(gaps, -1) > 1e-4, strict=True
    ):  # rounding is below 1e-5
        shared, decodes = path[0].idx == 1, path[1].idx == 1
        expected = [
            (layer > 1) == shared and kind == decodes
            for kind in (False, True)
            for layer in (1, 2, 3)
        ]
        assert changed.tolist() == expected, jax.tree_util.keystr(path)


def test_black_and_white_images_are_bits():
    """Levels above the middle become 1, the middle and those below 0."""
    images = np.array([[[[-1.0], [0.0]], [[0.5], [1.0]]]])
    data = datasets.Dataset(
        "four", images, images, np.array([-1.0, 0.0, 0.5, 1.0]), 0.0, 1.0
    )
    np.testing.assert_array_equal(vae.black_and_white(data).train.ravel(), [0, 0, 1, 1])


ERRORS = {
    "beta": (vae, {"beta": -1.0}, "beta must be 0 or more, got -1.0"),
    "latent": (vae, {"latent": 0}, "latent must be at least 1, got 0"),
    "vae's data": (
        vae,
        {"data": "reals.npy"},
        "data must be images of integers of at most 256 levels, .* is not",
    ),
    "noise": (
        progressive_vae,
        {"noise_std": 0.0},
        "noise_std must be positive, got 0.0",
    ),
    "no latents": (
        progressive_vae,
        {"latents": ()},
        r"latents must be sizes of at least 2, one per layer, got \(\)",
    ),
    "latents": (
        progressive_vae,
        {"latents": (4, 1)},
        r"latents must be sizes of at least 2, one per layer, got \(4, 1\)",
    ),
    "shared": (
        progressive_vae,
        {"shared": True},
        r"latents must be of one size to share parameters, got \(4, 3\)",
    ),
    "data": (
        progressive_vae,
        {"data": "reals.npy"},
        "data must be images of integers of at most 256 levels, .* is not",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_raises(name, tmp_path):
    module, changes, message = ERRORS[name]
    np.save(tmp_path / "reals.npy", np.linspace(0, 1, 64).reshape(8, 8))
    if "data" in changes:
        changes = {"data": str(tmp_path / changes["data"])}
    small = SMALL if module is vae else SMALL_LAYERS
    assert_raises(
        lambda: module.run(dataclasses.replace(small, out=tmp_path / "out", **changes)),
        ValueError,
        message,
    )
