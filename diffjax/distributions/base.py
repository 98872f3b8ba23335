"""The protocol of a probability distribution."""

from typing import Any, Protocol

from ..types import Array, Key

__all__ = ["Distribution"]


class Distribution(Protocol):
    """A probability distribution of one example.

    An object need not inherit from this class. Functions require the methods that
    they call and no others: a normalizing flow, whose moments have no closed form,
    has the first two.
    """

    def log_prob(self, x: Any) -> Array:
        """log p(x) in nats, shape (). A density, or a probability for discrete data."""
        ...

    def sample(self, key: Key) -> Any:
        """One draw, a function of the key alone."""
        ...

    def mean(self) -> Any:
        """The mean of every entry, of the example's shape."""
        ...

    def variance(self) -> Any:
        """The variance of every entry, of the example's shape."""
        ...
