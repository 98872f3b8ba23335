"""The import rule: every room of diffjax imports only rooms that the plan lists before it.

The sources are parsed, never imported, so that an import in a function or behind a condition counts too.
"""

import ast
import graphlib
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

PLAN = (
    (0, "_capture types checks numerics noise spectral"),
    (1, "schedules"),
    (1, "targets"),
    (1, "quadrature"),
    (2, "grids"),
    (2, "predictions"),
    (2, "langevin"),
    (3, "sde"),
    (3, "networks"),
    (4, "solvers"),
    (5, "losses ddpm ncsn"),
    (5, "energies"),
    (5, "guidance inverse"),
    (5, "sampling likelihood"),
    (6, "flows"),
    (6, "vaes"),
    (6, "metrics divergences tuning"),
    (7, "training"),
    (8, "interop"),
)
"""(rank, rooms), in reading order: a room may import those of lower rank, and those of its own rank before it."""

RANK = {room: rank for rank, rooms in PLAN for room in rooms.split()}
ORDER = {room: i for i, room in enumerate(RANK)}

LIBRARIES = set(sys.stdlib_module_names) - {
    "argparse",
    "optparse",
    "getopt",
    "tkinter",
    "curses",
} | {
    *("jax", "jaxlib", "flax", "optax", "numpy"),
}
"""What any room may import from outside: no plotting, data-set or command-line library."""
LIBRARIES_OF_ROOM = {"training": {"orbax", "grain"}, "interop": {"safetensors"}}


def module_name(path):
    """diffjax/networks/unet.py -> diffjax.networks.unet, diffjax/networks/__init__.py -> diffjax.networks."""
    return ".".join(pathlib.PurePosixPath(path).with_suffix("").parts).removesuffix(
        ".__init__"
    )


def room_of(module):
    """The room that a module of diffjax belongs to; "" for diffjax itself."""
    return module.split(".")[1] if "." in module else ""


def imported(path, source):
    """(line, absolute module, name or None) of each import in `source`, a name for each of `from module import name`.

    Relative names are resolved against `path`; one that leaves the package is given as "..". `importlib.import_module`
    and `__import__` count by their argument, "?" where it is no constant.
    """
    module = module_name(path)
    package = (
        module.split(".") if path.endswith("__init__.py") else module.split(".")[:-1]
    )

    def resolved(level, name):
        if level > len(package):
            return ".."
        return (
            ".".join(package[: len(package) - level + 1] + ([name] if name else []))
            if level
            else name
        )

    for node in ast.walk(ast.parse(source, path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, None
        elif isinstance(node, ast.ImportFrom):
            base = resolved(node.level, node.module)
            for alias in node.names:
                yield node.lineno, base, alias.name
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
            ("import_module", "__import__")
        ):
            name = (
                node.args[0].value
                if node.args and isinstance(node.args[0], ast.Constant)
                else "?"
            )
            level = len(name) - len(name.lstrip("."))
            yield node.lineno, resolved(level, name.lstrip(".")), None


def imports_of_the_whole(path, source):
    """(line, statement) of each `import diffjax…` and `from diffjax import …`, which ask for the package as a whole."""
    for node in ast.walk(ast.parse(source, path)):
        if isinstance(node, ast.Import) and any(
            alias.name.split(".")[0] == "diffjax" for alias in node.names
        ):
            yield node.lineno, "import diffjax"
        elif (
            isinstance(node, ast.ImportFrom)
            and not node.level
            and node.module == "diffjax"
        ):
            yield node.lineno, "from diffjax import"


def target_module(base, name, modules):
    """The module that `from base import name` needs: base.name where that is a module, else base."""
    return base if name is None or f"{base}.{name}" not in modules else f"{base}.{name}"


def violations(sources):
    """Each breach of the rule in `sources`, {path from the checkout's root: text}, as 'path:line: what'."""
    modules = {module_name(path) for path in sources}
    modules |= {f"diffjax.{room}" for room in RANK}
    found, graph = [], {}
    for path, source in sources.items():
        here, room = module_name(path), room_of(module_name(path))
        if room and room not in RANK:
            found.append(f"{path}: room {room!r} has no rank")
            continue
        graph[here] = set()
        for line, base, name in imported(path, source):
            there = target_module(base, name, modules)
            if there.split(".")[0] != "diffjax":
                library = there.split(".")[0]
                if library not in LIBRARIES | LIBRARIES_OF_ROOM.get(
                    room, set()
                ) and not (library == "?" and not room):
                    found.append(
                        f"{path}:{line}: {room or 'diffjax'} may not import {there!r}"
                    )
                continue
            breach = breach_of_order(room, there)
            if breach:
                found.append(f"{path}:{line}: {breach}")
            elif there != here:
                graph[here].add(there)
        found += [
            f"{path}:{line}: {what} inside the package: name the room, relatively"
            for line, what in imports_of_the_whole(path, source)
        ]
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found.append(f"import cycle: {' -> '.join(reversed(error.args[1]))}")
    return found


def breach_of_order(room, there):
    """What is wrong with an import of module `there` in `room` (both in diffjax); None if nothing is."""
    other = room_of(there)
    if not room:
        return "nothing may import interop" if other == "interop" else None
    if not other:
        return f"{room} may not import diffjax itself"
    if other not in RANK:
        return f"{room} may not import {other!r}, which has no rank"
    if other == room:
        return None
    if room == "networks" and RANK[other] > 0:
        return f"networks may import rank 0 only, not {other} (rank {RANK[other]})"
    if room == "solvers" and other == "networks":
        return "solvers may not know networks"
    if ORDER[other] > ORDER[room]:
        return f"{room} (rank {RANK[room]}) may not import {other} (rank {RANK[other]}), which comes after it"
    return None


def test_every_import_in_diffjax_keeps_the_rule():
    paths = sorted((ROOT / "diffjax").rglob("*.py"))
    sources = {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for path in paths
    }
    assert sources
    found = violations(sources)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "path, source",
    [
        (
            "diffjax/checks.py",
            "import jax.numpy as jnp\nfrom collections.abc import Callable",
        ),
        (
            "diffjax/targets.py",
            "from . import checks, schedules\nfrom .types import Array",
        ),
        (
            "diffjax/networks/unet.py",
            "from ..types import Array\nfrom . import mlp\nfrom .embeddings import x",
        ),
        (
            "diffjax/solvers/__init__.py",
            "from .base import integrate\nfrom . import ode",
        ),
        ("diffjax/solvers/ode.py", "from ..sde import SDE\nfrom .. import grids"),
        (
            "diffjax/flows/continuous.py",
            "from ..solvers.base import integrate\nfrom diffjax.solvers.base import Solver",
        ),
        (
            "diffjax/training/checkpoints.py",
            "import orbax.checkpoint as ocp\nimport optax",
        ),
        (
            "diffjax/__init__.py",
            "from . import schedules, solvers\nimportlib.import_module(f'.{name}', __name__)",
        ),
    ],
)
def test_the_rule_allows(path, source):
    assert violations({path: source}) == []


