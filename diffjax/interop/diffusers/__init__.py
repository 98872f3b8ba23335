"""Models of diffusers without torch: their networks, weights and schedulers.

`load` reads a model's folder, `load_scheduler` a scheduler's. A `Model` is a
callable pytree of one example. Its denoiser goes wherever diffjax takes one:

    model = diffusers.load("ddpm-cifar10-32/unet")
    schedule, kind, grid = diffusers.load_scheduler("ddpm-cifar10-32/scheduler")
    denoiser = model.denoiser(schedule, kind)
    x = dj.sample(key, denoiser, schedule, grid=grid(20), shape=(32, 32, 3))
"""

from .model import Autoencoder, Model, initialised, load, save
from .schedulers import load_scheduler, save_scheduler, solver
from .timesteps import timestep

__all__ = [
    "Autoencoder",
    "Model",
    "initialised",
    "load",
    "load_scheduler",
    "save",
    "save_scheduler",
    "solver",
    "timestep",
]


def __dir__() -> list[str]:
    return __all__
