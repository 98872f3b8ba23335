"""Classifiers of labelled data: one of noisy inputs, whose gradient guides, and
two that judge samples.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from sklearn.svm import SVC

from diffjax import losses, predictions, schedules
from diffjax.networks import TimeEmbedding


class ClassifierNetwork(nn.Module):
    """Logits (classes,) of one noisy example x at c_noise t.

    An MLP whose features the time shifts and scales.
    """

    classes: int
    width: int = 256
    depth: int = 3
    dropout: float = 0.2

    @nn.compact
    def __call__(self, x, t, train: bool = False):
        code = nn.silu(TimeEmbedding(self.width)(t))
        h = nn.Dense(self.width)(jnp.ravel(x))
        for _ in range(self.depth):
            shift, scale = jnp.split(nn.Dense(2 * self.width)(code), 2)
            branch = nn.silu(nn.LayerNorm()(h) * (1 + scale) + shift)
            h = h + nn.Dense(self.width)(
                nn.Dropout(self.dropout, deterministic=not train)(branch)
            )
        return nn.Dense(self.classes)(nn.LayerNorm()(h))


@dataclasses.dataclass(frozen=True)
class NoisyClassifier:
    """p(y | x_t) at every noise level: the softmax of a network.

    The network's inputs are c_in x, of unit variance, and −log SNR/8.

    Args:
      shape: Shape of an example.
      sigma_data: Standard deviation of the data.
      schedule: The noise schedule.
      module: The network.
    """

    shape: tuple[int, ...]
    sigma_data: float
    schedule: Any
    module: ClassifierNetwork

    def init(self, key):
        """Initial parameters."""
        return jax.jit(self.module.init)(key, jnp.zeros(self.shape), jnp.zeros(()))

    def logits(self, params, x, t, key=None):
        """log p(y | x_t = x) of all classes up to a constant, (classes,). A key
        turns dropout on.
        """
        c_in, c_noise = predictions.input_scalings(self.schedule, t, self.sigma_data)
        extra = {} if key is None else {"train": True, "rngs": {"dropout": key}}
        return self.module.apply(params, c_in * x, c_noise, **extra)

    def log_prob(self, params, x, t, label):
        """log p(label | x_t = x), shape ()."""
        return jax.nn.log_softmax(self.logits(params, x, t))[label]

    def loss(self, params, key, batch):
        """−log p(y | x_t) in nats over a batch (x_0, y), at times uniform in
        log-SNR.
        """
        x0, labels = batch
        key_time, key_noise, key_net = jax.random.split(key, 3)
        t = losses.sample_times(key_time, len(x0), self.schedule, "log_snr")
        noise = jax.random.normal(key_noise, x0.shape)

        def one(x0, label, t, noise, key):
            x = schedules.perturb(self.schedule, x0, t, noise)
            return -jax.nn.log_softmax(self.logits(params, x, t, key))[label]

        return jnp.mean(
            jax.vmap(one)(x0, labels, t, noise, jax.random.split(key_net, len(x0)))
        )


@dataclasses.dataclass(frozen=True)
class Judge:
    """A support vector machine on clean examples, another kind of classifier than
    any that guides.

    Its `accuracy` is on examples that it was not fitted to.
    """

    machine: SVC
    accuracy: float

    def recognised(self, xs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Whether each example of xs (N, *shape) is recognised as its label,
        (N,).
        """
        return self.machine.predict(xs.reshape(len(xs), -1)) == labels


def make_judge(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]
) -> Judge:
    """Fit a judge to `train`, examples and labels, and test it on `test`."""
    machine = SVC(C=10.0, gamma="scale").fit(
        train[0].reshape(len(train[0]), -1), train[1]
    )
    return Judge(
        machine, float(machine.score(test[0].reshape(len(test[0]), -1), test[1]))
    )
