"""Pytrees whose treedefs name their class, and callables split into arrays and
the rest.
"""

import collections
import copy
import dataclasses
import functools
import gc
import importlib
import itertools
import pickle
import pkgutil
import types
import weakref
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import diffjax
from diffjax import guidance, inverse, predictions, schedules, sde, targets
from diffjax.types import (
    PROGRAMS,
    PartialPytree,
    as_pytree_callable,
    combine,
    compiled,
    partition,
    pytree,
    static_field,
)
from tests.families import SCHEDULES, TARGETS, TOYS, Bare, interior


def values():
    """One value of every registered class that a jitted function may receive."""
    made = {name: make() for name, make in (SCHEDULES | TARGETS).items()}
    made |= {name: make() for name, (make, _) in TOYS.items()}
    made["empirical"] = targets.empirical(np.ones((3, 2)))
    made["energy"] = targets.energy(jnp.sum)
    made["bare"] = Bare(schedules.vp_linear())
    return made


def test_treedefs_of_different_classes_differ():
    """Equal treedefs would let VP run code compiled for sub-VP (same field
    names): trap 1 of the plan.
    """
    by_class = {type(value): value for value in values().values()}
    assert len(by_class) >= 13
    for (first, a), (second, b) in itertools.combinations(by_class.items(), 2):
        assert jax.tree.structure(a) != jax.tree.structure(b), (
            f"{first.__name__} and {second.__name__} share a treedef"
        )


