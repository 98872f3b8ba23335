"""Attention: its implementations agree, batch into one kernel and bound memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.networks import DiT, attention, dot_product
from tests.families import normal32, quick

EPS = float(np.finfo(np.float32).eps)


def reference(q, k, v):
    return jax.nn.dot_product_attention(q, k, v, implementation="xla")


def batched(implementation):
    return jax.vmap(functools.partial(attention, implementation=implementation))


def value_and_gradients(function, *arguments):
    """function(q, k, v), and the gradients of a random projection of it."""

    @quick
    def both(weights, *arguments):
        value, pullback = jax.vjp(function, *arguments)
        return value, pullback(weights)

    return both(normal32(9, *arguments[0].shape), *arguments)


@pytest.mark.parametrize("implementation", ["auto", "einsum", "blocks"])
@pytest.mark.parametrize("most", [1, 40, 2**20])
def test_implementations_agree_with_that_of_jax(implementation, most, monkeypatch):
    # of 7 queries and 5 keys, so that 40 logits make blocks of unequal fill
    monkeypatch.setattr(dot_product, "MOST_LOGITS", most)
    q, k, v = normal32(0, 3, 7, 2, 4), normal32(1, 3, 5, 2, 4), normal32(2, 3, 5, 2, 4)
    expected = value_and_gradients(reference, q, k, v)
    actual = value_and_gradients(batched(implementation), q, k, v)
    # Products of up to 7 terms, two and the softmax's sum forward and four more
    # backward, each of which rounds by 7 ε/2 of its largest terms at most.
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=7 * 7 / 2 * EPS * np.abs(b).max())


def test_softmax_is_in_float32_where_the_tokens_are_bfloat16():
    # The logits 32 · 16 / √4 = 256 and 256 + 2/√4 = 257 are equal in bfloat16, and
    # so would be their weights.
    q = jnp.array([[[32.0, 2.0, 0.0, 0.0]]], jnp.bfloat16)
    k = jnp.array([[[16.0, 0.0, 0.0, 0.0]], [[16.0, 1.0, 0.0, 0.0]]], jnp.bfloat16)
    v = jnp.array([[[0.0] * 4], [[1.0] * 4]], jnp.bfloat16)
    weight = 1 / (1 + np.exp(-1.0))
    for implementation in ("einsum", "blocks"):
        out = attention(q, k, v, implementation)
        assert out.dtype == jnp.bfloat16
        np.testing.assert_allclose(float(out[0, 0, 0]), weight, rtol=2.0**-8)


def primitives(jaxpr):
    """(primitive, settings) of every equation, inner programs included."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name, equation.params
        for inner in jax.tree.leaves(list(equation.params.values())):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from primitives(getattr(inner, "jaxpr", inner))


@pytest.mark.parametrize(("implementation", "scans"), [("einsum", 0), ("blocks", 1)])
def test_vmap_adds_an_axis_to_two_products_and_no_loop(implementation, scans):
    q = jax.ShapeDtypeStruct((3, 7, 2, 4), jnp.float32)
    equations = list(primitives(jax.make_jaxpr(batched(implementation))(q, q, q).jaxpr))
    products = [
        s["dimension_numbers"] for name, s in equations if name == "dot_general"
    ]
    assert [len(batch[0]) for _, batch in products] == [2, 2]  # examples and heads
    names = [name for name, _ in equations]
    assert names.count("scan") == scans and "while" not in names


def gradient_bytes(implementation, n):
    """Temporary memory of the gradients at n tokens of 2 heads of 8 channels."""
    q = jax.ShapeDtypeStruct((n, 2, 8), jnp.float32)
    loss = lambda q, k, v: jnp.sum(attention(q, k, v, implementation) ** 2)
    compiled = quick(jax.grad(loss, (0, 1, 2))).lower(q, q, q).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_of_gradients_is_linear_in_the_tokens():
    logits = 4096**2 * 2 * 4  # bytes
    assert gradient_bytes("einsum", 4096) > logits
    few, many = (gradient_bytes("auto", n) for n in (4096, 8192))
    # The logits of one block, in each of its few steps, and 12 arrays of the
    # tokens' size.
    assert few < 4 * dot_product.MOST_LOGITS * 2 * 4 + 12 * 4096 * 16 * 4 < logits
    assert many < 2 * few


