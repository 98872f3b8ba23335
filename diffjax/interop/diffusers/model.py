"""Models of diffusers as callable pytrees: load, save, initialise."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from ... import checks, predictions
from ...schedules import Schedule
from ...types import Array, ArrayLike, Scalar, pytree
from .. import state_dicts
from ..configured import ConfiguredModel
from . import architectures
from . import folder as folders
from .timesteps import AtTimestep, check_schedule

__all__ = ["Autoencoder", "Model", "initialised", "load", "save"]


@pytree
class Model(ConfiguredModel):
    """A network of diffusers with its parameters, of one example.

    `model(x, t, *condition)` takes an image x (H, W, C), a timestep t of diffusers, and
    the conditions of its class: a class index, or embeddings. Batch it with `jax.vmap`.
    `params`, `config`, `options` and `network` are its parts.
    """

    configure = staticmethod(architectures.configured)

    def __call__(self, x: ArrayLike, t: Scalar, *condition: Any) -> Array:
        """Evaluate the network at one example.

        Args:
          x: (H, W, C).
          t: The timestep, (). Fractions are allowed.
          *condition: The conditions in the order of `condition_shapes`, each of one
            example.

        Returns:
          Its output, (H, W, C'), in x's dtype.

        Raises:
          ValueError: If an input is missing, or has another number of axes or
            channels.
        """
        return self._apply("__call__", x, t, *condition)

    @property
    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the conditions after x and t, by name and in their order.

        "class" has shape () for a class index or a timestep, see class_embed_type. The
        first axis of "text" may have another length.
        """
        return dict(list(self._shapes("__call__").items())[2:])

    def denoiser(
        self, schedule: Schedule, kind: str, *, sigma_data: float = 0.5
    ) -> predictions.NetworkDenoiser:
        """The denoiser (x, t, *condition) -> E[x_0 | x_t = x] of the model.

        An output with twice the channels of x holds a learned variance in its second
        half, which is ignored.

        Args:
          schedule: As `load_scheduler` returns it.
          kind: The kind of prediction, as `load_scheduler` returns it.
          sigma_data: Standard deviation of the data, for kind "edm".

        Returns:
          The denoiser.

        Raises:
          ValueError: If `kind` is unknown, or needs a schedule with α > 0.
          TypeError: If the schedule has no timesteps.
        """
        if kind != "edm":
            check_schedule(schedule)
        # EDM's preconditioning calls a network with its own noise label.
        at = AtTimestep(self, None if kind == "edm" else schedule)
        return predictions.denoiser(schedule, at, kind, sigma_data=sigma_data)

    def _shapes(self, method):
        """Shapes of the inputs of a method at one size, by name."""
        return {k: value.shape for k, value in self.configured.inputs.items()}

    def _arrays(self, method, *inputs):
        """The inputs of a method as arrays, checked."""
        arrays = [jnp.asarray(value) for value in inputs]
        check_inputs(arrays, self._shapes(method))
        return arrays

    def _apply(self, method, *inputs):
        return self.apply(*self._arrays(method, *inputs), method=method)


@pytree
class Autoencoder(Model):
    """An autoencoder of diffusers with its parameters, of one example.

    Latents here have the channels last. A latent diffusion works on scaled
    latents, see `latents` and `images`.
    """

    def __call__(self, x: ArrayLike) -> Array:  # type: ignore[override]
        """Decode the mean of the latents of an image x (H, W, C)."""
        return self.decode(self.encode(x)[0])

    def encode(self, x: ArrayLike) -> tuple[Array, Array]:
        """The normal distribution of the latents of an image.

        Args:
          x: (H, W, C), in [−1, 1].

        Returns:
          Its mean and log-variance, each (h, w, latent channels). Sides are halved
          and rounded down between resolutions.

        Raises:
          ValueError: If x is no image of the configuration's channels, or a side is too
            small.
        """
        return self._apply("encode", x)

    def decode(self, z: ArrayLike) -> Array:
        """The image (H, W, C) of latents z (h, w, latent channels), not scaled."""
        return self._apply("decode", z)

    def denoiser(self, *arguments: Any, **settings: Any) -> Any:
        """Not available, since an autoencoder is no denoiser.

        Args:
          *arguments: Ignored.
          **settings: Ignored.

        Raises:
          TypeError: Always.
        """
        raise TypeError(
            "an autoencoder has no denoiser. Load the network of its latents, the "
            "folder unet or transformer of the pipeline"
        )

    def latents(self, x: ArrayLike) -> Array:
        """The scaled latents (mean − shift)/scale, on which diffusions work.

        Args:
          x: (H, W, C), in [−1, 1].

        Returns:
          (h, w, latent channels).
        """
        mean, _ = self.encode(x)
        shift, scale = self._latent_scale(mean.dtype)
        return (mean - shift) / scale

    def images(self, latents: ArrayLike) -> Array:
        """The image of a diffusion's sample, decode(scale · latents + shift).

        Args:
          latents: (h, w, latent channels).

        Returns:
          (H, W, C).
        """
        (z,) = self._arrays("decode", latents)
        shift, scale = self._latent_scale(z.dtype)
        return self.decode(scale * z + shift)

    def _latent_scale(self, dtype):
        """Shift and scale of latents, each a number or one per channel."""
        o = self.options
        mean = o["latents_mean"] or o["shift_factor"] or 0.0
        deviation = np.asarray(o["latents_std"] or 1.0) / o["scaling_factor"]
        return jnp.asarray(mean, dtype), jnp.asarray(deviation, dtype)

    def _shapes(self, method):
        o = self.options
        channels = {"x": o["in_channels"]}
        if method == "decode":
            channels = {"z": o["latent_channels"]}
        return {name: (1, 1, count) for name, count in channels.items()}


def check_inputs(arrays: list[Array], shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise ValueError unless inputs have the axes and channels of a network.

    Args:
      arrays: The inputs, an image first.
      shapes: Their shapes at one size, by name. Only the length of the last axis
        is compared.
    """
    count = f"the model takes ({', '.join(shapes)}), got {len(arrays)} inputs"
    checks.require(len(arrays) == len(shapes), count)
    faults = [
        f"{name} must have shape ({', '.join(['…'] * (len(s) - 1) + [str(s[-1])])}), "
        f"got {array.shape}. Use jax.vmap for a batch"
        if s
        else f"{name} must be a scalar, got shape {array.shape}"
        for array, (name, s) in zip(arrays, shapes.items(), strict=True)
        if array.ndim != len(s) or array.shape[-1:] != s[-1:] or not array.size
    ]
    if not jnp.issubdtype(arrays[0].dtype, jnp.floating):
        dtype = arrays[0].dtype
        faults.append(f"{next(iter(shapes))} must be floating-point, got {dtype}")
    checks.require(not faults, "; ".join(faults))


def load(
    folder: str | pathlib.Path, *, variant: str | None = None, dtype: Any = None
) -> Model:
    """Load a model from a folder of diffusers.

    Args:
      folder: A model's folder, with config.json and one or several .safetensors files,
        such as the subfolder unet of a pipeline.
      variant: Such as "fp16", for files named with it.
      dtype: Of the parameters. None for float32, or float64 where it is stored
        and enabled in JAX.

    Returns:
      The model, an `Autoencoder` for AutoencoderKL.

    Raises:
      FileNotFoundError: If a file is missing.
      ValueError: If the class or an option is not supported, or a tensor is
        missing, unknown, misshapen or not finite. Pickles are not read.
      ModuleNotFoundError: If safetensors is not installed.

    Example:
      >>> from diffjax.interop import diffusers
      >>> config = dict(_class_name="DiTTransformer2DModel", num_layers=1,
      ...               num_attention_heads=1, attention_head_dim=8, sample_size=4)
      >>> diffusers.save("dit", diffusers.initialised(jax.random.key(0), config))
      >>> model = diffusers.load("dit")
      >>> jax.jit(model)(jnp.ones((4, 4, 4)), 997, 3).shape  # of class 3
      (4, 4, 4)
    """
    config = folders.read_config(folder)
    text = _text(config)
    network = architectures.configured(text)
    tensors = folders.read_tensors(folder, variant)
    for name in network.architecture.buffers:
        tensors.pop(name, None)
    name = f"{config['_class_name']} of {folder}"
    params = state_dicts.from_tensors(tensors, network.params, name, dtype)
    return _model(params, text)


def save(folder: str | pathlib.Path, model: Model) -> None:
    """Write a model so that diffusers, or `load`, reads it.

    Args:
      folder: The folder, made if it is absent. Earlier safetensors in it are replaced.
      model: The model. Its parameters may have been trained on.

    Raises:
      TypeError: If it is no `Model`.
      ValueError: If its parameters are not those of its configuration.
    """
    checks.made_by("model", model, Model, "diffusers.load or diffusers.initialised")
    tensors = state_dicts.to_tensors(model.params)
    expected = state_dicts.tensor_shapes(model.configured.params)
    checks.state_dict(model.config["_class_name"], tensors, expected, exact=True)
    folders.write_tensors(folder, tensors)
    folders.write_config(folder, model.config)


def initialised(key: Array, config: Mapping[str, Any]) -> Model:
    """A model with random parameters.

    Args:
      key: A typed key.
      config: As in config.json, with `_class_name`. Options that it lacks have
        the defaults of diffusers.

    Returns:
      The model.

    Raises:
      ValueError: If the class or an option is not supported.
    """
    text = _text(config)
    return _model(architectures.configured(text).initialised(key), text)


def _text(config):
    return json.dumps(dict(config), sort_keys=True)


def _model(params, text):
    autoencoder = architectures.configured(text).architecture.autoencoder
    return (Autoencoder if autoencoder else Model)(params, config_json=text)