def test_equal_arguments_select_the_class_code_under_jit():
    """VP and sub-VP have the same fields and leaves: one jitted function must
    serve each with its own σ.
    """
    sigma = jax.jit(lambda schedule, t: schedule.sigma(t))
    vp, sub = schedules.vp_linear(), schedules.sub_vp()
    assert jax.tree.leaves(vp) == jax.tree.leaves(sub)
    np.testing.assert_allclose(
        sigma(sub, 0.3), sigma(vp, 0.3) ** 2, rtol=4 * np.finfo(np.float32).eps
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_round_trip_through_jit_and_vmap(name):
    """A schedule that passed through jit, or was stacked and vmapped over,
    states the same σ.
    """
    schedule = SCHEDULES[name]()
    t = interior(schedule)[2]
    through = jax.jit(lambda s: s)(schedule)
    assert type(through) is type(schedule)
    expected = schedule.sigma(t)
    # arrays of the table may have been rounded to float32 on the way: a few ulp of log
    # σ
    rtol = 16 * np.finfo(np.float32).eps
    np.testing.assert_allclose(
        jax.jit(lambda s: s.sigma(t))(through), expected, rtol=rtol
    )
    stacked = jax.tree.map(lambda leaf: jnp.stack([jnp.asarray(leaf)] * 2), schedule)
    np.testing.assert_allclose(
        jax.jit(jax.vmap(lambda s: s.sigma(t)))(stacked),
        [expected, expected],
        rtol=rtol,
    )


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


# ------------------------------------------------------- a callable pytree under jit


def callables():
    """One of each family of callable pytrees, all of which are called as (x, t)."""
    schedule = schedules.vp_linear()
    chain = schedules.from_betas(np.full(8, 0.1))
    target = targets.gaussian_mixture([0.4, 0.6], [[1.5, 0], [-1, 0.5]], [0.4, 0.7])
    exact = targets.denoiser(target, schedule)
    density = lambda x, t: target.noised(schedule, t).log_prob(x)
    operator = inverse.inpainting(np.array([True, False]))
    weight = jnp.array([0.5, 0.7])
    made = {
        "targets.denoiser": exact,
        "schedule.alpha": PartialPytree(_method, ("alpha", schedule), {}),
        "schedules.learned": PartialPytree(
            _method, ("sigma", schedules.learned(jax.random.key(0))), {}
        ),
        "predictions.categorical": predictions.categorical(
            schedule, lambda features, c: weight[0] * features, [-1.0, 1.0]
        ),
        "predictions.variance": predictions.variance(schedule, exact),
        "guidance.classifier": guidance.classifier(schedule, exact, density),
        "guidance.classifier_free": guidance.classifier_free(exact, exact, 2.0),
        "guidance.autoguidance": guidance.autoguidance(exact, exact, weight[0]),
        "guidance.limited": guidance.limited(schedule, exact, exact, (0.1, 0.5)),
        "guidance.static_threshold": guidance.static_threshold(exact),
        "guidance.dynamic_threshold": guidance.dynamic_threshold(exact),
        "inverse.replacement": inverse.replacement(exact, operator, [1.0]),
        "inverse.soft_inpainting": inverse.soft_inpainting(exact, weight, 0.5),
        "inverse.dps": inverse.dps(schedule, exact, operator, [1.0], noise_std=0.3),
        "inverse.pigdm": inverse.pigdm(schedule, exact, operator, [1.0], noise_std=0.3),
        "sde.forward, drift": sde.forward(schedule).drift,
        "sde.reverse, drift": sde.reverse(schedule, exact).drift,
        "sde.reverse, diffusion": sde.reverse(schedule, exact).diffusion,
        "sde.probability_flow": sde.probability_flow(schedule, exact),
        "sde.langevin, drift": sde.langevin(target.log_prob).drift,
        "sde.current_velocity": sde.current_velocity(sde.forward(schedule), density),
        "sde.fokker_planck": sde.fokker_planck(sde.forward(schedule), density),
        "sde.rate_along_flow": sde.rate_along_flow(exact),
        "sde.fokker_planck_residual": sde.fokker_planck_residual(
            sde.forward(schedule), density, 1e-2, 1e-2
        ),
        "a plain function": as_pytree_callable(lambda x, t: weight * x * t),
        "a partial of a closure": as_pytree_callable(
            functools.partial(lambda w, x, t: weight * w * x * t, weight)
        ),
    }
    net = functools.partial(lambda w, x, t: w * x, weight)
    made |= {
        f"predictions.denoiser, {kind}": predictions.denoiser(schedule, net, kind)
        for kind in predictions.KINDS
    }
    made["predictions.denoiser of a chain"] = predictions.denoiser(chain, net, "v")
    views = ("score", "noise", "v", "velocity")
    made |= {
        f"predictions.{n}": getattr(predictions, n)(schedule, exact) for n in views
    }
    return made


def _method(name, schedule, x, t):
    return getattr(schedule, name)(t) * x


@pytest.mark.parametrize("name", callables())
def test_callable_pytrees_are_jitted_as_the_function_itself(name):
    """The program returns what the call returns, for two instances of one class.

    Second differences of step 0.01 magnify the rounding of a density by up to 4/0.01².
    """
    differences = name == "sde.fokker_planck_residual"
    atol = 4 / 0.01**2 * np.finfo(np.float32).eps if differences else 1e-6
    for function in (callables()[name], callables()[name]):
        x = jnp.array([0.3, -0.2])
        np.testing.assert_allclose(
            jax.jit(function)(x, 0.4), function(x, 0.4), rtol=2e-5, atol=atol
        )


def test_every_callable_class_is_hashable_and_compares_without_an_error():
    """With an array in each field, as `jax.jit` compares them in its cache."""
    classes = set()
    for module in pkgutil.walk_packages(diffjax.__path__, "diffjax."):
        members = vars(importlib.import_module(module.name)).values()
        classes |= {c for c in members if isinstance(c, type) and is_pytree_class(c)}
    assert len(classes) > 60
    for cls in classes:
        first, second = filled(cls), filled(cls)
        assert hash(first) == hash(first) and first == first, cls
        assert (first == second) == (not dataclasses.fields(cls)), cls


def is_pytree_class(cls):
    return (
        dataclasses.is_dataclass(cls)
        and getattr(cls.__hash__, "__module__", "") == "diffjax.types.classes"
    )


def filled(cls):
    """An instance with an array in each field, which its constructor might not
    accept.
    """
    value = object.__new__(cls)
    for field in dataclasses.fields(cls):
        object.__setattr__(value, field.name, np.ones(2))
    return value


def test_many_jitted_pytrees_of_arrays_live_side_by_side():
    """The cache of `jax.jit` compares those that share a bucket."""
    apply = [jax.jit(_Scaled(jnp.full(2, float(i)))) for i in range(300)]
    for i, function in enumerate(apply):
        assert jax.eval_shape(function, jnp.ones(2), 0.5).shape == (2,), i


@pytree
class _Scaled:
    """weight · x."""

    weight: Any

    def __call__(self, x, t):
        return self.weight * x


def test_pytrees_of_equal_fields_are_equal_and_those_of_arrays_are_themselves():
    """So that a solver or a program that is kept for one serves the other."""
    assert schedules.vp_linear() == schedules.vp_linear() != schedules.sub_vp()
    assert hash(schedules.vp_linear()) == hash(schedules.vp_linear())
    assert _Scaled(jnp.ones(2)) != _Scaled(jnp.ones(2))
    assert _Scaled(1.0) != 1.0


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
    """Split, jitted and joined again, a callable gives weight · x + t, and new
    weights reuse the compiled code.
    """
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
    assert type(again) is type(value) and jax.tree.structure(
        again
    ) == jax.tree.structure(value)
    for ours, theirs in zip(
        jax.tree.leaves(again), jax.tree.leaves(value), strict=True
    ):
        assert ours is theirs


def test_partition_splits_by_type():
    """Arrays, NumPy scalars and floats are traced.

    Integers, booleans, strings and functions are static, in their places.
    """
    tree = {
        "a": jnp.ones(2),
        "b": 3,
        "c": 0.5,
        "d": "name",
        "e": [np.float32(1.5), True, jnp.sin],
    }
    arrays, static = partition(tree)
    assert [np.shape(leaf) for leaf in arrays] == [(2,), (), ()]
    again = combine([10, 11, 12], static)
    assert again == {"a": 10, "b": 3, "c": 11, "d": "name", "e": [12, True, jnp.sin]}
    assert static == partition(tree | {"a": jnp.zeros(2), "c": 0.7})[1]
    assert static != partition(tree | {"b": 4})[1]


# ----------------------------------------------------------------- closures and objects


class PlainNet:
    """A callable that is no pytree."""

    def __init__(self, weight):
        self.weight = weight

    def __call__(self, x, t):
        return plain(self.weight, x, t)

    def renamed(self, x, t):
        return self(x, t)


@dataclasses.dataclass
class DataclassNet:
    weights: dict

    def __call__(self, x, t):
        return plain(self.weights["w"], x, t)


def closure_of(module):
    return lambda x, t: module(x, t)


def with_default(weight):
    return lambda x, t, weight=weight: plain(weight, x, t)


def through_helper(weight):
    def helper(x):
        return weight * x

    return lambda x, t: helper(x) + t


def twice_through_itself(weight):
    def function(x, t, again=True):
        return function(x, t, again=False) if again else plain(weight, x, t)

    return function


def through_global(weight):
    global GLOBAL_NET
    GLOBAL_NET = NNXAffine(weight)
    return lambda x, t: GLOBAL_NET(x, t)


CAPTURES = {
    "closure": lambda w: lambda x, t: plain(w, x, t),
    "default": with_default,
    "helper": through_helper,
    "itself": twice_through_itself,
    "nnx in a closure": lambda w: closure_of(NNXAffine(w)),
    "equinox in a closure": lambda w: closure_of(Affine(w, "affine")),
    "bound linen in a closure": lambda w: closure_of(
        LINEN.bind({"params": {"weight": w}})
    ),
    "object": PlainNet,
    "method": lambda w: PlainNet(w).renamed,
    "object in an object": lambda w: PlainNet(PlainNet(w).weight),
    "dataclass": lambda w: DataclassNet({"w": w}),
    "namespace": lambda w: (lambda held: lambda x, t: plain(held.w, x, t))(
        types.SimpleNamespace(w=w)
    ),
    "partial of a closure": lambda w: functools.partial(
        lambda c, x, t: plain(w, x, t) + c, 0.0
    ),
    "vmap of a closure": lambda w: lambda x, t: jax.vmap(lambda a, b: a * b + t)(w, x),
    "jit of a closure": lambda w: jax.jit(lambda x, t: plain(w, x, t)),
    "global": through_global,
}


def counted():
    """(apply, traces): a compiled call of any callable, and a list that grows
    with its traces.
    """
    traces = []

    @compiled
    def apply(static, arrays, x):
        traces.append(1)
        return combine(arrays, static)(x, 0.5)

    def call(function, x):
        arrays, static = partition(as_pytree_callable(function))
        return apply(static, arrays, x)

    return call, traces


@pytest.mark.parametrize("name", CAPTURES)
def test_arrays_of_closures_and_objects_are_traced(name):
    """Made anew from one piece of code with other arrays, a callable runs the
    program of the first, on its own.
    """
    call, traces = counted()
    x = np.array([1.0, -2.0], np.float32)
    for weight in (np.array([3.0, 4.0], np.float32), np.array([5.0, 6.0], np.float32)):
        np.testing.assert_array_equal(
            call(CAPTURES[name](jnp.asarray(weight)), x), weight * x + 0.5
        )
    assert len(traces) == 1


def test_arrays_replaced_in_place_are_seen():
    """An attribute, a parameter of an NNX module in a closure and a NumPy
    array changed in place reach the next call.
    """
    call, _ = counted()
    x, first, second = (
        np.ones(2, np.float32),
        np.array([3.0, 4.0], np.float32),
        np.array([5.0, 6.0], np.float32),
    )
    owner, module, constant = (
        PlainNet(jnp.asarray(first)),
        NNXAffine(jnp.asarray(first)),
        first.copy(),
    )
    scale = 1.0
    functions = (
        owner,
        owner.renamed,
        closure_of(module),
        lambda x, t: constant * x + t,
        lambda x, t: scale * first + t,
    )
    for function in functions:
        np.testing.assert_array_equal(call(function, x), first + 0.5)
    owner.weight, constant[:], scale = jnp.asarray(second), second, 2.0
    module.weight[...] = jnp.asarray(second)
    for function in functions[:-1]:
        np.testing.assert_array_equal(call(function, x), second + 0.5)
    np.testing.assert_array_equal(call(functions[-1], x), 2 * first + 0.5)


class JittedNet(PlainNet):
    """Holds its own jitted method, and a method under another name that calls
    itself by it.
    """

    def __init__(self, weight):
        super().__init__(weight)
        self.jitted, self.alias = jax.jit(self.apply), self.recursive

    def apply(self, x, t):
        return plain(self.weight, x, t)

    def recursive(self, x, t, again=True):
        return self.alias(x, t, again=False) if again else plain(self.weight, x, t)


class ClassNet:
    """Its weight is the class's."""

    weight = None

    @classmethod
    def by_class(cls, x, t):
        return plain(cls.weight, x, t)

    @staticmethod
    def by_name(x, t):
        return plain(ClassNet.weight, x, t)


class PrivateNet:
    __slots__ = ("__weight",)

    def replace(self, weight):
        self.__weight = weight

    def __call__(self, x, t):
        return plain(self.__weight, x, t)


def test_state_of_classes_modules_and_containers_is_seen():
    """An array that they hold is compiled in: a replaced one gives another
    program, never the old value.
    """
    module, part = types.ModuleType("settings"), types.ModuleType("settings.part")
    module.part, queue, objects = part, collections.deque([None]), np.array([None])
    private, held = PrivateNet(), JittedNet(None)

    def replace(weight):
        part.weight = queue[0] = objects[0] = ClassNet.weight = held.weight = weight
        private.replace(weight)

    functions = {
        "module": lambda x, t: plain(module.part.weight, x, t),
        "deque": lambda x, t: plain(queue[0], x, t),
        "array of objects": lambda x, t: plain(objects[0], x, t),
        "class method": ClassNet.by_class,
        "static method": ClassNet.by_name,
        "dataclass by its name": lambda x, t: plain(
            DataclassNet({"w": part.weight}).weights["w"], x, t
        ),
        "class by its name": lambda x, t: plain(ClassNet.weight, x, t),
        "private slot": private,
        "its own jitted method": held.jitted,
        "its own method": held.alias,
    }
    call, _ = counted()
    x = np.ones(2, np.float32)
    for value in (3.0, 5.0):
        replace(jnp.full(2, value))
        for name, function in functions.items():
            np.testing.assert_array_equal(
                call(function, x), np.full(2, value + 0.5), err_msg=name
            )


class Settings(NamedTuple):
    static: Any
    count: int


def test_no_program_keeps_what_a_named_tuple_of_settings_held():
    @compiled
    def apply(settings, arrays):
        return combine(arrays, settings.static)(1.0, 0.5) * settings.count

    function = PlainNet(jnp.ones(3))
    arrays, static = partition(as_pytree_callable(function))
    apply(Settings(static, 2), arrays)
    alive = weakref.ref(function)
    del function, arrays, static
    gc.collect()
    assert alive() is None
    assert len(apply._recent) == 1


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64])
def test_numpy_arrays_of_any_dtype_changed_in_place_are_seen(dtype):
    """In a closure, an attribute, an entry of a list, a default, a global:

    JAX alone shows the first contents of an array of 64 bits to a second
    program.
    """
    call, _ = counted()
    x, arrays = np.ones(2, np.float32), [np.array([3, 4], dtype) for _ in range(6)]
    closed, _GLOBALS["weight"] = arrays[0], arrays[1]
    owner = PlainNet(arrays[2])
    owner.parts = [arrays[3]]
    unordered = {1: arrays[5], "a": 0}

    def by_default(x, t, weight=arrays[4]):
        return weight * x + t

    functions = (
        lambda x, t: closed * x + t,
        lambda x, t: _GLOBALS["weight"] * x + t,
        lambda x, t: owner.weight * x + t,
        lambda x, t: owner.parts[0] * x + t,
        lambda x, t: unordered[1] * x + t,
        by_default,
    )
    for values in ([3, 4], [5, 6], [7, 8]):
        for array in arrays:
            array[:] = values
        for function in functions:
            np.testing.assert_array_equal(call(function, x), np.array(values) + 0.5)


