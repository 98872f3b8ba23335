"""Flow maps of networks: X_{t→s}(x) of a probability flow in one evaluation.

`flow_map` makes a map of a network, which is the identity at s = t by construction.
The objectives train it, from data alone or from a teacher's velocity:

- `consistency_loss` with `consistency_steps`, and `continuous_consistency_loss`
- `mean_flow_loss`, on the average velocity
- `composition_loss`: shortcut models and progressive distillation
- `lagrangian_loss`, `eulerian_loss` and `flow_map_matching_loss`

Each is of one example. `targets.flow_map` is the exact map that they aim at, and
`solvers.flow_map` samples with one.
"""

from .maps import KINDS, NetworkFlowMap, flow_map
from .objectives import (
    composition_loss,
    conditional_velocity,
    consistency_loss,
    consistency_steps,
    continuous_consistency_loss,
    eulerian_loss,
    flow_map_matching_loss,
    lagrangian_loss,
    mean_flow_loss,
    pseudo_huber,
    squared,
)

__all__ = [
    "KINDS",
    "NetworkFlowMap",
    "composition_loss",
    "conditional_velocity",
    "consistency_loss",
    "consistency_steps",
    "continuous_consistency_loss",
    "eulerian_loss",
    "flow_map",
    "flow_map_matching_loss",
    "lagrangian_loss",
    "mean_flow_loss",
    "pseudo_huber",
    "squared",
]


def __dir__() -> list[str]:
    return __all__
