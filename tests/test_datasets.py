"""Data sets keep the type of their files, and the device scales them exactly."""

import tracemalloc

import jax
import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from diffjax.training import Batches, Rows
from experiments.shared import datasets


@pytest.mark.parametrize("levels", [2, 3, 17, 100, 255, 256])
def test_the_device_maps_bytes_to_the_same_levels_bit_for_bit(levels, tmp_path):
    """Also where the least byte is not 0, and where integers are stored as others."""
    values = np.resize(np.arange(levels), (2 * levels, 3, 1, 1))
    for dtype, origin in ((np.uint8, 256 - levels), (np.int64, 10**9), (float, -7)):
        np.save(tmp_path / "x.npy", (values + origin).astype(dtype))
        data = datasets.open_dataset(str(tmp_path / "x.npy"), 3, 0)
        assert data.stored_train.dtype == np.uint8 and len(data.levels) == levels
        scaled = jax.jit(data.scaled)(np.asarray(data.stored_train))
        assert scaled.dtype == np.float32
        np.testing.assert_array_equal(scaled, data.train)
        assert np.isin(data.train, data.levels).all()


def test_digits_are_those_of_before():
    """16ths on [−1, 1], bytes until they are scaled."""
    from sklearn.datasets import load_digits

    data = datasets.open_dataset("digits", 447, 0)
    assert data.stored_train.dtype == np.uint8
    both = np.concatenate([data.train, data.test])
    expected = load_digits().images[..., None] / 8 - 1
    order = lambda x: np.sort(x.reshape(len(x), -1) @ np.arange(64))
    np.testing.assert_array_equal(order(both), order(expected.astype(np.float32)))
    np.testing.assert_array_equal(jax.jit(data.scaled)(data.stored_test), data.test)


def test_validation_takes_training_examples_alone():
    """Both parts make up the training part, and reopening finds the same ones."""
    data = datasets.open_dataset("digits", 447, 0)
    chosen = datasets.open_dataset("digits", 447, 0, validation=250)
    assert len(chosen.test) == 250 and len(chosen.train) == len(data.train) - 250
    images = lambda *parts: sorted(x.tobytes() for part in parts for x in part)
    assert images(chosen.train, chosen.test) == images(data.train)
    rows = {x.tobytes(): y for x, y in zip(data.train, data.train_labels, strict=True)}
    for x, y in zip(chosen.test, chosen.test_labels, strict=True):
        assert rows[x.tobytes()] == y
    described = datasets.describe(chosen)
    again = datasets.reopen_dataset(described, 447, 0, validation=250)
    np.testing.assert_array_equal(again.stored_test, chosen.stored_test)
    with pytest.raises(ValueError, match="others now"):
        datasets.reopen_dataset(described, 447, 0)
    for name, count in (("patches32", 1), ("digits", 1349)):
        with pytest.raises(ValueError, match="validation must"):
            datasets.open_dataset(name, 447, 0, validation=count)
    with pytest.raises(ValueError, match="validation must be at least 2, got 1"):
        datasets.open_dataset("digits", 447, 0, least_test=2, validation=1)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int16])
def test_a_memory_map_stays_on_disk(dtype, tmp_path):
    """Three roundings in float32, of numbers up to the range of the values."""
    table = 1000 + 100 * np.random.default_rng(0).normal(size=(400, 3))
    np.save(tmp_path / "x.npy", table.astype(dtype)[..., None, None])
    data = datasets.open_dataset(str(tmp_path / "x.npy"), 100, 0)
    assert isinstance(data.stored_train.array, np.memmap)
    assert data.stored_train.dtype == dtype
    batch = Batches(data.stored_train, 50, seed=1).at(3)
    same = Batches(data.train, 50, seed=1).at(3)
    assert batch.dtype == dtype
    bound = 3 * 2.0**-24 * np.ptp(data.train)
    np.testing.assert_allclose(jax.jit(data.scaled)(batch), same, atol=bound, rtol=0)


