"""Make `score_sde.npz` with the Flax code of Song et al. 2021.

    git clone https://github.com/yang-song/score_sde
    python -m tests.golden.make_checkpoints_score_sde --source score_sde

The code of 2021 runs under today's Flax with stand-ins for what its networks do not
use: `flax.optim`, TensorFlow, ml_collections, the classifier. Its sinusoids compute
their frequencies in float32. Here they are in float64, as is all else.
"""

import argparse
import functools
import json
import pathlib
import sys
import types

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from tests.golden.score_sde_rows import LARGE, ROWS, TIME, example, weights
from tests.golden.sinusoids import sinusoids

FILE = pathlib.Path(__file__).parent / "score_sde.npz"


def timestep_embedding(timesteps, embedding_dim, max_positions=10000):
    """`get_timestep_embedding` in float64."""
    return sinusoids(
        jnp,
        timesteps,
        embedding_dim,
        cosine_first=False,
        shift=1,
        period=max_positions,
    )


def stand_in(name, **members):
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(members)


def imported(source):
    """The modules models.utils and sde_lib of a checkout."""
    sys.path.insert(0, str(source))
    stand_in("utils", batch_mul=jax.vmap(lambda a, b: a * b))
    stand_in("ml_collections", ConfigDict=object)
    stand_in("models.wideresnet_noise_conditional")
    flax.optim = types.SimpleNamespace(Optimizer=object)
    import models

    models.wideresnet_noise_conditional = None
    import models.ddpm
    import models.layers
    import models.ncsnpp
    import models.utils
    import sde_lib

    models.layers.get_timestep_embedding = timestep_embedding
    return models.utils, sde_lib


def namespace(value):
    if not isinstance(value, dict):
        return value
    return types.SimpleNamespace(**{k: namespace(v) for k, v in value.items()})


def sde_of(sde_lib, config):
    model, kind = config.model, config.training.sde
    if kind == "vesde":
        return sde_lib.VESDE(model.sigma_min, model.sigma_max, model.num_scales)
    cls = {"vpsde": sde_lib.VPSDE, "subvpsde": sde_lib.subVPSDE}[kind]
    return cls(model.beta_min, model.beta_max, model.num_scales)


def main(source):
    """Write the file."""
    utils, sde_lib = imported(source)
    stored = {}
    for row, config in (ROWS | LARGE).items():
        named = namespace(config)
        # Their __call__ reads the configuration by attributes.
        network = utils.get_model(named.model.name)(config=named)
        x = jnp.asarray(example(row, config))[None]
        start = functools.partial(network.init, train=False)
        label = jnp.ones(1, int if network.config.model.scale_by_sigma else float)
        init = jax.eval_shape(start, jax.random.key(0), x, label)
        shapes = {
            name: leaf.shape
            for name, leaf in traverse_util.flatten_dict(
                init["params"], sep="."
            ).items()
        }
        stored[f"{row}/arrays"] = np.array(json.dumps(shapes))
        if row in LARGE:
            continue
        stored[f"{row}/config"] = np.array(json.dumps(config))
        params = traverse_util.unflatten_dict(weights(shapes), sep=".")
        params = jax.tree.map(jnp.asarray, params)
        integer = config["training"]["continuous"] is False
        value = jnp.asarray([37 if integer else 37.5], None if integer else float)
        stored[f"{row}/output"] = np.asarray(
            network.apply({"params": params}, x, value, False)
        )[0]
        score = utils.get_score_fn(
            sde_of(sde_lib, named), network, params, {}, continuous=not integer
        )
        stored[f"{row}/score"] = np.asarray(score(x, jnp.asarray([TIME])))[0]
        print(
            row,
            sum(map(np.prod, shapes.values())),
            np.abs(stored[f"{row}/output"]).max(),
        )
    np.savez_compressed(FILE, **stored)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", type=pathlib.Path, required=True)
    main(parser.parse_args().source)
