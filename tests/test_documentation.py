"""Docstrings, their examples, the Python of the pages, and the words of all text."""

import ast
import doctest
import importlib
import pathlib
import re
import subprocess
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from docs.builder import api, blocks, gallery, modules, references, running
from tests import prose

ROOT = pathlib.Path(__file__).parents[1]


def is_public(name):
    return not name.startswith("_")


def methods(node):
    return [
        entry
        for entry in node.body
        if isinstance(entry, ast.FunctionDef) and is_public(entry.name)
    ]


def undocumented(sources):
    """'module:line name' of each public name without a docstring in `sources`,
    {path: text}.

    Public are modules, and in them functions, classes and their methods. A
    method that takes the place of a documented one of a base class in
    `sources` has that one's docstring, and an overload that of its
    implementation.
    """
    trees = {path: ast.parse(text, path) for path, text in sources.items()}
    classes = {
        c.name: c
        for tree in trees.values()
        for c in tree.body
        if isinstance(c, ast.ClassDef)
    }

    def inherits_docstring(node, name):
        bases = [
            classes[base]
            for base in (ast.unparse(b).split(".")[-1] for b in node.bases)
            if base in classes
        ]
        return any(
            any(m.name == name and ast.get_docstring(m) for m in methods(base))
            or inherits_docstring(base, name)
            for base in bases
        )

    for path, tree in trees.items():
        parts = pathlib.PurePosixPath(path).with_suffix("").parts
        if not all(is_public(part) or part == "__init__" for part in parts):
            continue
        if not ast.get_docstring(tree):
            yield f"{path}:1 module"
        for node in tree.body:
            if (
                not isinstance(node, ast.FunctionDef | ast.ClassDef)
                or not is_public(node.name)
                or is_overload(node)
            ):
                continue
            if not ast.get_docstring(node):
                yield f"{path}:{node.lineno} {node.name}"
            for method in methods(node) if isinstance(node, ast.ClassDef) else []:
                if not (
                    ast.get_docstring(method)
                    or inherits_docstring(node, method.name)
                    or is_overload(method)
                ):
                    yield f"{path}:{method.lineno} {node.name}.{method.name}"


def is_overload(node):
    return any(
        ast.unparse(decorator).endswith(("overload", ".setter"))
        for decorator in node.decorator_list
    )


def test_every_public_name_has_a_docstring():
    paths = sorted((ROOT / "diffjax").rglob("*.py"))
    assert not list(
        undocumented(
            {
                p.relative_to(ROOT).as_posix(): p.read_text(encoding="utf-8")
                for p in paths
            }
        )
    )


def test_a_missing_docstring_is_found():
    source = '''
class Base:
    """A base."""
    def a(self):
        """Documented."""
    def b(self): ...

class Derived(Base):
    def a(self): ...
    def b(self): ...

def f(): ...
def _private(): ...
'''
    expected = [
        "m.py:1 module",
        "m.py:6 Base.b",
        "m.py:8 Derived",
        "m.py:10 Derived.b",
        "m.py:12 f",
    ]
    assert list(undocumented({"m.py": source})) == expected


PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs" / "pages").rglob("*.md"))]
}
"""The README and the pages of the site."""

RUN = [
    pytest.param(
        page, id=page, marks=[pytest.mark.slow] if "\nslow: true\n" in text else []
    )
    for page, text in PAGES.items()
    if blocks.blocks(text)
]
"""Pages with Python."""


def test_pages_with_python_are_found():
    assert {"README.md", "docs/pages/index.md"} <= {page.values[0] for page in RUN}


@pytest.mark.parametrize("page", RUN)
def test_a_page_prints_what_it_shows(page, tmp_path):
    """Its code runs, prints the shown output, and supports the numbers of its prose."""
    outcome = blocks.run(PAGES[page], page, tmp_path)
    assert not outcome.faults, "\n".join(outcome.faults)
    if page.startswith(tuple(f"docs/pages/{folder}/" for folder in blocks.CHECKED)):
        assert not blocks.unsupported(PAGES[page], outcome.printed)
    images = re.findall(r"!\[[^\]]*\]\(([^)/]+)\)", PAGES[page])
    assert {image for image in images if not (tmp_path / image).exists()} == set()


