"""XLA's options for programs that take longer to compile than to run.

`python -m tests.quick` prints them as flags for XLA_FLAGS.
"""

import functools

import jax
import jax.numpy as jnp

__all__ = ["options"]

WANTED = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_parallel_codegen_split_count": 1,
    # jaxlib 0.12 has it no more.
    "xla_cpu_use_fusion_emitters": False,
}


@functools.cache
def options() -> dict[str, bool | int]:
    """The wanted options that this jaxlib has. XLA raises an error for any other."""
    return {name: value for name, value in WANTED.items() if _is_known(name, value)}


def _is_known(name, value):
    lowered = jax.jit(jnp.negative).lower(jax.ShapeDtypeStruct((), jnp.float32))
    try:
        lowered.compile(compiler_options={name: value})
    except jax.errors.JaxRuntimeError:
        return False
    return True


if __name__ == "__main__":
    print(*(f"--{name}={str(value).lower()}" for name, value in options().items()))
