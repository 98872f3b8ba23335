"""Folders of image files, verified before training and decoded by threads."""

import concurrent.futures
import functools
import hashlib
import os
import pathlib
from typing import Any

import numpy as np

from ... import checks
from ...types import PyTree
from .batches import Batches, Examples
from .decoding import decode
from .verification import listing, verified

__all__ = ["ImageFolder", "Images"]


def _image_shape(name: str, value: Any) -> tuple[int, ...]:
    shape = checks.shape(name, value)
    checks.image(name, shape)
    return shape


class Images(Examples):
    """Image files, decoded by threads when they are indexed.

    Args:
      files: The files.
      shape: (height, width, channels) of a decoded image.
      size: As of `ImageFolder`.
      digest: Digits that identify the files' contents and order.

    Raises:
      ValueError: If the shape has another rank.
    """

    @checks.arguments(shape=_image_shape)
    def __init__(
        self,
        files: list[pathlib.Path],
        shape: tuple[int, int, int],
        size: int | None,
        digest: str,
    ):
        self.files, self.size, self.digest = files, size, digest
        self.shape, self.dtype = (len(files), *shape), np.dtype(np.uint8)

    def __getitem__(self, rows: Any) -> np.ndarray:
        rows = np.arange(len(self.files))[rows]
        images = np.empty((rows.size, *self.shape[1:]), np.uint8)

        def fill(position, row):
            image = decode(self.files[row], self.size, self.shape[-1])
            # Not to be broadcast: a file may have changed since it was verified.
            checks.require(
                image.shape == self.shape[1:],
                f"{self.files[row]} has changed: it has shape {image.shape}, and had "
                f"{self.shape[1:]}",
            )
            images[position] = image

        # list raises the first error.
        list(_threads().map(fill, range(rows.size), rows.flat))
        return images.reshape(*rows.shape, *self.shape[1:])


def _grey_or_colour(name: str, value: Any) -> None:
    checks.require(value in (1, 3), f"{name} must be 1 or 3, got {value!r}")


class ImageFolder:
    """Batches of the images in a folder, by step number.

    The files of a class lie in a subfolder of its own, or all files lie in the
    folder itself and have the label 0. Classes and files are sorted by name.
    Hidden files and folders, whose names start with a dot, are skipped.
    Symbolic links are followed. Any other file must be an image.

    Before training every file is read and decoded as a whole. Those that are
    cut short, damaged or no images are all named in one error. Names, sizes,
    times of change and digests of the good ones are kept in the hidden file
    `.diffjax_images` in the folder, where it can be written. Later runs read
    only the files that are new or changed.

    Args:
      folder: The folder.
      batch_size: Number of examples of a batch.
      size: Side of the images in pixels. The largest central square is cut
        out, and reduced by area averaging or enlarged by bicubic
        interpolation. None keeps the images, which must then have one size.
      channels: 1 for grey images by ITU-R 601's luma, 3 for colours, where
        grey images have three equal channels. None for those of the files,
        which must then agree.
      seed: Seed of the orders, as of `Batches`.

    Attributes:
      images: `Examples` of shape (N, height, width, channels), uint8.
      labels: (N,) int32.
      classes: Names of the classes, by label. Empty without subfolders.

    Raises:
      ImportError: If Pillow is not installed.
      FileNotFoundError: If there is no such folder.
      ValueError: If the folder has no images, an empty class, folders in the
        folder of a class, or files both beside and in subfolders. Also if
        files cannot be read, or differ in size or channels, naming them.

    Example:
      >>> import pathlib
      >>> from PIL import Image
      >>> for name in ("cat", "dog"):
      ...     pathlib.Path("pets", name).mkdir(parents=True)
      ...     Image.new("RGB", (40, 30)).save(f"pets/{name}/1.png")
      >>> source = dj.training.ImageFolder("pets", batch_size=4, size=16)
      >>> block = source.block(0, 2)
      >>> block["image"].shape, block["label"].shape, source.classes
      ((2, 4, 16, 16, 3), (2, 4), ('cat', 'dog'))
    """

    @checks.arguments(
        batch_size=(checks.integer, 1),
        size=checks.optional(checks.integer, 1),
        channels=checks.optional(_grey_or_colour),
        seed=(checks.integer, 0, None),
    )
    def __init__(
        self,
        folder: str | pathlib.Path,
        batch_size: int = 1,
        *,
        size: int | None = None,
        channels: int | None = None,
        seed: int = 0,
    ):
        folder = pathlib.Path(folder)
        self.classes, files, labels = listing(folder)
        facts = verified(folder, files)
        shape = _shape(files, facts, size, channels)
        names = [file.relative_to(folder).as_posix() for file in files]
        content = [(n, f.digest) for n, f in zip(names, facts, strict=True)]
        digest = hashlib.sha256(repr((content, shape)).encode()).hexdigest()
        self.images = Images(files, shape, size, digest)
        self.labels = np.array(labels, np.int32)
        arrays = {"image": self.images, "label": self.labels}
        self._batches = Batches(arrays, batch_size, seed)
        self.batch_size = batch_size

    def block(self, step: int, count: int) -> PyTree:
        """The batches of several steps, stacked.

        Args:
          step: The first step.
          count: Number of steps.

        Returns:
          A dict of "image" (count, batch_size, height, width, channels) uint8
          and "label" (count, batch_size) int32.
        """
        return self._batches.block(step, count)

    def share(self, step: int, count: int, rows: Any) -> PyTree:
        """Some rows of each batch of `block`. No other file is read.

        Args:
          step: The first step.
          count: Number of steps.
          rows: Positions in the batch, integers (n,).

        Returns:
          A dict as of `block`, with leaves (count, n, ...).
        """
        return self._batches.share(step, count, rows)


def _shape(files, facts, size, channels) -> tuple[int, int, int]:
    """The shape of all decoded images. Raises ValueError if they differ."""
    first, name = facts[0], files[0]
    for file, (depth, height, width, _) in zip(files, facts, strict=True):
        checks.require(
            size or (height, width) == (first.height, first.width),
            f"{file} has {height} × {width} pixels and {name} has {first.height} × "
            f"{first.width}: choose a size",
        )
        checks.require(
            channels or depth == first.channels,
            f"{file} has {depth} channels and {name} has {first.channels}: choose "
            "channels=1 or 3",
        )
    sides = (size, size) if size else (first.height, first.width)
    return (*sides, channels or first.channels)


@functools.cache
def _threads() -> concurrent.futures.ThreadPoolExecutor:
    """Threads for decoding, in which Pillow releases Python's lock."""
    count = min(32, (os.cpu_count() or 1) + 1)
    return concurrent.futures.ThreadPoolExecutor(count, "diffjax-images")
