"""Flax checkpoints of Song et al. 2021, github.com/yang-song/score_sde.

    model = score_sde.load("checkpoint_26", config)
    denoiser = model.denoiser(model.schedule)

A checkpoint is one msgpack file without a pickle. The configuration is the authors',
from their folder configs/, as nested dicts (`config.to_dict()`). Its networks are
"ncsnpp", which is NCSN++ with `fir` and DDPM++ without it, and "ddpm".

The label of a noise level and the meaning of the output follow from training.sde and
training.continuous, as in the authors' models/utils.py, get_score_fn:

- vesde, continuous: label σ(t), output the score
- vesde, discrete: label 0 for σ_max … N − 1 for σ_min, output the score
- vpsde, continuous, and subvpsde: label 999 t, output the noise −σ(t) · score
- vpsde, discrete: label 0 for the least β … N − 1 for the greatest, output the noise
  −σ · score

The output of a network with scale_by_sigma is divided by σ inside the network.
"""

import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import serialization, traverse_util

from ... import checks, predictions, schedules
from ...schedules import Schedule
from ...schedules.protocol import as_time
from ...types import Array, ArrayLike, Scalar, pytree
from .. import configured as shared
from .. import options, state_dicts
from ..configured import Architecture, ConfiguredModel, slots
from ..diffusers.timesteps import timestep
from ..options import Option, Rule
from .ncsnpp import ACTIVATIONS, NCSNpp

__all__ = ["WEIGHTS", "ScoreModel", "initialised", "load"]

WEIGHTS = {
    "params_ema": ("params_ema",),
    "target": ("optimizer", "target"),
    "params": ("params",),
}
"""Parameters in a checkpoint: averaged, of the optimizer, of a newer state."""

POSITIVE = options.number(None, above=0)
LENGTHS = Option(
    None,
    lambda v: isinstance(v, tuple) and all(type(n) is int and n > 0 for n in v),
    "a list of positive integers",
)


def _one_of(*values):
    return Option(None, lambda v: v in values, " or ".join(map(json.dumps, values)))


DATA = {
    "image_size": options.positive_integer(None),
    "num_channels": options.positive_integer(None),
    "centered": options.flag(None),
}
TRAINING = {
    "sde": _one_of("vesde", "vpsde", "subvpsde"),
    "continuous": options.flag(None),
}
"""Options of the sections data and training that matter here."""


DDPM = {
    "name": options.text(None),
    "nf": options.integer(None, 4),
    "ch_mult": LENGTHS,
    "num_res_blocks": options.positive_integer(None),
    "attn_resolutions": LENGTHS,
    "resamp_with_conv": options.flag(None),
    "conditional": options.flag(None),
    "scale_by_sigma": options.flag(None),
    "nonlinearity": _one_of(*ACTIVATIONS),
    "normalization": options.only("GroupNorm"),
    "sigma_min": POSITIVE,
    "sigma_max": POSITIVE,
    "beta_min": POSITIVE,
    "beta_max": POSITIVE,
    "num_scales": options.integer(None, 2),
    **dict.fromkeys(
        (
            "attention_type",
            "conv_size",
            "dropout",
            "ema_rate",
            "embedding_type",
            "fourier_scale",
            "init_scale",
            "num_classes",
            "sigma_begin",
        ),
        options.ignored(False),
    ),
}
NCSNPP = DDPM | {
    "attention_type": options.only("ddpm"),
    "embedding_type": _one_of("fourier", "positional"),
    "fourier_scale": options.number(16.0, above=0),
    "fir": options.flag(None),
    "fir_kernel": LENGTHS,
    "skip_rescale": options.flag(None),
    "resblock_type": _one_of("ddpm", "biggan"),
    "progressive": _one_of("none", "output_skip", "residual"),
    "progressive_input": _one_of("none", "input_skip", "residual"),
    "progressive_combine": _one_of("sum", "cat"),
}
TABLES = {
    "ddpm": DDPM | DATA | TRAINING,
    "ncsnpp": NCSNPP | DATA | TRAINING,
}
"""Options by the network's name. Those with the default None must be stated."""