_GLOBALS: dict = {}


def test_a_class_whose_array_of_64_bits_is_changed_in_place_is_warned_of():
    """It cannot be exchanged for a copy.

    A new array serves, and one of 32 bits may be changed.
    """

    class Net:
        weight: np.ndarray

        def __call__(self, x, t):
            return self.weight * x + t

    call, _ = counted()
    x = np.ones(2, np.float32)
    for dtype in (np.float64, np.float32):
        Net.weight = np.array([3, 4], dtype)
        np.testing.assert_array_equal(call(Net(), x), [3.5, 4.5])
        Net.weight[:] = 5
        if dtype == np.float64:
            with pytest.warns(
                UserWarning,
                match=(
                    "an array of float64 that a class or a set holds was changed in "
                    "place"
                ),
            ):
                call(Net(), x)
            Net.weight = Net.weight.copy()
        np.testing.assert_array_equal(call(Net(), x), [5.5, 5.5])


def test_a_function_that_counts_its_traces_is_traced_once():
    """A list, a variable or an attribute that tracing itself changes is no
    reason to trace again.
    """
    call, traces = counted()
    seen, count = [], 0

    def function(x, t):
        nonlocal count
        count += 1
        seen.append(x)
        return x + t

    for _ in range(3):
        call(function, np.ones(2, np.float32))
    assert (len(traces), len(seen), count) == (1, 1, 1)


