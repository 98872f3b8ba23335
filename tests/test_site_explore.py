"""The page that explores the standings, in a real browser: its curves and its table
are the stored numbers, and a keyboard reaches all of it.
"""

import functools
import math
import re

import jax
import numpy as np
import pytest

from docs.builder import standings
from experiments.bench_solvers.__main__ import make_grid
from experiments.shared.solvers import make, make_schedule
from tests import site

pytestmark = pytest.mark.slow

DATA = standings.curves()
VIEWS = [
    {"target": p["target"], "schedule": p["schedule"], "stochastic": p["stochastic"]}
    for p in DATA["problems"]
]


ALL = "#explore .buttons button:text-is('All')"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The page as a file, which can fetch nothing."""
    folder = site.build(tmp_path_factory.mktemp("site"), code=False)
    return (folder / "solvers" / "explore.html").as_uri()


@pytest.fixture(scope="module")
def chromium():
    with site.browser() as browser:
        yield browser


@pytest.fixture
def window(chromium, address):
    """Opens the page. At the end nothing was reported on its console."""
    views, faults = [], []

    def open_page(width=1280, scheme="light", hash=""):
        context = chromium.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme
        )
        view = context.new_page()
        view.on(
            "console",
            lambda m: m.type in ("error", "warning") and faults.append(m.text),
        )
        view.on("pageerror", lambda error: faults.append(str(error)))
        view.goto(address + hash)
        view.wait_for_selector("#explore.ready")
        views.append(context)
        return view

    yield open_page
    for context in views:
        context.close()
    assert not faults


def problem(view):
    """The stored problem of a view."""
    return next(p for p in DATA["problems"] if all(p[k] == v for k, v in view.items()))


def expected(view, grid, budget):
    """The least error of each solver within a budget, by name. inf if it diverged."""
    errors = {}
    for solver, grids in problem(view)["curves"].items():
        for label, points in grids.items():
            for at, _, nfe, error, *_ in points:
                within = at == budget or (at is None and nfe <= budget)
                if within and grid in ("best", label) or within and label == "ends":
                    error = math.inf if error is None else error
                    errors[solver] = min(error, errors.get(solver, math.inf))
    return errors


def select(window, field, value):
    window.select_option(f"#explore-{field}", str(value))


def choose(window, view):
    select(window, "target", view["target"])
    select(window, "schedule", view["schedule"])
    select(window, "kind", "stochastic" if view["stochastic"] else "deterministic")


def rows(window):
    """The lines of the ranking: dictionaries of texts by column."""
    return window.evaluate(
        """() => [...document.querySelectorAll("#explore tbody tr")].map(row =>
          Object.fromEntries([...row.children].map(cell =>
            [cell.className.replace("column-", ""), cell.textContent.trim()])))"""
    )


@functools.cache
def check_code(code, schedule, solver, grid, steps):
    """Run code as copied. It makes the measured schedule, solver and grid."""
    names: dict = {}
    exec(code, names)
    measured = make_schedule(schedule)
    for actual, wanted in (
        (names["schedule"], measured),
        (names["solver"], make(solver)),
    ):
        assert jax.tree.structure(actual) == jax.tree.structure(wanted), code
        assert jax.tree.leaves(actual) == jax.tree.leaves(wanted), code
    wanted = make_grid(grid, measured, steps)
    np.testing.assert_allclose(names["grid"], wanted, rtol=1e-6)


def value(text):
    return math.inf if text == "diverged" else float(text)


@pytest.mark.parametrize(
    "view", VIEWS, ids=lambda view: "-".join(map(str, view.values()))
)
def test_the_table_and_the_curves_are_the_stored_numbers(window, view):
    """For each grid and budget, to the three digits that are shown."""
    page = window()
    choose(page, view)
    stored = problem(view)["curves"]
    grids = {g for curves in stored.values() for g in curves} - {"ends"}
    budgets = {p[0] for c in stored.values() for ps in c.values() for p in ps} - {None}
    page.click(ALL)
    for grid in ["best", *sorted(grids)]:
        select(page, "grid", grid)
        for budget in sorted(budgets):
            select(page, "budget", budget)
            wanted = expected(view, grid, budget)
            seen = {row["solver"]: value(row["error"]) for row in rows(page)}
            assert seen.keys() == wanted.keys()
            for solver, error in wanted.items():
                assert math.isclose(seen[solver], error, rel_tol=6e-3), solver
            least = min(wanted, key=wanted.get)
            top = page.inner_text("#explore .least strong")
            assert wanted[top] == wanted[least]
            least_row = next(row for row in rows(page) if row["solver"] == top)
            made_by, steps = least_row["grid"], least_row["steps"]
            if made_by == "its own":
                made_by, steps = "ends", 1
            code = page.inner_text("#explore .code")
            check_code(code, view["schedule"], top, made_by, int(steps))
        drawn = page.evaluate(
            """() => Object.fromEntries([...document.querySelectorAll(
              "#explore g[data-solver]")].map(g =>
              [g.dataset.solver, g.querySelectorAll(".mark").length]))"""
        )
        for solver, curves in stored.items():
            chosen = [
                ps for g, ps in curves.items() if grid in ("best", g) or g == "ends"
            ]
            finite = {p[0] for points in chosen for p in points if p[3]}
            assert drawn.get(solver, 0) == len(finite), solver


def test_heights_of_points_are_logarithms_of_errors(window):
    """Two points and a third: the ratio of their distances is that of log errors."""
    page = window(
        hash="#target=mixture_2d&schedule=edm&kind=deterministic&grid=log_snr"
    )
    errors = [p[3] for p in problem(VIEWS_OF["edm"])["curves"]["ddim"]["log_snr"]]
    heights = page.evaluate(
        """() => [...document.querySelectorAll("g[data-solver=ddim] .mark")].map(m => {
          const box = m.getBBox(); return box.y + box.height / 2; })"""
    )
    logs = [math.log(error) for error in errors]
    ratio = lambda v: (v[1] - v[0]) / (v[2] - v[0])
    assert len(heights) == len(errors) >= 3
    assert math.isclose(ratio(heights), ratio(logs), abs_tol=0.02)


VIEWS_OF = {
    schedule: {"target": "mixture_2d", "schedule": schedule, "stochastic": False}
    for schedule in ("vp_linear", "edm")
}


def natural(name):
    """The key of the natural order: signs, then numbers by value, then letters."""
    parts = re.findall(r"\d+|\D", name)
    assert set(re.sub(r"\w", "", name)) <= set(SIGNS)
    return [
        (0, SIGNS.index(part))
        if part in SIGNS
        else (1, int(part))
        if part.isdecimal()
        else (2, part)
        for part in parts
    ]


SIGNS = " _-,.()="
"""Signs of solvers' names in the order of the Unicode collation."""


