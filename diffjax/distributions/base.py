"""The protocol of a probability distribution."""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from .. import checks
from ..types import Array, Key, one_program

__all__ = ["Distribution"]


class Distribution(Protocol):
    """A probability distribution of one example.

    An object need not inherit from this class. Functions require the methods
    that they call and no others: a normalizing flow, whose moments have no
    closed form, has the first two.

    An optional member, which `divergences.moment_matched` uses, is
    `covariance()` of all entries.
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


def compiled_eagerly(method: Callable) -> Callable:
    """`types.one_program` for functions that also accept lists of numbers."""
    run = one_program(method)

    @functools.wraps(method)
    def call(*args, **kwargs):
        keywords = {name: as_array(value) for name, value in kwargs.items()}
        return run(*map(as_array, args), **keywords)

    return call


def as_array(value: Any) -> Any:
    """A list as an array, an int as a float. Any other value unchanged."""
    if type(value) is int:  # JAX would want it within 32 bits
        return checks.number("an argument", value)
    return np.asarray(value) if type(value) in (list, tuple) else value