def test_callbacks_reach_the_object_that_was_given():
    """Two equal objects without arrays are two: each gets its own effects."""

    class Log:
        def __init__(self):
            self.times = []

        def __call__(self, x, t):
            jax.debug.callback(lambda t: self.times.append(float(t)), t)
            return x

    call, _ = counted()
    for log in (Log(), Log()):
        call(log, np.ones(2, np.float32))
        jax.effects_barrier()
        assert log.times == [0.5]


def test_programs_of_closures_are_dropped():
    """Of functions that differ in more than arrays, the programs of the last
    `PROGRAMS` are kept, and no array of any.
    """

    @compiled
    def apply(static, arrays):
        return combine(arrays, static)()

    def made(i):
        weight = jnp.full(3, i)
        return (lambda: i * jnp.sum(weight)), weakref.ref(weight)

    alive = []
    for i in range(PROGRAMS + 6):
        function, weight = made(i)
        arrays, static = partition(as_pytree_callable(function))
        assert int(apply(static, arrays)) == 3 * i * i
        alive.append(weight)
        del function, arrays, static
    gc.collect()
    assert apply._cache_size() == PROGRAMS
    assert not any(weight() is not None for weight in alive)


def test_static_values_are_distinguished():
    """0 and False, 1 and 1.0, 0.0 and −0.0 are equal to Python and not to a program."""
    statics = [
        partition(as_pytree_callable(with_default(value)))[1]
        for value in (0, False, 1, 1.0, 0.0, -0.0, True)
    ]
    assert len(set(statics)) == len(statics)


