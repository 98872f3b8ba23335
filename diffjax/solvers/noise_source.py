"""The noise of a run, from a key, an array, a function or a Brownian path."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .. import checks, noise
from ..noise import BrownianPath
from ..types import Array, Key, PyTree

__all__ = ["Draw", "Source", "source_of"]


def _no_parts(step: Array, now: Array, end: Array, depth: Array, index: Array) -> Array:
    raise TypeError(
        "noise must be a Brownian path for a solver that chooses its own times"
    )


class Source(NamedTuple):
    """The noise of a run. Each draw is standard normal and has x's shape.

    The meaning of draw i of a step:

    - Where a method follows a Wiener process, draw 0 is ΔW/√h and draw 1 fixes
      ∫ W: ∫ (W(u) − W(t)) du = h^{3/2} (z_0/2 + z_1/(2√3)) over a step of
      length h.
    - One noise per step (ancestral samplers, Euler–Maruyama, the churn of
      `edm_stochastic`) is draw 0. `sra1` takes draws 0 and 1, `dpmpp_sde` and
      `seeds` 0 to 2. In `seeds(3)` draws 1 and 2 are those of the path within
      the step, independent of ∫ W.
    - `predictor_corrector` takes its predictor's draws, and draw 3 + i for the
      i-th correction.
    - `restart` takes draw k for the k-th way back.
    - `annealed_langevin` takes a draw for each of its Langevin steps, see
      `repeated`.

    Attributes:
      normal: (step, i) -> the i-th draw of a step.
      part: (step, now, end, depth, index) -> ΔW/√h over the index-th of
        2^depth equal parts of a step, from now to end, for a method that
        chooses its own times.
      repeated: (step, k, count, i) -> the i-th draw of the k-th of `count`
        inner steps, k traced. An array of noise gives [step, k]. None takes
        further steps of `normal`.
      mean: value -> its mean over the examples of a batch. None outside
        `sample_many`.
    """

    normal: Callable[[Array, int], Array]
    part: Callable[..., Array] = _no_parts
    repeated: Callable[[Array, Array, int, int], Array] | None = None
    mean: Callable[[Array], Array] | None = None


class Draw(NamedTuple):
    """The noise of one step: draw(i) and draw.part(now, end, depth, index)."""

    source: Source
    index: Array

    def __call__(self, i: int) -> Array:
        """The i-th standard normal of this step, of x's shape."""
        # one more than these would be the next step's first
        checks.integer("draw", i, 0, noise.DRAWS_PER_STEP - 1)
        return self.source.normal(self.index, i)

    def part(self, now: Array, end: Array, depth: Array, index: Array) -> Array:
        """The normalised Wiener increment over a part of this step, of x's shape.

        Args:
          now: Time at the start of the part.
          end: Time at its end.
          depth: The step has 2^depth equal parts.
          index: Number of the part.

        Returns:
          The increment divided by the root of the part's length.
        """
        return self.source.part(self.index, now, end, depth, index)

    def mean(self, value: Array) -> Array:
        """The mean of a value over the examples of the batch, of its shape."""
        checks.require(
            self.source.mean is not None,
            'norms="batch" needs the batch of sample_many, use norms="expected" here',
        )
        return self.source.mean(value)  # type: ignore[misc]

    def repeated(self, k: Array, count: int, i: int) -> Array:
        """The i-th standard normal of an inner step, of x's shape.

        Args:
          k: Number of the inner step. May be traced.
          count: How many inner steps there are.
          i: Number of the draw.

        Returns:
          The draw.
        """
        if self.source.repeated is not None:
            return self.source.repeated(self.index, k, count, i)
        inner = self.index * count + jnp.asarray(k, self.index.dtype)
        return self.source.normal(inner, i)


def source_of(key: Key | None, x: PyTree, ts: Array, noise: Any = None) -> Source:
    """The source of a run's noise.

    Args:
      key: Hashed with (step, draw) where no noise is given.
      x: The state.
      ts: The grid (N + 1,).
      noise: None, an array (N, draws, *x.shape), a function (step, draw) ->
        array, or a `BrownianPath`.

    Returns:
      The source.
    """
    if noise is None:
        return _from_key(key, x)
    if isinstance(noise, BrownianPath):
        return _along_path(noise, x, ts)
    if callable(noise):
        return Source(
            lambda step, i: jnp.broadcast_to(
                jnp.asarray(noise(step, i), x.dtype), x.shape
            )
        )
    return _from_array(jnp.asarray(noise, x.dtype))


def _from_key(key, x):
    def part(step, now, end, depth, index):
        return noise.part(
            jax.random.fold_in(key, step), depth, index, shape=x.shape, dtype=x.dtype
        )

    return Source(_normals(key, x), part)


def _normals(key, x):
    return lambda step, i: noise.normal(
        key, step * noise.DRAWS_PER_STEP + i, x.shape, x.dtype
    )


def _along_path(path, x, ts):
    # a path knows of draws 0 and 1 only
    further = _normals(jax.random.fold_in(path.key, 1), x)

    def along(step, i):
        if i > 1:
            return further(step, i)
        return path.increment(ts[step], ts[step + 1])[i].astype(x.dtype)

    def part(step, now, end, depth, index):
        return path.increment(now, end)[0].astype(x.dtype)

    return Source(along, part)


def _from_array(draws):
    # draws: (N, draws, *x.shape)
    def check(needed):
        held = draws.shape[1]
        message = f"noise must have at least {needed} draws per step, got {held}"
        checks.require(needed <= held, message)

    def entry(step, i):
        check(i + 1)
        return draws[step, i]

    def repeated(step, k, count, i):
        check(count)
        return draws[step, k]

    return Source(entry, repeated=repeated)
