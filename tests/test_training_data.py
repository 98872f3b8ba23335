"""Loading arrays of one's own: what a type would round away is never lost in
silence.
"""

import numpy as np
import pytest

from diffjax import training

ROUNDED = {
    "integers far from 0": 10**9 + np.arange(200)[:, None],
    "Unix times": 1.7e9 + np.linspace(0, 1000, 200)[:, None],
    "one column of two": np.stack(
        [np.linspace(0, 1e6, 200), 4_649_776.0 + np.linspace(0, 1, 200)], 1
    ),
    "units below float32": 1e-300 * np.linspace(0, 1, 200)[:, None],
    "images far from 0": 1e9 + np.random.default_rng(0).normal(size=(20, 3, 3)),
}


@pytest.mark.parametrize("name", ROUNDED)
def test_what_float32_would_round_away_raises_and_is_kept_by_float64(name, tmp_path):
    np.save(tmp_path / "x.npy", ROUNDED[name])
    with pytest.raises(
        ValueError,
        match=(
            "x.npy: (column [01] of )?'x' varies too little about .* for float32, .* "
            "dtype=np.float64"
        ),
    ):
        training.load(tmp_path / "x.npy")
    np.testing.assert_array_equal(
        training.load(tmp_path / "x.npy", dtype=np.float64), ROUNDED[name]
    )
    kept = training.load(tmp_path / "x.npy", dtype=None)
    assert kept.dtype == ROUNDED[name].dtype and (kept == ROUNDED[name]).all()


def test_the_column_that_would_be_rounded_is_named(tmp_path):
    np.save(tmp_path / "x.npy", ROUNDED["one column of two"])
    with pytest.raises(
        ValueError,
        match=r"column 1 of 'x' varies too little about 4649776\.0 .* by up to 0\.2",
    ):
        training.load(tmp_path / "x.npy")


def test_what_float32_keeps_apart_is_loaded(tmp_path):
    """A rounding error of 2⁻²⁴ relative to the value, below a thousandth of
    the standard deviation, is accepted. So are constants.
    """
    table = np.stack(
        [4e6 + np.linspace(0, 4e4, 200), np.full(200, 1 / 3), np.arange(200.0)], 1
    )
    np.save(tmp_path / "x.npy", table)
    loaded = training.load(tmp_path / "x.npy")
    assert loaded.dtype == np.float32
    np.testing.assert_allclose(loaded, table, rtol=2**-24)


def test_labels_that_int32_cannot_hold_raise(tmp_path):
    x = np.zeros((3, 2))
    np.savez(tmp_path / "x.npz", x=x, y=np.array([0, 1, 2**31]))
    with pytest.raises(ValueError, match="'y' must fit int32, got 0 to 2147483648"):
        training.load_labelled(tmp_path / "x.npz")
    np.savez(tmp_path / "times.npz", x=x, y=1.7e9 + np.arange(3.0))
    with pytest.raises(ValueError, match="'y' varies too little"):
        training.load_labelled(tmp_path / "times.npz")
    assert (
        training.load_labelled(tmp_path / "times.npz", dtype=np.float64)[1]
        == 1.7e9 + np.arange(3)
    ).all()
