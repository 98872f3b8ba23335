"""Pytrees whose treedefs name their class, and callables split into arrays and the rest."""

import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import SCHEDULES, TARGETS, TOYS, Bare, interior
from flax import linen, nnx

from diffjax import schedules, targets
from diffjax.types import as_pytree_callable, combine, partition, pytree, static_field


def values():
    """One value of every registered class that a jitted function may receive."""
    made = {name: make() for name, make in (SCHEDULES | TARGETS).items()}
    made |= {name: make() for name, (make, _) in TOYS.items()}
    made["empirical"] = targets.empirical(np.ones((3, 2)))
    made["energy"] = targets.energy(jnp.sum)
    made["bare"] = Bare(schedules.vp_linear())
    return made


def test_treedefs_of_different_classes_differ():
    """Equal treedefs would let VP run code compiled for sub-VP (same field names): trap 1 of the plan."""
    by_class = {type(value): value for value in values().values()}
    assert len(by_class) >= 13
    for (first, a), (second, b) in itertools.combinations(by_class.items(), 2):
        assert jax.tree.structure(a) != jax.tree.structure(b), f"{first.__name__} and {second.__name__} share a treedef"


def test_equal_arguments_select_the_class_code_under_jit():
    """VP and sub-VP have the same fields and leaves: one jitted function must serve each with its own σ."""
    sigma = jax.jit(lambda schedule, t: schedule.sigma(t))
    vp, sub = schedules.vp_linear(), schedules.sub_vp()
    assert jax.tree.leaves(vp) == jax.tree.leaves(sub)
    np.testing.assert_allclose(sigma(sub, 0.3), sigma(vp, 0.3) ** 2, rtol=4 * np.finfo(np.float32).eps)


@pytest.mark.parametrize("name", SCHEDULES)
def test_round_trip_through_jit_and_vmap(name):
    """A schedule that passed through jit, or was stacked and vmapped over, states the same σ."""
    schedule = SCHEDULES[name]()
    t = interior(schedule)[2]
    through = jax.jit(lambda s: s)(schedule)
    assert type(through) is type(schedule)
    expected = schedule.sigma(t)
    # arrays of the table may have been rounded to float32 on the way: a few ulp of log σ
    rtol = 16 * np.finfo(np.float32).eps
    np.testing.assert_allclose(jax.jit(lambda s: s.sigma(t))(through), expected, rtol=rtol)
    stacked = jax.tree.map(lambda leaf: jnp.stack([jnp.asarray(leaf)] * 2), schedule)
    np.testing.assert_allclose(jax.jit(jax.vmap(lambda s: s.sigma(t)))(stacked), [expected, expected], rtol=rtol)


def test_static_fields_are_in_the_treedef():
    """A static field is no child, and another value of it is another treedef."""

    @pytree
    class Power:
        base: float
        exponent: int = static_field()

    assert jax.tree.leaves(Power(2.0, 3)) == [2.0]
    assert jax.tree.structure(Power(2.0, 3)) == jax.tree.structure(Power(5.0, 3))
    assert jax.tree.structure(Power(2.0, 3)) != jax.tree.structure(Power(2.0, 4))
    assert jax.tree.map(lambda leaf: 2 * leaf, Power(2.0, 3)) == Power(4.0, 3)


def test_paths_name_the_fields():
    """Errors and checkpoints name a leaf by its field."""
    (path, _), *_ = jax.tree_util.tree_leaves_with_path(schedules.edm())
    assert jax.tree_util.keystr(path) == ".t_min"


def test_frozen():
    with pytest.raises(AttributeError):
        schedules.edm().t_min = 0.1  # type: ignore[misc]


class Affine(eqx.Module):
    weight: jax.Array
    name: str = eqx.field(static=True)

    def __call__(self, x, t):
        return self.weight * x + t


class NNXAffine(nnx.Module):
    def __init__(self, weight):
        self.weight = nnx.Param(weight)

    def __call__(self, x, t):
        return self.weight[...] * x + t


class LinenAffine(linen.Module):
    @linen.compact
    def __call__(self, x, t):
        return self.param("weight", linen.initializers.ones, x.shape) * x + t


def plain(weight, x, t):
    return weight * x + t


def keyword(x, t, weight):
    return plain(weight, x, t)


LINEN = LinenAffine()
CALLABLES = {
    "partial": lambda w: functools.partial(plain, w),
    "Partial": lambda w: jax.tree_util.Partial(plain, w),
    "keyword": lambda w: functools.partial(keyword, weight=w),
    "linen": lambda w: functools.partial(LINEN.apply, {"params": {"weight": w}}),
    "nnx": NNXAffine,
    "equinox": lambda w: Affine(w, "affine"),
}


@pytest.mark.parametrize("name", CALLABLES)
def test_callables_are_traced_not_baked(name):
    """Split, jitted and joined again, a callable gives weight · x + t, and new weights reuse the compiled code."""
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def apply(static, arrays, x, t):
        traces.append(1)
        return combine(arrays, static)(x, t)

    x = jnp.array([1.0, -2.0])
    for weight in (jnp.array([3.0, 4.0]), jnp.array([5.0, 6.0])):
        arrays, static = partition(as_pytree_callable(CALLABLES[name](weight)))
        np.testing.assert_array_equal(apply(static, arrays, x, 0.5), weight * x + 0.5)
    assert len(traces) == 1


def test_plain_function_has_no_arrays():
    def function(x, t):
        return x * t

    arrays, static = partition(as_pytree_callable(function))
    assert arrays == []
    assert combine(arrays, static)(2.0, 3.0) == 6.0
    hash(static)


@pytest.mark.parametrize("name", values())
def test_partition_and_combine_are_inverse(name):
    value = values()[name]
    arrays, static = partition(value)
    again = combine(arrays, static)
    assert type(again) is type(value) and jax.tree.structure(again) == jax.tree.structure(value)
    for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(value), strict=True):
        assert ours is theirs


def test_partition_splits_by_type():
    """Arrays, NumPy scalars and floats are traced; integers, booleans, strings and functions are static, in their
    places.
    """
    tree = {"a": jnp.ones(2), "b": 3, "c": 0.5, "d": "name", "e": [np.float32(1.5), True, jnp.sin]}
    arrays, static = partition(tree)
    assert [np.shape(leaf) for leaf in arrays] == [(2,), (), ()]
    again = combine([10, 11, 12], static)
    assert again == {"a": 10, "b": 3, "c": 11, "d": "name", "e": [12, True, jnp.sin]}
    assert static == partition(tree | {"a": jnp.zeros(2), "c": 0.7})[1]
    assert static != partition(tree | {"b": 4})[1]