def test_what_cannot_be_taken_apart_is_named():
    with pytest.raises(TypeError, match="reaches more than .* objects"):
        partition(as_pytree_callable(with_default([set() for _ in range(20_001)])))


@pytest.mark.parametrize(
    "make",
    [
        lambda: schedules.vp_linear(),
        lambda: targets.gaussian(jnp.ones(2), 0.5),
        lambda: as_pytree_callable(plain),
    ],
)
def test_every_pytree_can_be_hashed(make):
    """So that jax.jit takes it as the function itself."""
    value = make()
    assert hash(value) == hash(value)


def test_a_denoiser_can_be_jitted():
    schedule = schedules.vp_linear()
    denoiser = targets.denoiser(targets.gaussian(jnp.ones(2), 0.5), schedule)
    x = np.array([0.3, -0.2], np.float32)
    np.testing.assert_allclose(jax.jit(denoiser)(x, 0.5), denoiser(x, 0.5), rtol=1e-6)


def halved(x, t):
    """A network that pickle finds by its name."""
    return 0.5 * x


@pytest.mark.parametrize(
    "again",
    [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_what_holds_a_function_is_copied_and_pickled(again):
    denoiser = predictions.denoiser(schedules.vp_linear(), halved, "v")
    made = jax.tree.map(lambda leaf: leaf, denoiser)  # its function is not made yet
    for value in (denoiser, made):
        assert again(value)(np.ones(2), 0.5) == pytest.approx(denoiser(np.ones(2), 0.5))
