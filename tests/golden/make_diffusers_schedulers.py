"""Makes diffusers_schedulers.npz: runs of diffusers' schedulers in float64.

    python -m tests.golden.make_diffusers_schedulers  # needs torch and diffusers, 10 s

The committed file was made by torch 2.13.0 (CPU) and diffusers 0.42.1. A run starts
from two points in three dimensions. The network and the noise are the formulas of
`scheduler_rows`, so that the file holds only, under a run's name,

    config     the scheduler's configuration as diffusers states it, JSON
    settings   steps and mu, JSON
    timesteps  (steps,): those that diffusers takes
    path       (steps + 1, 2, 3): the states in x = α x_0 + σ ε, and the end

and under alpha_bars/NAME the tables ᾱ of some configurations.

diffusers computes its tables in float32. Here its modules see float64 in place of
float32 (`make.double_precision`), and torch's default is float64.
"""

import inspect
import json
import pathlib

import diffusers
import numpy as np
import torch

from tests.golden.make import double_precision, versions
from tests.golden.scheduler_rows import ROWS, START, draw, network

FILE = pathlib.Path(__file__).parent / "diffusers_schedulers.npz"
STEPS = 20


class Draws:
    """Noise for a whole run, the same for every example."""

    def __init__(self):
        self.count = 0

    def __call__(self, shape, **kwargs):
        """The next draw."""
        self.count += 1
        return torch.from_numpy(np.broadcast_to(draw(np, self.count - 1), shape).copy())


def run(name, options, steps=STEPS, mu=None):
    """(scheduler, path) of a run in float64.

    Args:
      name: The class without "Scheduler".
      options: Its options.
      steps: Number of steps.
      mu: The shift of dynamic shifting.

    Returns:
      The scheduler after the run, and its states in x, (steps + 1, 2, 3).
    """
    cls = getattr(diffusers, f"{name}Scheduler")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with double_precision(cls, Draws()):
            scheduler = cls(**options)
            scheduler.set_timesteps(steps, **({} if mu is None else {"mu": mu}))
            return scheduler, _path(scheduler)
    finally:
        torch.set_default_dtype(before)


def _path(scheduler):
    """The states in x, one for each time. Heun's inner states are left out."""
    in_ratio = type(scheduler).__name__.startswith(("EulerD", "EulerA", "Heun"))
    scales = torch.ones(len(scheduler.timesteps) + 1)
    if in_ratio:
        scales = torch.sqrt(1 + scheduler.sigmas**2)
    first = 1.0
    if type(scheduler).__name__.startswith("EDM"):
        first = scheduler.sigmas[0]
    x = torch.from_numpy(START) * first * scales[0]
    path = [x / scales[0]]
    for i, t in enumerate(scheduler.timesteps):
        scaled = getattr(scheduler, "scale_model_input", lambda x, t: x)(x, t)
        output = network(torch, scaled, t.to(torch.float64))
        x = scheduler.step(output, t, x).prev_sample
        path.append(x / scales[i + 1])
    if "Heun" in type(scheduler).__name__:
        path = [*path[0:-1:2], path[-1]]
    return np.stack([np.asarray(x) for x in path])


def config_of(scheduler):
    """The configuration as diffusers writes it, as JSON."""
    return json.dumps(json.loads(scheduler.to_json_string()))


def main():
    """Writes the file."""
    files = versions("diffusers")
    for row, (name, options) in ROWS.items():
        options = dict(options)
        settings = {
            "steps": options.pop("steps", STEPS),
            "mu": options.pop("mu", None),
        }
        cls = getattr(diffusers, f"{name}Scheduler")
        known = inspect.signature(cls.__init__).parameters
        options = {key: value for key, value in options.items() if key in known}
        scheduler, path = run(name, options, **settings)
        if not np.all(np.isfinite(path)):
            raise ValueError(f"{row} is not finite: {path[-1]}")
        files[f"{row}/config"] = np.array(config_of(scheduler))
        files[f"{row}/settings"] = np.array(json.dumps(settings))
        files[f"{row}/timesteps"] = np.asarray(scheduler.timesteps, np.float64)
        files[f"{row}/path"] = path
    for row in ("DDIM/zero_snr", "ddpm_large", "UniPCMultistep/zero_snr"):
        config = json.loads(str(files[f"{row}/config"]))
        name = config["_class_name"].removesuffix("Scheduler")
        known = inspect.signature(getattr(diffusers, name + "Scheduler")).parameters
        options = {key: value for key, value in config.items() if key in known}
        scheduler, _ = run(name, options)
        files[f"alpha_bars/{row}"] = np.asarray(scheduler.alphas_cumprod)
    np.savez_compressed(FILE, **files)


if __name__ == "__main__":
    main()
