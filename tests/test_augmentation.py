"""Changes of training images: exact ones bit for bit, others by the filter's error."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.training import augmentation
from diffjax.training.augmentation import NonLeaking, horizontal_flip, resample

GROUPS = {
    "x_flip": [0],
    "y_flip": [1],
    "scaling": [2],
    "rotation": [3, 4],
    "anisotropy": [5, 6],
    "translation": [7, 8],
}
"""The entries of the label of each group."""

COUNT = 1000
EPS = float(np.finfo(np.float32).eps)


def noise(*shape, dtype=np.float32):
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


IMAGE = noise(4, 5, 2)
IMAGE[0] = -0.0


@functools.cache
def drawn():
    """(images, labels) of `IMAGE` for many keys, each group drawn half of the time."""
    pipeline = NonLeaking(**dict.fromkeys(GROUPS, 0.5))
    keys = jax.random.split(jax.random.key(0), COUNT)
    images, labels = jax.jit(jax.vmap(pipeline, (0, None)))(keys, IMAGE)
    return np.asarray(images), np.asarray(labels)


def test_flips_alone_are_exact_and_label_0_is_the_identity_bit_for_bit():
    """Negative zeros stay negative. 62 of 1000 are neither scaled, turned, stretched
    nor moved, and 35 not changed at all.
    """
    images, labels = drawn()
    flipped = (labels[:, 2:] == 0).all(1)
    assert flipped.sum() > 30 and (labels[flipped] == 0).all(1).sum() > 10
    for changed, (x, y) in zip(images[flipped], labels[flipped, :2], strict=True):
        expected = np.ascontiguousarray(IMAGE[:: int(1 - 2 * y), :: int(1 - 2 * x)])
        assert (changed.view(np.uint32) == expected.view(np.uint32)).all()
    assert (images[~flipped] != IMAGE).any((1, 2, 3)).all()


def test_labels_have_the_published_distributions():
    """Counts and moments of 1000 draws, to six standard errors."""
    _, labels = drawn()
    assert labels.shape == (COUNT, augmentation.LABELS) and labels.dtype == np.float32
    for group, entries in GROUPS.items():
        share = 0.25 if "flip" in group else 0.5
        shown = (labels[:, entries] != 0).all(1)
        assert (shown == (labels[:, entries] != 0).any(1)).all()
        assert abs(shown.mean() - share) < 6 * np.sqrt(share * (1 - share) / COUNT)
    few = 400  # At least so many have any of these changes.
    assert set(np.unique(labels[:, :2])) == {0.0, 1.0}
    for entry in (2, 7, 8):
        normal = labels[labels[:, entry] != 0, entry]
        assert abs(normal.mean()) < 6 / np.sqrt(few)
        assert abs(normal.std() - 1) < 6 / np.sqrt(2 * few)
    turn = labels[labels[:, 4] != 0, 3:5] + [1.0, 0.0]
    np.testing.assert_allclose(np.hypot(*turn.T), 1.0, atol=1e-6)
    # cos and sin of a uniform angle have mean 0 and variance 1/2.
    assert (abs(turn.mean(0)) < 6 * np.sqrt(0.5 / few)).all()
    # a₅² has mean 1 and variance 2.
    stretched = labels[labels[:, 5] != 0, 5:7]
    assert abs((stretched**2).sum(1).mean() - 1) < 6 * np.sqrt(2 / few)


def test_horizontal_flips_are_exact():
    """Of any type."""
    keys = jax.random.split(jax.random.key(1), 50)
    for image in (IMAGE, np.arange(12, dtype=np.uint8).reshape(2, 6, 1)):
        flipped, labels = jax.vmap(horizontal_flip, (0, None))(keys, image)
        assert flipped.dtype == image.dtype and 0 < labels.sum() < 50
        signs = 1 - 2 * np.asarray(labels, int)
        expected = np.stack([image[:, ::sign] for sign in signs])
        np.testing.assert_array_equal(flipped, expected)


QUARTER = np.array([[0, 1], [-1, 0]])


@pytest.mark.parametrize("side", [1, 7, 8])
def test_quarter_turns_and_integer_translations_are_exact(side):
    """Reflected about the first and last pixels, at distances beyond the image too."""
    image = noise(side, side, 3)
    for turns in range(4):
        matrix = np.linalg.matrix_power(QUARTER, turns)
        np.testing.assert_array_equal(
            resample(image, matrix, [0, 0]), np.rot90(image, turns)
        )
    for rows, columns in ((1, 0), (-2, 3), (0, -2 * side - 1)):
        reach = max(abs(rows), abs(columns))
        padded = np.pad(image, [(reach, reach)] * 2 + [(0, 0)], "reflect")
        if side == 1:
            padded = np.broadcast_to(image, padded.shape)
        start = reach + rows, reach + columns
        expected = padded[start[0] : start[0] + side, start[1] : start[1] + side]
        np.testing.assert_array_equal(
            resample(image, np.eye(2), [rows, columns]), expected
        )


def cubic(x):
    """The filter's formula of Keys 1981, in float64."""
    x = np.abs(x)
    inner, outer = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, inner, np.where(x < 2, outer, 0))


