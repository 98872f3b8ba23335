"""Make `checkpoints.npz` with the sources of DiT and SiT.

    python -m tests.golden.make_checkpoints --source FOLDER

The folder holds the repositories facebookresearch/DiT and willisma/SiT as DiT and
SiT. Their attention is that of timm. Weights are those of `diffusers_rows`. One place
computes in float32 also where a model has float64, the sinusoids of times. Here they
compute in float64.
"""

import argparse
import importlib.util
import json
import pathlib

import numpy as np
import torch

from tests.golden.checkpoint_rows import ROWS, SMALL, inputs
from tests.golden.diffusers_rows import weights
from tests.golden.sinusoids import sinusoids

FOLDER = pathlib.Path(__file__).parent


def timestep_embedding(t, dim, max_period=10000):
    """`TimestepEmbedder.timestep_embedding` in float64."""
    return sinusoids(torch, t, dim, cosine_first=True, shift=0, period=max_period)


def module_of(source, name):
    """The file models.py of a repository."""
    spec = importlib.util.spec_from_file_location(name, source / name / "models.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.TimestepEmbedder.timestep_embedding = staticmethod(timestep_embedding)
    return module


def main():
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=pathlib.Path, required=True)
    source = parser.parse_args().source
    modules = {name: module_of(source, name) for name in ("DiT", "SiT")}
    stored = {}
    for row, config in (ROWS | SMALL).items():
        name = row.partition("/")[0]
        model = getattr(modules[name], name)(**config).double().eval()
        shapes = {k: tuple(v.shape) for k, v in model.state_dict().items()}
        tensors = {k: torch.as_tensor(v) for k, v in weights(shapes).items()}
        model.load_state_dict(tensors)
        arrays = inputs(row, config)
        x = torch.as_tensor(arrays["x"]).permute(2, 0, 1)[None]
        t, label = (torch.as_tensor(arrays[k])[None] for k in ("t", "label"))
        with torch.no_grad():
            output = model(x, t, label)[0].permute(1, 2, 0).numpy()
        stored[f"{row}/tensors"] = np.array(json.dumps(shapes))
        stored[f"{row}/output"] = output
        print(row, len(shapes), output.shape, np.std(output), flush=True)
    np.savez_compressed(FOLDER / "checkpoints.npz", **stored)


if __name__ == "__main__":
    main()