@pytest.mark.parametrize("page", PAGES)
def test_all_python_of_a_page_is_found(page):
    assert not blocks.misread(PAGES[page], page)


@pytest.mark.parametrize("page", PAGES)
def test_names_and_paths_in_backquotes_exist(page):
    text = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    for paragraph in re.split(r"\n\s*\n", text):
        for code in re.findall(r"`([^`]+)`", paragraph):
            references.check(" ".join(code.split()))


@pytest.mark.parametrize(
    "code",
    [
        "dj.nosuch.thing",
        "help(dj.solvers.nosuch)",
        "diffjax.solvers.nosuch",
        "dj.sample.nosuch",
        "dj.schedules.Schedule.nosuch",
        "grids.karas(3)",
        "interop.nosuch",
        "grids.to_zero(grids.karas(schedule, 3))",
        "tests/test_grids.py::",
        "tests/test_grids.py::nosuch",
        "python tests/nosuch.py",
        "docs/builder/nosuch.py",
        "experiments/nosuch/",
        "tests/nosuch_*.py",
    ],
)
def test_a_name_or_a_path_that_does_not_exist_is_found(code):
    with pytest.raises(ValueError, match="nosuch|karas|test_grids"):
        references.check(code)


@pytest.mark.parametrize(
    "code",
    [
        "dj.sample(key, …).nosuch",
        "help(dj.solvers.affine.multistep)",
        "dj.schedules.Schedule.alpha",
        "interop.diffusers",
        "grids.karras(schedule, 8)",
        "noise.png",
        "optax.losses.nosuch",
        "flow.sample(key)",
        "tests/test_grids.py",
        "tests/test_*.py",
        "experiments/NAME/model.py",
        "docs/site/index.html",
    ],
)
def test_names_and_paths_that_exist_pass(code):
    references.check(code)


def test_the_readme_is_short():
    """At most 1500 words, and no cell of a table over 120 characters."""
    assert len(PAGES["README.md"].split()) <= 1500
    cells = [
        cell.strip()
        for line in PAGES["README.md"].splitlines()
        if line.startswith("|")
        for cell in line.strip("|").split("|")
    ]
    assert max(map(len, cells)) <= 120


def slug(heading):
    """Anchor of a heading, as the site and hosts of Git make it."""
    plain = re.sub(r"[^\w\- ]", "", heading.lower())
    return re.sub(r"[ -]+", "-", plain).strip("-")


def test_links_of_the_pages_lead_somewhere():
    for page, text in PAGES.items():
        plain = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        for image, target in re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)", plain):
            name, _, anchor = target.partition("#")
            made_by_the_site = (image and "/" not in name) or "api/" in name
            if re.match(r"\w+:", name) or made_by_the_site:
                continue
            path = (ROOT / page).parent / name if name else ROOT / page
            assert path.exists(), f"{page}: {target}"
            if anchor:
                text_there = path.read_text(encoding="utf-8")
                headings = re.findall(r"^#+ (.*)$", text_there, re.MULTILINE)
                assert anchor in map(slug, headings), f"{page}: {target}"


def test_the_gallery_has_every_experiment():
    folders = {p.parent.name for p in (ROOT / "experiments").glob("*/__main__.py")}
    assert {card.name for card in gallery.cards(PAGES["README.md"])} == folders


def test_the_api_has_every_public_module_and_every_exported_name():
    """Of names that `diffjax` exports, those that are no modules are `dj.NAME`."""
    listed = {
        entry.short
        for topic in api.TOPICS
        for name in topic.modules
        for entry in api.entries(name)
    }
    pages = {name for topic in api.TOPICS for name in topic.modules}
    public = {name for name in modules.imports() if is_public(name)}
    assert {f"diffjax.{name}" for name in public} <= pages
    assert {f"dj.{name}" for name in set(dj.__all__) - public} <= listed


MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "diffjax").rglob("*.py"))
    if ">>>" in path.read_text(encoding="utf-8")
]
"""Modules with examples in their docstrings."""


