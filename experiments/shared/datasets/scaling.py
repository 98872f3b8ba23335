"""Stored values to centred and scaled ones, on the host and on the device."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.training.data.files import pieces


@dataclasses.dataclass(frozen=True)
class Scaling:
    """The map of stored values to those that networks see.

        x = ((value − origin) − centre) / scale

    Two subtractions keep the differences of values that lie far from 0.

    Attributes:
      origin: The least value, a NumPy scalar of the stored type, or (D,) for
        a table, one per column.
      centre: The mean above it, or half the range of a lattice.
      scale: A standard deviation, or half the range of a lattice.
      lattice: Whether values are integers origin … origin + 2 centre.
    """

    origin: np.ndarray
    centre: Any
    scale: Any
    lattice: bool

    @property
    def shift(self) -> Any:
        """origin + centre in float64."""
        return (self.origin.astype(np.float64) + self.centre)[()]

    def on_host(self, values: Any) -> np.ndarray:
        """Scaled values, computed in float64 piece by piece.

        Args:
          values: Stored values (N, ...).

        Returns:
          An array (N, ...) in float32.
        """
        scaled, start = np.empty(values.shape, np.float32), 0
        for piece in pieces(values):
            # Test values may lie below the least of the training values.
            least = piece.min(0) if np.ndim(self.origin) else piece.min()
            low = np.minimum(least, self.origin)
            difference = above(piece, low) - above(self.origin, low)
            rows = slice(start, start + len(piece))
            scaled[rows] = (difference - self.centre) / self.scale
            start = rows.stop
        return scaled

    def on_device(self, values: Any) -> jax.Array:
        """Scaled values in JAX, for a compiled training step.

        Values of a lattice equal those of `on_host` bit for bit.

        Args:
          values: Stored values (..., *shape), of a type that float32 holds.

        Returns:
          An array of that shape in float32.
        """
        if self.lattice:
            return _on_lattice(values, int(self.origin), round(2 * self.centre))
        origin, centre, scale = (
            jnp.asarray(number, jnp.float32)
            for number in (self.origin, self.centre, self.scale)
        )
        # XLA would add the two constants, which rounds the smaller one away.
        difference = jax.lax.optimization_barrier(values.astype(jnp.float32) - origin)
        return (difference - centre) / scale


def _on_lattice(values, origin, span):
    """(2 (value − origin) − span) / span, rounded once.

    A division by a constant becomes a product with its rounded inverse on some
    backends. So the inverse is the sum of two numbers, the first of which has
    few enough bits for an exact product with integers up to 255.
    """
    n = (2 * (values.astype(jnp.int32) - origin) - span).astype(jnp.float32)
    high = np.float32(np.round(2**22 / span) / 2**22)
    low = np.float32(1 / span - float(high))
    return n * high + n * low


def above(values: Any, origin: Any) -> np.ndarray:
    """values − origin in float64. Integers are exact before rounding.

    Args:
      values: Values of at least `origin`.
      origin: A number, or one per column.

    Returns:
      The differences.
    """
    if values.dtype.kind == "f":
        return values.astype(np.float64) - np.asarray(origin, np.float64)
    wide = np.uint64 if values.dtype == np.uint64 else np.int64
    # modulo 2^64, as int64 would overflow where values span more than half of its range
    return (
        values.astype(wide).view(np.uint64) - np.asarray(origin, wide).view(np.uint64)
    ).astype(np.float64)


def kept_as_stored(dtype: np.dtype, scale: Any) -> bool:
    """Whether float32 holds the values and their scale, so that the device can
    scale them.

    Args:
      dtype: The stored type.
      scale: A number, or one per column.

    Returns:
      The truth value.
    """
    moderate = np.all((np.asarray(scale) > 1e-30) & (np.asarray(scale) < 1e30))
    return bool(np.can_cast(dtype, np.float32) and moderate)
