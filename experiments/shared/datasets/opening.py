"""Opens data sets by name: split, and described by levels or moments."""

import contextlib
import dataclasses
import math
import pathlib
import zipfile

import numpy as np
from sklearn.datasets import load_digits

from diffjax.training import Examples, ImageFolder, Rows, load, load_labelled, split
from diffjax.training.data.files import pieces

from .dataset import Dataset
from .patches import PATCHES, patches
from .scaling import Scaling, above, kept_as_stored
from .toys import TOYS, toy

MAX_LEVELS = 256
MIN_TRAIN = 2
"""Fewest training examples that the split may leave. Fewer have no spread."""


def open_dataset(
    name: str,
    held_out: int,
    seed: int,
    least_test: int = 1,
    *,
    size: int | None = None,
    validation: int = 0,
) -> Dataset:
    """Open a data set, split it, and standardise it.

    Integer-valued data of at most 256 levels become a lattice on [−1, 1].
    Other data have their mean subtracted and are divided by their standard
    deviation. Each column of a table (N, D) has its own, images have one. A
    column that is constant keeps the scale 1. All this is done in float64, and
    integers of 64 bits are exact.

    Examples of a type that float32 holds stay in that type, and those of a .npy
    file or of a folder stay on disk. A lattice of another type becomes bytes.
    The rest is scaled at once.

    Args:
      name: "digits", "patches32", "patches64", a toy density, or the path of an
        .npy or .npz file, or of a folder as of `training.ImageFolder`.
      held_out: Number of test examples. Of a file or folder they are at most a
        quarter, of patches 1564 or 988. Toy densities have 2000.
      seed: Seed of the split.
      least_test: Number of test examples that the caller needs.
      size: Side to which the images of a folder are cut and reduced. None for
        images that have one size.
      validation: Number of training examples, at random, that take the place of
        the test examples, which are then not used at all. 0 for none. Levels
        and moments are still those of all training examples.

    Returns:
      The data set.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If the file or folder is not usable, or the split leaves less than 2
        training or `least_test` test examples.
    """
    data = _open(name, held_out, seed, least_test, size)
    if not validation:
        return data
    if validation < least_test:
        raise ValueError(f"validation must be at least {least_test}, got {validation}")
    return _with_validation(data, validation, seed)


