"""The report that every run leaves: one HTML page that holds all of it.

Each test of an experiment also checks its report, by `checked_reports` of conftest.
"""

import ast
import dataclasses
import json
import math
import os
import pathlib
import re
import sys

import numpy as np
import pytest

from experiments.kl_directions.__main__ import Config
from experiments.shared import devices, figures, files, html_report, strict_json
from tests import reports

ROOT = pathlib.Path(__file__).parents[1]
MAINS = sorted((ROOT / "experiments").glob("*/__main__.py"))

HOSTILE = "<script>alert(1)</script>\"'&<img src=http://example.org onerror=x>"


def calls(path):
    """Names of the functions that a module calls, with the text of their calls."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func).rpartition(".")[2], ast.unparse(node)


@pytest.mark.parametrize("main", MAINS, ids=lambda path: path.parent.name)
def test_every_experiment_writes_its_results_with_a_report(main):
    assert "write_results" in dict(calls(main))
    for path in main.parent.rglob("*.py"):
        for name, call in calls(path):
            other = name in ("write_json", "write_text", "dump")
            assert not (other and "metrics.json" in call), call
            assert name != "savefig" or path.parent.name == "certify", call


@pytest.mark.parametrize("main", MAINS, ids=lambda path: path.parent.name)
def test_every_docstring_starts_with_a_question(main):
    question = html_report.paragraphs(files._document(main.parent.name))[0]
    assert question.endswith("?") or main.parent.name == "train"


def units_of(document):
    """The paragraph of a docstring that gives the units of the results."""
    (text,) = (p for p in html_report.paragraphs(document) if p.startswith("Units:"))
    return text


def modules_of(main):
    """The modules of an experiment, and the shared ones that they import."""
    shared = {path.stem: path for path in (ROOT / "experiments/shared").glob("*.py")}
    for path in main.parent.glob("*.py"):
        yield path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                above, _, last = node.module.rpartition(".")
                if node.module == "experiments.shared":
                    yield from (shared[a.name] for a in node.names if a.name in shared)
                elif above == "experiments.shared" and last in shared:
                    yield shared[last]


def texts_of(path):
    """Texts of one word, fields, and f-strings with <> for what they insert."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case (
                ast.Constant(value=str(text)) | ast.AnnAssign(target=ast.Name(id=text))
            ):
                yield text
            case ast.JoinedStr(values=parts):
                yield "".join(
                    getattr(part, "value", "")
                    if isinstance(part, ast.Constant)
                    else "<>"
                    for part in parts
                )


def is_result(name, texts):
    """Whether code with these texts may give a result this name, or one that has it
    between underscores. A <word> in it stands for any text.
    """
    name = re.sub(r"<\w+>", "<>", name)
    words = (text for text in texts if re.fullmatch(r"[\w<>]+", text))
    return any(
        f"_{name}_" in f"_{text}_"
        or (
            re.search("[a-z]{3}", text)
            and re.fullmatch(text.replace("<>", r"[\w<>]+"), name)
        )
        for text in words
    )


@pytest.mark.parametrize("main", MAINS, ids=lambda path: path.parent.name)
def test_every_docstring_gives_the_units_of_its_results(main):
    document = files._document(main.parent.name)
    units = units_of(document)
    lines = document[document.index("\nUnits:") :].strip().split("\n\n")[0]
    assert len(lines.split("\n")) <= 5
    assert document.index("Units:") < document.index("Hardware and time:")
    texts = {text for path in modules_of(main) for text in texts_of(path)}
    names = re.findall("`([^`]+)`", units)
    assert names and not [name for name in names if not is_result(name, texts)]


def test_units_of_other_names_are_found_out():
    main = ROOT / "experiments/score_sde/__main__.py"
    texts = {text for path in modules_of(main) for text in texts_of(path)}
    for name in ("seconds_<part>", "frechet_distance_<set>", "test_bits_per_dim"):
        assert is_result(name, texts), name
    for name in ("second_<part>", "frechet_distances_<set>", "kl_p_q", "its_per_dim"):
        assert not is_result(name, texts), name


