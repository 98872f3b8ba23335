"""Make `diffusers_networks.npz` and the folders beside it with diffusers 0.42.1.

    python -m tests.golden.make_diffusers_networks [row …]

With names of rows it makes these again and keeps the others.

Each row of `diffusers_rows` becomes its configuration as diffusers writes it, its
inputs and its outputs in float64. Two places of diffusers compute in float32 also
where a model has float64: the sinusoids of timesteps, and the softmax of
`AttentionPooling`. Here they compute in float64. Two tiny models are saved whole as
`save_pretrained` writes them, one of them in parts.
"""

import json
import math
import pathlib
import sys
import tempfile
import unittest.mock

import diffusers
import numpy as np
import torch
from diffusers.models import embeddings

from tests.golden.diffusers_rows import LARGE, ROWS, inputs, weights
from tests.golden.sinusoids import sinusoids

FOLDER = pathlib.Path(__file__).parent
FILE = FOLDER / "diffusers_networks.npz"
SAVED = {"unet_2d/ddpm": "10GB", "dit/plain": "20KB"}
"""Rows whose model is saved, and the size of a part."""


def timestep_embedding(
    timesteps,
    embedding_dim,
    flip_sin_to_cos=False,
    downscale_freq_shift=1,
    scale=1,
    max_period=10000,
):
    """`get_timestep_embedding` in float64."""
    return sinusoids(
        torch,
        scale * timesteps,
        embedding_dim,
        cosine_first=flip_sin_to_cos,
        shift=downscale_freq_shift,
        period=max_period,
    )


def pooled(self, x, forward=embeddings.AttentionPooling.forward):
    """`AttentionPooling.forward` in float64."""
    with unittest.mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        return forward(self, x)


embeddings.get_timestep_embedding = timestep_embedding
embeddings.AttentionPooling.forward = pooled


def batch(array):
    """A batch of one, with the channels first."""
    tensor = torch.as_tensor(array)
    return (tensor.permute(2, 0, 1) if tensor.ndim == 3 else tensor)[None]


def example(tensor):
    """One example with the channels last."""
    return tensor[0].permute(1, 2, 0).numpy()


def model_of(config):
    """The model of a configuration with its weights, in float64."""
    cls = getattr(diffusers, config["_class_name"])
    model = cls(**{k: v for k, v in config.items() if k[0] != "_"})
    model = model.double().eval()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    tensors = {k: torch.as_tensor(v) for k, v in weights(shapes).items()}
    model.load_state_dict(tensors)
    return model, shapes


def outputs(row, model, arrays):
    """The outputs of a model by name."""
    x = batch(arrays["x"])
    if row.startswith("autoencoder"):
        code = model.encode(x).latent_dist
        return {
            "mean": example(code.mean),
            "log_variance": example(code.logvar),
            "decoded": example(model.decode(code.mean).sample),
        }
    keywords = {}
    # Tables of embeddings take integers.
    learned = model.config.get("time_embedding_type") == "learned"
    if "class" in arrays:
        label = batch(arrays["class"])
        keywords["class_labels"] = label.long() if learned else label
    if "pooled" in arrays:
        added = {"text_embeds": arrays["pooled"], "time_ids": arrays["sizes"]}
        keywords["added_cond_kwargs"] = {k: batch(v) for k, v in added.items()}
    if "guidance" in arrays:
        keywords["timestep_cond"] = batch(arrays["guidance"])
    if "text" in arrays:
        keywords["encoder_hidden_states"] = batch(arrays["text"])
    t = torch.as_tensor(arrays["t"])
    t = (t.long() if learned else t)[None]
    return {"output": example(model(x, t, **keywords).sample)}


def kept(rows):
    """The stored arrays of the rows that are not made again."""
    with np.load(FILE) as arrays:
        return {k: v for k, v in arrays.items() if k.rpartition("/")[0] not in rows}


def main(rows):
    """Write the file and the folders.

    Args:
      rows: Names of the rows to make. All if there are none.
    """
    stored = kept(rows) if rows else {}
    for row in rows or ROWS | LARGE:
        config = (ROWS | LARGE)[row]
        model, shapes = model_of(config)
        arrays = inputs(row, config)
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            results = outputs(row, model, arrays)
            model.save_config(folder)
            text = (pathlib.Path(folder) / "config.json").read_text()
        stored[f"{row}/config"] = np.array(json.dumps(json.loads(text)))
        stored[f"{row}/tensors"] = np.array(json.dumps(shapes))
        for name, value in results.items():
            stored[f"{row}/{name}"] = value
        sizes = {k: float(np.std(v)) for k, v in results.items()}
        count = sum(math.prod(shape) for shape in shapes.values())
        print(row, count, "parameters, outputs of size", sizes, flush=True)
        if row in SAVED:
            folder = FOLDER / f"diffusers_{row.replace('/', '_')}"
            single = model.to(torch.float32)
            single.save_pretrained(folder, max_shard_size=SAVED[row])
    np.savez_compressed(FILE, **stored)


if __name__ == "__main__":
    main(sys.argv[1:])
