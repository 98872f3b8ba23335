"""Bijectors made of bijectors: chains, inverses, stacks run by one scan; and actnorms set by data throughout them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks
from ..numerics import float_dtype
from ..types import Array, ArrayLike, PyTree, pytree, static_field
from .bijectors import ActNorm, Bijector, check_bijector, promoted
from .compiled import call


@pytree
class Chain(Bijector):
    """One bijector after another. See `chain`."""

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
        """Each layer initialised by what reaches it, from the data to the base, and what reaches the base."""
        layers = []
        for bijector in reversed(self.bijectors):
            bijector, ys = initialised(bijector, ys, conditions)
            layers.append(bijector)
        return Chain(tuple(reversed(layers))), ys


def chain(*bijectors: Bijector) -> Chain:
    """f_n ∘ … ∘ f_1 of chain(f_1, …, f_n): written from the base to the data; the identity if there are none.

    log|det| = Σ_i log|det ∂f_i|, each at its own input. Every layer gets the same condition. Raises TypeError for an
    argument that is no bijector.
    """
    return Chain(
        tuple(
            check_bijector(f"bijectors[{i}]", bijector)
            for i, bijector in enumerate(bijectors)
        )
    )


@pytree
class Inverse(Bijector):
    """A bijector turned round. See `inverse`."""

    bijector: Any

    def forward_and_log_det(
        self, x: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        y, log_det = self.bijector.inverse_and_log_det(x, condition)
        return jax.tree.map(
            lambda part: _nan_where(log_det == -jnp.inf, part), (y, log_det)
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
        """Unchanged, and ys mapped to its base. Raises ValueError if there is an actnorm inside, which learns from what
        comes to it from the data.
        """
        nodes = jax.tree.leaves(
            self.bijector, is_leaf=lambda node: isinstance(node, ActNorm)
        )
        if any(isinstance(node, ActNorm) for node in nodes):
            raise ValueError(
                "an actnorm inside inverse(…) cannot be initialised from data; put it outside"
            )
        return self, jax.vmap(self.inverse)(ys, conditions)


def _nan_where(undefined, value):
    """What a map yields where it is not defined: no sample, of no density."""
    return jnp.where(undefined, jnp.nan, value)


def inverse(bijector: Bijector) -> Bijector:
    """The same map with its directions exchanged; of an inverse, the map itself."""
    bijector = check_bijector("bijector", bijector)
    return bijector.bijector if isinstance(bijector, Inverse) else Inverse(bijector)


@pytree
class Stack(Bijector):
    """Equal layers one after another, run by `lax.scan`. See `stack`."""

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
        """Each layer initialised by what reaches it from the data, in one scan."""

        def body(ys, layer):
            layer, ys = initialised(layer, ys, conditions)
            return ys, layer

        ys, layers = jax.lax.scan(
            body, promoted(ys, self.layers, conditions), self.layers, reverse=True
        )
        return Stack(layers, self.checkpoint), ys


def stack(bijectors: Any, checkpoint: bool = False) -> Stack:
    """chain(*bijectors) of layers with one structure, as one `lax.scan`: it compiles in the time of one layer.

    bijectors: a list of at least one; equal in everything static (masks, permutations, widths), and in the shapes and
    dtypes of their leaves, which are stacked. A layer maps a shape to itself. checkpoint: keep only each layer's input
    for the gradient and compute the rest again: memory of one layer instead of all, for a third more time. Raises
    ValueError for layers that differ or have no parameters to scan over, TypeError for what is no bijector.
    """
    bijectors = [
        check_bijector(f"bijectors[{i}]", bijector)
        for i, bijector in enumerate(bijectors)
    ]
    checkpoint = checks.boolean("checkpoint", checkpoint)
    if not bijectors:
        raise ValueError("bijectors must hold at least one layer, got none")
    structure = jax.tree.structure(bijectors[0])
    kinds = [
        (jnp.shape(leaf), jnp.result_type(leaf))
        for leaf in jax.tree.leaves(bijectors[0])
    ]
    if not kinds:
        raise ValueError(
            f"bijectors must have parameters to be stacked; chain those without, such as {bijectors[0]!r}"
        )
    for i, bijector in enumerate(bijectors[1:], 1):
        if jax.tree.structure(bijector) != structure:
            raise ValueError(
                f"bijectors[{i}] must have the structure of bijectors[0], or be chained; got {bijector!r}"
            )
        theirs = [
            (jnp.shape(leaf), jnp.result_type(leaf))
            for leaf in jax.tree.leaves(bijector)
        ]
        if theirs != kinds:
            raise ValueError(
                f"bijectors[{i}] must have leaves like bijectors[0], {kinds}; got {theirs}"
            )
    return Stack(
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *bijectors), checkpoint
    )


def initialise(bijector: PyTree, batch: ArrayLike, condition: PyTree = None) -> PyTree:
    """The bijector, or flow, with its actnorms set by data: a pure function that walks from the data to the base.

    Each actnorm gets the mean and standard deviation of what reaches it, so that what leaves it towards the base has
    mean 0 and variance 1 in each channel; other layers stay unchanged. batch: (N, *shape), N at least 2. condition:
    pytree with leading axis N. Raises ValueError for NaN in the batch, examples outside the image of the bijector, too
    few examples, or an actnorm inside `inverse`, TypeError for what is no bijector. Kingma & Dhariwal
    2018, section 3.1.
    """
    if isinstance(bijector, type) or not any(
        callable(getattr(bijector, n, None)) for n in ("initialised", "inverse")
    ):
        raise TypeError(f"bijector must be a bijector or a flow, got {bijector!r}")
    batch = checks.real_array("batch", batch)
    if batch.ndim == 0 or batch.shape[0] < 2:
        raise ValueError(
            f"batch must have shape (N, ...) with N at least 2, got {batch.shape}"
        )
    checks.finite("batch", batch)
    checks.leading_axis("condition", condition, "batch", batch.shape[0])
    bijector, latents = call(initialised, bijector, batch, condition)
    if not checks.is_traced(latents) and not all(
        np.all(np.isfinite(part)) for part in jax.tree.leaves(latents)
    ):
        raise ValueError(
            "batch must lie inside the image of the bijector, got examples without a latent"
        )
    return bijector


def initialised(
    bijector: PyTree, ys: PyTree, conditions: PyTree
) -> tuple[PyTree, PyTree]:
    """(bijector, ys at its base): by its own method `initialised`, or unchanged where it has none."""
    if hasattr(bijector, "initialised"):
        return bijector.initialised(ys, conditions)
    return bijector, jax.vmap(bijector.inverse)(ys, conditions)