def test_columns_sort_by_mouse_and_keyboard(window):
    page = window()
    heads = {"error": value, "nfe": float, "solver": natural}
    for name, read in heads.items():
        button = page.locator(f"#explore th.column-{name}[scope=col] button")
        if name != "error":
            button.focus()
            page.keyboard.press("Enter")
        head = page.locator(f"#explore th.column-{name}[scope=col]")
        assert head.get_attribute("aria-sort") == "ascending"
        assert page.locator("#explore [aria-sort]").count() == 1
        up = [read(row[name]) for row in rows(page)]
        assert up == sorted(up)
        button.click()
        assert head.get_attribute("aria-sort") == "descending"
        down = [read(row[name]) for row in rows(page)]
        assert down == sorted(up, reverse=True)


def test_arrow_keys_say_the_stored_numbers(window):
    """Along the curve of the solver of least error, and to its neighbour."""
    view, grid = VIEWS_OF["edm"], "log_snr"
    page = window(
        hash="#target=mixture_2d&schedule=edm&kind=deterministic&grid=log_snr"
    )
    page.focus("#explore .chart")
    page.keyboard.press("Home")
    readout = page.locator("#explore .readout[aria-live=polite]")
    solver, neighbour = (row["solver"] for row in rows(page)[:2])
    assert page.inner_text("#explore .least strong") == solver
    points = sorted(problem(view)["curves"][solver][grid], key=lambda point: point[2])
    for point in points:
        _, steps, nfe, error, low, high = point
        text = readout.inner_text()
        match = re.fullmatch(
            r"(.+), ([\d.]+) evaluations, error (\S+) ± (\S+) data units, "
            r"(\d+) steps? of log_snr",
            text,
        )
        assert match, text
        assert match[1] == solver and float(match[2]) == nfe and int(match[5]) == steps
        assert math.isclose(float(match[3]), error, rel_tol=6e-3)
        assert math.isclose(float(match[4]), (high - low) / 2, rel_tol=0.06)
        assert page.inner_text("#explore .tooltip strong") == solver
        page.keyboard.press("ArrowRight")
    assert readout.inner_text() == text  # the curve ends
    page.keyboard.press("ArrowDown")
    assert readout.inner_text().startswith(f"{neighbour}, ")
    page.keyboard.press("Tab")
    assert page.locator("#explore .tooltip").is_hidden()


def test_the_pointer_shows_the_point_under_it(window):
    page = window()
    mark = page.locator("g[data-solver=ddim] .mark").last
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert page.inner_text("#explore .readout").startswith("ddim, ")
    page.mouse.move(5, 5)
    assert page.inner_text("#explore .readout") == ""


def test_solvers_whose_intervals_overlap_are_named(window):
    """Four by name, then a count."""
    view, budget = VIEWS_OF["edm"] | {"stochastic": True}, 32
    page = window(
        hash=f"#target=mixture_2d&schedule=edm&kind=stochastic&budget={budget}"
    )
    best = {}
    for solver, grids in problem(view)["curves"].items():
        points = [p for ps in grids.values() for p in ps if p[0] == budget and p[3]]
        if points:
            best[solver] = min(points, key=lambda point: point[3])
    order = sorted(best, key=lambda solver: best[solver][3])
    others = [s for s in order[1:] if best[s][4] <= best[order[0]][5]]
    assert len(others) > 4
    assert page.inner_text("#explore .overlapping") == (
        f"Their 95 % intervals overlap with its own: {', '.join(others[:4])} and "
        f"{len(others) - 4} more."
    )


