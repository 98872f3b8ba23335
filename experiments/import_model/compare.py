"""The same samples by diffusers in PyTorch, from the same noise."""

import importlib
import importlib.util
import json
import time
from typing import Any

import numpy as np

import diffjax as dj
from experiments.import_model.parts import Conditions, Parts

__all__ = ["check", "null_rows", "peer_samples", "start_scale"]

KEYWORDS = {
    "text": "encoder_hidden_states",
    "class": "class_labels",
    "guidance": "timestep_cond",
}
"""Argument of diffusers' networks for a condition."""


def check(parts: Parts) -> None:
    """Raise an error unless samples can be compared.

    Args:
      parts: The parts of the model.

    Raises:
      ValueError: If a library is missing, the scheduler draws noise or --solver is
        set.
    """
    missing = [n for n in ("torch", "diffusers") if not importlib.util.find_spec(n)]
    message = (
        f"--compare needs {', '.join(missing)}: pip install 'diffjax[peers]', or leave "
        "out --compare"
    )
    dj.checks.require(not missing, message)
    message = "--compare runs the scheduler itself: leave out --solver"
    dj.checks.require(parts.solver is not None, message)
    message = "--compare needs a scheduler without noise, such as DDIM with η = 0"
    dj.checks.require(not parts.solver.stochastic, message)


def _scheduler(config, parts):
    library: Any = importlib.import_module("diffusers")
    path = parts.scheduler_folder / "scheduler_config.json"
    stored = json.loads(path.read_text())
    name = config.scheduler_class or stored["_class_name"]
    scheduler = getattr(library, name).from_config(stored)
    shift = {} if config.mu is None else {"mu": config.mu}
    scheduler.set_timesteps(config.steps, **shift)
    return scheduler


def start_scale(config: Any, parts: Parts, t: Any) -> float:
    """Standard deviation of the start of diffusers' run, in our state.

    Args:
      config: The flags.
      parts: The parts of the model.
      t: The first time.

    Returns:
      The factor of unit noise.
    """
    scheduler = _scheduler(config, parts)
    scale = float(getattr(scheduler, "init_noise_sigma", 1.0))
    # Euler's and Heun's states are x/α.
    by_ratio = type(scheduler).__name__.startswith(("Euler", "Heun"))
    return scale * float(parts.schedule.alpha(t)) if by_ratio else scale


def peer_samples(
    config: Any, parts: Parts, conditions: Conditions, noise: np.ndarray
) -> tuple[np.ndarray, float]:
    """Samples by diffusers.

    Args:
      config: The flags.
      parts: The parts of the model.
      conditions: Of the samples.
      noise: Unit noise (N, H, W, C) of the starts.

    Returns:
      The samples (N, H, W, C), and the seconds without loading.
    """
    torch: Any = importlib.import_module("torch")
    library: Any = importlib.import_module("diffusers")
    cls = getattr(library, parts.model.config["_class_name"])
    model = cls.from_pretrained(parts.model_folder, variant=config.variant).eval()
    scheduler = _scheduler(config, parts)
    keywords = _keywords(torch, parts, conditions.rows)
    null = _keywords(torch, parts, null_rows(conditions))
    x = torch.tensor(np.moveaxis(noise, 3, 1))
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    channels, start = x.shape[1], time.perf_counter()
    with torch.no_grad():
        for t in scheduler.timesteps:
            scale = getattr(scheduler, "scale_model_input", lambda x, t: x)
            inputs, times = scale(x, t), t.expand(len(x))
            out = model(inputs, times, **keywords).sample[:, :channels]
            if config.guidance is not None:
                without = model(inputs, times, **null).sample[:, :channels]
                out = without + config.guidance * (out - without)
            x = scheduler.step(out, t, x).prev_sample
    seconds = time.perf_counter() - start
    return np.moveaxis(x.numpy(), 1, 3), seconds


def null_rows(conditions: Conditions) -> tuple[np.ndarray, ...] | None:
    """The null conditions of all samples."""
    if conditions.null is None:
        return None
    return tuple(
        rows if null is None else np.stack([null] * len(rows))
        for null, rows in zip(conditions.null, conditions.rows, strict=True)
    )


def _keywords(torch, parts, rows):
    """The conditions as arguments of diffusers' networks."""
    if rows is None:
        return {}
    names = parts.model.condition_shapes
    arrays = {n: torch.tensor(row) for n, row in zip(names, rows, strict=True)}
    keywords = {KEYWORDS[name]: arrays[name] for name in names if name in KEYWORDS}
    if "pooled" in arrays:
        keywords["added_cond_kwargs"] = {
            "text_embeds": arrays["pooled"],
            "time_ids": arrays["sizes"],
        }
    return keywords
