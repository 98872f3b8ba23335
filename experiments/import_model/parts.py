"""The parts of a pretrained diffusion, read from the folders of diffusers."""

import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

import diffjax as dj
from diffjax.interop import diffusers
from diffjax.types import pytree

__all__ = [
    "Conditions",
    "Parts",
    "conditional",
    "open_conditions",
    "open_parts",
    "scheduler_grid",
]

MODELS = ("unet", "transformer")
"""Subfolders of a pipeline that hold its denoising network."""

USED = (*MODELS, "vae")
"""Subfolders whose network is used."""

WITH_NULL = ("text", "class", "pooled")
"""Conditions of which guidance needs a null. The others stay those of the sample."""


class Parts(NamedTuple):
    """A model with its scheduler and, for a latent diffusion, its autoencoder.

    Attributes:
      model: The network with its weights.
      coder: The autoencoder, or None.
      schedule: The noise schedule.
      kind: What the network predicts.
      grid: steps -> the times at which the scheduler steps.
      solver: The solver that equals the scheduler. None if the flags name another.
      model_folder: Folder of the model.
      scheduler_folder: Folder of the scheduler.
      shape: Of one example of the model.
    """

    model: Any
    coder: Any
    schedule: Any
    kind: str
    grid: Any
    solver: Any
    model_folder: pathlib.Path
    scheduler_folder: pathlib.Path
    shape: tuple[int, int, int]


def open_parts(config: Any) -> Parts:
    """Read a pipeline's folder, or a model's folder beside a scheduler's.

    Args:
      config: The flags.

    Returns:
      The parts.

    Raises:
      FileNotFoundError: If a part is missing.
      ValueError: If a part is not supported.
    """
    folder = config.folder
    if not folder.is_dir():
        raise FileNotFoundError(f"--folder: there is no folder {folder}")
    model_folder = _model_folder(folder)
    scheduler_folder = config.scheduler or folder / "scheduler"
    _check_scheduler(scheduler_folder)
    schedule, kind, grid = diffusers.load_scheduler(
        scheduler_folder, config.scheduler_class
    )
    solver = None
    if config.solver is None:
        solver = diffusers.solver(scheduler_folder, config.scheduler_class)
    _check_others(folder)
    model = diffusers.load(model_folder, variant=config.variant)
    is_network = not isinstance(model, diffusers.Autoencoder)
    message = f"{model_folder} holds an autoencoder, not a network that denoises"
    dj.checks.require(is_network, message)
    _check_channels(model.options)
    sides = _sides(config.size, model.options)
    return Parts(
        model=model,
        coder=_coder(folder / "vae", config.variant),
        schedule=schedule,
        kind=kind,
        grid=grid,
        solver=solver,
        model_folder=model_folder,
        scheduler_folder=scheduler_folder,
        shape=(*sides, model.options["in_channels"]),
    )


def _model_folder(folder):
    """The subfolder of a pipeline that holds its denoising network, or the folder."""
    names = [name for name in MODELS if (folder / name / "config.json").is_file()]
    message = (
        f"{folder} has both {' and '.join(names)}: pass --folder of one of them, and "
        "--scheduler"
    )
    dj.checks.require(len(names) <= 1, message)
    return folder / names[0] if names else folder


def _coder(folder, variant):
    """The autoencoder of a pipeline, or None if it has none."""
    if not (folder / "config.json").is_file():
        return None
    return diffusers.load(folder, variant=variant)


def _check_scheduler(folder):
    """Raise FileNotFoundError unless a folder has a scheduler's configuration."""
    path = folder / "scheduler_config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no {path}: pass --folder of a pipeline, or --scheduler with the "
            "folder that holds scheduler_config.json"
        )


def _check_others(folder):
    """Raise ValueError if a pipeline has networks that would be left out."""
    paths = [p for p in folder.glob("*/config.json") if p.parent.name not in USED]
    # Text encoders are not of diffusers and have no such entry.
    names = {p.parent.name: json.loads(p.read_text()).get("_class_name") for p in paths}
    further = {name: cls for name, cls in names.items() if cls}
    message = f"{folder} has further networks, which are not supported: {further}"
    dj.checks.require(not further, message)


def _check_channels(options):
    """Raise ValueError unless outputs are of the state, with a variance or without."""
    inputs, outputs = options["in_channels"], options["out_channels"]
    message = (
        "out_channels must be in_channels, or twice as many with a learned variance, "
        f"got {outputs} for {inputs}"
    )
    dj.checks.require(outputs in (None, inputs, 2 * inputs), message)


def _sides(size, options):
    sides = options["sample_size"] if size is None else size
    message = "the configuration has no sample_size: pass --size"
    dj.checks.require(sides is not None, message)
    return sides if isinstance(sides, tuple) else (sides, sides)


CLASSES = (0, 1, 2, 3)
"""Class indices where the flags name none."""


class Conditions(NamedTuple):
    """The conditions of all samples.

    Attributes:
      rows: Arrays in the order of the model, with a leading axis of samples, or
        None without conditions.
      null: The null condition of one example, or None if there is none. An entry
        is None where that of the sample stays, as for sizes.
    """

    rows: tuple[Any, ...] | None
    null: tuple[Any, ...] | None


