"""Models of diffusers with deterministic weights, made without compiling anything."""

import json

from diffjax.interop import state_dicts
from diffjax.interop.diffusers import architectures, model
from tests.golden.diffusers_rows import weights


def model_of(config, dtype=None):
    """The model of a configuration with the weights of the golden files.

    Args:
      config: As in config.json.
      dtype: Of the parameters. None for float32, or float64 where it is enabled.

    Returns:
      A `Model`, or an `Autoencoder`.
    """
    text = json.dumps(config, sort_keys=True)
    like = architectures.configured(text).params
    tensors = weights(state_dicts.tensor_shapes(like))
    name = config["_class_name"]
    params = state_dicts.from_tensors(tensors, like, name, dtype)
    kind = model.Autoencoder if name == "AutoencoderKL" else model.Model
    return kind(params, config_json=text)