RULES = (
    Rule(lambda o: o["ch_mult"] != (), "ch_mult is empty"),
    Rule(
        lambda o: o["image_size"] % 2 ** (len(o["ch_mult"]) - 1) == 0,
        "image_size = {image_size} cannot be halved for each entry of ch_mult but one",
    ),
    Rule(
        lambda o: o["sigma_min"] < o["sigma_max"] and o["beta_min"] < o["beta_max"],
        "sigma_min < sigma_max and beta_min < beta_max must hold",
    ),
    Rule(
        lambda o: (
            o["name"] == "ddpm" or o["embedding_type"] != "fourier" or o["continuous"]
        ),
        'embedding_type = "fourier" needs continuous = true',
    ),
    Rule(
        lambda o: (
            o["name"] == "ncsnpp" or not (o["scale_by_sigma"] and o["continuous"])
        ),
        'scale_by_sigma of "ddpm" needs continuous = false',
    ),
    Rule(lambda o: o.get("fir_kernel") != (), "fir_kernel is empty"),
)


@pytree
class ScoreModel(ConfiguredModel):
    """A network of Song et al. 2021 with its parameters, of one example.

    `params`, `config`, `options` and `network` are its parts. The configuration has
    the sections model, data and training, with the options in use.
    """

    # By name, since it is defined below.
    configure = staticmethod(lambda text: _configured(text))

    @property
    def schedule(self) -> Schedule:
        """The schedule that the model was trained with."""
        return _convention(self.options).schedule(self.options)

    def __call__(self, x: ArrayLike, label: Scalar) -> Array:
        """Evaluate the network at one example.

        Args:
          x: (H, W, C), in [−1, 1] if data.centered, otherwise in [0, 1] without
            noise.
          label: The label of its noise level, (), as the module's docstring lists it.

        Returns:
          (H, W, C), in x's dtype.

        Raises:
          TypeError: If x is not of a floating type.
          ValueError: If x has not the size of the configuration, or the label has
            not the shape ().
        """
        x = jnp.asarray(x)
        checks.floating("the dtype of x", x.dtype)
        checks.one_of_shapes("x", x, [self.configured.inputs["x"].shape])
        checks.one_of_shapes("label", label, [()])
        return self.apply(x, label)

    def denoiser(self, schedule: Schedule) -> predictions.NetworkDenoiser:
        """The denoiser (x, t) -> E[x_0 | x_t = x] of the model.

        Args:
          schedule: `model.schedule`, or another of its kind: with α = 1 for a
            model of a VE SDE, otherwise of the same class and betas.

        Returns:
          The denoiser of images in [−1, 1] if data.centered, otherwise in [0, 1].

        Raises:
          TypeError: If the schedule is of another kind.
        """
        convention = _convention(self.options)
        accepted = convention.schedules
        checks.made_by("schedule", schedule, accepted, convention.makers)
        return predictions.denoiser(schedule, _AtTime(self, schedule), convention.kind)


@pytree
class _AtTime:
    """The output of a model at a time of a schedule."""

    model: Any
    schedule: Any

    def __call__(self, x, t):
        o = self.model.options
        return self.model(x, _convention(o).label(o, self.schedule, as_time(t)))


class _Convention(NamedTuple):
    """Labels and outputs of a kind of training.

    Attributes:
      kind: What it predicts.
      schedule: Its schedule, options -> schedule.
      label: The label at a time, (options, schedule, t) -> ().
      schedules: Classes of schedules that it is defined on.
      makers: What makes them, for messages.
    """

    kind: str
    schedule: Any
    label: Any
    schedules: tuple[type, ...]
    makers: str


def _ladder(o):
    """Noise levels by label, from the greatest."""
    log_ends = np.log([o["sigma_max"], o["sigma_min"]])
    return np.exp(np.linspace(*log_ends, o["num_scales"]))


def _nearest_level(o, schedule, t):
    """The label of the noise level that is nearest in the logarithm."""
    span = np.log(o["sigma_max"] / o["sigma_min"])
    fraction = (np.log(o["sigma_max"]) - jnp.log(schedule.sigma(t))) / span
    last = o["num_scales"] - 1
    return jnp.clip(jnp.round(last * fraction), 0, last)


