"""The import rules of diffjax, and its layers, which follow from the imports."""

import ast
import graphlib
import importlib
import pathlib
import subprocess
import sys

import pytest

from docs.builder import modules as builder
from docs.builder.modules import imported, module_name, target_module
from docs.builder.modules import top_level as room_of

ROOT = pathlib.Path(__file__).parents[1]

ROOMS = {
    path.stem
    for path in (ROOT / "diffjax").iterdir()
    if path.suffix == ".py" or (path / "__init__.py").exists()
} - {"__init__"}
"""Modules and packages of diffjax."""

ONLY = {"networks": {"_capture", "types", "checks", "numerics"}}
"""Rooms that import nothing but these."""

FORBIDDEN = {("solvers", "networks")}
"""(room, room) pairs of which the first does not import the second."""

LIBRARIES = set(sys.stdlib_module_names) - {
    "argparse",
    "optparse",
    "getopt",
    "tkinter",
    "curses",
} | {
    *("jax", "jaxlib", "flax", "optax", "numpy"),
}
"""Libraries that any room may import: no plotting, data-set or command-line
library.
"""
LIBRARIES_OF_ROOM = {
    "training": {"orbax", "grain", "PIL"},
    "interop": {"safetensors", "torch"},
}


def imports_of_the_whole(path, source):
    """(line, statement) of each `import diffjax…` and `from diffjax import …`,
    which import the package as a whole.
    """
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


def violations(sources):
    """Each breach of the rules in `sources`, {path from the root: text}, as text."""
    modules = {module_name(path) for path in sources}
    modules |= {f"diffjax.{room}" for room in ROOMS}
    breaches, files, rooms = [], {}, {}
    for path, source in sources.items():
        here, room = module_name(path), room_of(module_name(path))
        files[here] = set()
        rooms.setdefault(room, set())
        for line, base, name in imported(path, source):
            there = target_module(base, name, modules)
            if there.split(".")[0] != "diffjax":
                library = there.split(".")[0]
                known = LIBRARIES | LIBRARIES_OF_ROOM.get(room, set())
                if library not in known and not (library == "?" and not room):
                    breaches.append(
                        f"{path}:{line}: {room or 'diffjax'} may not import {there!r}"
                    )
                continue
            other = room_of(there)
            if breach := breach_of_rooms(room, other):
                breaches.append(f"{path}:{line}: {breach}")
            if there != here:
                files[here].add(there)
            if other != room:
                rooms[room].add(other)
        breaches += [
            f"{path}:{line}: {statement} inside the package: name the room, relatively"
            for line, statement in imports_of_the_whole(path, source)
        ]
    for kind, graph in (("modules", files), ("rooms", rooms)):
        try:
            graphlib.TopologicalSorter(graph).prepare()
        except graphlib.CycleError as error:
            breaches.append(f"circle of {kind}: {' -> '.join(reversed(error.args[1]))}")
    return breaches


def breach_of_rooms(room, other):
    """The rule that an import of room `other` in `room` breaks, or None.

    "" is diffjax itself, which may import every room but interop.
    """
    if other == "interop" != room:
        return "nothing may import interop"
    if not room or other == room:
        return None
    if not other:
        return f"{room} may not import diffjax itself"
    if other not in ROOMS:
        return f"{room} may not import {other!r}, which does not exist"
    if room in ONLY and other not in ONLY[room]:
        return f"{room} may import {', '.join(sorted(ONLY[room]))} only, not {other}"
    if (room, other) in FORBIDDEN:
        return f"{room} may not import {other}"
    return None


def test_every_import_in_diffjax_keeps_the_rules():
    sources = builder.sources()
    assert sources
    breaches = violations(sources)
    assert not breaches, "\n".join(breaches)