def make_run(out, results, *, title="Errors", **settings):
    """A run of one figure before and one after its results."""
    files.start(Config(out=out))
    for name in ("pictures.png", "other.png"):
        figure, axis = figures.plt.subplots(figsize=(2, 1))
        axis.set(title=title, xlabel="steps", ylabel="error, nats")
        figures.save_figure(figure, out / name)
        if name == "pictures.png":
            files.write_results(out, results, **settings)
    return reports.check(out, ["pictures.png", "other.png"])


def test_a_report_shows_question_flags_versions_and_device(tmp_path, monkeypatch):
    spec = dataclasses.make_dataclass("Spec", ["name"])
    monkeypatch.setattr(
        sys.modules["__main__"], "__spec__", spec("experiments.kl_directions.__main__")
    )
    monkeypatch.setattr(sys, "argv", ["x", "--out", "a b"])
    page = make_run(tmp_path, {"kl": 0.5})
    for text in (
        "Which Gaussian is nearest to a density of two modes",
        "python -m experiments.kl_directions --out 'a b'",
        "Expect on the line with the defaults",
        "Units\nkl, kl_p_q, kl_q_p, jensen_shannon",  # the heading and its paragraph
        "The three optima over p",  # the docstring's words on pictures.png
        "separation",
        f"1 × cpu ({devices.name()})",
        *("jaxlib", "flax", "diffjax", "platform", "ran for", " UTC"),
    ):
        assert text in page.text, text
    assert page.of("img")[0]["alt"] == "Errors; error, nats over steps"
    assert "not finished" not in page.text


def test_arrays_pairs_and_groups_are_tables(tmp_path):
    flow = {"gap": 0.01234, "standard_error": 0.0056, "curve": [{"step": 1, "nll": 2}]}
    results = {
        "bits": 1.65234,
        "bits_standard_error": 0.0124,
        "lost": math.nan,
        "far": -math.inf,
        "none": None,
        "count": 1234567,
        "tiny": 1.23456e-7,
        "curve": np.linspace(0, 1, 100),
        "empty": {},
        "rms": {"1": 0.5, "2": 0.25},
        "rms_standard_error": {"1": 0.01, "2": 0.02},
        "flows": {"maf": flow, "spline": flow | {"gap": -0.5, "extra": 3}},
        "grid": {"up": [{"x": 1.0}], "down": [{"x": 2.0}, {"x": 3.0}]},
        "matrix": [[1.5, 2.5], [3.5, math.nan]],
        "ragged": [[1.0], [2.0, 3.0]] * 4,
        "deep": {"a": {"b": {"c": {"d": 7}}}},
    }
    page = make_run(tmp_path, results)
    for text in (
        *("1.652 ± 0.012", "NaN", "−∞", "1234567", "1.235e−7", "0.500 ± 0.010"),
        *("0.0123 ± 0.0056", "−0.5000 ± 0.0056", "[1.5, 2.5], [3.5, NaN]"),
        "100 numbers from 0 to 1, mean 0.5",
        *("flows › curve", "b c d"),
    ):
        assert text in page.text, text
    heads = [th for th in page.of("th") if "scope" not in th]
    assert page.of("details") and not heads


@pytest.mark.parametrize(
    "value, error, shown",
    [
        (1.65234, 0.0124, "1.652 ± 0.012"),
        (31.5, 0.0996, "31.50 ± 0.10"),
        (1234.5, 120.0, "1234 ± 120"),
        (0.5, math.nan, "0.5 ± NaN"),
        (math.nan, 0.1, "NaN ± 0.1"),
        (2, 0.0, "2 ± 0"),
        (3e-9, 1e-10, "3e−9 ± 1e−10"),
    ],
)
def test_a_number_ends_with_the_digits_of_its_error(value, error, shown):
    assert html_report.with_error(value, error) == shown


def test_hostile_texts_stay_texts(tmp_path):
    results = {HOSTILE: HOSTILE, "rows": [{HOSTILE: HOSTILE}], "list": [HOSTILE] * 9}
    results |= {"group": {HOSTILE: {HOSTILE: 1}, "b": {HOSTILE: 2}}}
    page = make_run(tmp_path, results, title=HOSTILE)
    assert page.text.count(HOSTILE) > 10
    assert len(page.of("img")) == 2