def _chain(o):
    """The chain of a discretised VP SDE, whose βs are its rates over N."""
    ends = o["beta_min"] / o["num_scales"], o["beta_max"] / o["num_scales"]
    return schedules.from_betas(np.linspace(*ends, o["num_scales"]))


VARIANCE_EXPLODING = (schedules.VE, schedules.EDM, schedules.NoiseLadder)
MADE_BY = "schedules.{}".format
CONVENTIONS = {
    ("vesde", True): _Convention(
        "score",
        lambda o: schedules.ve(o["sigma_min"], o["sigma_max"]),
        lambda o, schedule, t: schedule.sigma(t),
        VARIANCE_EXPLODING,
        MADE_BY("ve, edm or from_sigmas"),
    ),
    ("vesde", False): _Convention(
        "score",
        lambda o: schedules.from_sigmas(_ladder(o)[::-1]),
        _nearest_level,
        VARIANCE_EXPLODING,
        MADE_BY("ve, edm or from_sigmas"),
    ),
    ("vpsde", True): _Convention(
        "noise",
        lambda o: schedules.vp_linear(o["beta_min"], o["beta_max"]),
        lambda o, schedule, t: 999 * t,
        (schedules.VPLinear,),
        MADE_BY("vp_linear"),
    ),
    ("vpsde", False): _Convention(
        "noise",
        _chain,
        lambda o, schedule, t: timestep(schedule, t),
        (schedules.DiscreteChain,),
        MADE_BY("from_betas"),
    ),
    ("subvpsde", True): _Convention(
        "noise",
        lambda o: schedules.sub_vp(o["beta_min"], o["beta_max"]),
        lambda o, schedule, t: 999 * t,
        (schedules.SubVP,),
        MADE_BY("sub_vp"),
    ),
}
"""By training.sde and training.continuous."""


def _convention(o):
    return CONVENTIONS[o["sde"], o["continuous"] or o["sde"] == "subvpsde"]


@checks.arguments(dtype=checks.optional(checks.floating))
def load(
    path: str | pathlib.Path,
    config: Mapping[str, Any],
    *,
    weights: str = "params_ema",
    dtype: Any = None,
) -> ScoreModel:
    """Load a model from a checkpoint.

    Args:
      path: The file, such as checkpoint_26.
      config: The configuration, with the sections model, data and training.
      weights: A key of `WEIGHTS`. The averaged parameters are those that the
        authors sample with.
      dtype: The dtype of the parameters. None for float32, or float64 where it is
        stored and enabled in JAX.

    Returns:
      The model.

    Raises:
      FileNotFoundError: If there is no such file.
      TypeError: If `dtype` is not a floating type.
      ValueError: If an option is not supported or not stated, the file is
        damaged or a pickle, or an array is missing, unknown, misshapen or not
        finite.

    References:
      Song et al. 2021, Score-Based Generative Modeling through Stochastic
      Differential Equations.
    """
    checks.choice("weights", weights, tuple(WEIGHTS))
    text = _text(config)
    like = traverse_util.flatten_dict(_configured(text).params, sep=".")
    selected = _selected(path, _restored(path), weights)
    arrays = {
        name: _unpadded(array, like.get(name))
        for name, array in _flattened(selected).items()
    }
    shapes = {name: leaf.shape for name, leaf in like.items()}
    checks.state_dict(str(path), arrays, shapes, exact=True)
    params = {name: state_dicts.parameter(arrays[name], dtype) for name in like}
    return ScoreModel(traverse_util.unflatten_dict(params, sep="."), config_json=text)


def initialised(key: Array, config: Mapping[str, Any]) -> ScoreModel:
    """A model with random parameters.

    Args:
      key: A typed key.
      config: As for `load`.

    Returns:
      The model.

    Raises:
      TypeError: If `key` is not a typed key.
      ValueError: If an option is not supported or not stated.
    """
    text = _text(config)
    return ScoreModel(_configured(text).initialised(key), config_json=text)


