"""The flows that few-step methods are to follow: exact denoisers, starts, and the
ends of the exact flow.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import guidance, metrics, predictions, schedules, targets
from diffjax.types import pytree
from experiments.shared import datasets
from experiments.shared.solvers import flow_ends

TOLERANCE, DIGITS_TOLERANCE = 1e-9, 1e-6
"""Relative and absolute tolerances of the exact flow's solution, in float64."""

POOL = 65536
"""Exact examples of which training batches and the reference moments are made."""

DIGITS, FEW_DIGITS, DIGITS_STD = 256, 16, 0.2
"""Number of images, number in a run of seconds, and standard deviation of the normals
around them. Pixels lie in [−1, 1].
"""

GUIDED_SCALES = (1.0, 4.0)
"""Range of the guidance scales of which a guided map is a function."""

MEASURED_SCALES = (1.0, 2.5, 4.0)
"""Guidance scales at which the errors of a guided map are measured."""

STRETCHED = 512
"""Number of starts at which the stretch of the exact map is measured."""

GUIDED_CLASS = 1
"""The component of the guided mixture that is the class."""


@dataclasses.dataclass(frozen=True)
class Task:
    """A flow, and what a student of it is measured by.

    Attributes:
      name: A key of `TASKS`.
      schedule: The noise schedule.
      denoiser: (x, t, *condition) -> D, exact. A pytree.
      pool: (N, *shape), exact examples.
      starts: (n, *shape), noise at t_max.
      conditions: Arguments after x and t, by name: one number each, or none.
      ends: (conditions or 1, n, *shape), of the exact flow from the starts.
      stretch: Of the exact map, the greatest singular value of its Jacobian ∂X/∂x.
        By name the "greatest" and the "mean" of the first `STRETCHED` starts. That
        is no bound for other starts. A guided map has that of the greatest scale,
        digits have none.
      reference: Moments of the distribution that samples should have, or None.
      width: Features of the network.
      batch: Examples per training step.
      scale: Budget of the task in units of the flag's.
      skip: Whether the network adds a multiple of x to its output.
      teacher: A map with a velocity, which students learn from in place of the exact
        one. None for the exact one.
    """

    name: str
    schedule: Any
    denoiser: Any
    pool: Any
    starts: Any
    conditions: tuple[float, ...]
    ends: Any
    stretch: dict[str, float]
    reference: Any
    width: int
    batch: int
    scale: float
    skip: bool = False
    teacher: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return self.pool.shape[1:]

    @property
    def guided(self) -> bool:
        """Whether the guidance scale is an argument of denoiser and map."""
        return bool(self.conditions)

    def velocity(self, x: Any, t: Any, *condition: Any) -> Any:
        """dx/dt of the teacher."""
        if self.teacher is not None:
            return self.teacher.velocity(x, t)
        denoiser = self.denoiser
        bound = lambda x, t: denoiser(x, t, *condition)
        return predictions.velocity(self.schedule, bound)(x, t)


@pytree
class GuidedDenoiser:
    """(x, t, scale) -> D, the classifier-free guidance of two exact denoisers."""

    conditional: Any
    unconditional: Any

    def __call__(self, x, t, scale):
        guided = guidance.classifier_free(self.conditional, self.unconditional, scale)
        return guided(x, t)


@pytree
class Bound:
    """A denoiser or map with its condition."""

    function: Any
    condition: Any

    def __call__(self, *arguments):
        return self.function(*arguments, self.condition)


def soft_mixture() -> Any:
    """Four overlapping normals of different widths and tilts.

    No trajectory has to choose between modes within a thin border, so that the map
    is Lipschitz with a moderate constant, which `Task.stretch` estimates from below.
    """
    means = [[1.0, 0.6], [-0.9, 0.9], [-0.5, -1.0], [1.1, -0.9]]
    stds = np.array([[0.6, 0.35], [0.4, 0.5], [0.65, 0.4], [0.35, 0.45]])
    turns = np.array([0.5, -0.4, 0.2, 0.0])
    rotations = np.array(
        [[[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]] for a in turns]
    )
    covariances = np.einsum("kij,kj,klj->kil", rotations, stds**2, rotations)
    return targets.gaussian_mixture([0.3, 0.25, 0.25, 0.2], means, covariances)


def modes_mixture() -> Any:
    """Eight normals on a circle, six of their standard deviations apart.

    The eight Gaussians of the library, scaled to unit variance. Between two modes the
    map is steep.
    """
    exact = targets.eight_gaussians()
    unit = 1 / np.sqrt(np.trace(exact.covariance()) / 2)
    stds = unit * np.sqrt(exact.variances[:, 0])
    return targets.gaussian_mixture(exact.weights, unit * exact.means, stds)