@pytest.mark.parametrize(
    "path, source, message",
    [
        ("diffjax/helpers.py", "", "room 'helpers' has no rank"),
        ("diffjax/extra/deep.py", "", "room 'extra' has no rank"),
        (
            "diffjax/schedules.py",
            "from . import targets",
            "may not import targets (rank 1), which comes after it",
        ),
        (
            "diffjax/schedules.py",
            "from .targets import denoiser",
            "may not import targets",
        ),
        (
            "diffjax/grids.py",
            "def f():\n    from .solvers.ode import euler",
            "grids.py:2: grids (rank 2) may not import sol",
        ),
        (
            "diffjax/grids.py",
            "if TYPE_CHECKING:\n    from .sde import SDE",
            "may not import sde (rank 3)",
        ),
        (
            "diffjax/networks/unet.py",
            "from ..schedules import log_snr",
            "networks may import rank 0 only, not schedules",
        ),
        (
            "diffjax/networks/unet.py",
            "from .. import schedules",
            "networks may import rank 0 only",
        ),
        (
            "diffjax/solvers/ode.py",
            "from ..networks.mlp import MLP",
            "solvers may not know networks",
        ),
        (
            "diffjax/solvers/ode.py",
            "from diffjax.networks.mlp import MLP",
            "solvers may not know networks",
        ),
        (
            "diffjax/losses.py",
            "from diffjax import sde",
            "losses.py:1: from diffjax import inside the package",
        ),
        ("diffjax/losses.py", "import diffjax", "losses may not import diffjax itself"),
        (
            "diffjax/losses.py",
            "import diffjax.sde as sde",
            "losses.py:1: import diffjax inside the package",
        ),
        (
            "diffjax/losses.py",
            "from . import __version__",
            "losses may not import diffjax itself",
        ),
        ("diffjax/losses.py", "from .. import x", "may not import '..'"),
        ("diffjax/losses.py", "from .nowhere import x", "'nowhere', which has no rank"),
        (
            "diffjax/training/data.py",
            "from experiments import score_sde",
            "may not import 'experiments'",
        ),
        (
            "diffjax/metrics.py",
            "import matplotlib.pyplot as plt",
            "may not import 'matplotlib.pyplot'",
        ),
        ("diffjax/metrics.py", "def f():\n    import tqdm", "may not import 'tqdm'"),
        (
            "diffjax/metrics.py",
            "from sklearn.datasets import load_digits",
            "may not import 'sklearn.datasets'",
        ),
        ("diffjax/metrics.py", "import argparse", "may not import 'argparse'"),
        (
            "diffjax/metrics.py",
            "import importlib\nimportlib.import_module('tyro')",
            "metrics.py:2: metrics may not import",
        ),
        ("diffjax/metrics.py", "importlib.import_module(name)", "may not import '?'"),
        (
            "diffjax/metrics.py",
            "import orbax.checkpoint",
            "may not import 'orbax.checkpoint'",
        ),
        ("diffjax/__init__.py", "import torch", "diffjax may not import 'torch'"),
        ("diffjax/__init__.py", "from . import interop", "nothing may import interop"),
        (
            "diffjax/training/state.py",
            "from ..interop import diffusers",
            "may not import interop",
        ),
    ],
)
def test_the_rule_refuses(path, source, message):
    found = violations({path: source})
    assert any(message in line for line in found), found


def test_the_rule_refuses_a_cycle_of_siblings():
    cycle = {
        "diffjax/flows/glow.py": "from . import splines",
        "diffjax/flows/splines.py": "from .glow import Glow",
    }
    assert "import cycle" in violations(cycle)[0]
    through_init = {
        "diffjax/flows/__init__.py": "from .glow import Glow",
        "diffjax/flows/glow.py": "from . import Flow",
    }
    assert "import cycle" in violations(through_init)[0]


def test_import_diffjax_loads_no_library_that_it_does_not_need():
    program = "import sys, diffjax; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    unwanted = {
        "orbax",
        "matplotlib",
        "tqdm",
        "tyro",
        "sklearn",
        "pandas",
        "torch",
        "tensorflow",
        "experiments",
    }
    assert not unwanted & set(run.stdout.split())