def test_values_far_from_0_keep_their_differences_on_the_device(tmp_path):
    """Float32 numbers at 10⁶ stand 1/16 apart, and their mean between two of them."""
    rng = np.random.default_rng(0)
    x = (1e6 + rng.normal(size=(300, 2))).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    data = datasets.open_dataset(str(tmp_path / "x.npy"), 50, 0)
    scaled = jax.jit(data.scaled)(np.asarray(data.stored_train))
    bound = 3 * 2.0**-24 * np.ptp(data.train)
    np.testing.assert_allclose(scaled, data.train, atol=bound, rtol=0)


def test_bytes_take_no_more_memory_than_their_file(tmp_path):
    """Twice the file at the peak: what is read, and the two parts of the split."""
    images = np.random.default_rng(0).integers(0, 256, (3000, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "x.npz", images=images)
    file = (tmp_path / "x.npz").stat().st_size
    tracemalloc.start()
    data = datasets.open_dataset(str(tmp_path / "x.npz"), 447, 0)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held <= 1.05 * file and peak <= 2.5 * file
    assert data.stored_train.nbytes + data.stored_test.nbytes == images.nbytes


def test_digests_see_a_changed_byte_and_nothing_else(tmp_path):
    """Of a memory map too, whose file is changed, touched or copied."""
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 1), np.uint8)
    path = tmp_path / "x.npy"

    def digest(values, path=path):
        np.save(path, values)
        return datasets.open_dataset(str(path), 5, 0).digest

    first = digest(images)
    assert digest(images, tmp_path / "copy.npy") == first == digest(images)
    changed = images.copy()
    changed[17, 2, 3, 0] ^= 1
    assert digest(changed) != first
    assert datasets.digest(Rows(images, [1, 2])) != datasets.digest(
        Rows(images, [2, 1])
    )


def test_rows_that_an_array_does_not_have_raise():
    for rows in ([3], [-1], [], [[0]], [0.5]):
        with pytest.raises(
            ValueError, match=r"rows must be integers \(M,\) in \[0, 3\)"
        ):
            Rows(np.zeros((3, 2)), rows)


@pytest.mark.parametrize(
    "name, counts", [("patches32", (20348, 1564)), ("patches64", (15100, 988))]
)
def test_no_pixel_of_a_training_patch_is_one_of_a_test_patch(name, counts):
    train, test = datasets.patches(name)
    assert (len(train), len(test)) == counts
    size = train.shape[1]
    seen = np.zeros((2, 2, 427, 640), bool)
    for of_part, part in zip(seen, (train, test), strict=True):
        for photograph, y, x in part.corners:
            of_part[photograph, y : y + size, x : x + size] = True
        assert len(np.unique(part.corners, axis=0)) == len(part)
    assert seen.any((2, 3)).all() and not seen.all(0).any()
    photographs, (n, y, x) = load_sample_images().images, train.corners[-1]
    np.testing.assert_array_equal(train[-1], photographs[n][y : y + size, x : x + size])


def test_patches_are_a_data_set_of_colour_images_with_labels():
    data = datasets.open_dataset("patches32", 100, 0)
    again = datasets.open_dataset("patches32", 100, 0)
    assert data.digest == again.digest and data.shape == (32, 32, 3)
    assert len(data.levels) == 256 and data.classes == 2 and data.is_image
    assert len(data.stored_test) == len(data.test_labels) == 100
    batch = Batches((data.stored_train, data.train_labels), 8).at(7)
    assert batch[0].dtype == np.uint8 and batch[0].shape == (8, 32, 32, 3)
    scaled = jax.jit(data.scaled)(batch[0])
    np.testing.assert_array_equal(scaled, data.scaling.on_host(batch[0]))
    assert data.digest != datasets.open_dataset("patches32", 100, 1).digest
