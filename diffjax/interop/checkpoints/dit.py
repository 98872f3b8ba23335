"""State dicts of the repository DiT (Peebles & Xie 2023), saved as safetensors.

model = dit.load("DiT-XL-2-256x256.safetensors", name="DiT-XL/2")
schedule = dit.schedule()
denoiser = model.denoiser(schedule)
x = dj.sample(key, lambda x, t: denoiser(x, t, 207), schedule, shape=model.shape)
"""

from ... import checks, ddpm, predictions, schedules
from ...schedules import Schedule
from ...types import Array, ArrayLike, Scalar, pytree
from ..diffusers.timesteps import AtTimestep
from .transformers import Transformer

__all__ = ["DiT", "load", "schedule"]


@pytree
class DiT(Transformer):
    """A transformer that predicts the noise at timesteps 0 … 999."""

    def __call__(self, x: ArrayLike, t: Scalar, label: ArrayLike) -> Array:
        """Evaluate the network at one example.

        Args:
          x: (H, W, C), of the shape `shape`.
          t: The timestep, (). Fractions are allowed.
          label: The class index, (), from 0. Index K of K classes means no class.

        Returns:
          The noise and, where the network learned it, v of the variance of the reverse
          steps, as channels of (H, W, 2 C).

        Raises:
          TypeError: If x is not of a floating type, or label not an integer.
          ValueError: If an input has another shape, or label is out of range.
        """
        return self.output(x, t, label)

    def denoiser(
        self, schedule: Schedule, kind: str = "noise"
    ) -> predictions.NetworkDenoiser:
        """The denoiser (x, t, label) -> E[x_0 | x_t = x], without the variance.

        Args:
          schedule: A chain of betas, see `schedule`.
          kind: What the network predicts.

        Returns:
          The denoiser.

        Raises:
          TypeError: If the schedule is not made by `schedules.from_betas`.
          ValueError: If `kind` is unknown.
        """
        chain, maker = schedules.DiscreteChain, "schedules.from_betas"
        checks.made_by("schedule", schedule, chain, maker)
        return predictions.denoiser(schedule, AtTimestep(self, schedule), kind)


def schedule() -> schedules.DiscreteChain:
    """The chain of 1000 linear betas on which DiT was trained."""
    return schedules.from_betas(ddpm.linear_betas(1000))


load = DiT.load
"""Load a state dict of the repository DiT, see `transformers.Transformer.load`."""
