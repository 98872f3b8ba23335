"""The compilation cache of all tests, and float64 on request."""

import ctypes
import gc
import os
import pathlib
import shutil

import pytest

CACHE = pathlib.Path(__file__).parents[1] / ".xla_cache"
CACHE_LIMIT = 2**30

# JAX reads these when it is first imported, and programs started by a test inherit
# them. An entry's key is a digest of the program, the compiler's version and its
# options, so that a hit saves time and changes nothing.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("MPLBACKEND", "agg")

import jax  # noqa: E402


def pytest_configure(config):
    """Empty a cache that outgrew its limit, once, before the workers start."""
    if not hasattr(config, "workerinput") and CACHE.is_dir():
        if sum(entry.stat().st_size for entry in CACHE.iterdir()) > CACHE_LIMIT:
            shutil.rmtree(CACHE)


@pytest.fixture
def x64():
    """Run the test in float64."""
    with jax.enable_x64(True):
        yield


PROCESS = pathlib.Path("/proc/self")
MAPS_LIMIT = 30_000
GROWTH_LIMIT = 3 * 2**30
"""Bytes by which a worker may grow until its compiled programs are dropped."""


def pytest_runtest_teardown(item):
    """Drop compiled programs before they fill the memory, or their memory maps reach
    Linux's limit of 65 530 a process, where XLA crashes.
    """
    stash = item.config.stash
    stash[_RUN] = stash.get(_RUN, 0) + 1
    if stash[_RUN] % 20 or not (PROCESS / "maps").exists():
        return
    grown = _resident() - stash.setdefault(_RESIDENT, _resident())
    maps = (PROCESS / "maps").read_bytes().count(b"\n")
    if maps > MAPS_LIMIT or grown > GROWTH_LIMIT:
        jax.clear_caches()
        gc.collect()
        if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)  # glibc keeps freed memory otherwise
        # What stays belongs to the tests, and is not counted again.
        stash[_RESIDENT] = _resident()


def _resident():
    """Bytes of this process that are in memory."""
    return int((PROCESS / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


_RUN = pytest.StashKey[int]()
_RESIDENT = pytest.StashKey[int]()


@pytest.fixture
def small_blocks(monkeypatch):
    """Metrics visit pairs in several blocks of rows, and a remainder."""
    monkeypatch.setattr("diffjax.metrics.sets.BLOCK", 40)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def checked_reports(request, monkeypatch):
    """After a test of an experiment, the report of each finished run is checked."""
    if not request.module.__name__.rpartition(".")[2].startswith("test_experiments"):
        yield
        return
    from experiments.shared import files
    from tests import reports

    folders, write = {}, files._write_report

    def written():
        write()
        folders[files._run.folder] = [path.name for path in files._run.figures]

    monkeypatch.setattr(files, "_write_report", written)
    yield
    for out, names in folders.items():
        if (out / "metrics.json").exists():
            reports.check(out, names)
