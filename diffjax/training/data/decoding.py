"""One image file to an array: which files are accepted, and how they are cut.

Pillow is imported by the functions, when they are called.
"""

import hashlib
import io
import pathlib
from typing import NamedTuple

import numpy as np

__all__ = ["Facts", "decode", "inspect_file"]

CHANNELS = {"1": 1, "L": 1, "P": 3, "RGB": 3, "CMYK": 3, "YCbCr": 3}
"""Channels of the modes of Pillow that are accepted: 8 bits, no transparency."""


class Facts(NamedTuple):
    """Properties of a file, which a whole decoding showed.

    Attributes:
      channels: 1 for grey, 3 for colour.
      height: In pixels, after the rotation that the file prescribes.
      width: Likewise.
      digest: Sixteen hexadecimal digits of the file's bytes.
    """

    channels: int
    height: int
    width: int
    digest: str


def inspect_file(file: pathlib.Path) -> Facts:
    """Read and decode a whole file, which shows whether it is cut short.

    Args:
      file: The file.

    Returns:
      Its facts.

    Raises:
      ValueError: If it is no whole image of 8 bits without transparency.
    """
    try:
        stored = file.read_bytes()
        image = _open(stored)
        image.load()
    # Decoders raise errors of many types on broken files.
    except Exception as error:
        reason = str(error).partition(" <")[0].removesuffix(" file")
        raise ValueError(f"{type(error).__name__}: {reason}") from error
    if image.mode not in CHANNELS or "transparency" in image.info:
        raise ValueError(
            f"mode {image.mode!r}{' with transparency' * (image.mode in CHANNELS)} is "
            f"none of {', '.join(CHANNELS)} without transparency"
        )
    digest = hashlib.blake2b(stored, digest_size=8).hexdigest()
    return Facts(CHANNELS[image.mode], image.height, image.width, digest)


def decode(file: pathlib.Path, size: int | None, channels: int) -> np.ndarray:
    """Decode a file into an array.

    Args:
      file: The file.
      size: Side of the result. The largest central square is cut out, and
        reduced by area averaging (Pillow's BOX) or enlarged by bicubic
        interpolation. None for the whole image.
      channels: 1 or 3. Colours become grey by ITU-R 601's luma
        (299 R + 587 G + 114 B)/1000. Grey becomes three equal channels.

    Returns:
      (height, width, channels) uint8.

    Raises:
      ValueError: If the file cannot be read, naming it.
    """
    from PIL import Image

    try:
        image = _open(file.read_bytes()).convert("L" if channels == 1 else "RGB")
    except Exception as error:
        raise ValueError(f"{file} can no longer be read: {error}") from error
    if size is not None and image.size != (size, size):
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        kind = Image.Resampling.BOX if side > size else Image.Resampling.BICUBIC
        box = (left, top, left + side, top + side)
        image = image.resize((size, size), kind, box)
    return np.asarray(image).reshape(image.height, image.width, channels)


def _open(stored: bytes):
    """The image in a file's bytes, turned as its EXIF entry prescribes."""
    from PIL import Image, ImageOps

    image = Image.open(io.BytesIO(stored))
    ImageOps.exif_transpose(image, in_place=True)
    return image
