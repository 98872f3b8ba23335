"""Masked dense conditioner: all parameters of an autoregressive layer in one pass."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ... import checks
from ...types import Array, Key, pytree, static_field
from ..checks import NETWORK
from .weights import dense_parameters, from_condition, normal_weights

__all__ = ["MaskedPerceptron", "autoregressive_masks", "masked_perceptron"]


@pytree
class MaskedPerceptron:
    """A network (y, condition) -> θ with θ_i a function of y_{<i}.

    See `masked_perceptron`.
    """

    weights: tuple
    biases: tuple
    condition_weight: Any  # (condition_size, width), or None
    count: int = static_field()

    def __call__(self, y: Array, condition: Any = None) -> Array:
        """Parameters (D, P). Row i depends on y_0 … y_{i−1} and the condition.

        Args:
          y: A vector (D,).
          condition: An array of condition_size entries, or None.
        """
        size = self.weights[0].shape[0]
        checks.one_of_shapes("x", y, [(size,)])
        widths = tuple(weight.shape[1] for weight in self.weights[:-1])
        masks = autoregressive_masks(
            size, widths, self.count, self.condition_weight is not None
        )
        h = y
        for i, (weight, bias, mask) in enumerate(
            zip(self.weights, self.biases, masks, strict=True)
        ):
            h = h @ jnp.where(mask, weight, 0) + bias
            if i == 0:
                h = h + from_condition(condition, self.condition_weight, h)
            h = jax.nn.silu(h) if i < len(masks) - 1 else h
        return h.reshape(size, self.count)


def autoregressive_masks(
    size: int, widths: tuple, count: int, conditional: bool = False
) -> list[np.ndarray]:
    """Which weights of a masked network may be non-zero (Germain et al. 2015, MADE).

    Input i has degree i + 1. Hidden units have the degrees 1 … D − 1 in turn,
    and also 0 where there is a condition, which those units carry alone. A
    unit sees units of degrees up to its own, and the P outputs for entry i see
    hidden degrees up to i. So a chain of weights leads from y_j to θ_i only if
    j < i.

    Args:
      size: D, entries of the vector.
      widths: Units of each hidden layer.
      count: P, parameters per entry.
      conditional: True if the network sees a condition.

    Returns:
      A mask of shape (fan-in, fan-out) for each layer of the network D -> D P.

    References:
      Germain et al. 2015, equations 12–13.
    """
    lowest = 0 if conditional or size == 1 else 1
    degrees = [
        np.arange(1, size + 1),
        *(lowest + np.arange(width) % (size - lowest) for width in widths),
    ]
    masks = [
        before[:, None] <= after[None, :]
        for before, after in zip(degrees[:-1], degrees[1:], strict=True)
    ]
    outputs = np.repeat(np.arange(size), count)  # entry i sees degrees up to i
    return [*masks, degrees[-1][:, None] <= outputs[None, :]]


MASKED = {
    **NETWORK,
    "width": checks.optional(checks.width, 1),
    "depth": (checks.depth, 1),
}
"""Rules of the arguments of masked networks."""


@checks.arguments(**MASKED, size=(checks.width, 1), count=(checks.integer, 1))
def masked_perceptron(
    key: Key,
    size: int,
    count: int,
    *,
    width: int | None = None,
    depth: int = 2,
    condition_size: int = 0,
) -> MaskedPerceptron:
    """Masked dense conditioner (Germain et al. 2015, MADE).

    All parameters θ (D, P) of a vector y (D,) come from one pass. θ_i is a
    function of every y_j with j < i and of the condition. Dense layers with
    SiLU between them, whose weights are masked. The output is 0 at first.

    Args:
      key: Key of the hidden weights, N(0, 1/fan-in).
      size: D, entries of y.
      count: P, parameters per entry.
      width: Units per hidden layer. Each of the D − 1 degrees needs one, and
        the condition another: with fewer, some entries would be independent of
        each other. Default max(64, the least width).
      depth: Number of hidden layers, at least 1.
      condition_size: Entries of the condition, 0 for none.

    Returns:
      A pytree callable (y, condition) -> (D, P).

    Raises:
      ValueError: If width is less than D − 1, or than D with a condition.

    Example:
      >>> network = dj.flows.masked_perceptron(key, size=3, count=2)
      >>> layer = dj.flows.autoregressive(network, dj.flows.bounded_affine())
    """
    width = masked_width(width, size, condition_size)
    return masked_perceptron_of_sizes(
        key, MaskedSizes(size, count, width, depth, condition_size)
    )


def masked_width(width: int | None, size: int, condition_size: int) -> int:
    """Width of a masked network, at least the least one.

    Args:
      width: Units per hidden layer, None for max(64, the least).
      size: D, entries of the vector.
      condition_size: Entries of the condition, 0 for none.

    Returns:
      The width.

    Raises:
      ValueError: If there is not one unit for each degree 1 … D − 1, and for
        degree 0 where there is a condition.
    """
    least = max(size - 1, 1) + (condition_size > 0 and size > 1)
    if width is None:
        return max(64, least)
    message = f"width must be at least {least} for {size} entries, got {width}"
    checks.require(width >= least, message)
    return width


@dataclasses.dataclass(frozen=True)
class MaskedSizes:
    """Sizes of a masked perceptron, see `masked_perceptron`."""

    size: int
    count: int
    width: int
    depth: int
    condition_size: int


@functools.partial(jax.jit, static_argnums=1)
def masked_perceptron_of_sizes(key: Key, sizes: MaskedSizes) -> MaskedPerceptron:
    """`masked_perceptron` of arguments that are checked already, as one program.

    Args:
      key: A typed key.
      sizes: Its sizes.
    """
    first, second = jax.random.split(key)
    hidden = [sizes.width] * sizes.depth
    weights, biases = dense_parameters(
        first, (sizes.size, *hidden, sizes.size * sizes.count)
    )
    condition_weight = None
    if sizes.condition_size:
        shape = (sizes.condition_size, sizes.width)
        condition_weight = normal_weights(second, [shape])[0]
    return MaskedPerceptron(weights, biases, condition_weight, sizes.count)