@pytest.fixture(scope="module")
def names():
    """Names that an `Example:` may use without defining them."""
    schedule = dj.schedules.vp_linear()
    target = dj.targets.gaussian_mixture(
        [0.4, 0.6], [[1.5, 0.0], [-1.0, 0.5]], [0.4, 0.7]
    )
    return {
        "dj": dj,
        "jax": jax,
        "jnp": jnp,
        "np": np,
        "key": jax.random.key(0),
        "schedule": schedule,
        "target": target,
        "denoiser": dj.targets.denoiser(target, schedule),
        "grid": dj.grids.karras(schedule, 8),
    }


def run_examples(text, names, name="example"):
    """The report of doctest on the `>>>` lines in `text`, empty where all pass."""
    said = []
    parsed = doctest.DocTestParser().get_doctest(text, dict(names), name, None, 0)
    flags = doctest.NORMALIZE_WHITESPACE
    # By default it is verbose where the command line has -v, as of pytest.
    runner = doctest.DocTestRunner(verbose=False, optionflags=flags)
    assert runner.run(parsed, out=said.append).attempted == len(parsed.examples) > 0
    return "".join(said)


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_of_docstrings_run(module, names, tmp_path, monkeypatch):
    """Each docstring runs in a namespace of its own, with the names of `names`.

    Files go to an empty folder.
    """
    monkeypatch.chdir(tmp_path)
    tree = ast.parse(
        pathlib.Path(importlib.import_module(module).__file__).read_text(
            encoding="utf-8"
        )
    )
    documented = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
    ]
    texts = [
        (getattr(node, "name", module), ast.get_docstring(node) or "")
        for node in documented
    ]
    examples = [(name, text) for name, text in texts if ">>>" in text]
    assert examples and all("Example:" in text for _, text in examples)
    failed = [
        f"{name}:\n{said}"
        for name, text in examples
        if (said := run_examples(text, names, name))
    ]
    assert not failed, "\n".join(failed)


def test_an_example_that_prints_something_else_or_raises_is_found():
    assert not run_examples("Example:\n  >>> 1 + 1\n  2\n", {})
    assert "Expected:" in run_examples("Example:\n  >>> 1 + 1\n  3\n", {})
    assert "NameError" in run_examples("Example:\n  >>> x = undefined\n", {})


@pytest.mark.parametrize(
    "function, shown",
    [
        (
            dj.schedules.rescale_zero_terminal_snr,
            "rescale_zero_terminal_snr(dj.ddpm.linear_betas",
        ),
        (dj.schedules.index_of_time, "index_of_time(chain"),
        (dj.schedules.Schedule, "@dataclasses.dataclass"),
        (dj.predictions.denoiser, 'inputs="zero_index"'),
        (dj.predictions.denoiser, "jax.jit(denoiser)"),
        (dj.targets.denoiser, "jax.jit(denoiser)"),
        (dj.solvers.start, "dj.solvers.start("),
        (dj.solvers.advance, "steps=2"),
        (dj.solvers.integrate, "noise=z"),
        (dj.solvers.edm_stochastic, "noise_scale=0.0"),
        (dj.sample, "noise=noise"),
        (dj.sample_many, "noise=noise"),
        (dj.log_prob, "chunk=1"),
        (dj.grids.strength, "x_init=x"),
        (dj.grids.beta, "dj.grids.beta("),
        (dj.grids.shifted, "dj.grids.shifted("),
        (dj.grids.angular, "dj.grids.angular("),
        (dj.grids.recommended, "dj.grids.recommended("),
        (dj.inverse.soft_inpainting, "dj.inverse.soft_inpainting("),
        (dj.inverse.trust_mask, "dj.inverse.trust_mask("),
        (dj.inverse.release_mask, "dj.inverse.release_mask("),
    ],
)
def test_main_options_have_an_example(function, shown):
    lines = doctest.DocTestParser().get_examples(function.__doc__)
    assert any(shown in line.source for line in lines)


def test_blocks_are_found_with_their_lines_and_outputs():
    text = (
        "a\n```python\nx = 1\n```\n```sh\nls\n```\n```python continued figure\nx\n"
        "```\n\n```text\n1\n```\n```python\ny\n```\n"
    )
    found_blocks = [
        (b.line, b.source, b.output, b.continued, b.folded) for b in blocks.blocks(text)
    ]
    assert found_blocks == [
        (3, "x = 1\n", None, False, False),
        (9, "x\n", "1\n", True, True),
        (16, "y\n", None, False, False),
    ]


