"""Snapshots of the averages, from which averages of other lengths are made.

Training keeps two averages, say, and writes them from time to time. Every other
length then follows after the training, by least squares (Karras et al. 2024,
section 3.2).
"""

import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks
from ..types import PyTree
from . import arrays, averages, folders, lock, manifest, processes
from .state import TrainState

__all__ = ["Snapshots", "reconstruct", "reconstruct_many"]

ITEMS = ("averages",)
"""Parts of a snapshot."""

_DTYPES = ("float32", "float16")


class Snapshots:
    """The snapshots in a folder, one folder per step, all of which are kept.

    A snapshot holds `state.averages`, with a checksum of every array. It appears
    under its name only when it is whole, and what a kill leaves half written is
    removed. A damaged one is passed over by `reconstruct`, with a warning.

    Given to `Checkpoints`, it is written with them. A resumed run then goes on
    from the checkpoint that it restores: later snapshots are deleted, and written
    again. So a folder never mixes two runs. Only one object at a time may write to
    it, over all processes.

    Args:
      directory: The folder, made if it is missing. Not that of the checkpoints.
      every: Number of steps between snapshots. A hundred over the training
        reconstruct lengths in [0.05, 0.15] to 1e-6 of the parameters from those
        of 0.05 and 0.10, ten to 1e-4.
      dtype: "float32", or "float16" for half the size and an error of 5e-4 of
        each parameter, as in the paper.

    Raises:
      ValueError: If an argument is out of range.
      BlockingIOError: If another object or process writes to the folder.

    Example:
      >>> rule = dj.training.optimiser(0.1)
      >>> params = {"w": jnp.ones(3)}
      >>> state = dj.training.init(key, params, rule, averages=(0.05, 0.10))
      >>> step = dj.training.make_step(lambda p, k, b: (jnp.sum(p["w"] ** 2), {}), rule)
      >>> state, _ = step(state, jnp.zeros(1))
      >>> with dj.training.Snapshots("averages", every=1) as snapshots:
      ...     snapshots.save(state)
      >>> average = dj.training.reconstruct("averages", 0.12)
      >>> bool(jnp.allclose(average["w"], state.params["w"]))  # after one step
      True
    """

    def __init__(
        self, directory: str | os.PathLike, *, every: int, dtype: str = "float32"
    ):
        self.every = checks.integer("every", every, 1)
        self._dtype = checks.choice("dtype", dtype, _DTYPES)
        self.directory = pathlib.Path(directory).absolute()
        self._lock: lock.Lock | None = None
        processes.on_first(self._take_folder)

    def _take_folder(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock = lock.Lock(self.directory)
        folders.clean(self.directory, ITEMS, "snapshot")

    def steps(self) -> list[int]:
        """The steps of the whole snapshots, in order."""
        return folders.whole_steps(self.directory, ITEMS)

    def save(self, state: TrainState) -> None:
        """Write the averages of a state, at its first call in each `every` steps.

        Before the first step there are none to write.

        Args:
          state: What is saved.

        Raises:
          ValueError: If the state keeps no averages, or lies before the latest
            snapshot, or differs from the one of its step, or has a number
            beyond the range of the dtype.
          OSError: If the snapshot cannot be written.
        """
        checks.require(
            state.lengths, "state must keep averages, see init(averages=), got none"
        )
        step = int(state.step)
        if processes.on_first(self._is_due, step):
            items = {"averages": self._arrays(state)}
            processes.on_first(self._write, step, state.lengths, items)

    def _is_due(self, step: int) -> bool:
        """Whether to write, or to compare with the one that is there."""
        latest = max(self.steps(), default=0)
        checks.require(
            step >= latest,
            f"{self.directory} holds a snapshot of step {latest}, after that of state, "
            f"{step}: see continue_from, or use another folder",
        )
        periods = step // self.every, latest // self.every
        return step > 0 and (step == latest or periods[0] != periods[1])

    def _write(
        self, step: int, lengths: Sequence[float], items: dict[str, dict[str, Any]]
    ) -> None:
        if self.folder(step).exists() and step in self.steps():
            stored = manifest.read(self.folder(step)).items
            same = stored["averages"] == manifest.describe(items["averages"])
            checks.require(
                same, f"{self.folder(step)} holds other averages than state has"
            )
            return
        if self._lock is not None:
            self._lock.renew()
        config = {"step": step, "lengths": list(lengths)}
        arrays.write_whole(self.folder(step), config, items)

    def continue_from(self, step: int) -> None:
        """Delete the snapshots after a step, from which a training goes on.

        Args:
          step: Number of steps taken so far.
        """
        if jax.process_index() == 0:
            for later in self.steps():
                if later > step and folders.holds_only_ours(self.folder(later), ITEMS):
                    folders.delete(self.folder(later), ITEMS)

    def folder(self, step: int) -> pathlib.Path:
        """The folder of the snapshot of `step`."""
        return self.directory / str(step)

    def close(self) -> None:
        """Release the folder."""
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> "Snapshots":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _arrays(self, state: TrainState) -> dict[str, Any]:
        flat: dict[str, Any] = {}
        for length, average in zip(state.lengths, state.averages, strict=True):
            flat |= arrays.flatten(average, repr(length))
        flat = arrays.to_host(_cast(flat, self._dtype))
        for name, array in flat.items():
            finite = not isinstance(array, np.ndarray) or np.isfinite(array).all()
            message = f"array {name!r} must be finite in {self._dtype}"
            checks.require(finite, message)
        return flat


def _cast(flat: dict[str, Any], dtype: str) -> dict[str, Any]:
    return {name: jnp.asarray(array, dtype) for name, array in flat.items()}


# ------------------------------------------------------------------- reconstruction


def reconstruct(
    directory: str | os.PathLike,
    sigma_rel: float,
    *,
    step: int | None = None,
    template: PyTree | None = None,
) -> PyTree:
    """The average of any length, from snapshots.

    The coefficients are those of `averages.combination` over the snapshots up to
    the step, and the sums are in float64.

    Args:
      directory: The folder of the snapshots. It is only read, and may be in use
        by a training.
      sigma_rel: The relative length, in [1e-9, 1/√12].
      step: Step of the average, one of the snapshots'. None for the newest that
        is undamaged.
      template: A pytree of arrays or `jax.ShapeDtypeStruct`s in whose structure
        the parameters are returned. None for nested dicts by name, as Flax
        parameters are.

    Returns:
      The parameters in float32.

    Raises:
      FileNotFoundError: If there is no snapshot, or none of `step`.
      ValueError: If `sigma_rel` is out of range, the template has other arrays,
        or the snapshot of `step` (or each of them) is damaged.

    References:
      Karras et al. 2024, section 3.2.

    Example:
      >>> rule, params = dj.training.optimiser(0.1), {"w": jnp.ones(3)}
      >>> state = dj.training.init(key, params, rule, averages=(0.05, 0.10))
      >>> step = dj.training.make_step(lambda p, k, b: (p["w"].sum(), {}), rule)
      >>> with dj.training.Snapshots("snapshots", every=1) as snapshots:
      ...     snapshots.save(step(state, jnp.zeros(1))[0])
      >>> dj.training.reconstruct("snapshots", 0.12)["w"].shape
      (3,)
    """
    return reconstruct_many(directory, (sigma_rel,), step=step, template=template)[0]


@checks.arguments(sigma_rels=averages.lengths)
def reconstruct_many(
    directory: str | os.PathLike,
    sigma_rels: Sequence[float],
    *,
    step: int | None = None,
    template: PyTree | None = None,
) -> list[PyTree]:
    """`reconstruct` for several lengths, reading each snapshot once.

    Args:
      directory: The folder of the snapshots.
      sigma_rels: The relative lengths.
      step: As in `reconstruct`.
      template: As in `reconstruct`.

    Returns:
      The parameters for each length.

    Raises:
      FileNotFoundError: As in `reconstruct`.
      ValueError: As in `reconstruct`.
    """
    combined = functools.partial(_combined, sigma_rels=sigma_rels, template=template)
    flats = folders.newest(directory, step, combined, items=ITEMS, kind="snapshot")
    return [_as_tree(flat, template) for flat in flats]


def _combined(
    left: list[pathlib.Path], *, sigma_rels: Sequence[float], template: PyTree | None
) -> list[dict[str, np.ndarray]]:
    """Sums over snapshots by name for each length, at the last of them."""
    stored: list[tuple[int, float]] = []
    manifests = {}
    for folder in left:
        with manifest.naming(folder):
            config, described, _ = manifest.read(folder)
            named = f"it is the snapshot of step {config['step']}"
            checks.require(str(config["step"]) == folder.name, named, manifest.Damaged)
        stored += [(config["step"], length) for length in config["lengths"]]
        manifests[folder] = described["averages"]
    last = int(left[-1].name)
    rows = [averages.combination(stored, last, length) for length in sigma_rels]
    coefficients = dict(zip(stored, np.transpose(rows), strict=True))
    sums: list[dict[str, np.ndarray]] = [{} for _ in sigma_rels]
    for folder, described in manifests.items():
        with manifest.naming(folder):
            flat = _read(folder, described, template)
        for prefixed, array in flat.items():
            length, _, name = prefixed.partition("/")
            values = np.asarray(array, np.float64)
            factors = coefficients[int(folder.name), float(length)]
            for total, factor in zip(sums, factors, strict=True):
                total[name] = total.get(name, 0.0) + factor * values
    return sums


def _read(folder, stored, template):
    if template is None:
        return arrays.read(folder, "averages", stored=stored)
    dtype = next(iter(stored.values()))["dtype"]
    forms = {
        name: jax.ShapeDtypeStruct(leaf.shape, dtype)
        for length in {name.partition("/")[0] for name in stored}
        for name, leaf in arrays.flatten(template, length).items()
    }
    return arrays.read(folder, "averages", stored=stored, template=forms)


def _as_tree(flat: dict[str, np.ndarray], template: PyTree | None) -> PyTree:
    leaves = {name: jnp.asarray(array, jnp.float32) for name, array in flat.items()}
    return (
        arrays.nested(leaves)
        if template is None
        else arrays.unflatten(template, leaves)
    )
