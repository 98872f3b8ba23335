"""Hashable descriptions of values without their arrays."""

from typing import Any

__all__ = ["ARRAY", "Absent", "Identity", "Spec", "exchanged"]


class Spec:
    """A hashable description of a value without its arrays.

    Specs are equal where their keys are.
    """

    __slots__ = ("_hash", "data", "key", "kind")

    def __init__(self, kind: str, key: Any, data: Any = None) -> None:
        self.kind, self.key, self.data = kind, key, data
        self._hash = hash((kind, key))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: Any) -> bool:
        return self is other or (
            isinstance(other, Spec)
            and self._hash == other._hash
            and (self.kind, self.key) == (other.kind, other.key)
        )

    def __repr__(self) -> str:
        return f"<{self.kind}>"


class Identity:
    """A key that is equal for one and the same object only, which it keeps alive."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Identity) and self.value is other.value


class Absent:
    """Stands for a closure cell that is not filled yet."""


ARRAY = Spec("array", None)


def exchanged(spec: Spec) -> bool:
    """Whether `restore` makes a value again, with other arrays."""
    return spec.kind not in ("value", "identity", "constant")