def test_a_rotated_wave_agrees_with_the_analytic_one():
    """Waves that are even about the first and last pixels, turned by any angles.

    The filter multiplies exp(iωx) by F(s) = Σ_k κ(k − s) exp(iω(k − s)) at the
    fraction s of a pixel. A wave of amplitude 1 in each direction is wrong by
    at most (1 + e)² − 1, with e = max |F − 1|.
    """
    side, waves = 24, 3
    omega = np.pi * waves / (side - 1)
    fractions, taps = np.linspace(0, 1, 201)[:, None], np.arange(-1, 3)
    response = cubic(taps - fractions) * np.exp(1j * omega * (taps - fractions))
    error = abs(response.sum(1) - 1).max()
    wave = lambda y, x: np.cos(omega * y) * np.cos(omega * x)
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 2, indexing="ij"), -1)
    image = wave(grid[..., 0], grid[..., 1])[..., None].astype(np.float32)
    middle = (side - 1) / 2
    for angle in (0.3, 1.0, 2.5):
        c, s = np.cos(angle), np.sin(angle)
        matrix, offset = np.array([[c, -s], [s, c]]), np.array([0.4, -3.3])
        source = (grid - middle) @ matrix.T + offset + middle
        turned = resample(image, matrix, offset)[..., 0]
        bound = (1 + error) ** 2 - 1 + 1e-4  # float32 positions beside it
        assert bound < 0.02
        assert abs(turned - wave(source[..., 0], source[..., 1])).max() < bound


def test_a_shrunk_image_has_no_aliases():
    """Stripes of one pixel become their mean where the image is halved.

    The cubic stretched twice has Σ_k κ((k − s)/2) (−1)^k = 0 at every s. At s = 0
    that is 1 − 2 · 9/16 + 2 · 1/16 = 0. Across the stripes alone, likewise.
    """
    stripes = np.broadcast_to((-1.0) ** np.arange(32)[:, None], (32, 32))
    image = stripes[..., None].astype(np.float32)
    for matrix in (2 * np.eye(2), np.diag([2.0, 1.0]), np.diag([2.0, 0.7])):
        # At a quarter of a pixel, with stripes kept even about the edges.
        halved = resample(image, matrix, [0.25, 0.0])
        np.testing.assert_allclose(halved, 0.0, atol=1e-5)
    along = resample(image, np.diag([1.0, 2.0]), [0.0, 0.0])
    np.testing.assert_allclose(along, image, atol=1e-6)


def test_constants_stay_constant_under_any_map():
    """Whatever the matrix: large, tiny, sheared, or of rank 1."""
    image = np.full((6, 9, 2), 0.7, np.float32)
    for matrix in (
        [[5, 1], [0, 3]],
        [[0.1, 0], [0, 0.1]],
        [[1, 2], [0, 1]],
        [[1, 1]] * 2,
    ):
        np.testing.assert_allclose(resample(image, matrix, [0.3, 40.0]), 0.7, rtol=1e-5)


def rotation(angle):
    """The matrix of a rotation from the first axis to the second."""
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


# (scaling, stretching, right, down), (angle, direction), the label from its third
# entry on, the linear map from positions (x, y) in the result to those in the
# image, and its offset in sides of the image. Rows grow downwards, so that an
# angle is one counterclockwise.
SCALE = 2**-0.2
CHANGES = {
    "scaled": ((1, 0, 0, 0), (0, 0), [1, 0, 0, 0, 0, 0, 0], SCALE * np.eye(2), 0),
    "rotated": (
        *((0, 0, 0, 0), (0.3, 0)),
        [0, np.cos(0.3) - 1, np.sin(0.3), 0, 0, 0, 0],
        *(rotation(0.3), 0),
    ),
    # Scaled too, since a filter that is stretched keeps no linear function.
    "stretched": (
        *((1, 1, 0, 0), (0, 0)),
        [1, 0, 0, 1, 0, 0, 0],
        *(np.diag([SCALE**2, 1]), 0),
    ),
    "stretched aslant": (
        *((1, 1, 0, 0), (0, 0.5)),
        [1, 0, 0, np.cos(0.5), np.sin(0.5), 0, 0],
        *(rotation(-0.5) @ np.diag([SCALE**2, 1]) @ rotation(0.5), 0),
    ),
    "squeezed": (
        *((1, -1, 0, 0), (0, 0)),
        [1, 0, 0, -1, 0, 0, 0],
        *(np.diag([1, SCALE**2]), 0),
    ),
    "moved right": (
        (0, 0, 1, 0),
        (0, 0),
        [0, 0, 0, 0, 0, 1, 0],
        np.eye(2),
        (-1 / 8, 0),
    ),
    "moved down": ((0, 0, 0, 1), (0, 0), [0, 0, 0, 0, 0, 0, 1], np.eye(2), (0, -1 / 8)),
}