def test_a_run_that_goes_on_says_so(tmp_path):
    """A run cut short leaves a whole page, and one that resumes names its past."""
    assert (
        "The run is not finished" in make_run(tmp_path, {"a": 1}, finished=False).text
    )
    assert "The run is not finished" not in make_run(tmp_path, {"a": 1}).text
    (tmp_path / "b" / "checkpoints").mkdir(parents=True)
    files.open_folder(Config(out=tmp_path / "b"))
    files.write_results(tmp_path / "b", {"a": 1})
    assert "checkpoints of an earlier one" in reports.check(tmp_path / "b").text


def test_a_report_is_whole_at_each_moment(tmp_path, monkeypatch):
    """Killed while it writes, a run leaves the report before."""
    make_run(tmp_path, {"a": 1})
    before = (tmp_path / "report.html").read_text()

    def killed(source, target):
        if str(target).endswith(".html"):
            raise KeyboardInterrupt
        rename(source, target)

    rename = os.replace
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        files.write_results(tmp_path, {"a": 2})
    assert (tmp_path / "report.html").read_text() == before
    with files.locks():  # as at the next start
        files.open_folder(Config(out=tmp_path))
        assert not list(tmp_path.glob(".report*"))
    files.write_results(tmp_path, {"a": 3})


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "is_first", lambda: False)
    files.write_results(tmp_path, {"a": 1})
    figures.save_figure(figures.plt.figure(), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_figures_of_other_folders_and_lost_ones_are_left_out(tmp_path):
    make_run(tmp_path / "a", {"a": 1})
    (tmp_path / "a" / "other.png").unlink()
    figures.save_figure(figures.plt.figure(), tmp_path / "b.png")
    files.write_results(tmp_path / "a", {"a": 2})
    page = reports.Page((tmp_path / "a" / "report.html").read_text())
    assert len(page.of("img")) == 1
    make_run(tmp_path / "a", {"a": 3})  # for the check at the end


def test_results_of_no_opened_folder_have_a_report(tmp_path):
    files.write_results(tmp_path, {"a": 1})
    assert "called from Python" in reports.check(tmp_path).text
    assert json.loads((tmp_path / "metrics.json").read_text())["a"] == 1


def test_metrics_are_strict_json_and_the_report_shows_what_json_lacks(tmp_path):
    """NaN and infinities are texts in the file, and numbers again where it is read."""
    values = {"lost": math.nan, "kl": [math.inf, -math.inf], "loss": np.float32(0.5)}
    files.write_results(tmp_path, values)

    def reject(name):
        raise AssertionError(name)

    text = (tmp_path / "metrics.json").read_text()
    stored = json.loads(text, parse_constant=reject)
    assert stored["lost"] == "NaN" and stored["kl"] == ["Infinity", "-Infinity"]
    read = strict_json.loads(text)
    assert math.isnan(read["lost"]) and read["kl"] == [math.inf, -math.inf]
    assert read["loss"] == 0.5
    page = reports.check(tmp_path)
    assert "NaN" in page.text and "∞" in page.text
    for value in ({1}, 1j, object(), b"a"):
        with pytest.raises(TypeError, match="JSON has no"):
            strict_json.dumps({"a": value})


def test_rows_without_entries_are_shown_as_none(tmp_path):
    files.write_results(tmp_path, {"rows": [{}], "a": 9999.5})
    assert "10000" in reports.check(tmp_path).text


def test_a_second_run_begins_without_the_results_of_the_first(tmp_path):
    """Killed at once, it leaves no results that its flags did not give."""
    config = Config(out=tmp_path)
    files.start(config)
    files.write_results(tmp_path, {"a": 1})
    files.start(dataclasses.replace(config, separation=2.0))
    assert {path.name for path in tmp_path.iterdir()} == {"config.json"}
    files.write_results(tmp_path, {"a": 2})  # for the check at the end
