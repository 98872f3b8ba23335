"""Data for the experiments: scikit-learn's digits, the exact toy densities, or a
file.
"""

import dataclasses
import functools
import hashlib
import pathlib
import zipfile
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

from diffjax import targets
from diffjax.training import load, load_labelled, split

ToyName = Literal["eight_gaussians", "checkerboard", "circles", "moons"]
"""The type of a flag that names a toy density. Keys of `toy_flows` follow this
order.
"""

TOYS: dict[str, Callable[..., Any]] = {
    "eight_gaussians": targets.eight_gaussians,
    "checkerboard": targets.checkerboard,
    "circles": targets.circles,
    "moons": targets.moons,
}
TOY_EXAMPLES = 20_000
MAX_LEVELS = 256
MIN_TRAIN = 2
"""Fewest training examples that the split may leave. Fewer have no spread."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Training and test examples, centred and scaled.

        x = (value − shift) / scale

    Attributes:
      name: "digits", a toy density, or the path as it was given.
      train: (N, *shape) float32. Images have shape (H, W, C).
      test: (M, *shape) float32.
      levels: (K,), the values that entries take if the data lie on a lattice,
        else None.
      shift: A number, or (D,) for a table, one per column.
      scale: As `shift`.
      target: The exact distribution of x, if it is known.
      train_labels: (N,) integers 0 … C − 1, if there are labels.
      test_labels: (M,).
      path: The absolute path of the file that the data came from, if there is
        one.
      known_spread: `spread` of a data set whose examples are not loaded.
    """

    name: str
    train: np.ndarray
    test: np.ndarray
    levels: np.ndarray | None
    shift: Any
    scale: Any
    target: Any = None
    train_labels: np.ndarray | None = None
    test_labels: np.ndarray | None = None
    path: str | None = None
    known_spread: float | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return self.train.shape[1:]

    @property
    def classes(self) -> int:
        """The number of classes. Raises ValueError if there are no labels."""
        if self.train_labels is None or self.test_labels is None:
            raise ValueError(
                f"data must have labels, {self.name} has none: use 'digits' or an .npz "
                "with integers y"
            )
        return int(max(self.train_labels.max(), self.test_labels.max())) + 1

    @property
    def sizes(self) -> str:
        """The name and the numbers of examples, as a run prints them first."""
        return (
            f"{self.name}: {len(self.train)} training and {len(self.test)} test "
            "examples"
        )

    @property
    def is_image(self) -> bool:
        """Whether an example can be drawn as an image: (H, W, 1) or (H, W, 3)."""
        return len(self.shape) == 3 and self.shape[2] in (1, 3)

    @property
    def spacing(self) -> float:
        """The distance of neighbouring levels, for data on a lattice."""
        assert self.levels is not None
        return float(self.levels[1] - self.levels[0])

    @functools.cached_property
    def spread(self) -> float:
        """Standard deviation of the entries of the training examples."""
        return (
            float(self.train.std(dtype=np.float64))
            if self.known_spread is None
            else self.known_spread
        )

    @property
    def log_scale(self) -> float:
        """Mean of log(scale) over dimensions.

        Nats per dimension in the units of the file are those of x plus this
        number.
        """
        return float(np.mean(np.log(self.scale)))

    @functools.cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits of the examples, their labels and their
        units.
        """
        parts = (
            self.train,
            self.test,
            self.levels,
            self.shift,
            self.scale,
            self.train_labels,
            self.test_labels,
        )
        whole = b"".join(
            b"-" if part is None else np.ascontiguousarray(part).tobytes()
            for part in parts
        )
        return hashlib.sha256(whole).hexdigest()[:16]


def describe(data: Dataset) -> dict[str, Any]:
    """Describe a data set without its examples, as JSON values. `described` is
    the inverse.
    """
    return {
        "name": data.name,
        "path": data.path,
        "shape": list(data.shape),
        "shift": np.asarray(data.shift).tolist(),
        "scale": np.asarray(data.scale).tolist(),
        "spread": data.spread,
        "levels": None if data.levels is None else data.levels.tolist(),
        "training_examples": len(data.train),
        "test_examples": len(data.test),
        "digest": data.digest,
    }


def described(description: dict[str, Any]) -> Dataset:
    """The data set that `describe` described, without its examples."""
    none = np.zeros((0, *description["shape"]), np.float32)
    levels = description["levels"]
    return Dataset(
        description["name"],
        none,
        none,
        None if levels is None else np.array(levels, np.float32),
        np.asarray(description["shift"], np.float64)[()],
        np.asarray(description["scale"], np.float64)[()],
        TOYS[description["name"]]() if description["name"] in TOYS else None,
        path=description["path"],
        known_spread=description["spread"],
    )


def reopen_dataset(description: dict[str, Any], held_out: int, seed: int) -> Dataset:
    """The described data set with its examples, from its file.

    Args:
      description: As `describe` returned it.
      held_out: Number of test examples when it was described.
      seed: Seed of the split when it was described.

    Returns:
      The data set.

    Raises:
      FileNotFoundError: If the file is gone.
      ValueError: If the file holds other data than those described.
    """
    name = description["path"] or description["name"]
    data = dataclasses.replace(
        open_dataset(name, held_out, seed), name=description["name"]
    )
    if data.digest != description["digest"]:
        raise ValueError(
            f"{name} must hold the data that the run was trained on (digest "
            f"{description['digest']}), "
            f"it has others now (digest {data.digest})"
        )
    return data


def open_dataset(name: str, held_out: int, seed: int, least_test: int = 1) -> Dataset:
    """Open a data set, split it, and standardise it.

    Integer-valued data of at most 256 levels become a lattice on [−1, 1].
    Other data have their mean subtracted and are divided by their standard
    deviation. Each column of a table (N, D) has its own, images have one. A
    column that is constant keeps the scale 1. All this is done in float64, and
    integers of 64 bits are exact.

    Args:
      name: "digits", a toy density, or the path of an .npy or .npz file.
      held_out: Number of test examples. Of a file they are at most a quarter.
        Toy densities have 2000.
      seed: Seed of the split.
      least_test: Number of test examples that the caller needs.

    Returns:
      The data set.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If the file is not usable, or the split leaves less than 2
        training or `least_test` test examples.
    """
    if name in TOYS:
        return _toy(name, seed)
    if name == "digits":
        stored = load_digits()
        values, labels = stored.images[..., None], stored.target.astype(np.int32)
        # 17 levels, whether or not the brightest occurs
        origin, levels, path = np.zeros(()), 17, None
    elif not name.endswith((".npy", ".npz")):
        raise ValueError(
            f"data must be 'digits', one of {', '.join(TOYS)}, or a .npy or .npz file; "
            f"got {name!r}"
        )
    else:
        values, labels = _read(name)
        values = values[..., None] if values.ndim == 3 else values
        if len(values) < 4:
            raise ValueError(f"{name} must hold at least 4 examples, got {len(values)}")
        held_out, path = (
            min(held_out, len(values) // 4),
            str(pathlib.Path(name).resolve()),
        )
        origin, levels = values.min(), _level_count(values)
        if levels == 1:
            raise ValueError(
                f"{name} must hold more than one value, got {origin} everywhere"
            )
    if len(values) - held_out < MIN_TRAIN:
        raise ValueError(
            f"held_out must leave at least {MIN_TRAIN} of the {len(values)} examples "
            f"for training, got {held_out}"
        )
    if held_out < least_test:
        file = (
            ""
            if path is None
            else (
                f" (a quarter of {name} at most, "
                f"which must hold {4 * least_test} examples)"
            )
        )
        raise ValueError(
            f"held_out must be at least {least_test}, got {held_out}{file}"
        )
    (train, train_labels), (test, test_labels) = split((values, labels), held_out, seed)
    if levels is None:
        origin, centre, scale = _moments(name, train, by_column=values.ndim == 2)
    else:
        centre = scale = (levels - 1) / 2
        levels = ((np.arange(levels) - centre) / scale).astype(np.float32)
    train, test = (_standardise(x, origin, centre, scale) for x in (train, test))
    shift = origin.astype(np.float64) + centre
    return Dataset(
        name,
        train,
        test,
        levels,
        shift[()],
        scale,
        None,
        train_labels,
        test_labels,
        path,
    )


def _read(name):
    """(examples, labels or None) of a file. An .npz stores labels, integers from
    0, as y or labels.
    """
    if (
        name.endswith(".npz")
        and pathlib.Path(name).exists()
        and zipfile.is_zipfile(name)
    ):
        with zipfile.ZipFile(name) as file:
            labelled = bool({"y.npy", "labels.npy"} & set(file.namelist()))
        if labelled:
            values, labels = load_labelled(name, dtype=None)
            whole = (
                labels.ndim == 1
                and np.issubdtype(labels.dtype, np.integer)
                and labels.min() >= 0
            )
            return values, labels if whole else None
    return load(name, dtype=None), None


def _level_count(values):
    """The number of integers from the least to the greatest value, or None unless
    all are integers and few.
    """
    span = float(_above(values.max(), values.min()))
    if span >= MAX_LEVELS or (
        span > 0 and values.dtype.kind == "f" and np.any(values != np.round(values))
    ):
        return None
    return round(span) + 1


def _above(values, origin):
    """values − origin in float64, for values of at least `origin`. Integers are
    exact before rounding.
    """
    if values.dtype.kind == "f":
        return values.astype(np.float64) - np.asarray(origin, np.float64)
    wide = np.uint64 if values.dtype == np.uint64 else np.int64
    # modulo 2^64, as int64 would overflow where values span more than half of its range
    return (
        values.astype(wide).view(np.uint64) - np.asarray(origin, wide).view(np.uint64)
    ).astype(np.float64)


def _moments(name, train, by_column):
    """(least value, mean above it, standard deviation), (D,) for a table and ()
    otherwise.
    """
    axis = 0 if by_column else None
    origin = np.asarray(train.min(axis))
    # Scaled by this unit, squares neither overflow nor vanish.
    unit = np.asarray(_above(train.max(axis), origin))
    unit = np.where(unit > 0, unit, 1.0)
    total, count = 0.0, train.size / unit.size
    for block in _blocks(train):
        total = total + (_above(block, origin) / unit).sum(axis)
    mean = total / count
    total = 0.0
    for block in _blocks(train):
        total = total + ((_above(block, origin) / unit - mean) ** 2).sum(axis)
    centre, std = unit * mean, unit * np.sqrt(total / count)
    if not np.isfinite(centre).all() or not np.isfinite(std).all():
        raise ValueError(
            f"{name} must hold values whose differences are finite in float64"
        )
    constant = np.flatnonzero(std == 0)
    if by_column and constant.size:
        columns = ", ".join(map(str, constant[:8])) + (
            ", …" if constant.size > 8 else ""
        )
        print(
            f"{name}: constant columns have no density, the score depends on the noise "
            f"floor there: {columns}"
        )
    return origin, centre, np.where(std > 0, std, 1.0)[()]


def _standardise(values, origin, centre, scale):
    """((values − origin) − centre) / scale, computed in float64, stored in
    float32.
    """
    scaled = np.empty(values.shape, np.float32)
    for block, rows in zip(_blocks(values), _blocks(scaled), strict=True):
        # test values may lie below the least of the training values
        low = np.minimum(block.min(0) if np.ndim(origin) else block.min(), origin)
        rows[...] = (
            _above(block, low) - _above(np.asarray(origin), low) - centre
        ) / scale
    return scaled


def _blocks(values, entries=2**22):
    """Views of consecutive rows, of about `entries` numbers each."""
    rows = max(1, entries // max(1, values[0].size))
    return [values[start : start + rows] for start in range(0, len(values), rows)]


def _toy(name, seed):
    target = TOYS[name]()
    draw = jax.jit(
        lambda key, count: jax.vmap(target.sample)(jax.random.split(key, count)),
        static_argnums=1,
    )
    keys = jax.random.split(jax.random.key(seed))
    train, test = (
        np.asarray(draw(key, count))
        for key, count in zip(keys, (TOY_EXAMPLES, 2000), strict=True)
    )
    return Dataset(name, train, test, None, 0.0, 1.0, target)


# ------------------------------------------------------------------- baselines


def histogram_bits(data: Dataset) -> float:
    """Test bits/dim of independent histograms, one per entry.

    One pseudo-count is spread over the levels.
    """
    train, test = _level_indices(data, data.train), _level_indices(data, data.test)
    count = len(data.levels)
    one_hot = np.eye(count)[train].sum(0)  # (D, K)
    probabilities = (one_hot + 1 / count) / (len(train) + 1)
    chosen = np.take_along_axis(probabilities[None], test[..., None], -1)
    return float(-np.log2(chosen).mean())


def gaussian_mixture_bits(data: Dataset, components: int = 30, seed: int = 0) -> float:
    """Test bits/dim of a mixture of diagonal Gaussians.

    scikit-learn's EM fits it to uniformly dequantised data.

    Args:
      data: Data on a lattice.
      components: Number of Gaussians, at most a quarter of the training
        examples.
      seed: Seed of the dequantisation and of the fit.

    Returns:
      The mean over the test examples.
    """
    from sklearn.mixture import GaussianMixture

    rng = np.random.default_rng(seed)
    noisy = [
        x.reshape(len(x), -1)
        + data.spacing * rng.uniform(-0.5, 0.5, (len(x), x[0].size))
        for x in (data.train, data.test)
    ]
    components = max(1, min(components, len(data.train) // 4))
    model = GaussianMixture(
        components, covariance_type="diag", reg_covar=1e-4, random_state=seed
    ).fit(noisy[0])
    log_prob = model.score_samples(noisy[1]).mean()
    return float(-(log_prob / noisy[1].shape[1] + np.log(data.spacing)) / np.log(2))


def _level_indices(data, x):
    return np.rint((x.reshape(len(x), -1) - data.levels[0]) / data.spacing).astype(int)


def with_replaced(key: jax.Array, x: jax.Array, share: float, levels: Any) -> jax.Array:
    """Replace each entry, with some probability, by a level drawn uniformly.

    Args:
      key: Of the draws.
      x: Examples on a lattice, of any shape.
      share: The probability.
      levels: (K,), the levels.

    Returns:
      An array of the shape of x.
    """
    key_where, key_level = jax.random.split(key)
    drawn = jax.random.choice(key_level, jnp.asarray(levels), x.shape)
    return jnp.where(jax.random.bernoulli(key_where, share, x.shape), drawn, x)
