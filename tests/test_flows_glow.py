"""Glow: its convolution, its actnorms, its mass on a lattice, its interpolation."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import flows
from diffjax.flows.conditioners.convolutions import convolution
from tests.flow_members import KEY, shaken


@functools.cache
def glow():
    """One of two scales of two steps for (4, 8, 1), untrained."""
    return flows.glow(KEY, (4, 8, 1), scales=2, steps=2, width=4)


def test_a_convolution_as_a_matrix_product_is_the_convolution():
    """It is the 3 × 3 cross-correlation with zeros around the image.

    From few channels to many and back. In the network, a parameter of a position
    depends on the pixels that two of them reach.
    """
    for channels, features in ((2, 5), (5, 2)):
        draws = np.random.default_rng(0)
        h = draws.standard_normal((3, 4, channels)).astype(np.float32)
        kernel = draws.standard_normal((3, 3, channels, features)).astype(np.float32)
        padded = np.pad(h, ((1, 1), (1, 1), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(
            padded, (3, 3), axis=(0, 1)
        )  # (H, W, C, 3, 3)
        expected = np.einsum("hwcij,ijcf->hwf", windows, kernel)
        np.testing.assert_allclose(jax.jit(convolution)(h, kernel), expected, atol=1e-5)
    network = shaken(flows.convolutional(KEY, (1, 7, 2), (1, 7, 1), width=4))
    reach = jax.jit(jax.jacrev(lambda x: network(x)[0, 3, 0]))(
        np.ones((1, 7, 2), np.float32)
    )
    np.testing.assert_array_equal(
        np.any(np.asarray(reach)[0] != 0, -1),
        [False, True, True, True, True, True, False],
    )


def test_a_glow_starts_as_a_rotation():
    """At first log p is that of N(0, I), and lengths stay."""
    model, x = (
        glow(),
        np.random.default_rng(1).standard_normal((4, 8, 1)).astype(np.float32),
    )
    z, log_p = jax.jit(lambda model: (model.encode(x), model.log_prob(x)))(model)
    assert tuple(part.shape for part in z) == model.base.shape == ((1, 2, 8), (2, 4, 2))
    assert float(sum(np.sum(np.square(part)) for part in z)) == pytest.approx(
        float(np.sum(x**2)), rel=1e-4
    )
    assert float(log_p) == pytest.approx(
        -0.5 * np.sum(x**2) - 16 * math.log(2 * math.pi), rel=1e-4
    )


def test_initialise_normalises_after_every_actnorm_of_a_glow():
    """Values that leave an actnorm have mean 0 and standard deviation 1.

    In each channel, towards the base.
    """
    model = shaken(glow(), size=0.1)
    batch = np.float32(3 + 2 * np.random.default_rng(1).standard_normal((200, 4, 8, 1)))

    @jax.jit
    def normalised(model, batch):
        ys, outputs = batch, []
        for scale in reversed(flows.initialise(model, batch).bijector.scales):
            prior, layers, unsqueeze = scale.bijectors
            ys = jax.vmap(unsqueeze.inverse)(ys)
            for i in (1, 0):
                *others, actnorm = jax.tree.map(
                    lambda leaf, i=i: leaf[i], layers.layers
                ).bijectors
                outputs.append(jax.vmap(actnorm.inverse)(ys))
                ys = jax.vmap(flows.chain(*others).inverse)(outputs[-1])
            ys = jax.vmap(prior.inverse)(ys)
            ys = ys[..., ys.shape[-1] // 2 :]
        return outputs

    for h in map(np.asarray, normalised(model, batch)):
        np.testing.assert_allclose(h.mean((0, 1, 2)), 0, atol=1e-4)
        np.testing.assert_allclose(h.std((0, 1, 2)), 1, rtol=5e-3)


@pytest.mark.slow
def test_lattice_probabilities_of_a_glow_add_up_to_its_mass(x64):
    """Σ_x exp of the mean bound ≤ Σ_x E P̂(x) = the flow's mass on the cells.

    The mass is counted among its samples. For uniform and learned noise, 3⁴ lattice
    points of (2, 2, 1), within 4.5 standard errors. The weight 1/q of a draw has no
    tail up to 6.8 standard deviations of the base, where e^{z²/2 − 2·1.702 |z|} is 1
    again.
    """
    model = shaken(flows.glow(KEY, (2, 2, 1), scales=1, steps=2, width=4), size=0.2)
    levels = jnp.array([-1.0, 0.0, 1.0])
    points = jnp.stack(jnp.meshgrid(*[levels] * 4, indexing="ij"), -1).reshape(
        81, 2, 2, 1
    )
    samples = jax.jit(jax.vmap(model.sample))(
        jax.random.split(jax.random.key(1), 20000)
    )
    inside = np.all(np.abs(samples) < 1.5, (1, 2, 3))
    error = inside.std() / math.sqrt(len(inside))
    learned = shaken(
        flows.dequantiser(jax.random.key(2), (2, 2, 1), layers=2, width=4), size=0.1
    )
    draws = 400
    keys = jax.random.split(jax.random.key(3), (81, draws))

    @jax.jit
    def bounds(model, dequantiser):
        one = lambda key, x: flows.lattice_log_prob(
            key, model, x, 1.0, dequantiser=dequantiser
        )
        return jax.vmap(lambda keys, x: jax.vmap(lambda key: one(key, x))(keys))(
            keys, points
        )

    for dequantiser in (None, learned):
        values = np.asarray(bounds(model, dequantiser))  # (81, draws)
        weights = np.exp(values)
        deviation = math.sqrt(np.sum(weights.var(1)) / draws)
        assert abs(weights.mean(1).sum() - inside.mean()) < 4.5 * math.hypot(
            error, deviation
        )
        assert np.exp(values.mean(1)).sum() < 1 + 4.5 * deviation
        assert 4.5 * math.hypot(error, deviation) < 0.1


def test_interpolation_runs_along_great_circles_of_every_latent():
    """The ends are the examples. Halfway each latent is the spherical interpolation."""
    model = shaken(glow(), size=0.1)
    start, end = (
        np.random.default_rng(0).standard_normal((2, 4, 8, 1)).astype(np.float32)
    )

    @jax.jit
    def everything(model):
        frames = flows.interpolate(model, start, end, jnp.array([0.0, 0.5, 1.0]))
        return frames, jax.vmap(model.encode)(jnp.stack([start, end, frames[1]]))

    frames, latents = jax.tree.map(np.asarray, everything(model))
    first, last, middle = ([part[i] for part in latents] for i in range(3))
    np.testing.assert_allclose(frames[0], start, atol=1e-4)
    np.testing.assert_allclose(frames[2], end, atol=1e-4)
    for a, b, m in zip(first, last, middle, strict=True):
        np.testing.assert_allclose(m, dj.sampling.spherical(a, b, 0.5), atol=1e-4)
    with pytest.raises(ValueError, match="end must have shape"):
        flows.interpolate(model, start, end[0], jnp.array([0.5]))