def test_layers_follow_from_the_imports():
    """A module imports modules of lower layers alone."""
    imports = builder.imports()
    computed = builder.layers(imports)
    assert computed.keys() == ROOMS
    for module, others in imports.items():
        assert all(computed[other] < computed[module] for other in others)
    assert computed["checks"] < computed["schedules"] < computed["solvers"]
    assert computed["solvers"] < computed["sampling"]
    assert computed["likelihood"] < computed["flows"]
    small = {
        "diffjax/__init__.py": "from . import a",
        "diffjax/a.py": "from . import b, c",
        "diffjax/b.py": "from .c import x",
        "diffjax/c.py": "import jax",
    }
    graph = builder.imports(small)
    assert graph == {"a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert builder.layers(graph) == {"c": 0, "b": 1, "a": 2}


@pytest.mark.parametrize(
    "path, source",
    [
        (
            "diffjax/checks/numbers.py",
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
            (
                "from ..solvers.base import integrate\nfrom diffjax.solvers.base "
                "import Solver"
            ),
        ),
        (
            "diffjax/training/checkpoints.py",
            "import orbax.checkpoint as ocp\nimport optax",
        ),
        (
            "diffjax/interop/weights.py",
            "from .. import checks\nimportlib.import_module('torch')",
        ),
        (
            "diffjax/__init__.py",
            (
                "from . import schedules, solvers\nimportlib.import_module(f'.{name}', "
                "__name__)"
            ),
        ),
    ],
)
def test_other_imports_are_allowed(path, source):
    assert violations({path: source}) == []


@pytest.mark.parametrize(
    "path, source, message",
    [
        (
            "diffjax/networks/unet.py",
            "from ..schedules import log_snr",
            "networks may import _capture, checks, numerics, types only",
        ),
        (
            "diffjax/networks/unet.py",
            "from .. import schedules",
            "only, not schedules",
        ),
        (
            "diffjax/solvers/ode.py",
            "from ..networks.mlp import MLP",
            "solvers may not import networks",
        ),
        (
            "diffjax/solvers/ode.py",
            "from diffjax.networks.mlp import MLP",
            "solvers may not import networks",
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
        (
            "diffjax/losses.py",
            "from .nowhere import x",
            "'nowhere', which does not exist",
        ),
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
            "nothing may import interop",
        ),
    ],
)
def test_breaches_are_reported(path, source, message):
    breaches = violations({path: source})
    assert any(message in line for line in breaches), breaches


def test_circles_are_reported():
    cycle = {
        "diffjax/flows/glow.py": "from . import splines",
        "diffjax/flows/splines.py": "from .glow import Glow",
    }
    assert "circle of modules" in violations(cycle)[0]
    through_init = {
        "diffjax/flows/__init__.py": "from .glow import Glow",
        "diffjax/flows/glow.py": "from . import Flow",
    }
    assert "circle of modules" in violations(through_init)[0]
    rooms = {
        "diffjax/flows/glow.py": "from ..metrics import frechet",
        "diffjax/metrics.py": "from .flows import density",
        "diffjax/flows/density.py": "",
    }
    assert violations(rooms) == ["circle of rooms: flows -> metrics -> flows"]


def test_import_diffjax_loads_no_library_that_it_does_not_need():
    program = (
        "import sys, diffjax; print(*sorted({name.split('.')[0] for name in "
        "sys.modules}))"
    )
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


def test_no_test_imports_a_test_module():
    """Shared members stand in modules of their own, imported under one name."""
    shared = {path.stem for path in (ROOT / "tests").glob("*.py")}
    imports = [
        f"{path.name}: {base}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for _, base, name in imported(f"tests/{path.name}", path.read_text("utf-8"))
        if base.startswith("tests.test_")
        or (base == "tests" and str(name).startswith("test_"))
        or base in shared
    ]
    assert not imports


@pytest.mark.parametrize("room", sorted(ROOMS - {"_capture"}))
def test_tab_completion_shows_public_names_alone(room):
    module = importlib.import_module(f"diffjax.{room}")
    assert dir(module) == sorted(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)
