"""Defaults that follow from the size of the data, and scores that stop."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.score_sde import model as score_model
from experiments.shared import datasets, scoring, sizes, training
from experiments.shared.schedules import with_noise_floor
from tests.families import every


def data_of(shape, levels, count=4):
    """A data set of random levels, of the given shape."""
    values = None if levels is None else np.linspace(-1, 1, levels).astype(np.float32)
    x = np.zeros((count, *shape), np.float32)
    if values is not None:
        x = values[np.random.default_rng(0).integers(0, levels, x.shape)]
    return datasets.Dataset("random", x, x, values, 0.0, 1.0)


HEADS = {
    "digits": ((8, 8, 1), 17, "levels"),
    "binary images": ((28, 28, 1), 2, "levels"),
    "grey bytes": ((28, 28, 1), 256, "edm"),
    "small grey bytes": ((8, 8, 1), 256, "edm"),
    "colour bytes": ((32, 32, 3), 256, "edm"),
    "colour of few levels": ((8, 8, 3), 17, "levels"),
    "vectors": ((10,), 17, "levels"),
    "large images of few levels": ((128, 128, 3), 16, "edm"),
    "real numbers": ((8, 8, 1), None, "edm"),
}


@pytest.mark.parametrize("name", HEADS)
def test_the_head_follows_from_levels_channels_and_pixels(name, capsys):
    """Also in the model that the flags select. Where a flag selects a softmax over
    many levels all the same, its cost is stated.
    """
    shape, levels, expected = HEADS[name]
    data = data_of(shape, levels)
    assert sizes.default_prediction(data) == expected
    model = score_model.make_model(score_model.Config(), data)
    assert model.prediction == expected
    if levels and expected == "edm":
        wanted = dataclasses.replace(score_model.Config(), prediction="levels")
        assert score_model.make_model(wanted, data).prediction == "levels"
        cost = sizes.levels_cost(data, 96)
        assert f" {levels * shape[-1]} features per position" in cost
        # 8 arrays of 4 bytes per logit
        expected = f"{32 * 96 * levels * math.prod(shape) / 1e9:.2g} GB"
        assert expected in cost


@pytest.mark.parametrize("side", every([8, 16, 28, 32, 64, 96, 30], (32, 30)))
def test_networks_fit_images_of_any_size(side):
    """Shapes are traced, not computed. Attention sees at most 81 positions in a
    U-Net whose sides can be halved that far, and a transformer 256.
    """
    data = data_of((side, side, 3), 256, count=1)
    for network in ("unet", "dit"):
        config = score_model.Config(network=network, prediction="edm")
        module = training.make_module(config, data)
        run = lambda x, module=module: module.init_with_output(
            jax.random.key(0), x, jnp.zeros(())
        )[0]
        assert jax.eval_shape(run, jnp.zeros(data.shape)).shape == data.shape
        fields = sizes.network_fields(network, data.shape)
        if network == "unet" and side != 30:
            least = side // 2 ** (len(fields["multipliers"]) - 1)
            assert least <= 12 and fields["attention_resolutions"][0] == (
                len(fields["multipliers"]) - 1
            )
        if network == "dit":
            tokens = (side // fields["patch"]) ** 2
            assert tokens <= sizes.TOKENS or side % (2 * fields["patch"])


def test_digits_keep_their_defaults():
    """Counts and network of the measurements that the docstring states."""
    shape = (8, 8, 1)
    assert sizes.sample_count(shape) == sizes.scored_count(shape, 447) == 447
    assert sizes.chunk_size(shape) == 64
    unet = {"width": 48, "multipliers": (1, 2), "attention_resolutions": (1,)}
    assert sizes.network_fields("unet", shape) == unet
    assert sizes.network_fields("dit", shape) == {"width": 96, "patch": 2}
    assert 16 <= sizes.sample_count((64, 64, 3)) < sizes.sample_count((32, 32, 3)) < 447


@pytest.mark.parametrize(
    "levels, expected", [(None, 16), (2, 16), (17, 16), (65, 96), (256, 96)]
)
def test_scores_of_finer_levels_take_more_steps_unless_a_number_is_given(
    levels, expected
):
    levels = None if levels is None else np.linspace(-1, 1, levels)
    test = np.zeros((1, 1), np.float32)
    data = datasets.Dataset("numbers", test, test, levels, 0.0, 1.0)
    assert scoring.default_steps(data) == expected
    assert scoring.default_steps(data, 7) == 7


def scored(values, **settings):
    """`scoring.score` of examples that are their own number and log-likelihood,
    and the numbers in the order in which they came.
    """
    test = np.asarray(values, np.float32)[:, None]
    data = datasets.Dataset("numbers", test, test, None, 0.0, 1.0)
    schedule, seen = with_noise_floor("vp", 0.02), []
    fine = scoring.likelihood_grid(schedule, 8)

    def program(state, keys, examples):
        x = np.asarray(examples)[:, 0]
        if np.array_equal(state[1], fine):
            seen.extend(x)
        return x, np.zeros(len(x))

    results = scoring.score(
        jax.random.key(0),
        data,
        schedule,
        None,
        steps=8,
        probes=2,
        program=program,
        **settings,
    )
    return results, np.array(seen)


def test_a_score_stops_at_its_precision_and_no_sooner():
    """After the first chunk at which 32 examples and s/√n (1 + 1/√(2(n − 1)))
    suffice, and at the end where they never do.
    """
    values = np.random.default_rng(0).normal(size=2000)
    results, seen = scored(values, chunk=8, error=0.1)
    count = results["test_examples_scored"]
    assert count == len(seen) and 32 <= count < 200
    assert scoring.is_precise(seen, 0.1) and not scoring.is_precise(seen[:-8], 0.1)
    slack = 1 + 1 / math.sqrt(2 * (count - 1))
    assert results["test_nats_per_dim_standard_error"] * slack <= 0.1
    # Equal values are precise at once, but for the least number of them.
    assert scored(np.ones(100), chunk=8, error=1e-9)[0]["test_examples_scored"] == 32
    assert scored(values[:100], chunk=30, error=1e-3)[0]["test_examples_scored"] == 100


def test_examples_come_in_one_random_order():
    """A score of 20 examples takes the first 20 of the order, whatever the chunk
    is. A score of all takes each once.
    """
    values = np.arange(50.0)
    order = scoring.order(jax.random.key(0), 50)
    assert sorted(order) == list(range(50)) and not np.array_equal(order, values)
    _, seen = scored(values, chunk=7, examples=20)
    assert np.array_equal(seen[:20], values[order[:20]])
    results, seen = scored(values, chunk=64)
    assert np.array_equal(seen, values[order])
    assert results["test_nats_per_dim"] == -24.5


def test_a_score_moves_with_its_mean_and_error(capsys):
    """The first line says that it compiles. Later ones have the running mean."""
    scored(np.random.default_rng(0).normal(size=64), chunk=16)
    lines = capsys.readouterr().err.replace("\r", "\n").split("\n")
    assert "compiling" in next(line for line in lines if line.strip())
    assert "±" in lines[-2] + lines[-1] and "nats/dim" in lines[-2] + lines[-1]


def test_the_standard_error_is_that_of_repeated_stops():
    """Over 400 runs that stop at 0.1, the mean's own standard deviation is at
    most 0.1 within 4 of its standard errors, 0.1/√800 each.
    """
    rng, means = np.random.default_rng(0), []
    for _ in range(400):
        values, count = rng.exponential(size=1000), 32
        while not scoring.is_precise(values[:count], 0.1):
            count += 8
        means.append(values[:count].mean())
    assert np.std(means) < 0.1 * (1 + 4 / math.sqrt(800))
