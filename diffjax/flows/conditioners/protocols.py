"""The protocols of conditioners."""

from typing import Any, Protocol

from ...types import Array, ArrayLike, PyTree

__all__ = ["Conditioner", "PartwiseConditioner"]


class Conditioner(Protocol):
    """A function that computes the parameters θ of scalar maps.

    A pytree callable, whose arrays are trained.
    """

    def __call__(self, x: Array, condition: Any = None) -> Array:
        """Parameters of the entries that move, P each on the last axis.

        Args:
          x: In a coupling layer the part that stays. In an autoregressive
            layer the whole example y, of which θ_i uses y_{<i} alone.
          condition: One example of the condition, or None.
        """
        ...


class PartwiseConditioner(Conditioner, Protocol):
    """A conditioner of autoregressive layers that also goes part by part."""

    def memory(self, y: Array) -> PyTree:
        """State before the first part of an example like y."""
        ...

    def following(
        self, memory: PyTree, i: ArrayLike, before: Array, condition: Any = None
    ) -> tuple[Array, PyTree]:
        """Parameters of one part from the part before it.

        Args:
          memory: State before part i.
          i: Index of the part.
          before: Part i − 1 of y. 0 for i = 0.
          condition: One example of the condition, or None.

        Returns:
          (θ_i, state after part i).
        """
        ...
