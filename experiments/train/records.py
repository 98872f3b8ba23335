"""The records of a training: metrics.jsonl, TensorBoard, and the best checkpoint."""

import math
import os
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.shared import files, strict_json

LINES = "metrics.jsonl"

SECONDS = 10.0
"""Least time between two lines of the training. Checkpoints write one too."""

SUMS = ("loss", "grad_norm", "error")
"""Metrics of a step whose means a line holds."""


class Records:
    """metrics.jsonl of one run, and the same for TensorBoard.

    A line of the training holds means over the `steps` steps that end at `step`.
    A line of an evaluation holds `held_out_loss`. The lines up to a checkpoint
    are written before it. On resuming, those after it are removed. So every
    step is in exactly one line, however often a run is killed.

    Args:
      out: The folder of the run.
      batch_size: Images per step.
      learning_rate: Step n = 0, 1, … -> learning rate.
      operations: Of one step on all devices.
      peak: Operations per second of all devices, None where it is not known.
      tensorboard: Whether to write for TensorBoard too.
    """

    def __init__(
        self,
        out: pathlib.Path,
        *,
        batch_size: int,
        learning_rate: Callable[[Any], Any],
        operations: int,
        peak: float | None,
        tensorboard: bool = False,
    ):
        self.file, self.lines = out / LINES, []
        self._batch_size, self._rate = batch_size, learning_rate
        self._operations, self._peak = operations, peak
        self._folder = out / "tensorboard" if tensorboard else None
        self._writer: Any = None
        self._steps: list[dict[str, np.ndarray]] = []
        self._timed = [0, 0.0]  # steps, and the seconds that they took
        self._since: float | None = None
        self._written = self._began = time.perf_counter()
        self._seconds_before = 0.0

    def open(self, step: int) -> None:
        """Read the lines up to a step, and remove those after it.

        Args:
          step: The number of steps that the checkpoint has seen.
        """
        lines = [line for line in _read(self.file) if line["step"] <= step]
        self.lines = lines if step else []
        covered = sum(line.get("steps", 0) for line in self.lines)
        if covered != step:
            print(
                f"warning: {self.file} has records of {covered} of {step} steps; the "
                "others are lost, the training goes on"
            )
        seconds = [line["seconds"] for line in self.lines if "seconds" in line]
        self._seconds_before = max(seconds, default=0.0)
        self._began = time.perf_counter()
        if jax.process_index():
            return
        text = "".join(strict_json.dumps(line, None) for line in self.lines)
        temporary = self.file.with_name(f".{LINES}.writing")
        with files.naming(self.file):
            temporary.write_text(text)
            os.replace(temporary, self.file)
        if self._folder is not None:
            self._writer = _tensorboard()(
                str(self._folder), purge_step=step + 1 if step else None
            )

    def pause(self) -> None:
        """State that the time until the next block is no training."""
        self._since = None

    def block(self, step: int, values: dict[str, np.ndarray]) -> None:
        """Record the steps of a block.

        Args:
          step: The last of them.
          values: Metrics of its steps, (steps,) each.
        """
        now, count = time.perf_counter(), len(values["loss"])
        # The first block of a program includes its compilation.
        if self._since is not None:
            self._timed[0] += count
            self._timed[1] += now - self._since
        self._since = now
        self._steps.append(values)
        self._last = step
        if now - self._written >= SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the line of the steps since the last one, if there are any."""
        if not self._steps:
            return
        values = {
            name: np.concatenate([block[name] for block in self._steps])
            for name in SUMS
            if name in self._steps[0]
        }
        line = {"step": self._last, "steps": len(values["loss"])}
        line |= {name: float(np.mean(value)) for name, value in values.items()}
        line["learning_rate"] = float(self._rate(self._last - 1))
        steps, seconds = self._timed
        if steps and seconds:
            line["images_per_second"] = steps * self._batch_size / seconds
            if self._peak is not None:
                used = self._operations * steps / seconds
                line["model_flop_utilisation"] = used / self._peak
        self._steps, self._timed = [], [0, 0.0]
        self._write(line)

    def evaluation(self, step: int, values: dict[str, float]) -> None:
        """Write the line of an evaluation.

        Args:
          step: The step after which it was made.
          values: Numbers by name.
        """
        self.flush()
        self._write({"step": step, **values})

    def evaluated(self, step: int) -> bool:
        """Whether there is a line of an evaluation at a step."""
        return any(
            line["step"] == step and "held_out_loss" in line for line in self.lines
        )

    def best(self) -> dict[str, Any] | None:
        """The line of the evaluation with the least held-out loss."""
        loss = lambda line: line.get("held_out_loss", math.nan)
        evaluations = [line for line in self.lines if math.isfinite(loss(line))]
        return min(evaluations, key=loss, default=None)

    def close(self) -> None:
        """Close the files of TensorBoard."""
        if self._writer is not None:
            self._writer.close()

    def _write(self, line):
        self._written = time.perf_counter()
        elapsed = self._seconds_before + self._written - self._began
        line["seconds"] = round(elapsed, 2)
        line = {
            name: float(f"{value:.7g}") if isinstance(value, float) else value
            for name, value in line.items()
        }
        self.lines.append(line)
        if jax.process_index():
            return
        with files.naming(self.file), self.file.open("a") as stream:
            stream.write(strict_json.dumps(line, None))
        if self._writer is not None:
            for name, value in line.items():
                if name not in ("step", "steps"):
                    self._writer.add_scalar(name, value, line["step"])
            self._writer.flush()


def _read(file):
    """The lines of a file, up to the first that is damaged."""
    lines = []
    if not file.is_file():
        return lines
    for text in file.read_text(errors="replace").splitlines():
        try:
            line = strict_json.loads(text)
            numbers = all(isinstance(value, int | float) for value in line.values())
            whole = numbers and math.isfinite(line["step"])
        except (ValueError, KeyError, AttributeError, RecursionError):
            whole = False
        if not whole:
            break
        lines.append(line)
    return lines


def _tensorboard():
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise ValueError(
            "tensorboard needs the package tensorboardX: install diffjax[tensorboard]"
        ) from None
    return SummaryWriter


def check_tensorboard(wanted: bool) -> None:
    """Raise ValueError if TensorBoard is wanted and its writer is not installed."""
    if wanted:
        _tensorboard()


def keep_best(checkpoint: pathlib.Path, best: pathlib.Path) -> None:
    """Copy a checkpoint to where it is never removed, in place of the last best.

    Args:
      checkpoint: Its folder, whole on disk.
      best: The folder that holds the best alone.
    """
    if jax.process_index():
        return
    target = best / checkpoint.name
    temporary = best / f"{checkpoint.name}.writing"
    best.mkdir(exist_ok=True)
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(checkpoint, temporary)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(temporary, target)
    for other in best.iterdir():
        if other != target and other.name.split(".")[0].isdigit():
            shutil.rmtree(other)