PAGE = "```python\n{}\n```\n\n```text\n{}\n```\n"


@pytest.mark.parametrize(
    "code, shown, fault",
    [
        ("print(1, 'nat')", "1 nat", ""),
        ("print('%.2f' % 1.234)", "1.23", ""),
        ("print('%.2f' % 1.234)", "1.24", ""),
        ("print('%.2f' % 1.234)", "1.25", "1.23 is not the page's 1.25"),
        ("print(7)", "8", "7 is not the page's 8"),
        ("print('1e3')", "2e3", "1e3 is not the page's 2e3"),
        ("print('1.6e3')", "2e3", ""),
        ("print('1.0e3')", "1.1e3", ""),
        ("print('a')", "b", "it prints"),
        ("print('a')", "", "it prints"),
        ("x = 1", "a", "it prints"),
        ("1 / 0", "", "page:2: ZeroDivisionError"),
        ("def f(): 1 / 0\nf()", "", "page:2: ZeroDivisionError"),
        ("import sys\nsys.exit(0)", "", "page:3: SystemExit: 0"),
    ],
)
def test_a_page_that_shows_something_else_or_raises_is_found(
    code, shown, fault, tmp_path
):
    faults = blocks.run(PAGE.format(code, shown), "page", tmp_path).faults
    assert [f for f in faults if fault and fault in f] == faults
    assert bool(faults) == bool(fault)


def test_numbers_without_a_source_are_found():
    """Of 0.034 follows 3.4 %, but not 3.4. The code of a figure supports none."""
    text = "An error of 0.12, 3.4 %, 3.4 and 5.6.\n\n"
    text += PAGE.format("print(0.1234)", "0.12")
    text += "```python figure\nplt.plot(x, alpha=5.6)\n```\n"
    assert blocks.unsupported(text, ["0.1234 0.034\n"]) == ["3.4", "5.6"]


@pytest.mark.parametrize("rule", ["---\n", "$", "`"])
def test_numbers_between_marks_of_different_paragraphs_are_found(rule):
    text = f"A.\n\n{rule}\nAn error of 5.6.\n\n{rule}\nThe end.\n"
    assert blocks.unsupported(text, []) == ["5.6"]


def test_numbers_of_front_matter_code_and_formulas_are_not_of_the_prose():
    text = "---\nx: 1.2\n---\n`1.3` and `f(\n1.4)`, $a =\n1.5$.\n"
    assert blocks.unsupported(text, []) == []


@pytest.mark.parametrize(
    "text, fault",
    [
        ("```python\nx\n", "page:1: the fence is not closed"),
        ("```python\nx\n\n```text\n1\n```\n", "page:4: a fence opens inside"),
        ("a\n```\n```python\nx\n```\n", "page:3: a fence opens inside"),
        ("``` python\nx\n```\n", "page:1: ```python is not run"),
        ("```py\nx\n```\n", "page:1: ```py is not run"),
        ("```Python\nx\n```\n", "page:1: ```Python is not run"),
        ("```python3\nx\n```\n", "page:1: ```python3 is not run"),
        ("```{.python}\nx\n```\n", "page:1: ```{.python} is not run"),
        ("~~~python\nx\n~~~\n", "page:1: ~~~python is not run"),
        ("````python\nx\n````\n", "page:1: ````python is not run"),
        ("- a\n\n    ```python\n    x\n    ```\n", "page:3: ```python is not run"),
        ("- ```python\n  x\n  ```\n", "page:1: ```python is not run"),
        ("> ```python\n> x\n> ```\n", "page:1: ```python is not run"),
        ("```python continue\nx\n```\n", "page:1: continue must be one of"),
    ],
)
def test_a_fence_that_would_not_be_run_is_found(text, fault, tmp_path):
    assert [f for f in blocks.run(text, "page", tmp_path).faults if fault in f]
    assert [f for f in running.run_pages({"page": text}) if fault in f]


def test_a_page_that_ends_its_process_is_named(capsys):
    pages = {"a": PAGE.format("print(1)", "1"), "b": "```python\n{}\n```\n"}
    pages["b"] = pages["b"].format("import os\nos._exit(0)")
    assert running.run_pages(pages) == ["b: the process ended while it ran"]
    assert "ran a in" in capsys.readouterr().out