def test_the_address_holds_the_view(window):
    """A page that is opened at the address of another shows the same."""
    page = window()
    choose(page, VIEWS_OF["edm"])
    select(page, "budget", 32)
    page.locator("#explore .legend input[value=ddim]").uncheck()
    page.locator("#explore .legend input[value=euler]").check()
    page.click("#explore th.column-grid button")
    state = page.evaluate("location.hash")
    other = window(hash=state)
    assert rows(other) == rows(page)
    for read in (
        """() => [...document.querySelectorAll("#explore input:checked")]
          .map(input => input.value)""",
        """() => document.querySelector("#explore .chart svg").innerHTML""",
    ):
        assert other.evaluate(read) == page.evaluate(read)
    checked = page.evaluate("[...document.querySelectorAll('input:checked')].length")
    assert checked > 1
    assert page.locator("g[data-solver=ddim]").count() == 0
    assert page.locator("g[data-solver=euler]").count() == 1


def test_an_address_of_unknown_names_shows_what_there_is(window):
    page = window(
        hash="#target=x&schedule=y&kind=z&grid=w&budget=17&solvers=a;b&sort=c"
    )
    assert rows(page)
    assert page.input_value("#explore-budget") == "16"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_and_every_control_has_a_name(window, width, scheme):
    page = window(width, scheme)
    page.click(ALL)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = page.evaluate(
        """() => [...document.querySelectorAll("#explore *")].filter(e =>
          e.getBoundingClientRect().right > innerWidth + 1
          && !e.closest(".rows, defs")).map(e => e.outerHTML.slice(0, 99))"""
    )
    assert not wide
    nameless = page.evaluate(
        """() => [...document.querySelectorAll(
          "#explore :is(button, select, input, a, [tabindex])")].filter(e =>
          !(e.getAttribute("aria-label") || e.title || e.textContent.trim()
            || [...e.labels ?? []].map(l => l.textContent.trim()).join("")))
          .map(e => e.outerHTML)"""
    )
    assert not nameless
    assert page.locator("#explore select").count() == 5
    for select_ in page.locator("#explore select").all():
        assert select_.evaluate("e => e.labels.length") == 1


CONTRAST = """() => {
  const paint = document.createElement("canvas")
    .getContext("2d", { willReadFrequently: true });
  const rgb = (colour, under) => {
    paint.fillStyle = `rgb(${under})`; paint.fillRect(0, 0, 1, 1);
    paint.fillStyle = colour; paint.fillRect(0, 0, 1, 1);
    return [...paint.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const behind = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      layers.unshift(getComputedStyle(e).backgroundColor);
    }
    return layers.reduce((under, colour) => rgb(colour, under), [255, 255, 255]);
  };
  const luminance = (c) => c.map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ratio = (a, b) => {
    const [x, y] = [luminance(a), luminance(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05);
  };
  const seen = [];
  const check = (element, property, least) => {
    const under = behind(element);
    const contrast = ratio(rgb(getComputedStyle(element)[property], under), under);
    const name = `${contrast.toFixed(2)} ${element.outerHTML.slice(0, 99)}`;
    if (contrast < least) seen.push(name);
  };
  for (const e of document.querySelectorAll("#explore :is(*)")) {
    const text = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    const shown = e.checkVisibility({ visibilityProperty: true });
    if (text && shown) check(e, e.closest("svg") ? "fill" : "color", 4.5);
  }
  const drawn = "#explore svg :is(.line:not(.other), .mark)";
  for (const e of document.querySelectorAll(drawn)) {
    check(e, "stroke", 3);
  }
  for (const e of document.querySelectorAll("#explore :is(select, .small)")) {
    check(e.parentElement, "color", 4.5);
    const under = behind(e.parentElement);
    const frame = rgb(getComputedStyle(e).borderTopColor, under);
    if (ratio(frame, under) < 3) seen.push(e.outerHTML);
  }
  return seen;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_have_contrast(window, scheme):
    """4.5 for text, 3 for lines, marks and frames of controls."""
    page = window(scheme=scheme)
    page.click(ALL)
    page.focus("#explore .chart")
    assert page.evaluate("document.body.dataset.mdColorScheme") == (
        "slate" if scheme == "dark" else "default"
    )
    assert not page.evaluate(CONTRAST)


def test_without_scripts_there_is_a_table_of_the_best(chromium, address):
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address)
    lines = page.locator("noscript tbody tr").all_inner_texts()
    budgets = {
        p[0]
        for c in problem(VIEWS[0])["curves"].values()
        for ps in c.values()
        for p in ps
    } - {None}
    assert len(lines) == len(VIEWS) * len(budgets)
    view, budget = VIEWS_OF["edm"], 16
    errors = expected(view, "best", budget)
    least = min(errors, key=errors.get)
    cells = ["3 Gaussians, 2-D", "EDM", "deterministic", "16", least]
    assert any(line.split("\t")[:5] == cells for line in lines)
    context.close()