def digits_mixture(seed: int, count: int) -> Any:
    """Normals around the first training images of the 8×8 digits."""
    images = datasets.open_dataset("digits", 447, seed).train[:count].reshape(-1, 64)
    weights, stds = np.full(count, 1 / count), np.full(count, DIGITS_STD)
    return targets.gaussian_mixture(weights, images, stds)


TASKS = {
    "soft": (lambda seed, images: soft_mixture(), 1.0),
    "modes": (lambda seed, images: modes_mixture(), 1.0),
    "guided": (lambda seed, images: soft_mixture(), 1.0),
    "digits": (digits_mixture, 2.0),
}
"""(seed, number of images) -> the target, and the budget of each student in units of
the flag's.
"""


def open_task(name: str, seed: int, starts: int, small: bool = False) -> Task:
    """Make a task, solving its exact flow in float64.

    Args:
      name: A key of `TASKS`.
      seed: Of the examples and the starts.
      starts: Number of starts. Digits take an eighth.
      small: Whether network and digits are small, for a run of seconds.

    Returns:
      The task, in float32.
    """
    schedule, digits = schedules.rectified_flow(), name == "digits"
    with jax.enable_x64(True):
        exact = _solved(name, schedule, seed, starts, small)
    pool, guided = np.asarray(exact.pool), exact.part is not None
    target, part = jax.tree.map(_single, (exact.target, exact.part))
    width, batch = (512, 128) if digits else (256, 1024)
    with jax.enable_x64(False):
        return Task(
            name,
            schedule,
            _denoiser(target, part, schedule),
            _single(pool),
            _single(exact.starts),
            exact.conditions,
            _single(exact.ends),
            exact.stretch,
            None if guided else metrics.moments(pool.reshape(len(pool), -1)),
            32 if small else width,
            64 if small else batch,
            TASKS[name][1],
            # In 64 dimensions the layers should not have to copy the noise of x.
            digits,
        )


def _single(array):
    return np.asarray(array, np.float32)


class _Exact(NamedTuple):
    """The float64 part of a task: see `Task`, and the target with its class or None."""

    target: Any
    part: Any
    pool: Any
    starts: Any
    conditions: tuple[float, ...]
    ends: Any
    stretch: dict[str, float]


def _solved(name, schedule, seed, starts, small):
    digits = name == "digits"
    starts = max(2, starts // 8) if digits else starts
    pool_key, start_key = jax.random.split(jax.random.key(seed))
    target = TASKS[name][0](seed, FEW_DIGITS if small else DIGITS)
    part = _class(target) if name == "guided" else None
    pool = _samples(part or target, pool_key, 4096 if small else POOL)
    x = schedules.prior_std(schedule) * jax.random.normal(
        start_key, (starts, *pool.shape[1:]), jnp.float64
    )
    exact = _denoiser(target, part, schedule)
    conditions = MEASURED_SCALES if part else ()
    bound = [Bound(exact, scale) for scale in conditions] or [exact]
    tolerance = DIGITS_TOLERANCE if digits else TOLERANCE
    ends = np.stack([flow_ends(one, schedule, x, tolerance) for one in bound])
    stretch = {} if digits else _stretch(bound[-1], schedule, x[:STRETCHED])
    return _Exact(target, part, pool, x, conditions, ends, stretch)


def _denoiser(target, part, schedule):
    exact = targets.denoiser(target, schedule)
    if part is None:
        return exact
    return GuidedDenoiser(targets.denoiser(part, schedule), exact)


def _class(target):
    k = GUIDED_CLASS
    basis = target.bases[k]
    covariance = basis * target.variances[k] @ basis.T
    return targets.gaussian_mixture([1.0], target.means[k][None], covariance[None])


@functools.partial(jax.jit, static_argnums=2)
def _samples(target, key, count):
    return jax.vmap(target.sample)(jax.random.split(key, count))


def _stretch(denoiser, schedule, x, step=1e-4):
    """Greatest singular value of the map's Jacobian, by central differences."""
    columns = []
    for direction in step * np.eye(x.shape[1]):
        ahead = flow_ends(denoiser, schedule, x + direction, TOLERANCE)
        behind = flow_ends(denoiser, schedule, x - direction, TOLERANCE)
        columns.append(np.asarray(ahead - behind) / (2 * step))
    values = np.linalg.norm(np.stack(columns, -1), 2, axis=(1, 2))
    return {"greatest": float(values.max()), "mean": float(values.mean())}
