"""State dicts of the repository SiT (Ma et al. 2024), saved as safetensors.

SiT counts its time s from noise to data. Here t = 1 − s grows with the noise, and the
velocity dx/dt is the negative of dx/ds.

    model = sit.load("SiT-XL-2-256x256.safetensors", name="SiT-XL/2")
    schedule = sit.schedule()
    denoiser = model.denoiser(schedule)
    x = dj.sample(key, lambda x, t: denoiser(x, t, 207), schedule, shape=model.shape)
"""

import pathlib
from typing import Any

from ... import predictions, schedules
from ...schedules import Schedule
from ...types import Array, ArrayLike, Scalar, pytree
from .transformers import Transformer, read

__all__ = ["SiT", "load", "schedule"]


@pytree
class SiT(Transformer):
    """A transformer that predicts the velocity of an interpolant."""

    def __call__(self, x: ArrayLike, t: Scalar, label: ArrayLike) -> Array:
        """The velocity α′ x_0 + σ′ ε at one example.

        Args:
          x: (H, W, C), of the shape `shape`.
          t: A time in [0, 1], (), which grows with the noise.
          label: The class index, (). The number of classes stands for none.

        Returns:
          dx/dt, shape of x.

        Raises:
          ValueError: If an input has another shape.
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


def load(
    path: str | pathlib.Path,
    *,
    name: str | None = None,
    heads: int | None = None,
    dtype: Any = None,
) -> SiT:
    """Load a state dict of the repository SiT.

    Args:
      path: A file .safetensors or .npz with the names of the repository.
      name: A published size, such as "SiT-XL/2". None for the sizes that the
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
    return SiT(params, sizes=sizes)
