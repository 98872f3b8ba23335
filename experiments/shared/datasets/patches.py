"""Colour patches of scikit-learn's two photographs, which need no download."""

import functools
from typing import Any

import numpy as np
from sklearn.datasets import load_sample_images

from diffjax.training import Examples

PATCHES = {"patches32": 32, "patches64": 64}
"""Side of the patches of each data set."""

TEST_TILES = ((0, 1), (1, 2))
"""(row, column) of the tiles of a photograph that test patches come from."""

STRIDES = 4, 8
"""Distance in pixels of neighbouring training and test patches."""


class Patches(Examples):
    """Square patches of photographs, cut out when they are indexed.

    Args:
      photographs: (P, H, W, C).
      size: Side of a patch in pixels.
      corners: Integers (N, 3): photograph, first row and first column.
    """

    def __init__(self, photographs: np.ndarray, size: int, corners: np.ndarray):
        # (P, H − size + 1, W − size + 1, C, size, size), without a copy
        self._windows = np.lib.stride_tricks.sliding_window_view(
            photographs, (size, size), (1, 2)
        )
        self.corners, self.dtype = corners, photographs.dtype
        self.shape = (len(corners), size, size, photographs.shape[-1])

    def __getitem__(self, rows: Any) -> np.ndarray:
        corners = np.moveaxis(self.corners[rows], -1, 0)
        return np.moveaxis(self._windows[tuple(corners)], -3, -1)


def patches(name: str) -> tuple[Patches, Patches]:
    """The training and test patches of the photographs of a temple and a flower.

    A photograph of 427 × 640 pixels is cut into 2 × 4 tiles of 213 × 160. Test
    patches lie inside of two of them, (0, 1) and (1, 2), 8 pixels apart.
    Training patches lie 4 pixels apart, and have no pixel in those tiles.
    There are 20 348 and 1564 patches of side 32, 15 100 and 988 of side 64.

    Args:
      name: "patches32" or "patches64".

    Returns:
      (training, test), uint8 of shape (N, size, size, 3). The first entry of
      `corners` is the photograph.
    """
    photographs, size = _photographs(), PATCHES[name]
    count, height, width, _ = photographs.shape
    tile_height, tile_width = height // 2, width // 4
    held = np.zeros((height, width), bool)
    for row, column in TEST_TILES:
        top, left = row * tile_height, column * tile_width
        held[top : top + tile_height, left : left + tile_width] = True
    windows = np.lib.stride_tricks.sliding_window_view(held, (size, size))
    train, test = (windows[::stride, ::stride] for stride in STRIDES)
    parts = []
    chosen = ~train.any((2, 3)), test.all((2, 3))
    for inside, stride in zip(chosen, STRIDES, strict=True):
        first = np.argwhere(inside) * stride
        # (P · positions, 3)
        corners = np.concatenate(
            [np.insert(first, 0, photograph, axis=1) for photograph in range(count)]
        )
        parts.append(Patches(photographs, size, corners))
    return parts[0], parts[1]


@functools.cache
def _photographs() -> np.ndarray:
    return np.stack(load_sample_images().images)