def test_each_parameter_has_its_entry_of_the_label_and_its_change_of_the_image():
    """With their signs and scales, of an image whose colours are its positions.

    Where the map does not shrink the image, the cubic reproduces them.
    """
    side = 21
    positions = np.moveaxis(np.mgrid[:side, :side][::-1], 0, -1) - side // 2  # (x, y)
    image = np.float32(positions)
    normal, angles, labels, matrices, offsets = zip(*CHANGES.values(), strict=True)
    changed = jax.jit(jax.vmap(augmentation._changed, (None, None, 0, 0)))
    flips = jnp.zeros(2, bool)
    results = changed(image, flips, np.float32(normal), np.float32(angles))
    for name, result, shown, label, matrix, offset in zip(
        CHANGES, *map(np.asarray, results), labels, matrices, offsets, strict=True
    ):
        np.testing.assert_allclose(
            shown, [0, 0, *label], rtol=0, atol=EPS, err_msg=name
        )
        source = positions @ matrix.T + side * np.broadcast_to(offset, 2)
        # The filter reads four pixels on each side at most.
        inside = np.abs(source).max(-1) < side // 2 - 4
        assert inside.sum() > 50
        # A position is a sum of products below the side, and so is each of the 64
        # taps, whose weights have a sum of magnitudes of 1.25² at most.
        atol = (4 + 64 * 1.25**2) * EPS * side
        np.testing.assert_allclose(
            result[inside], source[inside], rtol=0, atol=atol, err_msg=name
        )


def test_parameters_move_the_image_in_their_directions():
    """A blob at (5, 3) is bright where the label takes it: scaled, turned, stretched,
    then moved.

    The label's stretching along a direction is one of 2^(a/5) or of 2^(−a/5).
    """
    side, count = 33, 12
    y, x = np.mgrid[:side, :side] - side // 2
    blob = np.exp(-((x - 5) ** 2 + (y - 3) ** 2) / 8)[..., None].astype(np.float32)
    pipeline = NonLeaking(0.0, 0.0, 1.0, 1.0, 1.0, 1.0)
    keys = jax.random.split(jax.random.key(2), count)
    images, labels = jax.jit(jax.vmap(pipeline, (0, None)))(keys, blob)
    inside = 0
    for image, label in zip(np.asarray(images), np.asarray(labels), strict=True):
        _, _, scaling, cos_less_1, sin, *stretch, right, down = label
        cos, amount = cos_less_1 + 1.0, np.hypot(*stretch)
        turned = np.array([[cos, sin], [-sin, cos]]) @ [5, 3] * 2 ** (scaling / 5)
        along = np.array([stretch[0], -stretch[1]]) / amount
        part = along * (along @ turned)
        brightness = []
        for power in (amount / 5, -amount / 5):
            moved = part * 2**power + (turned - part) / 2**power
            column, row = np.rint(
                moved + np.array([right, down]) * side / 8 + side // 2
            )
            if 1 <= min(row, column) and max(row, column) < side - 1:
                # At most half a pixel from the middle of the blob, twice shrunk.
                brightness.append(image[int(row), int(column), 0])
        if len(brightness) == 2:
            inside += 1
            assert max(brightness) > np.exp(-2 * (0.5 * 2) ** 2 / 8), label
    assert inside >= 5


def test_augmentation_argument_errors():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"scaling must lie in \[0.0, 1.0\], got 2"):
        NonLeaking(scaling=2.0)
    with pytest.raises(TypeError, match="image must be of a floating type, got uint8"):
        NonLeaking()(key, np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match=r"image must be \(H, W, C\), got \(4, 4\)"):
        horizontal_flip(key, jnp.zeros((4, 4)))
    with pytest.raises(ValueError, match="matrix"):
        resample(jnp.zeros((4, 4, 1)), np.eye(3), [0, 0])