def run_pages_of_the_command_line(monkeypatch, *pages):
    """Exit code of `python -m docs.builder.blocks`."""
    monkeypatch.setattr("sys.argv", ["blocks", *map(str, pages)])
    with pytest.raises(SystemExit) as exit:
        blocks.main()
    return int(exit.value.code)


def test_the_command_fails_on_numbers_without_a_source(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(blocks, "PAGES", tmp_path)
    for folder, code in [("howto", 1), ("solvers", 0)]:
        page = tmp_path / folder / "page.md"
        page.parent.mkdir()
        page.write_text("An error of 5.6 nats.\n", encoding="utf-8")
        assert run_pages_of_the_command_line(monkeypatch, page) == code
        assert "not printed by its code: 5.6" in capsys.readouterr().out


def test_the_command_names_pages_that_cannot_be_read(tmp_path, monkeypatch, capsys):
    latin = tmp_path / "latin.md"
    latin.write_bytes(b"caf\xe9")
    missing = tmp_path / "missing.md"
    assert run_pages_of_the_command_line(monkeypatch, latin, missing) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{latin}: not UTF-8: byte 3 is 0xe9",
        f"{missing}: No such file or directory",
    ]


@pytest.mark.parametrize(
    "formula, fault",
    [
        (r"\frac{1}{2", "the braces do not balance"),
        (r"x}{", "the braces do not balance"),
        (r"\nosuch{x}", "nosuch is not known"),
        (r"\text{a\_b}", "is not known"),
        (r"\left( x", "ExtraLeftOrMissingRightError"),
        (r"\{ \frac{a}{b} \\ c \|", ""),
    ],
)
def test_a_formula_that_is_not_latex_is_found(formula, fault):
    pytest.importorskip("latex2mathml", reason="needs the extra docs: make test-all")
    from docs.builder import mathematics

    content = f'a <span class="arithmatex">\\({formula}\\)</span>.'
    if fault:
        with pytest.raises(ValueError, match=fault):
            mathematics.rendered(content)
    else:
        assert "<math" in mathematics.rendered(content)


@pytest.mark.parametrize(
    "content, fault",
    [
        ("<p><code>grids.karas(3)</code></p>", "there is no grids.karas"),
        ("<p><code>docs/nosuch.py</code></p>", "there is no file docs/nosuch.py"),
        (r'<p><span class="arithmatex">\(\nosuch\)</span></p>', "nosuch is not known"),
        ("<p><code>grids.karras(…)</code></p>", ""),
    ],
)
def test_the_site_warns_with_the_name_of_the_page(content, fault, caplog, monkeypatch):
    """A strict build fails on any warning."""
    pytest.importorskip("mkdocs", reason="needs the extra docs: make test-all")
    from docs.builder import hooks

    monkeypatch.setattr(hooks, "_addresses", lambda: ({}, {}))
    page = types.SimpleNamespace(file=types.SimpleNamespace(src_uri="howto/page.md"))
    hooks.on_page_content(content, page)
    assert len(caplog.messages) == bool(fault)
    assert all(m.startswith("howto/page.md: ") and fault in m for m in caplog.messages)


def test_outputs_are_written_into_a_page():
    text = PAGE.format("print(1)", "2") + "```python\nprint(3)\n```\n"
    written = blocks.with_outputs(text, ["1\n", "3\n"])
    assert [block.output for block in blocks.blocks(written)] == ["1\n", "3\n"]
    assert blocks.with_outputs(written, ["1\n", "3\n"]) == written


def product_files():
    """Every file that git tracks or would, or without git every file outside
    hidden and output folders.
    """
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listing.returncode == 0:
        return [
            ROOT / name
            for name in listing.stdout.split("\0")
            if name and (ROOT / name).is_file()
        ]
    outputs = {"runs", "build", "dist", "__pycache__"}
    hidden = lambda part: part.startswith(".") and part != ".ci"
    inside = (
        (path, path.relative_to(ROOT).parts)
        for path in ROOT.rglob("*")
        if path.is_file()
    )
    return [
        path
        for path, parts in inside
        if not any(hidden(p) or p in outputs for p in parts[:-1])
    ]


