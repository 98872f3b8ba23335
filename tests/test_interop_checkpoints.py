"""Checkpoints: trees of arrays come back bit by bit, damaged files raise by name and
leave nothing behind, and pickles are never read.
"""

import pickle
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.interop.checkpoints import trees

SUFFIXES = ("npz", "safetensors")


class State(NamedTuple):
    mean: object
    count: object


def a_tree():
    return {
        "file": jnp.arange(6.0).reshape(2, 3).T,  # a name that np.savez takes
        "layers": [
            {"w": jnp.ones(2, jnp.bfloat16)},
            (np.float64(0.1), np.int64(2**40)),
        ],
        "empty": np.zeros((0, 3), np.float32),
        "dotted.name": np.array(True),
    }


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(x).dtype == np.asarray(y).dtype
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_tree_comes_back_with_its_structure_and_dtypes(tmp_path, suffix):
    path = tmp_path / "new" / f"tree.{suffix}"
    trees.save(path, a_tree())
    same(trees.load(path), a_tree())
    same(trees.load(path, a_tree()), a_tree())
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_like_gives_named_tuples_and_dtypes(tmp_path):
    path = tmp_path / "state.npz"
    trees.save(path, State(jnp.ones(3, jnp.bfloat16), 4))
    assert set(trees.load(path)) == {"mean", "count"}
    like = State(jax.ShapeDtypeStruct((3,), jnp.float32), np.int32(0))
    state = trees.load(path, like)
    assert isinstance(state, State) and state.mean.dtype == np.float32
    assert state.count.dtype == np.int32


def test_names_of_other_programs_nest_at_slashes(tmp_path):
    np.savez(tmp_path / "a.npz", **{"net/w": np.ones(2), "net/b": np.zeros(1)})
    assert set(trees.load(tmp_path / "a.npz")["net"]) == {"w", "b"}
    np.savez(tmp_path / "b.npz", **{"net": np.ones(2), "net/b": np.zeros(1)})
    with pytest.raises(ValueError, match="net/b"):
        trees.load(tmp_path / "b.npz")


@pytest.mark.parametrize(
    "like, message",
    [
        ({"a": np.ones(2), "c": 1.0}, "missing: c; unknown: b"),
        ({"a": np.ones(3), "b": 1.0}, r"float64\[2\] for float64\[3\]"),
        ({"a": np.ones(2), "b": 1}, r"b float64\[\] for int64"),
    ],
)
def test_entries_that_are_not_those_of_like_are_named(tmp_path, like, message):
    trees.save(tmp_path / "a.npz", {"a": np.ones(2), "b": 1.0})
    with pytest.raises(ValueError, match=message):
        trees.load(tmp_path / "a.npz", like)


@pytest.mark.parametrize(
    "tree",
    [{"a": {}}, {"a": []}, {"a/b": 1.0}, {"[0]": 1.0}, {"(1)": 1.0}, {"": 1.0}]
    + [{1: 1.0}, {"a": None}, {"a": "text"}, {"a": 1j}, 3.0],
    ids=str,
)
def test_a_tree_that_would_not_come_back_is_not_written(tmp_path, tree):
    with pytest.raises(ValueError, match="tree must be nested"):
        trees.save(tmp_path / "a.npz", tree)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_damaged_file_raises_and_a_failed_write_keeps_the_old(
    tmp_path, suffix, monkeypatch
):
    path = tmp_path / f"a.{suffix}"
    trees.save(path, {"a": np.arange(1000.0)})
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not a checkpoint"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="no readable checkpoint"):
            trees.load(path)
    path.write_bytes(whole)
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        trees.save(path, {"b": np.ones(1)})
    assert path.read_bytes() == whole and [*tmp_path.iterdir()] == [path]


def test_pickles_are_not_read(tmp_path):
    class Trap:
        def __reduce__(self):
            return (exec, ("raise SystemExit('run')",))

    for name in ("a.pt", "a.pth", "a.ckpt", "a.bin", "a.pkl"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
        with pytest.raises(ValueError, match=r"torch\.load.*safetensors.*save_file"):
            trees.load(tmp_path / name)
    np.savez(tmp_path / "a.npz", a=np.array([Trap()], object))
    with pytest.raises(ValueError, match="no readable checkpoint"):
        trees.load(tmp_path / "a.npz")
    with pytest.raises(FileNotFoundError):
        trees.load(tmp_path / "b.npz")
    with pytest.raises(ValueError, match=r"\.npz or \.safetensors"):
        trees.load(tmp_path / "a.h5")
