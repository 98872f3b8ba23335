"""The wheel, installed into an empty environment away from the sources."""

import importlib.metadata
import os
import pathlib
import re
import subprocess
import sys
import tomllib
import venv

import pytest

import diffjax
from docs.builder import blocks

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_version_is_stated_alike():
    """In the package, the project, the changelog and both forms of the citation.

    Between two releases it is the next one with ".dev0", so that results of a checkout
    are not taken for those of a release. The citation names the last release.
    """
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    heads = re.findall(r"^## ([\d.]+), (\d{4}-\d\d-\d\d|not released)$", changes, re.M)
    coming = heads[0][0] if heads[0][1] == "not released" else None
    released = next(name for name, date in heads if date != "not released")
    expected = f"{coming}.dev0" if coming else released
    assert diffjax.__version__ == PROJECT["version"] == expected
    assert importlib.metadata.version("diffjax") == diffjax.__version__
    assert f"\nversion: {released}\n" in citation
    bibtex = (ROOT / "docs/pages/project/citing.md").read_text(encoding="utf-8")
    assert f"\n  version = {{{released}}},\n" in bibtex


def run(*command, cwd):
    # A path to the sources in the environment would hide what the wheel lacks.
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=clean,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The interpreter of an environment that holds the wheel and what it requires.

    It needs a package index.
    """
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip")
    run(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
    (wheel,) = folder.glob("diffjax-*.whl")
    venv.create(folder / "env", with_pip=True)
    interpreter = folder / "env" / "bin" / "python"
    run(interpreter, "-m", "pip", "install", "--quiet", wheel, cwd=folder)
    return interpreter


@pytest.mark.slow
def test_the_first_page_runs_from_the_wheel(python, tmp_path):
    """It prints what the page shows. Figures need matplotlib, which it does not."""
    page = (ROOT / "docs" / "pages" / "index.md").read_text(encoding="utf-8")
    shown = [block for block in blocks.blocks(page) if not block.folded]
    (tmp_path / "page.py").write_text("\n".join(block.source for block in shown))
    printed = run(python, "page.py", cwd=tmp_path)
    output = "\n".join(block.output or "" for block in shown)
    assert blocks.difference(printed, output) == ""


@pytest.mark.slow
def test_the_wheel_holds_the_library_alone(python, tmp_path):
    show = "import diffjax; print(diffjax.__file__)"
    where = run(python, "-c", show, cwd=tmp_path).strip()
    assert pathlib.Path(where).is_relative_to(python.parents[1])
    for other in ("experiments", "tests", "docs", "matplotlib", "torch"):
        absent = f"import importlib.util; print(importlib.util.find_spec('{other}'))"
        assert run(python, "-c", absent, cwd=tmp_path).strip() == "None"
    assert (pathlib.Path(where).parent / "py.typed").is_file()
