"""The losses of a training, in a file that covers every checkpoint."""

import json
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any

from diffjax import training
from experiments.shared import files


class History:
    """The losses of all steps of a training.

    Args:
      file: Where they are kept between runs.

    Attributes:
      losses: One per step, NaN for those that are lost.
    """

    def __init__(self, file: pathlib.Path):
        self.file = file
        self.losses: list[float] = []

    def resume(self, step: int) -> None:
        """Read the losses of the steps before a checkpoint.

        Args:
          step: The number of steps that the checkpoint has seen, 0 for none.
        """
        self.losses = read_history(self.file, step)
        if step:
            print(f"resuming after step {step}")
            # A finished run whose losses were lost counts as finished by this
            # file.
            self.write()

    def write(self) -> None:
        """Write the file."""
        losses = [None if math.isnan(loss) else loss for loss in self.losses]
        files.write_json(self.file, {"loss": losses})


def read_history(file: pathlib.Path, step: int) -> list[float]:
    """The losses of the steps before a checkpoint.

    Args:
      file: The file of losses. One that cannot be read is set aside.
      step: The number of steps that the checkpoint has seen.

    Returns:
      One loss per step, NaN for those that are lost.
    """
    if not step:
        return []
    losses = []
    try:
        stored = json.loads(file.read_text())["loss"]
        losses = [math.nan if loss is None else float(loss) for loss in stored][:step]
        reason = f"{file} has {len(losses)} losses"
    except FileNotFoundError:
        reason = f"{file} is missing"
    except (
        ValueError,
        TypeError,
        KeyError,
        OverflowError,
        RecursionError,
        IsADirectoryError,
    ) as error:
        reason = f"{file} is damaged ({error!r}) and set aside"
        os.replace(file, file.with_name(f"{file.name}.unreadable"))
    if len(losses) < step:
        print(
            f"warning: {reason}; the losses of steps {len(losses) + 1} to {step} are "
            "lost, the training goes on"
        )
    return losses + [math.nan] * (step - len(losses))


class RecordedCheckpoints(training.Checkpoints):
    """Checkpoints that have the records of a run written before each save.

    So the records cover every checkpoint. To write them after every block
    instead would take longer and longer.

    Args:
      directory: As of `training.Checkpoints`.
      config: As of `training.Checkpoints`.
      write: () -> None. It writes the records.
      snapshots: As of `training.Checkpoints`.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        config: dict[str, Any],
        write: Callable[[], Any],
        snapshots: training.Snapshots | None = None,
    ):
        self._record = write
        super().__init__(directory, config, snapshots=snapshots)

    def save(self, step: int, state: Any) -> None:
        """Write the records, and save.

        Args:
          step: As of `training.Checkpoints.save`.
          state: As of `training.Checkpoints.save`.
        """
        self._record()
        super().save(step, state)
