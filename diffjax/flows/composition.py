"""Bijectors made of bijectors, and actnorms set by data throughout them."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks
from ..numerics import float_dtype
from ..types import Array, ArrayLike, PyTree, pytree, static_field
from .bijectors import Bijector, promoted
from .checks import BIJECTOR, check_initialisable, check_stackable
from .compiled import call
from .elementwise import ActNorm

__all__ = ["Initialised", "chain", "initialise", "inverse", "stack"]


class Initialised(Protocol):
    """A bijector whose parameters, or those of a part of it, can be set by data."""

    def initialised(self, ys: Array, conditions: Any) -> tuple[Any, PyTree]:
        """The bijector with parameters set from a batch, and the batch at its base.

        Args:
          ys: A batch (N, *shape) of what reaches the bijector from the data.
          conditions: A pytree with leading axis N, or None.

        Returns:
          (bijector, batch at its base).
        """
        ...


@pytree
class Chain(Bijector):
    """One bijector after another, f = f_n ∘ … ∘ f_1.

        forward   h_i = f_i(h_{i−1}),     log|det| = Σ_i log|det ∂f_i/∂h_{i−1}|
        inverse   h_{i−1} = f_i⁻¹(h_i),   log|det| = Σ_i log|det ∂f_i⁻¹/∂h_i|

    Here h_0 = x and h_n = y. See `chain`.
    """

    bijectors: tuple

    def forward_and_log_det(
        self, x: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        total = jnp.zeros((), float_dtype())
        for bijector in self.bijectors:
            x, log_det = bijector.forward_and_log_det(x, condition)
            total = total + log_det
        return x, total

    def inverse_and_log_det(
        self, y: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        total = jnp.zeros((), float_dtype())
        for bijector in reversed(self.bijectors):
            y, log_det = bijector.inverse_and_log_det(y, condition)
            total = total + log_det
        return y, total

    def inverse(self, y: Array, condition: Any = None) -> Array:
        for bijector in reversed(self.bijectors):
            y = bijector.inverse(y, condition)
        return y

    def initialised(self, ys: Array, conditions: Any) -> tuple["Chain", Array]:
        """Each layer set by the batch that reaches it, and the batch at the base.

        Args:
          ys: A batch (N, *shape) of what reaches it from the data.
          conditions: A pytree with leading axis N, or None.
        """
        layers = []
        for bijector in reversed(self.bijectors):
            bijector, ys = initialised(bijector, ys, conditions)
            layers.append(bijector)
        return Chain(tuple(reversed(layers))), ys


def chain(*bijectors: Bijector) -> Chain:
    """Composition of bijectors, written from the base to the data.

        chain(f_1, …, f_n) = f_n ∘ … ∘ f_1,   log|det ∂y/∂x| = Σ_i log|det ∂f_i|

    Each log-determinant is taken at the layer's own input. Every layer gets
    the same condition. The identity if there are no bijectors.

    Raises:
      TypeError: If an argument is no bijector.

    Example:
      >>> bijector = dj.flows.chain(dj.flows.affine(0.0, 2.0), dj.flows.sigmoid())
    """
    return Chain(checks.each("bijectors", bijectors, *BIJECTOR))


@pytree
class Inverse(Bijector):
    """A bijector f with its directions exchanged.

        forward   y = f⁻¹(x),   log|det| = log|det ∂f⁻¹/∂x|
        inverse   x = f(y),     log|det| = log|det ∂f/∂y|

    Forward is NaN where f⁻¹ is not defined. See `inverse`.
    """

    bijector: Any

    def forward_and_log_det(
        self, x: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        y, log_det = self.bijector.inverse_and_log_det(x, condition)
        # Where f⁻¹ is not defined there is no sample. A finite one would have
        # a density of +∞.
        undefined = log_det == -jnp.inf
        return jax.tree.map(
            lambda part: jnp.where(undefined, jnp.nan, part), (y, log_det)
        )

    def inverse_and_log_det(
        self, y: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        return self.bijector.forward_and_log_det(y, condition)

    def forward(self, x: Array, condition: Any = None) -> Array:
        return self.bijector.inverse(x, condition)

    def inverse(self, y: Array, condition: Any = None) -> Array:
        return self.bijector.forward(y, condition)

    def initialised(self, ys: Array, conditions: Any) -> tuple["Inverse", Array]:
        """Unchanged, and the batch at its base.

        Args:
          ys: A batch (N, *shape).
          conditions: A pytree with leading axis N, or None.

        Raises:
          ValueError: If there is an actnorm inside. It would have to learn
            from values that reach it from the data.
        """
        nodes = jax.tree.leaves(
            self.bijector, is_leaf=lambda node: isinstance(node, ActNorm)
        )
        message = "an actnorm inside inverse(…) cannot see data; put it outside"
        checks.require(not any(isinstance(n, ActNorm) for n in nodes), message)
        return self, jax.vmap(self.inverse)(ys, conditions)


@checks.arguments(bijector=BIJECTOR)
def inverse(bijector: Bijector) -> Bijector:
    """The same map with its directions exchanged. Of an inverse, the map itself."""
    return bijector.bijector if isinstance(bijector, Inverse) else Inverse(bijector)


@pytree
class Stack(Bijector):
    """Layers of one structure, one after another, run by `lax.scan`.

        forward   h_i = f_i(h_{i−1}),     log|det| = Σ_i log|det ∂f_i/∂h_{i−1}|
        inverse   h_{i−1} = f_i⁻¹(h_i),   log|det| = Σ_i log|det ∂f_i⁻¹/∂h_i|

    See `stack`.
    """

    layers: Any  # one bijector, whose leaves have a leading axis of layers
    checkpoint: bool = static_field(default=False)

    def forward_and_log_det(
        self, x: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        return self._scan("forward_and_log_det", x, condition, reverse=False)

    def inverse_and_log_det(
        self, y: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        return self._scan("inverse_and_log_det", y, condition, reverse=True)

    def inverse(self, y: Array, condition: Any = None) -> Array:
        def body(y, layer):
            return layer.inverse(y, condition), None

        return jax.lax.scan(
            body, promoted(y, self.layers, condition), self.layers, reverse=True
        )[0]

    def _scan(self, method, x, condition, reverse):
        def body(carry, layer):
            x, total = carry
            x, log_det = getattr(layer, method)(x, condition)
            return (x, total + log_det), None

        x = promoted(x, self.layers, condition)
        body = jax.checkpoint(body) if self.checkpoint else body
        return jax.lax.scan(
            body, (x, jnp.zeros((), float_dtype(x))), self.layers, reverse=reverse
        )[0]

    def initialised(self, ys: Array, conditions: Any) -> tuple["Stack", Array]:
        """Each layer set by the batch that reaches it, and the batch at the base.

        Args:
          ys: A batch (N, *shape) of what reaches it from the data.
          conditions: A pytree with leading axis N, or None.
        """

        def body(ys, layer):
            layer, ys = initialised(layer, ys, conditions)
            return ys, layer

        ys, layers = jax.lax.scan(
            body, promoted(ys, self.layers, conditions), self.layers, reverse=True
        )
        return Stack(layers, self.checkpoint), ys


@checks.arguments(bijectors=check_stackable, checkpoint=checks.boolean)
def stack(bijectors: Any, checkpoint: bool = False) -> Stack:
    """The chain of layers with one structure, as one `lax.scan`.

    It compiles in the time of one layer.

    Args:
      bijectors: A list of at least one layer, each of which maps a shape to
        itself. They are equal in everything static (masks, permutations,
        widths), and in the shapes and dtypes of their leaves, which are
        stacked.
      checkpoint: True to keep only each layer's input for the gradient and to
        compute the rest again. This takes the memory of one layer instead of
        all, for a third more time.

    Returns:
      A bijector.

    Raises:
      ValueError: If the layers differ, or have no parameters to scan over.
      TypeError: If a layer is no bijector.

    Example:
      >>> layers = [dj.flows.triangular(2), dj.flows.triangular(2)]
      >>> bijector = dj.flows.stack(layers)
    """
    return Stack(
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *bijectors), checkpoint
    )


@checks.arguments(bijector=check_initialisable, batch=(checks.finite_batch, 2))
def initialise(bijector: PyTree, batch: ArrayLike, condition: PyTree = None) -> PyTree:
    """Set the actnorms by data (Kingma & Dhariwal 2018, section 3.1).

    A pure function that walks from the data to the base. Each actnorm gets the
    mean and standard deviation of the values that reach it. So the values that
    leave it towards the base have mean 0 and variance 1 in each channel. Other
    layers stay unchanged.

    Args:
      bijector: A bijector or a flow.
      batch: Examples (N, *shape), N at least 2.
      condition: A pytree with leading axis N, or None.

    Returns:
      The bijector, or flow, with new parameters.

    Raises:
      ValueError: If the batch has NaN, too few examples, or examples outside
        the image of the bijector, or if there is an actnorm inside `inverse`.
      TypeError: If bijector is neither a bijector nor a flow.

    Example:
      >>> bijector = dj.flows.initialise(dj.flows.actnorm(2), jnp.ones((4, 2)))
    """
    checks.leading_axis("condition", condition, "batch", jnp.shape(batch)[0])
    bijector, latents = call(initialised, bijector, batch, condition)
    if not checks.is_traced(latents):
        inside = all(np.isfinite(part).all() for part in jax.tree.leaves(latents))
        message = "batch must lie inside the image of the bijector, got NaN latents"
        checks.require(inside, message)
    return bijector


def initialised(
    bijector: PyTree, ys: PyTree, conditions: PyTree
) -> tuple[PyTree, PyTree]:
    """A bijector initialised by a batch, and the batch at its base.

    Args:
      bijector: A bijector or a flow. It stays unchanged unless it is
        `Initialised`.
      ys: A batch of what reaches it from the data.
      conditions: A pytree with the batch's leading axis, or None.

    Returns:
      (bijector, batch at its base).
    """
    if hasattr(bijector, "initialised"):
        return bijector.initialised(ys, conditions)
    return bijector, jax.vmap(bijector.inverse)(ys, conditions)
