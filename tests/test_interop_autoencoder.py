"""The autoencoder of diffusers: latents of diffusions, sides, dtypes, inputs.

`tests/test_interop_diffusers.py` compares its outputs with those of diffusers.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax.interop import diffusers
from diffjax.interop.diffusers import model
from tests.diffusers_models import model_of
from tests.golden.diffusers_rows import ROWS

TINY = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [4],
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "norm_num_groups": 2,
    "latent_channels": 2,
    "mid_block_add_attention": False,
}
PER_CHANNEL = {"latents_mean": [0.5, -1.0], "latents_std": [2.0, 3.0]}


@functools.cache
def coder(row="autoencoder/sd"):
    return model_of(ROWS[row])


class Unchanged(model.Autoencoder):
    """An autoencoder whose codes are its images."""

    def encode(self, x):
        return x, jnp.zeros_like(x)

    def decode(self, z):
        return z


@pytest.mark.parametrize(
    "options, shift, scale",
    [
        ({}, 0, 1 / 0.18215),
        ({"scaling_factor": 0.5, "shift_factor": 0.25}, 0.25, 2),
        ({**PER_CHANNEL, "scaling_factor": 0.5}, [0.5, -1], [4, 6]),
    ],
)
def test_latents_are_scaled_codes_and_images_undo_it(options, shift, scale):
    """As the pipelines of diffusers scale them: by scaling_factor, after shift_factor
    or the mean and the deviation of each channel.
    """
    unchanged = Unchanged({}, config_json=json.dumps(TINY | options))
    x = jax.random.normal(jax.random.key(0), (2, 2, 2))
    latents = unchanged.latents(x)
    np.testing.assert_allclose(
        latents, (x - np.array(shift)) / np.array(scale), atol=1e-6
    )
    np.testing.assert_allclose(unchanged.images(latents), x, atol=1e-6)


def test_a_random_autoencoder_is_an_autoencoder():
    made = jax.eval_shape(lambda k: diffusers.initialised(k, TINY), jax.random.key(0))
    assert isinstance(made, model.Autoencoder)
    assert jax.tree.structure(made) == jax.tree.structure(model_of(TINY))


@pytest.mark.parametrize("sides, code", [((8, 12), (2, 3)), ((9, 15), (2, 3))])
def test_sides_are_halved_and_rounded_down(sides, code):
    mean, log_variance = jax.eval_shape(
        coder("autoencoder/deep").encode, jnp.zeros((*sides, 3))
    )
    assert mean.shape == log_variance.shape == (*code, 2)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_outputs_have_the_dtype_of_inputs(dtype, x64):
    wide = model_of(ROWS["autoencoder/sd"] | TINY | PER_CHANNEL)
    x, z = jnp.zeros((4, 4, 3), dtype), jnp.zeros((4, 4, 2), dtype)
    made = jax.eval_shape(
        lambda c, x, z: (c.encode(x), c.decode(z), c.latents(x), c.images(z)),
        wide,
        x,
        z,
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {np.dtype(dtype)}


def test_an_autoencoder_has_no_denoiser():
    with pytest.raises(TypeError, match="an autoencoder has no denoiser"):
        coder().denoiser(dj.schedules.from_betas(dj.ddpm.linear_betas(10)), "noise")


@pytest.mark.parametrize(
    "named, value", [("latents_std", [0.0] * 4), ("latents_mean", [True] * 4)]
)
def test_scales_of_latents_are_numbers(named, value):
    with pytest.raises(ValueError, match=f"{named} must be a list with entries"):
        model_of(TINY | {named: value})


def test_log_variances_are_bounded():
    """A sample has a finite deviation whatever the network returns."""
    tiny = model_of(TINY)
    loud = model.Autoencoder(
        jax.tree.map(lambda v: 1e4 * v, tiny.params), config_json=tiny.config_json
    )
    x = jax.random.normal(jax.random.key(0), (2, 2, 3))
    _, log_variance = jax.jit(model.Autoencoder.encode)(loud, x)
    assert set(np.unique(log_variance)) == {-30.0, 20.0}


@pytest.mark.parametrize(
    "method, value, message",
    [
        ("encode", np.zeros((8, 8, 4)), r"x must have shape \(…, …, 3\), got"),
        ("encode", np.zeros((2, 8, 8, 3)), "jax.vmap for a batch"),
        ("encode", np.zeros((0, 8, 3)), r"got \(0, 8, 3\)"),
        ("encode", np.zeros((8, 1, 3)), "sides of x must be at least 2"),
        ("encode", np.zeros((8, 8, 3), np.uint8), "x must be floating-point, got uint"),
        ("latents", np.zeros((8, 8)), r"x must have shape \(…, …, 3\), got"),
        ("decode", np.zeros((8, 8, 3)), r"z must have shape \(…, …, 4\), got"),
        ("decode", np.zeros((8, 8, 4), int), "z must be floating-point, got int"),
        ("images", np.zeros((8, 8, 1)), r"z must have shape \(…, …, 4\), got"),
    ],
)
def test_inputs_of_other_shapes_raise_by_name(method, value, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(getattr(coder(), method), value)
