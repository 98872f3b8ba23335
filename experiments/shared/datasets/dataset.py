"""A data set: its examples in their stored type, and the map to scaled ones."""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.training import Rows
from diffjax.training.data.files import pieces

from .digests import digest
from .scaling import Scaling

SPREAD_ENTRIES = 2**22
"""About as many numbers give the standard deviation of a data set."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Training and test examples, stored and scaled.

        x = (value − shift) / scale

    Examples stay in their stored type: bytes, or what a memory map or a folder
    of images reads when it is indexed. `scaled` maps them to x on the device,
    in the compiled training step. `train` and `test` are all x in memory, which
    small experiments use. `loaded` and `loaded_pieces` give some of them.

    Attributes:
      name: "digits", "patches32", "patches64", a toy density, or the path as it
        was given.
      stored_train: (N, *shape), an array or `training.Examples`. Images have
        shape (H, W, C).
      stored_test: (M, *shape).
      levels: (K,), the values that entries take if the data lie on a lattice,
        else None.
      shift: A number, or (D,) for a table, one per column.
      scale: As `shift`.
      target: The exact distribution of x, if it is known.
      train_labels: (N,) integers 0 … C − 1, if there are labels.
      test_labels: (M,).
      path: The absolute path of the file that the data came from, if there is
        one.
      known_spread: `spread` of a data set whose examples are not loaded.
      scaling: The map of stored values to x. None where x is stored.
    """

    name: str
    stored_train: Any
    stored_test: Any
    levels: np.ndarray | None
    shift: Any
    scale: Any
    target: Any = None
    train_labels: np.ndarray | None = None
    test_labels: np.ndarray | None = None
    path: str | None = None
    known_spread: float | None = None
    scaling: Scaling | None = None

    @functools.cached_property
    def train(self) -> np.ndarray:
        """Training examples x (N, *shape) in memory, float32 unless x is stored."""
        return self._in_memory(self.stored_train)

    @functools.cached_property
    def test(self) -> np.ndarray:
        """Test examples x (M, *shape) in memory."""
        return self._in_memory(self.stored_test)

    def loaded(self, stored: Any, rows: Any) -> np.ndarray:
        """Examples x of some rows in memory, which alone are read.

        Args:
          stored: `stored_train` or `stored_test`.
          rows: Integers (...).

        Returns:
          (..., *shape), the same as those rows of `train` or `test`.
        """
        rows = np.asarray(rows)
        x = self._in_memory(np.asarray(stored[rows.ravel()]))
        return x.reshape(*rows.shape, *self.shape)

    def loaded_pieces(self, stored: Any) -> Iterator[np.ndarray]:
        """Examples x in memory, some at a time.

        Args:
          stored: `stored_train` or `stored_test`.

        Yields:
          (n, *shape), consecutive rows of `train` or `test`.
        """
        return map(self._in_memory, pieces(stored))

    @functools.cached_property
    def limits(self) -> tuple[float, float]:
        """The values of x that are black and white: the ends of the levels, or else
        of the training examples.
        """
        if self.levels is not None:
            return float(self.levels[0]), float(self.levels[-1])
        # In the stored type, as the map to x keeps the order of values.
        ends = [(piece.min(0), piece.max(0)) for piece in pieces(self.stored_train)]
        least, greatest = (np.stack(end) for end in zip(*ends, strict=True))
        x = self._in_memory(np.stack([least.min(0), greatest.max(0)]))
        return float(x.min()), float(x.max())

    def scaled(self, stored: Any) -> jax.Array:
        """Map stored values to x, in JAX.

        Levels of a lattice equal those of `train` bit for bit.

        Args:
          stored: (..., *shape), of the type of `stored_train`.

        Returns:
          x, of that shape.
        """
        if self.scaling is None:
            return jnp.asarray(stored)
        return self.scaling.on_device(jnp.asarray(stored))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return tuple(self.stored_train.shape[1:])

    @property
    def classes(self) -> int:
        """The number of classes. Raises ValueError if there are no labels."""
        if self.train_labels is None or self.test_labels is None:
            raise ValueError(
                f"data must have labels, {self.name} has none: use 'digits' or an .npz "
                "with integers y"
            )
        return int(max(self.train_labels.max(), self.test_labels.max())) + 1

    @property
    def sizes(self) -> str:
        """The name and the numbers of examples, as a run prints them first."""
        return (
            f"{self.name}: {len(self.stored_train)} training and "
            f"{len(self.stored_test)} test examples"
        )

    @property
    def is_image(self) -> bool:
        """Whether an example can be drawn as an image: (H, W, 1) or (H, W, 3)."""
        return len(self.shape) == 3 and self.shape[2] in (1, 3)

    @property
    def spacing(self) -> float:
        """The distance of neighbouring levels, for data on a lattice."""
        assert self.levels is not None
        return float(self.levels[1] - self.levels[0])

    @functools.cached_property
    def spread(self) -> float:
        """Standard deviation of the entries of the training examples.

        Of large sets it is that of every n-th example, 2²² numbers in all.
        """
        if self.known_spread is not None:
            return self.known_spread
        count = len(self.stored_train)
        stride = -(-count * math.prod(self.shape) // SPREAD_ENTRIES)
        chosen = Rows(self.stored_train, np.arange(0, count, max(1, stride)))
        parts = [piece.astype(np.float64) for piece in self.loaded_pieces(chosen)]
        entries = sum(part.size for part in parts)
        mean = sum(part.sum() for part in parts) / entries
        return math.sqrt(sum(((x - mean) ** 2).sum() for x in parts) / entries)

    @property
    def log_scale(self) -> float:
        """Mean of log(scale) over dimensions.

        Nats per dimension in the units of the file are those of x plus this
        number.
        """
        return float(np.mean(np.log(self.scale)))

    @functools.cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits of the examples, their labels and their
        units.
        """
        parts = [digest(self.stored_train), digest(self.stored_test)]
        for part in (
            self.levels,
            self.shift,
            self.scale,
            self.train_labels,
            self.test_labels,
        ):
            parts.append("-" if part is None else digest(np.asarray(part)))
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]

    def _in_memory(self, stored):
        """x of stored values, in memory."""
        if self.scaling is None:
            return np.asarray(stored)
        return self.scaling.on_host(stored)