def _restored(path):
    """The contents of a msgpack file, a dict."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    stored = path.read_bytes()
    # A pickle of protocol 2 or above begins with the byte 128, which is a whole and
    # empty dict in msgpack.
    zipped, pickled = stored.startswith(b"PK\x03\x04"), stored[:1] == b"\x80" != stored
    checks.require(
        not (zipped or pickled),
        f"{path} is a file of torch or a pickle, which can run any code and is not "
        "read. Checkpoints of the Flax code are msgpack files",
    )
    try:
        state = serialization.msgpack_restore(stored)
    except MemoryError:
        raise
    except Exception as error:  # msgpack has errors of its own
        raise ValueError(f"{path} is not a Flax checkpoint: {error!r}") from error
    checks.require(
        isinstance(state, dict), f"{path} is not a Flax checkpoint of a dict"
    )
    return state


def _selected(path, state, weights):
    """The parameters in the state of a training, a nested dict."""
    node = state
    for part in WEIGHTS[weights]:
        present = sorted(map(str, node)) if isinstance(node, dict) else []
        message = f"{path} has no {'.'.join(WEIGHTS[weights])}: {part} not in {present}"
        checks.require(part in present, message)
        node = node[part]
    # Variables as `init` returns them, beside parameters alone.
    is_variables = isinstance(node, dict) and set(node) == {"params"}
    return node["params"] if is_variables else node


def _flattened(node):
    """Arrays by their names, none if the node is not a dict."""
    flat = traverse_util.flatten_dict(node) if isinstance(node, dict) else {}
    return {".".join(map(str, path)): np.asarray(leaf) for path, leaf in flat.items()}


def _unpadded(array, like):
    """A norm's parameters (1, 1, 1, C), as Flax 0.3 has them, as (C,)."""
    padded = like is not None and array.shape == (1, 1, 1, *like.shape)
    return array.reshape(like.shape) if padded else array


def _text(config):
    """The options that matter, by section, as JSON."""
    sections = {"model": None, "data": DATA, "training": TRAINING}
    absent = [k for k in sections if not isinstance(config.get(k), Mapping)]
    checks.require(not absent, f"config must have {absent} as dicts, config.to_dict()")
    used = {
        section: {k: v for k, v in config[section].items() if keys is None or k in keys}
        for section, keys in sections.items()
    }
    return json.dumps(used, sort_keys=True, default=_plain)


def _plain(value):
    """Numbers and lists of Python for those of NumPy."""
    message = f"config must hold numbers, strings, lists and dicts, got {value!r}"
    checks.require(isinstance(value, np.generic | np.ndarray), message)
    return value.tolist()


@functools.lru_cache(maxsize=64)
def _configured(text):
    """The network of a configuration as JSON."""
    sections = json.loads(text)
    stated = {k: v for section in sections.values() for k, v in section.items()}
    name = stated.get("name")
    known = ", ".join(TABLES)
    checks.require(name in TABLES, f"model.name must be one of {known}; got {name!r}")
    table = TABLES[name]
    lacking = [k for k in table if table[k].default is None and stated.get(k) is None]
    checks.require(
        not lacking, f"this configuration of {name} does not state {lacking}"
    )
    return shared.configured(Architecture(name, table, RULES, _made, _inputs), stated)


def _made(o):
    """The network of checked options."""
    fourier = o["name"] == "ncsnpp" and o["embedding_type"] == "fourier"
    divide_by = "none"
    if o["scale_by_sigma"]:
        divide_by = "label" if fourier else "level"
    shared = {
        "features": o["nf"],
        "multipliers": o["ch_mult"],
        "blocks": o["num_res_blocks"],
        "attention_at": o["attn_resolutions"],
        "act": o["nonlinearity"],
        "centered": o["centered"],
        "conditional": o["conditional"],
        "resample_convolved": o["resamp_with_conv"],
        "divide_by": divide_by,
        "sigmas": tuple(_ladder(o).tolist()) if divide_by == "level" else (),
    }
    if o["name"] == "ddpm":
        return NCSNpp(**shared, original=True)
    return NCSNpp(
        **shared,
        taps=o["fir_kernel"] if o["fir"] else None,
        rescale=o["skip_rescale"],
        block=o["resblock_type"],
        output_pyramid=o["progressive"],
        input_pyramid=o["progressive_input"],
        combine=o["progressive_combine"],
        fourier=fourier,
        fourier_scale=o["fourier_scale"],
    )


def _inputs(o):
    side = o["image_size"]
    return slots({"x": (side, side, o["num_channels"]), "label": ()})
