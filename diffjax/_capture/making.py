"""Values made again from their specs, with other arrays in their places."""

import types
from collections.abc import Iterator
from typing import Any

import jax

from .specs import Absent, Spec, exchanged

__all__ = ["restore"]


def restore(spec: Spec, arrays: Iterator[Any]) -> Any:
    """The value that `capture` split, with the next arrays in place of its own."""
    return _restore(spec, arrays, {})


def _restore(spec: Spec, arrays: Iterator[Any], made: dict[int, Any]) -> Any:
    if spec.kind == "array":
        return next(arrays)
    if spec.kind in ("value", "identity", "numpy"):
        return spec.data
    if spec.kind == "constant":
        made[spec.key[0]] = spec.data
        return spec.data
    if spec.kind == "same":
        # A part of a constant was not made here.
        return made.get(spec.key, spec.data)
    number, *key = spec.key
    return _RESTORERS[spec.kind](number, key, arrays, made)


def _restore_function(number, key, arrays, made):
    code, space, name, names, count, specs, _ = key
    cells = tuple(types.CellType() for _ in range(count))
    captured: dict[str, Any] = {}
    namespace = (
        {**space.value}
        if any(exchanged(s) for s in specs[3 + count :])
        else space.value
    )
    made[number] = f = types.FunctionType(code, namespace, name, None, cells or None)
    f.__defaults__, keywords = (
        _restore(specs[0], arrays, made),
        _restore(specs[1], arrays, made),
    )
    f.__kwdefaults__ = None if keywords is None else dict(keywords)
    vars(f).update(_restore(specs[2], arrays, made))
    for cell, spec in zip(cells, specs[3:], strict=False):
        if spec.data is not Absent:
            cell.cell_contents = _restore(spec, arrays, made)
    for entry, spec in zip(names, specs[3 + count :], strict=True):
        captured[entry] = _restore(spec, arrays, made)
    if namespace is not space.value:
        namespace.update(captured)
    return f


class _Later:
    # Stands for a function while its contents are made, which may hold the function, as
    # in `self.f = jax.jit(self.g)`.

    function: Any = None

    def __call__(self, *args, **kwargs):
        return self.function(*args, **kwargs)


def _restore_method(number, key, arrays, made):
    later = made[number] = _Later()
    function, owner = (_restore(spec, arrays, made) for spec in key)
    later.function = made[number] = types.MethodType(function, owner)
    return made[number]


def _restore_partial(number, key, arrays, made):
    kind, *specs = key
    function, args, keywords = (_restore(spec, arrays, made) for spec in specs)
    made[number] = kind(function, *args, **dict(keywords))
    return made[number]


def _restore_jitted(number, key, arrays, made):
    later = made[number] = _Later()
    later.function = made[number] = _restore(key[0], arrays, made)
    return made[number]


def _restore_linen(number, key, arrays, made):
    unbound, variables = key
    made[number] = unbound.bind(_restore(variables, arrays, made))
    return made[number]


def _restore_tree(number, key, arrays, made):
    treedef, specs = key
    made[number] = jax.tree.unflatten(
        treedef, [_restore(spec, arrays, made) for spec in specs]
    )
    return made[number]


def _restore_mapping(number, key, arrays, made):
    keys, specs = key
    made[number] = mapping = {}
    for name, spec in zip(keys, specs, strict=True):
        value = _restore(spec, arrays, made)
        mapping[_restore(name, arrays, made)] = value
    return mapping


def _restore_instance(number, key, arrays, made):
    kind, names, specs, _ = key
    made[number] = value = (
        kind() if kind is types.SimpleNamespace else object.__new__(kind)
    )
    for name, spec in zip(names, specs, strict=True):
        object.__setattr__(value, name, _restore(spec, arrays, made))
    return value


_RESTORERS = {
    "function": _restore_function,
    "method": _restore_method,
    "partial": _restore_partial,
    "jitted": _restore_jitted,
    "linen": _restore_linen,
    "tree": _restore_tree,
    "instance": _restore_instance,
    "mapping": _restore_mapping,
}
