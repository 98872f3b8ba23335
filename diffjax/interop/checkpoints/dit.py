"""State dicts of the repository DiT (Peebles & Xie 2023), saved as safetensors.

model = dit.load("DiT-XL-2-256x256.safetensors", name="DiT-XL/2")
schedule = dit.schedule()
denoiser = model.denoiser(schedule)
x = dj.sample(key, lambda x, t: denoiser(x, t, 207), schedule, shape=model.shape)
"""

import pathlib
from typing import Any

from ... import ddpm, predictions, schedules
from ...schedules import Schedule
from ...types import Array, ArrayLike, Scalar, pytree
from ..diffusers.timesteps import AtTimestep
from .transformers import Transformer, read

__all__ = ["DiT", "load", "schedule"]


@pytree
class DiT(Transformer):
    """A transformer that predicts the noise at timesteps 0 … 999."""

    def __call__(self, x: ArrayLike, t: Scalar, label: ArrayLike) -> Array:
        """Evaluate the network at one example.

        Args:
          x: (H, W, C), of the shape `shape`.
          t: The timestep, (). Fractions are allowed.
          label: The class index, (). The number of classes stands for none.

        Returns:
          The noise and, where the network learned it, the variance of the reverse
          steps, as channels of (H, W, 2 C).

        Raises:
          ValueError: If an input has another shape.
        """
        return self.output(x, t, label)

    def denoiser(
        self, schedule: Schedule, kind: str = "noise"
    ) -> predictions.NetworkDenoiser:
        """The denoiser (x, t, label) -> E[x_0 | x_t = x], without the variance.

        Args:
          schedule: The chain, see `schedule`.
          kind: What the network predicts.

        Returns:
          The denoiser.

        Raises:
          ValueError: If `kind` is unknown.
        """
        return predictions.denoiser(schedule, AtTimestep(self, schedule), kind)


def schedule() -> schedules.DiscreteChain:
    """The chain of 1000 linear betas on which DiT was trained."""
    return schedules.from_betas(ddpm.linear_betas(1000))


def load(
    path: str | pathlib.Path,
    *,
    name: str | None = None,
    heads: int | None = None,
    dtype: Any = None,
) -> DiT:
    """Load a state dict of the repository DiT.

    Args:
      path: A file .safetensors or .npz with the names of the repository.
      name: A published size, such as "DiT-XL/2". None for the sizes that the
        tensors have.
      heads: Number of heads of attention. None for that of the name, or of the
        published size of this width.
      dtype: Of the parameters. None for float32, or float64 where it is stored
        and enabled in JAX.

    Returns:
      The model, a pytree callable (x, t, label) of one example.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If it is a pickle or damaged, the name or the number of heads is
        wrong, or a tensor is missing, unknown, misshapen or not finite.
    """
    params, sizes = read(path, name, heads, dtype)
    return DiT(params, sizes=sizes)
