"""State dicts of the repository SiT (Ma et al. 2024), saved as safetensors.

SiT counts its time s from noise to data. Here t = 1 − s grows with the noise, and the
velocity dx/dt is the negative of dx/ds.

    model = sit.load("SiT-XL-2-256x256.safetensors", name="SiT-XL/2")
    schedule = sit.schedule()
    denoiser = model.denoiser(schedule)
    x = dj.sample(key, lambda x, t: denoiser(x, t, 207), schedule, shape=model.shape)
"""

from typing import Any

from ... import predictions, schedules
from ...schedules import Schedule
from ...types import Array, ArrayLike, Scalar, pytree
from .transformers import Transformer

__all__ = ["SiT", "load", "schedule"]


@pytree
class SiT(Transformer):
    """A transformer that predicts the velocity of an interpolant."""

    def __call__(self, x: ArrayLike, t: Scalar, label: ArrayLike) -> Array:
        """The velocity α′ x_0 + σ′ ε at one example.

        Args:
          x: (H, W, C), of the shape `shape`.
          t: A time in [0, 1], (), which grows with the noise.
          label: The class index, (), from 0. Index K of K classes means no class.

        Returns:
          dx/dt, shape of x.

        Raises:
          TypeError: If x is not of a floating type, or label not an integer.
          ValueError: If an input has another shape, or label is out of range.
        """
        return -_Reversed(self)(x, t, label)

    def denoiser(
        self, schedule: Schedule, kind: str = "velocity"
    ) -> predictions.NetworkDenoiser:
        """The denoiser (x, t, label) -> E[x_0 | x_t = x].

        Args:
          schedule: The interpolant, α(t) and σ(t) on t in [0, 1], see `schedule`.
          kind: What the network was trained to predict. "velocity" in SiT's
            published weights, "noise" and "score" in some of its experiments.

        Returns:
          The denoiser.

        Raises:
          ValueError: If `kind` is unknown.
        """
        # Only a velocity has another sign in the reversed time.
        net = self if kind == "velocity" else _Reversed(self)
        return predictions.denoiser(schedule, net, kind)


@pytree
class _Reversed:
    """The prediction of a model as trained, at the reversed time."""

    model: Any

    def __call__(self, x, t, label):
        # Training ignored further channels.
        return self.model.output(x, 1 - t, label)[..., : self.model.sizes.channels]


def schedule() -> schedules.RectifiedFlow:
    """The linear interpolant of SiT's published weights, α = 1 − t and σ = t."""
    return schedules.rectified_flow()


load = SiT.load
"""Load a state dict of the repository SiT, see `transformers.Transformer.load`."""
