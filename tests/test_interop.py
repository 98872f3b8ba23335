"""Feature extractors against closed forms, an independent implementation in NumPy,
and the published numbers of parameters.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from safetensors.numpy import save_file

from diffjax import checks
from diffjax.interop import dinov2, images, inception, weights

EPS = float(np.finfo(np.float32).eps)


# -------------------------------------------------------------------- images


def test_bytes_and_signed_floats_are_the_same_images():
    stored = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    values = images.signed(stored)
    assert values.shape == (1, 16, 16, 3)
    np.testing.assert_allclose(values[0, 0, :2, 1], [-1, 2 / 255 - 1], atol=EPS)
    np.testing.assert_array_equal(values, images.signed(np.asarray(values)))
    assert float(values.max()) == 1.0


def test_bilinear_interpolation_is_between_centres_of_pixels():
    """Two pixels to four: centres at −1/4, 1/4, 3/4, 5/4 of a pixel, ends repeated.
    Four to two without anti-aliasing: halfway between neighbours.
    """
    x = jnp.asarray([0.0, 1.0]).reshape(1, 1, 2, 1) * jnp.ones((1, 2, 1, 3))
    large = images.resized(x, 4, "bilinear", False)[0, 0, :, 0]
    np.testing.assert_allclose(large, [0, 0.25, 0.75, 1], atol=1e-6)
    x = jnp.asarray([0.0, 1, 5, 9]).reshape(1, 1, 4, 1) * jnp.ones((1, 4, 1, 3))
    small = images.resized(x, 2, "bilinear", False)[0, 0, :, 0]
    np.testing.assert_allclose(small, [0.5, 7], atol=1e-6)


@pytest.mark.parametrize(
    "batch, message",
    [
        (np.zeros((4, 4, 3), np.float32), "images must have shape"),
        (np.zeros((1, 4, 4, 2), np.float32), "images must have shape"),
        (np.zeros((1, 4, 4, 3), np.int32), "images must be uint8 or floats, got int32"),
        (
            np.full((1, 4, 4, 3), 255.0),
            r"floats of images must lie in \[-1, 1\], got 255",
        ),
    ],
)
def test_other_images_raise(batch, message):
    with pytest.raises(ValueError, match=message):
        images.signed(batch)


# -------------------------------------------------------------------- weights


def state_dict(shapes, seed=0):
    rng = np.random.default_rng(seed)
    arrays = {
        k: 0.05 * rng.normal(size=v).astype(np.float32) for k, v in shapes.items()
    }
    return {
        k: np.abs(v) + 0.5 if k.endswith("running_var") else v
        for k, v in arrays.items()
    }


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_files_are_read_as_they_were_written(suffix, tmp_path):
    arrays = {"a.weight": np.arange(6.0).reshape(2, 3), "n": np.array([3])}
    path = tmp_path / f"file.{suffix}"
    (np.savez(path, **arrays) if suffix == "npz" else save_file(arrays, path))
    stored = weights.read(path)
    assert stored["a.weight"].dtype == np.float32 and stored["n"].tolist() == [3]
    np.testing.assert_array_equal(stored["a.weight"], arrays["a.weight"])
    path.write_bytes(b"no such thing")
    with pytest.raises(ValueError, match="is no readable"):
        weights.read(path)


def test_a_file_of_torch_needs_torch_and_says_how_to_convert_it(tmp_path, monkeypatch):
    (tmp_path / "net.pth").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ModuleNotFoundError, match="safetensors.torch.save_file"):
        inception.load(tmp_path / "net.pth")
    with pytest.raises(FileNotFoundError, match="github.com/mseitzer"):
        inception.load(tmp_path / "nowhere.pth")
    with pytest.raises(ValueError, match="path must end in"):
        (tmp_path / "net.h5").write_bytes(b"")
        weights.read(tmp_path / "net.h5")


def test_a_file_of_torch_is_read_by_torch(tmp_path):
    torch = pytest.importorskip("torch")
    half = torch.ones(2, dtype=torch.bfloat16)
    torch.save({"state_dict": {"a": half, "step": 3}}, tmp_path / "net.pth")
    stored = weights.read(tmp_path / "net.pth")
    assert list(stored) == ["a"] and stored["a"].tolist() == [1, 1]


def test_arrays_of_no_numbers_are_named_with_their_file(tmp_path):
    np.savez(tmp_path / "net.npz", a=np.zeros(2, [("x", "f4"), ("y", "i4")]))
    with pytest.raises(ValueError, match="net.npz is no readable .npz file"):
        weights.read(tmp_path / "net.npz")


def test_negative_variances_raise_by_their_unit():
    shapes = inception.state_dict_shapes() | {"fc.weight": (1008, 2048)}
    # without their memory
    arrays = {k: np.broadcast_to(np.float32(0.1), shape) for k, shape in shapes.items()}
    arrays["Conv2d_1a_3x3.bn.running_var"] = np.full(32, -1.0, np.float32)
    with pytest.raises(ValueError, match="variances of 0 or more in Conv2d_1a_3x3"):
        inception.from_state_dict(arrays)


def test_other_weights_raise_with_what_was_there():
    arrays = {"a": np.zeros(2), "b": np.zeros(3), "c": np.array([np.nan])}
    arrays["e"] = np.array(["text"])
    shapes = {"a": (3,), "c": (1,), "d": (1,), "e": (1,)}
    with pytest.raises(ValueError) as error:
        checks.state_dict("a network", arrays, shapes, "Get it there.")
    for part in (
        "missing: d",
        r"a (2,) for (3,)",
        "not of finite numbers: c, e",
        "4 arrays: a, b, c, e",
    ):
        assert part in str(error.value)
    with pytest.raises(ValueError, match="missing: Conv2d_1a_3x3.conv.weight, .* more"):
        inception.from_state_dict({"fc.weight": np.zeros((1000, 2048))})
    with pytest.raises(ValueError, match="must have no register_tokens"):
        dinov2.from_state_dict({"register_tokens": np.zeros(1)})


# -------------------------------------------------------------------- Inception


def test_the_layer_table_has_the_published_number_of_parameters():
    """27 161 264 of torchvision's Inception-v3, without the auxiliary classifier's
    3 326 696 and the classifier's 2 049 000.
    """
    shapes = inception.state_dict_shapes()
    learned = {k: v for k, v in shapes.items() if "running" not in k}
    assert len(shapes) == 5 * 94
    total = sum(int(np.prod(shape)) for shape in learned.values())
    assert total == 27_161_264 - 3_326_696 - 2_049_000


def test_batch_normalisation_is_folded_into_the_convolution():
    """One unit is γ (w ∗ x − mean)/√(variance + 0.001) + β, and ReLU."""
    shapes = inception.state_dict_shapes() | {"fc.weight": (1008, 2048)}
    zeros = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    unit, arrays = "Conv2d_2a_3x3", state_dict(inception.state_dict_shapes())
    mine = {k: v for k, v in arrays.items() if k.startswith(unit)}
    params = inception.from_state_dict(zeros | mine)["params"][unit]
    mine = {k: np.float64(v) for k, v in mine.items()}
    x = np.random.default_rng(1).normal(size=(1, 5, 5, 32)).astype(np.float32)
    module = inception.Unit(32, (3, 3))
    measured = module.apply({"params": params}, x)
    windows = np.lib.stride_tricks.sliding_window_view(np.float64(x[0]), (3, 3), (0, 1))
    convolved = np.einsum("yxikl,oikl->yxo", windows, mine[f"{unit}.conv.weight"])
    w, b, mean, variance = (
        mine[f"{unit}.bn.{k}"]
        for k in ("weight", "bias", "running_mean", "running_var")
    )
    expected = np.maximum(w * (convolved - mean) / np.sqrt(variance + 1e-3) + b, 0)
    # A sum of 288 products of one size errs by √288 ε/2, and the kernel by ε/2.
    atol = 288**0.5 * EPS * np.abs(expected).max()
    np.testing.assert_allclose(measured[0], expected, rtol=0, atol=atol)


def block_params(block, channels, values):
    """Parameters of a block whose kernels are 0 but for `values`, {unit: (kernel,
    bias)}.
    """
    tree = jax.eval_shape(
        block.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 9, 9, channels), float)
    )
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), tree)
    for unit, (kernel, bias) in values.items():
        conv = params["params"][unit]["conv"]
        conv["bias"] += bias
        height, width = conv["kernel"].shape[:2]
        conv["kernel"][height // 2, width // 2] += kernel
    return params


@pytest.mark.parametrize(
    "block, widths",
    [
        (inception.BlockA(32), [64, 64, 96, 32]),
        (inception.BlockC(16), [192, 192, 192, 192]),
        (inception.BlockE(), [320, 384, 384, 384, 384, 192]),
    ],
)
def test_branches_are_concatenated_in_the_order_of_the_paper(block, widths):
    """With kernels of 0 a branch is its last bias, a number of its own."""
    last = {
        inception.BlockA: ["branch1x1", "branch5x5_2", "branch3x3dbl_3"],
        inception.BlockC: ["branch1x1", "branch7x7_3", "branch7x7dbl_5"],
        inception.BlockE: [
            *("branch1x1", "branch3x3_2a", "branch3x3_2b"),
            *("branch3x3dbl_3a", "branch3x3dbl_3b"),
        ],
    }[type(block)]
    values = {name: (0.0, i + 1.0) for i, name in enumerate([*last, "branch_pool"])}
    h = np.ones((1, 9, 9, 5), np.float32)
    measured = block.apply(block_params(block, 5, values), h)
    np.testing.assert_array_equal(
        measured[0, 4, 4], np.repeat(np.arange(len(widths)) + 1.0, widths)
    )


def test_pools_leave_padding_out_and_the_last_takes_maxima():
    """The means of a constant are that constant at the border too. One pixel of −1
    among zeros is a mean of −1/9 (−1/4 in a corner) and no maximum, and ReLU
    keeps the negated mean.
    """
    h = np.zeros((1, 9, 9, 1), np.float32)
    h[0, 4, 4], h[0, 0, 0] = -1, -1
    values = {"branch_pool": (-1.0, 0.0)}
    mean = inception.BlockE().apply(block_params(inception.BlockE(), 1, values), h)
    assert mean[0, 4, 4, -1] == pytest.approx(1 / 9) and mean[0, 0, 0, -1] == 0.25
    last = inception.BlockE(by_maxima=True)
    most = last.apply(block_params(last, 1, values), h)
    np.testing.assert_array_equal(most[..., -1], 0)
    ones = inception.BlockA(32)
    constant = ones.apply(block_params(ones, 1, {"branch_pool": (1.0, 0.0)}), h + 2)
    np.testing.assert_allclose(constant[0, 8, 8, -1], 2)


@pytest.mark.slow
def test_the_whole_network_runs_on_bytes(tmp_path):
    """Grey ones count as colour. Two images have other features, 2048 numbers each
    that are not negative.
    """
    arrays = state_dict(inception.state_dict_shapes())
    arrays["fc.weight"] = np.zeros((1008, 2048), np.float32)
    np.savez(tmp_path / "net.npz", **arrays)
    extract = jax.jit(inception.load(tmp_path / "net.npz"))
    stored = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 1)).astype(np.uint8)
    features = extract(stored)
    assert features.shape == (2, 2048) and np.isfinite(features).all()
    assert (
        float(features.min()) >= 0 and float(np.ptp(np.asarray(features), 0).max()) > 0
    )
    form = jax.eval_shape(extract, images.signed(stored))
    assert form.shape == features.shape and form.dtype == features.dtype


# -------------------------------------------------------------------- DINOv2


@pytest.mark.parametrize("width, total", [(384, 22_056_576), (768, 86_580_480)])
def test_dinov2_has_the_published_number_of_parameters(width, total):
    """With the mask token of the pretraining, which the features do not use."""
    shapes = dinov2.state_dict_shapes(width, dinov2.DEPTHS[width], 37)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) + width == total


def small_transformer(side=3):
    arrays = state_dict(dinov2.state_dict_shapes(128, 2, side))
    return arrays, dinov2.prepared(arrays, side)


def by_hand(arrays, x):
    """The network in NumPy, for one image (H, W, 3), in float64 with loops over
    patches and heads.
    """
    p = {k: v.astype(np.float64) for k, v in arrays.items()}

    def norm(name, h):
        gap = h - h.mean(-1, keepdims=True)
        scaled = gap / np.sqrt((gap**2).mean(-1, keepdims=True) + 1e-6)
        return scaled * p[f"{name}.weight"] + p[f"{name}.bias"]

    def linear(name, h):
        return h @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    kernel = p["patch_embed.proj.weight"]
    tokens = [p["cls_token"][0, 0]]
    for top in range(0, x.shape[0], 14):
        for left in range(0, x.shape[1], 14):
            patch = x[top : top + 14, left : left + 14]
            product = np.einsum("ocyx,yxc->o", kernel, patch)
            tokens.append(product + p["patch_embed.proj.bias"])
    h = np.array(tokens) + p["pos_embed"][0]
    for i in range(2):
        block = f"blocks.{i}."
        qkv = linear(f"{block}attn.qkv", norm(f"{block}norm1", h))
        heads = []
        for head in range(2):
            q, k, v = (qkv[:, part * 128 + 64 * head :][:, :64] for part in range(3))
            heads.append(scipy.special.softmax(q @ k.T / 8, -1) @ v)
        mixed = linear(f"{block}attn.proj", np.concatenate(heads, -1))
        h = h + p[f"{block}ls1.gamma"] * mixed
        hidden = linear(f"{block}mlp.fc1", norm(f"{block}norm2", h))
        hidden = hidden * scipy.special.ndtr(hidden)
        h = h + p[f"{block}ls2.gamma"] * linear(f"{block}mlp.fc2", hidden)
    return norm("norm", h)[0]


def test_the_transformer_is_that_of_the_papers():
    """Layer scales of order 1, so that blocks count. Float32 sums of 588 products
    err by about √588 ε, and the last layer norm divides by a deviation of 0.1.
    """
    arrays, _ = small_transformer()
    for name in arrays:
        if "gamma" in name or "norm" in name:
            arrays[name] = 1 + arrays[name]
    x = np.random.default_rng(2).normal(size=(2, 42, 42, 3)).astype(np.float32)
    measured = jax.jit(dinov2.transformer)(dinov2.prepared(arrays, 3), x)
    for row, image in zip(measured, x, strict=True):
        expected = by_hand(arrays, image.astype(np.float64))
        np.testing.assert_allclose(row, expected, atol=50 * np.sqrt(588) * EPS)


def test_the_position_code_is_interpolated_by_cubics():
    """The code of the class token stays. A single row of ones among zeros becomes
    Keys' kernel with a = −3/4, read at its distance from (i + ½) 37/16.1 − ½. The
    kernel sums to 1, so that a constant stays, at the borders too.
    """
    code = np.zeros((1, 1 + 37**2, 2), np.float32)
    code[0, 0] = 7
    code[0, 1:, 0] = 3
    code[0, 1:, 1] = np.arange(37**2) // 37 == 18
    small = dinov2.interpolated(code, 16)
    assert small.shape == (1, 257, 2) and small[0, 0].tolist() == [7, 7]
    np.testing.assert_allclose(small[0, 1:, 0], 3, rtol=1e-6)
    s = np.abs((np.arange(16) + 0.5) * 37 / 16.1 - 0.5 - 18)
    a = -0.75
    near, far = (a + 2) * s**3 - (a + 3) * s**2 + 1, a * (s**3 - 5 * s**2 + 8 * s - 4)
    kernel = np.where(s <= 1, near, np.where(s < 2, far, 0))
    assert (kernel != 0).sum() == 2
    measured = small[0, 1:, 1].reshape(16, 16)
    np.testing.assert_allclose(measured, kernel[:, None] * np.ones(16), atol=1e-6)
    assert dinov2.interpolated(code, 37) is code


@pytest.mark.slow
def test_dinov2_is_loaded_and_runs(tmp_path):
    arrays = state_dict(dinov2.state_dict_shapes(384, 12, 37))
    save_file(arrays | {"mask_token": np.zeros((1, 384))}, tmp_path / "s.safetensors")
    extract = jax.jit(dinov2.load(tmp_path / "s.safetensors"))
    stored = np.random.default_rng(0).integers(0, 256, (2, 30, 40, 3)).astype(np.uint8)
    features = extract(stored)
    assert features.shape == (2, 384) and np.isfinite(features).all()
    assert float(np.ptp(np.asarray(features), 0).max()) > 0
    form = jax.eval_shape(extract, images.signed(stored))
    assert form.shape == features.shape and form.dtype == features.dtype
