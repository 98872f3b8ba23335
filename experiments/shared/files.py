"""The folder of a run: its lock, config.json, metrics.json and other JSON files."""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import sys
from typing import Any

import jax
import numpy as np

from experiments.shared import devices

EXPERIMENT = "experiment"
"""The entry of config.json that names the experiment."""


@contextlib.contextmanager
def locks():
    """Have `open_folder` take locks, and release them at the end."""
    global _held
    _held = {}
    try:
        yield
    finally:
        held, _held = _held, None
        for one in held.values():
            one.release()


# Locks by folder. None outside of `cli.main`, where nothing is locked.
_held: dict[pathlib.Path, Any] | None = None


def open_folder(config: Any) -> pathlib.Path:
    """Choose the devices and make the folder config.out, and print both.

    Of several processes the first alone writes there. Raises ValueError if
    config.json there is that of another experiment, which would be lost.
    """
    used = devices.use(config)
    out = pathlib.Path(config.out)
    name, other = experiment_of(config), _stored_experiment(out)
    if name and other and name != other:
        raise ValueError(
            f"out must not be the folder of another experiment, {out} is that of "
            f"{other} and this is {name}: take another folder"
        )
    if not devices.is_first():
        return out
    if out.exists() and not out.is_dir():
        raise ValueError(f"out must be a folder, got the file {out}")
    out.mkdir(parents=True, exist_ok=True)
    if _held is not None and out.absolute() not in _held:
        # Imported here because it imports orbax, which takes a second.
        from diffjax.training import lock

        _held[out.absolute()] = lock.Lock(out)
        # Runs that were killed leave temporary files.
        for path in out.iterdir():
            if re.fullmatch(r"\..+\.json(\.writing|[a-z0-9_]{8})", path.name):
                path.unlink()
    device = jax.devices()[0]
    print(
        f"writing to {out}/ on {used} × {device.device_kind} "
        f"({device.platform}), jax {jax.__version__}",
        flush=True,
    )
    return out


def write_config(
    out: pathlib.Path, config: Any, about: dict[str, Any] | None = None
) -> None:
    """Write config.json.

    Args:
      out: The folder.
      config: The flags, a dataclass.
      about: Further entries.
    """
    name = experiment_of(config)
    named = {} if name is None else {EXPERIMENT: name}
    write_json(out / "config.json", named | as_dict(config) | (about or {}))


def experiment_of(config: Any) -> str | None:
    """The NAME of experiments/NAME, where the flags' dataclass is. None elsewhere."""
    module = type(config).__module__
    if module == "__main__":
        module = getattr(getattr(sys.modules[module], "__spec__", None), "name", "")
    package, _, rest = module.partition(".")
    return rest.partition(".")[0] if package == "experiments" and rest else None


def _stored_experiment(out):
    """The experiment that config.json names. None if it is absent, damaged, or of
    a version that did not name it.
    """
    try:
        return json.loads((out / "config.json").read_text())[EXPERIMENT]
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return None


def start(config: Any) -> pathlib.Path:
    """`open_folder` and `write_config`, for an experiment that keeps no
    checkpoints.

    Raises ValueError if another experiment keeps its own there, which could not be
    opened without their config.json.
    """
    out = pathlib.Path(config.out)
    if out.is_dir() and any(out.glob("*checkpoints")):
        raise ValueError(
            f"out must not be the folder of a trained run, whose config.json would be "
            f"lost, got {out}: take another folder"
        )
    out = open_folder(config)
    write_config(out, config)
    return out


def as_dict(config: Any) -> dict[str, Any]:
    """The flags as JSON values by name."""
    return {
        k: str(v) if isinstance(v, pathlib.Path) else v
        for k, v in dataclasses.asdict(config).items()
    }


def write_json(
    path: pathlib.Path, values: dict[str, Any], *, indent: int | None = 2
) -> None:
    """Write numbers and arrays as JSON, atomically.

    Args:
      path: The file.
      values: Numbers, strings and arrays by name, nested as JSON allows.
      indent: Spaces of each level. None for one line.

    Raises:
      FileNotFoundError: If the folder was removed during the run.
    """
    if not devices.is_first():
        return
    folder = path.absolute().parent
    if not folder.is_dir() or (
        _held is not None and folder in _held and not _held[folder].file.exists()
    ):
        raise FileNotFoundError(
            f"{path.parent} was removed during the run: {path.name} is not written"
        )
    # The name is the same each time, so that kills leave one file at most.
    temporary = path.with_name(f".{path.name}.writing")
    plain = lambda v: np.asarray(v).tolist()
    text = json.dumps(values, indent=indent, default=plain) + "\n"
    with naming(path):
        temporary.write_text(text)
        os.replace(temporary, path)


def write_results(out: pathlib.Path, results: dict[str, Any]) -> None:
    """Write the results of a run and the name of its device to metrics.json.

    Args:
      out: The run's folder.
      results: Numbers and arrays by name. "device" is added to it.
    """
    results["device"] = jax.devices()[0].device_kind
    write_json(out / "metrics.json", results)


@contextlib.contextmanager
def naming(path):
    """Add the file's name to errors that lack it, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def read_json(path: pathlib.Path, cure: str, *names: str) -> dict[str, Any]:
    """Read the object stored in a JSON file.

    Args:
      path: The file.
      cure: The end of the error's message: what to do if the file is damaged.
      *names: Entries that it must have.

    Returns:
      The object.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If it is damaged. The message names the file and the cure.
    """
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise ValueError(f"it holds a {type(values).__name__}, not an object")
        if missing := [name for name in names if name not in values]:
            raise ValueError(f"it lacks {', '.join(missing)}")
    except (ValueError, RecursionError, IsADirectoryError) as error:
        raise ValueError(f"{path} is damaged ({error}): {cure}") from None
    return values
