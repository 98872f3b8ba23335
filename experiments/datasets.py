"""Data for the experiments: scikit-learn's digits, the exact toy densities, or a file of one's own."""

import dataclasses
import pathlib
import zipfile
from typing import Any

import jax
import numpy as np
from sklearn.datasets import load_digits

from diffjax import targets
from diffjax.training import load, load_labelled, split

TOYS = {
    "eight_gaussians": targets.eight_gaussians,
    "checkerboard": targets.checkerboard,
    "circles": targets.circles,
    "moons": targets.moons,
}
TOY_EXAMPLES = 20_000
MAX_LEVELS = 256


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Training and test examples, (N, *shape) float32, centred and scaled: x = (value − shift) / scale.

    levels: (K,), the values that entries take, where the data lie on a lattice, else None. target: the exact law of x,
    where it is known. train_labels, test_labels: (N,) integers 0 … C − 1, where there are labels. Images have shape
    (H, W, C).
    """

    name: str
    train: np.ndarray
    test: np.ndarray
    levels: np.ndarray | None
    shift: float
    scale: float
    target: Any = None
    train_labels: np.ndarray | None = None
    test_labels: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one example."""
        return self.train.shape[1:]

    @property
    def classes(self) -> int:
        """The number of classes; ValueError where there are no labels."""
        if self.train_labels is None or self.test_labels is None:
            raise ValueError(f"data must have labels, {self.name} has none: use 'digits' or an .npz with integers y")
        return int(max(self.train_labels.max(), self.test_labels.max())) + 1

    @property
    def is_image(self) -> bool:
        """Whether an example can be drawn as one: (H, W, 1) or (H, W, 3)."""
        return len(self.shape) == 3 and self.shape[2] in (1, 3)

    @property
    def spacing(self) -> float:
        """The distance of neighbouring levels; only data on a lattice have one."""
        assert self.levels is not None
        return float(self.levels[1] - self.levels[0])


def open_dataset(name: str, held_out: int, seed: int) -> Dataset:
    """The data set `name`: "digits", a toy density, or the path of an .npy or .npz file.

    held_out: test examples, at most a quarter of a file; toy densities have 2000. Integer-valued data of at most 256
    levels become a lattice on [−1, 1]; other data are divided by their standard deviation after their mean is taken
    off. Raises ValueError or FileNotFoundError for a file that cannot serve.
    """
    if name in TOYS:
        return _toy(name, seed)
    if name == "digits":
        stored = load_digits()
        images = stored.images.astype(np.float32)[..., None]
        return _lattice(name, images, np.arange(17.0), held_out, seed, stored.target.astype(np.int32))
    if not name.endswith((".npy", ".npz")):
        raise ValueError(f"data must be 'digits', one of {', '.join(TOYS)}, or a .npy or .npz file; got {name!r}")
    values, labels = _read(name)
    values = values[..., None] if values.ndim == 3 else values
    if len(values) < 4:
        raise ValueError(f"{name} must hold at least 4 examples, got {len(values)}")
    held_out = min(held_out, len(values) // 4)
    low, high = values.min(), values.max()
    if low == high:
        raise ValueError(f"{name} must hold more than one value, got {low} everywhere")
    if np.all(values == np.round(values)) and high - low < MAX_LEVELS:
        return _lattice(name, values, np.arange(low, high + 1), held_out, seed, labels)
    (train, train_labels), (test, test_labels) = split((values, labels), held_out, seed)
    shift, scale = float(train.mean()), float(train.std())
    train, test = (train - shift) / scale, (test - shift) / scale
    return Dataset(name, train, test, None, shift, scale, None, train_labels, test_labels)


def _read(name):
    """(examples, labels or None) of a file; labels are integers from 0, stored as y or labels in an .npz."""
    if name.endswith(".npz") and pathlib.Path(name).exists() and zipfile.is_zipfile(name):
        with zipfile.ZipFile(name) as file:
            labelled = bool({"y.npy", "labels.npy"} & set(file.namelist()))
        if labelled:
            values, labels = load_labelled(name)
            whole = labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer) and labels.min() >= 0
            return values, labels if whole else None
    return load(name), None


def _lattice(name, values, levels, held_out, seed, labels=None):
    shift, scale = float(levels[0] + levels[-1]) / 2, float(levels[-1] - levels[0]) / 2
    scaled = ((values - shift) / scale).astype(np.float32)
    (train, train_labels), (test, test_labels) = split((scaled, labels), held_out, seed)
    levels = ((levels - shift) / scale).astype(np.float32)
    return Dataset(name, train, test, levels, shift, scale, None, train_labels, test_labels)


def _toy(name, seed):
    target = TOYS[name]()
    draw = jax.jit(lambda key, count: jax.vmap(target.sample)(jax.random.split(key, count)), static_argnums=1)
    keys = jax.random.split(jax.random.key(seed))
    train, test = (np.asarray(draw(key, count)) for key, count in zip(keys, (TOY_EXAMPLES, 2000), strict=True))
    return Dataset(name, train, test, None, 0.0, 1.0, target)


# ---------------------------------------------------------------------------------------------------------- baselines


def histogram_bits(data: Dataset) -> float:
    """Test bits/dim of independent histograms, one an entry, with one pseudo-count spread over the levels."""
    train, test = _level_indices(data, data.train), _level_indices(data, data.test)
    count = len(data.levels)
    one_hot = np.eye(count)[train].sum(0)  # (D, K)
    probabilities = (one_hot + 1 / count) / (len(train) + 1)
    chosen = np.take_along_axis(probabilities[None], test[..., None], -1)
    return float(-np.log2(chosen).mean())


def gaussian_mixture_bits(data: Dataset, components: int = 30, seed: int = 0) -> float:
    """Test bits/dim of a mixture of diagonal Gaussians fitted to uniformly dequantised data (scikit-learn's EM)."""
    from sklearn.mixture import GaussianMixture

    rng = np.random.default_rng(seed)
    noisy = [
        x.reshape(len(x), -1) + data.spacing * rng.uniform(-0.5, 0.5, (len(x), x[0].size))
        for x in (data.train, data.test)
    ]
    components = min(components, len(data.train) // 4)
    model = GaussianMixture(components, covariance_type="diag", reg_covar=1e-4, random_state=seed).fit(noisy[0])
    log_prob = model.score_samples(noisy[1]).mean()
    return float(-(log_prob / noisy[1].shape[1] + np.log(data.spacing)) / np.log(2))


def _level_indices(data, x):
    return np.rint((x.reshape(len(x), -1) - data.levels[0]) / data.spacing).astype(int)