def open_conditions(config: Any, model: Any) -> Conditions:
    """The conditions of the samples, from flags and a file.

    Args:
      config: The flags.
      model: The model.

    Returns:
      The conditions.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If a condition is missing or has another shape, if a class index
        is out of range, or if guidance lacks a null condition.
    """
    shapes = model.condition_shapes
    file = _arrays(config.embeddings)
    known = [*shapes, *(f"null_{name}" for name in shapes)]
    unused = [name for name in file if name not in known]
    message = f"--embeddings has {unused}, but the model takes {known}"
    dj.checks.require(not unused, message)
    if shapes.get("class") == ():
        classes = CLASSES if config.classes is None else config.classes
        dj.checks.require(len(classes) > 0, "--classes must name at least one class")
        file.setdefault("class", np.asarray(classes))
        if "num_embeds_ada_norm" in model.options:
            last = np.asarray(model.options["num_embeds_ada_norm"])
            file.setdefault("null_class", last)
    else:
        message = "--classes needs a model with class indices"
        dj.checks.require(config.classes is None, message)
    missing = [name for name in shapes if name not in file]
    message = f"--embeddings needs a file with {missing} for a model with {shapes}"
    dj.checks.require(not missing, message)
    if shapes.get("class") == ():
        _check_classes(file["class"], model.options)
    rows = tuple(_rows(name, file[name], shapes[name], config) for name in shapes)
    null = None if config.guidance is None else _null(file, shapes)
    return Conditions(rows if shapes else None, null)


def _null(file, shapes):
    """The null condition that guidance needs."""
    dj.checks.require(bool(shapes), "guidance needs a model with conditions")
    needed = [f"null_{name}" for name in shapes if name in WITH_NULL]
    missing = ", ".join(name for name in needed if name not in file)
    message = f"guidance needs {missing} in the file of --embeddings"
    dj.checks.require(not missing, message)
    entries = {name: file.get(f"null_{name}") for name in shapes}
    for name, value in entries.items():
        if value is not None:
            _check_shape(f"null_{name}", value, (_shape(name, value, shapes[name]),))
    return tuple(entries.values())


def _arrays(path):
    """The arrays of an .npz file by name, floats in float32."""
    if path is None:
        return {}
    if not path.is_file():
        raise FileNotFoundError(f"--embeddings: there is no file {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (ValueError, AttributeError, EOFError) as error:
        message = f"embeddings must be an .npz file, got {path}: {error}"
        raise ValueError(message) from error
    return {
        name: value.astype(np.float32) if value.dtype.kind == "f" else value
        for name, value in arrays.items()
    }


def _check_classes(classes, options):
    """Class indices of a table of embeddings. Out of range they would give NaN."""
    with_null = options.get("num_embeds_ada_norm")
    count = with_null or options.get("num_class_embeds")
    if count is None or options.get("class_embed_type") is not None:
        return
    values = np.asarray(classes)
    fits = bool(np.all((values >= 0) & (values < count + (with_null is not None))))
    null = f", or {count} for no class" if with_null else ""
    message = f"classes must be between 0 and {count - 1}{null}, got {values.tolist()}"
    dj.checks.require(fits, message)


def _shape(name, value, shape):
    """The shape of one example. Texts may have any length."""
    any_length = name == "text" and value.ndim >= 2
    return (value.shape[-2], shape[-1]) if any_length else shape


def _check_shape(name, value, shapes):
    """Raise ValueError unless a value has one of the shapes, where -1 is any size."""
    fits = value.size > 0 and any(
        value.ndim == len(shape)
        and all(n in (-1, m) for n, m in zip(shape, value.shape, strict=True))
        for shape in shapes
    )
    words = " or ".join(str(shape).replace("-1", "N") for shape in shapes)
    dj.checks.require(fits, f"{name} must have shape {words}, got {value.shape}")


def _rows(name, value, shape, config):
    """Rows for all samples, from one row for all or some in turn."""
    value = np.asarray(value)
    shape = _shape(name, value, shape)
    _check_shape(name, value, (shape, (-1, *shape)))
    value = value[None] if value.ndim == len(shape) else value
    return value[np.arange(config.samples) % len(value)]


@pytree
class _WithTuple:
    """A denoiser whose conditions come as one tuple, as `sample_many` has them."""

    denoiser: Any

    def __call__(self, x, t, condition=()):
        return self.denoiser(x, t, *condition)


@pytree
class _WithNull:
    """A denoiser under the null condition, whose other entries are the sample's."""

    denoiser: Any
    null: Any

    def __call__(self, x, t, condition):
        pairs = zip(self.null, condition, strict=True)
        null = [kept if entry is None else entry for entry, kept in pairs]
        return self.denoiser(x, t, *null)


def conditional(config: Any, parts: Parts, conditions: Conditions) -> Any:
    """The denoiser (x, t, condition), with guidance if the flags have a scale.

    Args:
      config: The flags.
      parts: The model with its schedule.
      conditions: Has the null condition.

    Returns:
      A denoiser.
    """
    denoiser = parts.model.denoiser(parts.schedule, parts.kind)
    if config.guidance is None:
        return _WithTuple(denoiser)
    # Classifier-free guidance has the same formula, but gives the condition to one
    # of the two alone. Here the null one takes the sizes from it.
    return dj.guidance.autoguidance(
        _WithTuple(denoiser), _WithNull(denoiser, conditions.null), config.guidance
    )


def scheduler_grid(config: Any, parts: Parts, steps: int) -> Any:
    """The times at which the scheduler steps, with the shift of the flags.

    Args:
      config: The flags.
      parts: Has the grid of the scheduler.
      steps: Number of steps.

    Returns:
      Decreasing times.
    """
    shift = {} if config.mu is None else {"mu": config.mu}
    return parts.grid(steps, **shift)
