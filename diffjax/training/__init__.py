"""Training: state and step, batches by step number, checkpoints, the loop, meshes.

This package imports orbax. `import diffjax` does not import it.
"""

from . import augmentation, averages
from .checkpoints import Checkpoints, load_ema
from .data import (
    Batches,
    Examples,
    GrainSource,
    ImageFolder,
    Images,
    PositionedSource,
    Prefetch,
    Rows,
    SharedSource,
    Source,
    load,
    load_labelled,
    split,
)
from .loop import fit
from .optimisers import optimiser, warmup_cosine, warmup_inverse_sqrt
from .parallel import data_mesh, partition_spec, replicate, shard_batch, shard_state
from .processes import start_processes
from .snapshots import Snapshots, reconstruct, reconstruct_many
from .state import (
    BlockFunction,
    LossFunction,
    StepFunction,
    TrainState,
    ema_decay_at,
    init,
    make_step,
    make_steps,
)

__all__ = [
    "Batches",
    "BlockFunction",
    "Checkpoints",
    "Examples",
    "GrainSource",
    "ImageFolder",
    "Images",
    "LossFunction",
    "PositionedSource",
    "Prefetch",
    "Rows",
    "SharedSource",
    "Source",
    "Snapshots",
    "StepFunction",
    "TrainState",
    "augmentation",
    "averages",
    "data_mesh",
    "ema_decay_at",
    "fit",
    "init",
    "load",
    "load_ema",
    "load_labelled",
    "make_step",
    "make_steps",
    "optimiser",
    "partition_spec",
    "reconstruct",
    "reconstruct_many",
    "replicate",
    "shard_batch",
    "shard_state",
    "split",
    "start_processes",
    "warmup_cosine",
    "warmup_inverse_sqrt",
]


def __dir__() -> list[str]:
    return __all__