def _open(name, held_out, seed, least_test, size):
    if name in TOYS:
        return toy(name, seed)
    if name in PATCHES:
        return _patches(name, held_out, seed, least_test)
    values, labels, (origin, levels), path = _opened(name, size)
    if path is not None:
        held_out = min(held_out, len(values) // 4)
    _check_split(name, len(values), held_out, least_test, path)
    rows = split(np.arange(len(values)), held_out, seed)
    parts = [_rows(values, chosen) for chosen in rows]
    labels = [None if labels is None else labels[chosen] for chosen in rows]
    if levels is None:
        origin, centre, scale = _moments(name, parts[0], by_column=values.ndim == 2)
    else:
        centre = scale = (levels - 1) / 2
    scaling = Scaling(np.asarray(origin)[()], centre, scale, levels is not None)
    return _dataset(name, parts, labels, scaling, path)


def _with_validation(data, count, seed):
    """The data set whose test examples are `count` of its training examples."""
    if data.name in PATCHES:
        raise ValueError(
            f"validation must be 0 for {data.name}, whose training patches overlap, "
            f"got {count}"
        )
    examples = len(data.stored_train)
    if examples - count < MIN_TRAIN:
        raise ValueError(
            f"validation must leave at least {MIN_TRAIN} of the {examples} training "
            f"examples, got {count}"
        )
    # Another stream than the split's, which would choose by the same order.
    order = np.random.default_rng([seed, 1]).permutation(examples)
    train, test = np.sort(order[count:]), np.sort(order[:count])
    labels = data.train_labels
    return dataclasses.replace(
        data,
        stored_train=_rows(data.stored_train, train),
        stored_test=_rows(data.stored_train, test),
        train_labels=None if labels is None else labels[train],
        test_labels=None if labels is None else labels[test],
    )


def _opened(name, size):
    """(examples, labels or None, (least value, number of levels or None), path)."""
    path = pathlib.Path(name)
    if name == "digits":
        stored = load_digits()
        labels = stored.target.astype(np.int32)
        # 17 levels, whether or not the brightest occurs
        return stored.images[..., None], labels, (np.zeros(()), 17), None
    if path.is_dir():
        folder = ImageFolder(path, size=size)
        values, labels = folder.images, folder.labels if folder.classes else None
        lattice = (np.uint8(0), MAX_LEVELS)
    elif not name.endswith((".npy", ".npz")):
        raise ValueError(
            f"data must be 'digits', one of {', '.join((*PATCHES, *TOYS))}, a folder "
            f"of images, or a .npy or .npz file; got {name!r}"
        )
    else:
        values, labels = _read(name)
        values = values[..., None] if values.ndim == 3 else values
        lattice = _lattice(values)
    if len(values) < 4:
        raise ValueError(f"{name} must hold at least 4 examples, got {len(values)}")
    if lattice[1] == 1:
        raise ValueError(
            f"{name} must hold more than one value, got {lattice[0]} everywhere"
        )
    return values, labels, lattice, str(path.resolve())


def _patches(name, held_out, seed, least_test):
    """Patches of photographs. `held_out` is at most the number of test patches."""
    train, test = patches(name)
    count = min(held_out, len(test))
    _check_split(name, len(train) + count, count, least_test, None)
    rows = np.random.default_rng(seed).permutation(len(test))[:count]
    test = Rows(test, np.sort(rows))
    labels = train.corners[:, 0], test.array.corners[test.rows, 0]
    labels = [part.astype(np.int32) for part in labels]
    scaling = Scaling(np.uint8(0), 127.5, 127.5, True)
    return _dataset(name, [train, test], labels, scaling, None)


def _dataset(name, parts, labels, scaling, path):
    """The data set of (training, test) examples, in the type that it keeps."""
    levels, shift, scale = None, scaling.shift, scaling.scale
    if scaling.lattice:
        levels = np.arange(round(2 * scaling.centre) + 1)
        levels = ((levels - scaling.centre) / scaling.scale).astype(np.float32)
        if parts[0].dtype.itemsize > 1:
            origin = scaling.origin
            parts = [_as_bytes(part, origin) for part in parts]
            scaling = dataclasses.replace(scaling, origin=np.uint8(0))
    elif not kept_as_stored(parts[0].dtype, scaling.scale):
        parts, scaling = [scaling.on_host(part) for part in parts], None
    return Dataset(
        name,
        *parts,
        levels,
        shift,
        scale,
        None,
        *labels,
        path,
        scaling=scaling,
    )


def _rows(values, chosen):
    """Chosen examples, which stay on disk where they are."""
    on_disk = isinstance(values, np.memmap | Examples)
    return Rows(values, chosen) if on_disk else values[chosen]


def _as_bytes(values, origin):
    """value − origin, 0 … 255, in one byte."""
    return np.concatenate([above(p, origin).astype(np.uint8) for p in pieces(values)])


def _check_split(name, examples, held_out, least_test, path):
    """Raise ValueError if a part of the split has too few examples."""
    if examples - held_out < MIN_TRAIN:
        raise ValueError(
            f"held_out must leave at least {MIN_TRAIN} of the {examples} examples "
            f"for training, got {held_out}"
        )
    if held_out >= least_test:
        return
    file = (
        ""
        if path is None
        else (
            f" (a quarter of {name} at most, which must hold {4 * least_test} examples)"
        )
    )
    raise ValueError(f"held_out must be at least {least_test}, got {held_out}{file}")


def _lattice(values):
    """(least value, number of levels up to the greatest or None) of a file.

    None unless all values are integers, and at most 256 apart.
    """
    ends = [(piece.min(), piece.max()) for piece in pieces(values)]
    origin, greatest = min(low for low, _ in ends), max(high for _, high in ends)
    span = float(above(greatest, origin))
    fractions = span > 0 and values.dtype.kind == "f"
    if span >= MAX_LEVELS or (
        fractions and any(np.any(p != np.round(p)) for p in pieces(values))
    ):
        return origin, None
    return origin, round(span) + 1


def _read(name):
    """(examples, labels or None) of a file. An .npz stores labels, integers from
    0, as y or labels.
    """
    if not (name.endswith(".npz") and _has_labels(name)):
        return load(name, dtype=None), None
    values, labels = load_labelled(name, dtype=None)
    whole = (
        labels.ndim == 1
        and np.issubdtype(labels.dtype, np.integer)
        and labels.min() >= 0
    )
    return values, labels if whole else None


def _has_labels(name):
    # Damaged archives raise errors of several kinds. `load` names them.
    with contextlib.suppress(Exception), zipfile.ZipFile(name) as file:
        return bool({"y.npy", "labels.npy"} & set(file.namelist()))
    return False


def _moments(name, train, by_column):
    """(least value, mean above it, standard deviation), (D,) for a table and ()
    otherwise.
    """
    axis = 0 if by_column else None
    ends = [(piece.min(axis), piece.max(axis)) for piece in pieces(train)]
    origin = np.asarray(np.minimum.reduce([low for low, _ in ends]))
    greatest = np.maximum.reduce([high for _, high in ends])
    # Scaled by this unit, squares neither overflow nor vanish.
    unit = np.asarray(above(greatest, origin))
    unit = np.where(unit > 0, unit, 1.0)
    total, count = 0.0, math.prod(train.shape) / unit.size
    for block in pieces(train):
        total = total + (above(block, origin) / unit).sum(axis)
    mean = total / count
    total = 0.0
    for block in pieces(train):
        total = total + ((above(block, origin) / unit - mean) ** 2).sum(axis)
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