def test_auto_takes_the_fused_kernel_for_16_bits_and_aligned_heads():
    def suits(n, d, dtype=jnp.bfloat16, e=None):
        q = jax.ShapeDtypeStruct((n, 2, d), dtype)
        return dot_product.suits_fused(q, q, q.update(shape=(n, 2, e or d)))

    assert suits(64, 64) and suits(4096, 128, jnp.float16)
    assert not suits(63, 64)  # too few tokens
    assert not suits(64, 60) and not suits(64, 136) and not suits(64, 64, e=32)
    assert not suits(64, 64, jnp.float32)


def test_auto_takes_the_kernel_on_cuda_alone_where_a_gpu_is_present(monkeypatch):
    # A stand-in that a CPU can lower for CUDA. It is no attention, so that
    # taking it on the CPU would show.
    monkeypatch.setattr(dot_product, "_modern_gpu", lambda: True)
    monkeypatch.setattr(dot_product, "_fused_gpu", lambda q, k, v: jnp.tan(q + k + v))
    q, k, v = (normal32(i, 2, 64, 1, 8).astype(jnp.bfloat16) for i in range(3))
    function = batched("auto")
    lowered = {
        platform: jax.jit(function).trace(q, k, v).lower(lowering_platforms=(platform,))
        for platform in ("cpu", "cuda")
    }
    kernels = {p: program.as_text().count(".tan ") for p, program in lowered.items()}
    assert kernels == {"cpu": 0, "cuda": 1}
    weights = normal32(9, *q.shape)
    loss = lambda f: jax.grad(lambda *a: jnp.sum(weights * f(*a)), (0, 1, 2))
    expected = quick(loss(batched("einsum")))(q, k, v)
    # The scaled queries, the weights and the results are bfloat16, which rounds
    # by 2⁻⁹, on either side.
    for a, b in zip(quick(loss(function))(q, k, v), expected, strict=True):
        a, b = np.float32(a), np.float32(b)
        np.testing.assert_allclose(a, b, atol=6 * 2.0**-9 * np.abs(b).max())


def test_the_kernel_of_a_tpu_is_one_call_for_a_batch(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    q = jax.ShapeDtypeStruct((3, 128, 2, 64), jnp.bfloat16)
    traced = jax.jit(batched("fused")).trace(q, q, q)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") == 1 and "stablehlo.while" not in text


@pytest.mark.parametrize(
    ("shapes", "implementation", "message"),
    [
        (((3, 2, 4),) * 3, "flash", "implementation must be one of"),
        (((3, 2, 4),) * 3, "fused", "'fused' needs a GPU or TPU, got 'cpu'"),
        (((2, 3, 2, 4),) * 3, "auto", r"q, k and v must have shapes .*jax.vmap"),
        (((3, 2, 4), (3, 2, 5), (3, 2, 4)), "auto", "q, k and v must have shapes"),
        (((3, 2, 4), (3, 2, 4), (5, 2, 4)), "auto", "q, k and v must have shapes"),
        (((3, 2, 4), (0, 2, 4), (0, 2, 4)), "auto", "M, heads and d at least 1"),
        (((3, 2, 0), (3, 2, 0), (3, 2, 4)), "einsum", "M, heads and d at least 1"),
    ],
)
def test_attention_raises_by_name(shapes, implementation, message):
    arguments = [np.zeros(shape, np.float32) for shape in shapes]
    with pytest.raises(ValueError, match=message):
        attention(*arguments, implementation)


def test_a_network_passes_its_implementation_on(monkeypatch):
    monkeypatch.setattr(dot_product, "MOST_LOGITS", 3)
    x = normal32(3, 4, 4, 1)
    model = DiT(width=8, depth=1, heads=2)
    scans = []
    for implementation in ("einsum", "blocks", "auto"):
        other = model.clone(attention=implementation)
        apply = lambda x, other=other: other.init_with_output(jax.random.key(0), x, 0.5)
        equations = primitives(jax.make_jaxpr(apply)(x).jaxpr)
        scans.append([name for name, _ in equations].count("scan"))
    assert scans == [0, 1, 1]


@pytest.mark.parametrize("implementation", ["einsum", "blocks"])
def test_no_queries_have_no_result(implementation):
    none, keys = np.zeros((0, 2, 4), np.float32), np.ones((3, 2, 4), np.float32)
    assert attention(none, keys, keys, implementation).shape == (0, 2, 4)
