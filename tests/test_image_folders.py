"""Folders of images: what is read, in which order and how cut, and what is named."""

import os
import pathlib

import numpy as np
import pytest

from diffjax.training import ImageFolder, Images
from diffjax.training.data import decoding, verification
from experiments.shared import datasets

Image = pytest.importorskip("PIL.Image")


def write(file, pixels, **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file, **options)
    return file


def noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Two classes of three colour images, beside what is skipped."""
    root = tmp_path / "pets"
    for i, name in enumerate(("dog", "cat")):
        for j in range(3):
            write(root / name / f"{j}.png", noise(3 * i + j, 12, 8, 3))
    (root / "cat" / ".DS_Store").write_text("hidden")
    (root / ".git").mkdir()
    return root


def test_images_and_labels_are_those_of_the_files(folder):
    """Classes and files in the order of their names, every pixel kept."""
    source = ImageFolder(folder, 4, seed=2)
    assert source.classes == ("cat", "dog")
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 1]
    expected = np.stack([noise(i, 12, 8, 3) for i in (3, 4, 5, 0, 1, 2)])
    np.testing.assert_array_equal(source.images[:], expected)
    np.testing.assert_array_equal(source.images[4], expected[4])
    np.testing.assert_array_equal(source.images[[[5, 0]]], expected[[[5, 0]]])
    block, again = source.block(3, 6), ImageFolder(folder, 4, seed=2).block(5, 2)
    assert block["image"].dtype == np.uint8
    for name in block:
        np.testing.assert_array_equal(block[name][2:4], again[name])
    for image, label in zip(
        block["image"].reshape(-1, 12, 8, 3), block["label"].ravel(), strict=True
    ):
        (row,) = np.flatnonzero((expected == image).all((1, 2, 3)))
        assert row // 3 == label


def test_the_central_square_is_reduced_by_area_averaging(tmp_path):
    """Blocks of 3 × 3 pixels become their mean, rounded along each axis."""
    pixels = noise(0, 12, 20, 3)
    write(tmp_path / "a" / "x.png", pixels)
    square = pixels[:, 4:16].reshape(4, 3, 4, 3, 3).mean((1, 3))
    images = ImageFolder(tmp_path / "a", size=4).images
    np.testing.assert_allclose(images[0], square, atol=1)
    enlarged = ImageFolder(tmp_path / "a", size=24).images
    assert enlarged.shape == (1, 24, 24, 3)
    write(tmp_path / "flat" / "x.png", np.full((5, 7, 3), 77, np.uint8))
    assert (ImageFolder(tmp_path / "flat", size=24).images[:] == 77).all()


def test_grey_and_colour(tmp_path):
    """Luma of 299, 587 and 114 parts in 1000, and three equal channels."""
    colour, grey = noise(0, 6, 6, 3), noise(1, 6, 6)
    write(tmp_path / "x" / "a.png", colour)
    write(tmp_path / "x" / "b.png", grey)
    with pytest.raises(ValueError, match=r"b.png has 1 channels and .*a.png has 3"):
        ImageFolder(tmp_path / "x")
    as_grey = ImageFolder(tmp_path / "x", channels=1).images[:]
    luma = colour @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(as_grey[0, ..., 0], luma, atol=0.51)
    np.testing.assert_array_equal(as_grey[1, ..., 0], grey)
    as_colour = ImageFolder(tmp_path / "x", channels=3).images[:]
    np.testing.assert_array_equal(as_colour[0], colour)
    np.testing.assert_array_equal(as_colour[1], np.repeat(grey[..., None], 3, -1))


def test_the_rotation_of_a_photograph_is_applied(tmp_path):
    """EXIF entry 274 = 6: turned by a quarter clockwise to be shown."""
    pixels, exif = noise(0, 4, 6, 3), Image.Exif()
    exif[274] = 6
    write(tmp_path / "x.png", pixels, exif=exif)
    np.testing.assert_array_equal(ImageFolder(tmp_path).images[0], np.rot90(pixels, -1))


def test_all_bad_files_are_named_before_training(folder):
    """Cut short, of another kind, empty, a broken link, clear, 16 bits, a pipe."""
    jpeg = write(folder / "cat" / "cut.jpg", noise(0, 64, 64, 3))
    jpeg.write_bytes(jpeg.read_bytes()[:-400])
    png = write(folder / "dog" / "cut.png", noise(0, 64, 64, 3))
    png.write_bytes(png.read_bytes()[:-400])
    (folder / "cat" / "notes.txt").write_text("these are cats")
    (folder / "cat" / "empty.png").touch()
    (folder / "dog" / "gone.png").symlink_to(folder / "nowhere.png")
    write(folder / "dog" / "clear.png", noise(0, 4, 4, 4))
    write(folder / "dog" / "deep.png", noise(0, 4, 4).astype(np.uint16))
    os.mkfifo(folder / "dog" / "pipe.png")
    flipped = write(folder / "dog" / "flipped.png", noise(0, 64, 64, 3))
    stored = bytearray(flipped.read_bytes())
    stored[len(stored) // 2] ^= 255
    flipped.write_bytes(stored)
    with pytest.raises(ValueError, match="9 of 15 files in .*pets cannot") as raised:
        ImageFolder(folder, size=8)
    named = [line.partition(": ")[0] for line in str(raised.value).splitlines()[1:]]
    assert sorted(pathlib.Path(file).name for file in named) == sorted(
        ["cut.jpg", "cut.png", "notes.txt", "empty.png", "gone.png"]
        + ["clear.png", "deep.png", "flipped.png", "pipe.png"]
    )


def test_only_new_and_changed_files_are_verified_again(folder, monkeypatch):
    looked = []

    def counted(file):
        looked.append(file.name)
        return decoding.inspect_file(file)

    monkeypatch.setattr(verification, "inspect_file", counted)
    first = ImageFolder(folder).images.digest
    assert len(looked) == 6
    assert ImageFolder(folder).images.digest == first and len(looked) == 6
    os.utime(folder / "cat" / "1.png", ns=(0, 0))
    assert ImageFolder(folder).images.digest == first and looked[6:] == ["1.png"]
    write(folder / "dog" / "0.png", noise(99, 12, 8, 3))
    write(folder / "dog" / "9.png", noise(98, 12, 8, 3))
    assert ImageFolder(folder).images.digest != first
    assert sorted(looked[7:]) == ["0.png", "9.png"]
    whole = (folder / verification.CACHE).read_text()
    for count, text in enumerate(["damaged\n[", whole.replace("12", "Infinity")], 1):
        (folder / verification.CACHE).write_text(text)
        ImageFolder(folder)
        assert len(looked) == 9 + 7 * count
    (folder / "cat" / "2.png").write_bytes(b"cut")
    with pytest.raises(ValueError, match="cat/2.png"):
        ImageFolder(folder)


def test_folders_that_hold_something_else_raise(tmp_path):
    def raises(message, name=".", kind=ValueError, **options):
        with pytest.raises(kind, match=message):
            ImageFolder(tmp_path / name, **options)

    raises("nowhere is not a folder of images", "nowhere", FileNotFoundError)
    raises("must hold images, got no files")
    write(tmp_path / "cat" / "0.png", noise(0, 4, 4))
    raises("cat/0.png is not a folder", "cat/0.png", FileNotFoundError)
    (tmp_path / "dog").mkdir()
    raises("dog must hold images, got no files")
    (tmp_path / "dog" / "inner").mkdir()
    raises("dog/inner must be an image, got a folder inside of a class")
    write(tmp_path / "x.png", noise(0, 4, 4))
    raises("either images or subfolders .* both: .*x.png and .*cat")
    write(tmp_path / "cat" / "1.png", noise(0, 4, 6))
    raises(r"cat/1.png has 4 × 6 .*cat/0.png has 4 × 4: choose a size", "cat")
    raises("batch_size must be at least 1, got 0", "cat", batch_size=0)
    raises("size must be at least 1, got 0", "cat", size=0)
    raises("channels must be 1 or 3, got 4", "cat", size=2, channels=4)


def test_links_are_followed_and_a_file_that_vanishes_is_named(folder, tmp_path):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "cats").symlink_to(folder / "cat")
    source = ImageFolder(tmp_path / "links")
    np.testing.assert_array_equal(source.images[0], noise(3, 12, 8, 3))
    (folder / "cat" / "1.png").unlink()
    with pytest.raises(ValueError, match=r"cats/1.png can no longer be read"):
        source.block(0, 3)
    # One that NumPy would broadcast
    write(folder / "cat" / "1.png", noise(0, 1, 1, 3))
    with pytest.raises(ValueError, match=r"cats/1.png has changed: .*\(1, 1, 3\), and"):
        source.block(0, 3)


def test_a_folder_that_cannot_be_written_is_verified_every_time(folder, monkeypatch):
    def read_only(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr(os, "replace", read_only)
    ImageFolder(folder)
    assert not [entry for entry in folder.iterdir() if entry.name.startswith(".d")]


def test_a_folder_is_a_data_set(folder, tmp_path):
    """Of 256 levels and the labels of its classes. A changed pixel is seen."""
    data = datasets.open_dataset(str(folder), 2, 0)
    assert data.shape == (12, 8, 3) and len(data.levels) == 256 and data.classes == 2
    assert len(data.stored_train) == 5 and len(data.stored_test) == 1
    whole = np.concatenate([data.stored_train[:], data.stored_test[:]])
    assert sorted(map(bytes, whole)) == sorted(
        bytes(noise(i, 12, 8, 3)) for i in range(6)
    )
    described = datasets.describe(data)
    assert datasets.reopen_dataset(described, 2, 0).digest == data.digest
    pixels = noise(0, 12, 8, 3)
    pixels[3, 3, 1] ^= 1
    write(folder / "dog" / "0.png", pixels)
    with pytest.raises(ValueError, match="pets must hold the data that the run was"):
        datasets.reopen_dataset(described, 2, 0)
    small = datasets.open_dataset(str(folder), 2, 0, size=4)
    assert small.shape == (4, 4, 3)
    described = datasets.describe(small)
    assert datasets.reopen_dataset(described, 2, 0).digest == small.digest
    for i in range(6):
        write(tmp_path / "square" / f"{i}.png", noise(i, 5, 5, 3))
    square = datasets.open_dataset(str(tmp_path / "square"), 2, 0)
    assert square.train_labels is None
    described = datasets.describe(square)
    assert datasets.reopen_dataset(described, 2, 0).digest == square.digest
    with pytest.raises(ValueError, match="cat must hold at least 4 examples, got 3"):
        datasets.open_dataset(str(folder / "cat"), 2, 0)


def test_a_shape_that_is_no_image_is_named(tmp_path):
    for shape in ((3,), (8, 8), (1, 8, 8, 3)):
        with pytest.raises(ValueError, match=r"shape must be \(H, W, C\), got \("):
            Images([tmp_path / "0.png"], shape, None, "")