# each is written so that this file does not contain it
FORBIDDEN = re.compile(
    "|".join(
        [
            r"\.\./" + "shared",
            r"(?i:issue) #",
            "/work" + "/",
            r"\bTO" + r"DO\b",
            r"\bFIX" + r"ME\b",
        ]
    )
)


def test_the_text_speaks_of_the_product_alone():
    lines_with = []
    for path in product_files():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        lines_with += [
            f"{path.relative_to(ROOT)}:{i}: {line.strip()}"
            for i, line in enumerate(lines, 1)
            if FORBIDDEN.search(line)
        ]
    assert not lines_with


# ---------------------------------------------------------------------------- the words


@pytest.mark.parametrize("page", PAGES)
def test_the_pages_keep_the_list_of_words(page):
    """Outside code and what stands in backquotes."""
    text = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    words = prose.WORD.findall(prose.ALLOWED.sub("", re.sub(r"`[^`]*`", "", text)))
    assert not words


@pytest.mark.parametrize("folder", prose.SOURCES)
def test_the_sources_keep_the_rules_of_prose(folder):
    findings = [
        str(finding)
        for path in prose.files([str(ROOT / folder)])
        for finding in prose.in_source(
            path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
        )
    ]
    assert not findings, "\n".join(findings)


@pytest.mark.parametrize(
    "rule, source",
    [
        ("word", '"""The l{}w of x."""'.format("a")),
        ("word", "# it is ref{}ed here".format("us")),
        ("word", "def f():\n    raise ValueError('x is re{}sed')".format("fu")),
        ("semicolon", '"""One thought{} another."""'.format(";")),
        ("riddle", '"""{} the solver does."""'.format("What")),
        ("paragraph", '"""A.\n\n{}"""'.format("some words\n" * 6)),
        ("name", "fo{} = 1".format("und")),
        ("name", "def f(o{}): ...".format("wn")),
        ("name", "def is_ref{}ed(): ...".format("us")),
        ("args", 'def f(x, y):\n    """Sum.\n\n    Args:\n      x: One.\n    """'),
        ("args", 'def f(x, y):\n    """The sum of x and y."""'),
    ],
)
def test_faults_of_prose_are_found(rule, source):
    assert [f.rule for f in prose.in_source("diffjax/m.py", source)] == [rule]


@pytest.mark.parametrize(
    "rules, page",
    [
        (["long"], "word " * 18),
        (["ragged"], f"{'word ' * 12}\nword"),
        (["ragged"], f"- {'word ' * 11}\n  `a b`"),
        (["paragraph"], f"{'word ' * 16}\n" * 6),
        (["semicolon"], "One; `a; b`, $a; b$ and [c](d;e)."),
        ([], f"```sh\n{'word ' * 18};\n```\n| {'word ' * 18}; |\n# {'word ' * 18};"),
        ([], f"---\na: b;\n---\n$$ {'a + ' * 30} b; $$\n![{'word ' * 18};](a.png)"),
        ([], f"- `{'x' * 90}`\n- {'word ' * 17}\n- word"),
    ],
)
def test_faults_of_pages_are_found(rules, page):
    assert [f.rule for f in prose.in_source("docs/pages/a.md", page)] == rules


def test_paragraphs_of_pages_are_wrapped_and_nothing_else_is():
    words = ("word " * 16).strip()
    code = f"```\n{words} {words}\n```\n"
    page = f"# A\n\n- {words} $a b$ = 1 word\n\n{code}\n{words} a word 2.\n"
    wrapped = prose.wrapped_page(page)
    entry = f"- {words}\n  $a b$ = 1 word\n"
    last = f"{words} a\nword 2.\n"
    assert wrapped == f"# A\n\n{entry}\n{code}\n{last}"
    assert prose.wrapped_page(wrapped) == wrapped


@pytest.mark.parametrize(
    "source",
    [
        '"""The law of large numbers, and convergence in law."""',
        '"""See `f; g`.\n\nExample:\n  >>> a = 1; b = 2\n"""',
        'def f(x, y):\n    """Sum.\n\n    Args:\n      x, y: Numbers.\n    """',
        'def _f(x, y):\n    """Private."""',
        'class A:\n    """A."""\n    def __call__(self, x, t):\n        """D at x."""',
    ],
)
def test_text_within_the_rules_of_prose_passes(source):
    assert prose.in_source("diffjax/m.py", source) == []
