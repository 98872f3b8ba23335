"""The tables of the pages on solvers hold the stored numbers of experiments/results."""

import json
import pathlib
import re

import pytest

from docs.builder import blocks

ROOT = pathlib.Path(__file__).parents[1]
PAGES = ROOT / "docs" / "pages"


def stored(name):
    path = ROOT / "experiments" / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def table(page, first):
    """Rows of cells of the table of a page whose head begins with `first`."""
    lines = (PAGES / page).read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def rounded(value, shown):
    """Whether a number of n shown digits is `value` rounded to n digits."""
    digits = len(re.sub(r"e.*", "", shown).replace(".", "").lstrip("0"))
    return float(f"{value:.{digits - 1}e}") == float(shown)


def numbers(cell):
    """The numbers of a cell, outside code, as shown."""
    return blocks.NUMBER.findall(re.sub(r"`[^`]*`", "", cell))


def names(cell):
    """The code in a cell."""
    return re.findall(r"`([^`]*)`", cell)


def assert_shows(cell, values):
    shown = numbers(cell)
    assert len(shown) == len(values), (cell, values)
    assert all(map(rounded, values, shown)), (cell, values)


@pytest.mark.parametrize(
    "value, shown, agrees",
    [
        (0.000536, "0.00053", False),
        (0.000526, "0.00053", True),
        (0.000704, "0.00070", True),
        (0.000704, "0.0007", True),
        (0.000704, "0.00071", False),
        (1.04e-4, "1.0e-4", True),
        (1.06e-4, "1.0e-4", False),
        (158.9, "159", True),
    ],
)
def test_rounding_follows_the_shown_digits(value, shown, agrees):
    assert rounded(value, shown) == agrees


# ----------------------------------------------------------------------- the standings


def errors(target, schedule, solver=None, grids=None):
    """{(budget, solver): error on its best grid} of the deterministic curves."""
    (problem,) = (
        problem
        for problem in stored("solver_curves")["problems"]
        if (problem["target"], problem["schedule"]) == (target, schedule)
        and not problem["stochastic"]
    )
    result = {}
    for name, curves in problem["curves"].items():
        for grid, points in curves.items():
            if solver not in (None, name) or (grids and grid not in grids):
                continue
            for budget, _, _, error, *_ in points:
                if error is not None and budget:
                    least = result.get((budget, name), error)
                    result[budget, name] = min(error, least)
    return result


STANDINGS = table("solvers.md", "Evaluations | VP, 2-D")


@pytest.mark.parametrize("schedule, column", [("vp_linear", 1), ("edm", 2)])
def test_the_best_solver_of_two_dimensions_is_that_of_the_stored_curves(
    schedule, column
):
    measured = errors("mixture_2d", schedule)
    for row in STANDINGS:
        budget = int(row[0])
        (name,) = names(row[column])
        least = min(error for (at, _), error in measured.items() if at == budget)
        assert measured[budget, name] == least
        assert_shows(row[column], [least])


def test_heun_beside_the_best_solver():
    measured = errors("mixture_2d", "edm", "heun")
    for row in STANDINGS:
        assert_shows(row[6], [measured[int(row[0]), "heun"]])


def test_the_standings_of_six_dimensions_are_the_stored_ones():
    for row in STANDINGS:
        lines = stored("solver_standings")["standings"][row[0]]
        first = lambda library: next(line for line in lines if line["of"] == library)
        for column, library in ((3, "diffjax"), (4, "diffjax, fitted grid")):
            line = first(library)
            assert [line["run"].partition(" on ")[0]] == names(row[column])
            assert_shows(row[column], [line["error"]])
        theirs = [first(name)["error"] for name in ("k_diffusion", "diffusers")]
        assert_shows(row[5], theirs)


def unguarded(solver, target, schedule):
    """{budget: error} of a multistep method as published, on `log_snr`."""
    return {
        row["budget"]: row["error"]
        for row in stored("unguarded_solvers")["rows"]
        if (row["solver"], row["target"], row["schedule"]) == (solver, target, schedule)
    }


def test_the_price_of_the_guard_is_the_stored_one():
    for column, schedule in ((1, "vp_linear"), (3, "edm")):
        published = unguarded("unipc(3)", "mixture_2d", schedule)
        guarded = errors("mixture_2d", schedule, "unipc(3)", ("log_snr",))
        for row in table("solvers.md", "Evaluations | VP, guarded"):
            budget = int(row[0])
            assert_shows(row[column], [guarded[budget, "unipc(3)"]])
            assert_shows(row[column + 1], [published[budget]])
        # it changes nothing from 32 evaluations on
        for budget in (32, 62):
            assert published[budget] == guarded[budget, "unipc(3)"]


def test_regrets_are_the_stored_ones():
    """The last column may be missing: only recommended and best pairs are stored."""
    report = stored("solver_regret")
    for budget, solver, median, worst, square in table(
        "solvers.md", "Evaluations | Solver"
    ):
        (name,) = names(solver)
        share = re.search(r"share ([\d.]+)", solver)
        grid = f"angular({share[1] if share else 0.5 if int(budget) < 28 else 0.25})"

        def line(measure, pair=(name, grid), at=f"{budget} evaluations, "):
            lines = [
                *report["least worst regret"][at + measure],
                report["recommended"][at + measure],
            ]
            chosen = [e for e in lines if (e["solver"], e["grid"]) == pair]
            return chosen[0]["held out"] if chosen else None

        of_median, of_square = line("median"), line("rms")
        assert_shows(median, [of_median["median"]])
        assert_shows(worst, [of_median["worst"]])
        assert_shows(square, [of_square["worst"]] if of_square else [])


def test_ranks_of_the_recommended_pair_are_those_stated():
    """First at 12 and 32 evaluations, second at 16, fifth at 24, and worse at 8."""
    ranks = {}
    for budget, solver, grid in (
        (12, "ipndm(2)", "angular(0.5)"),
        (16, "ipndm(2)", "angular(0.5)"),
        (24, "unipc(3)", "angular(0.5)"),
        (32, "unipc(3)", "angular(0.25)"),
    ):
        title = f"{budget} evaluations, median"
        lines = stored("solver_regret")["least worst regret"][title]
        pairs = [(line["solver"], line["grid"]) for line in lines]
        ranks[budget] = pairs.index((solver, grid)) + 1
    assert ranks == {12: 1, 16: 2, 24: 5, 32: 1}
    at_8 = "8 evaluations, median"
    best = stored("solver_regret")["least worst regret"][at_8][0]
    recommended = stored("solver_regret")["recommended"][at_8]
    assert (best["solver"], best["grid"]) == ("sa_solver(3, 4, 0)", "angular(0.75)")
    page = " ".join((PAGES / "solvers.md").read_text(encoding="utf-8").split())
    sentence = r"At 8 it has ([\d.]+), where `sa_solver.* of share 0.75 has (\d\.\d)"
    shown = re.search(sentence, page).groups()
    values = [line["chosen on"]["worst"] for line in (recommended, best)]
    assert all(map(rounded, values, shown))


FITTED = (
    "fitted",
    "coefficients",
    "grid",
    "recommended",
    "other_coefficients",
    "other_recommended",
)


def test_fitted_coefficients_are_the_stored_ones():
    rows = stored("fitted_solvers")["rows"]
    shown = table("solvers.md", "Target | Evaluations")
    assert len(shown) == len(rows)
    for cells, row in zip(shown, rows, strict=True):
        kind, dimension = cells[0].split(", ")
        assert row["schedule"] == {"VP": "vp_linear", "EDM": "edm"}[kind]
        assert row["target"] == f"mixture_{dimension[0]}d"
        assert row["evaluations"] == int(cells[1])
        for cell, field in zip(cells[2:], FITTED, strict=True):
            assert_shows(cell, [row[field]])


# ----------------------------------------------------------------- stochastic solvers

STORED_NAMES = {
    "eta_between(0.05, 1.0)": "sa_solver(between)",
    "ddim(1.0)": "ddim(1)",
    "er_sde(3, 1.0)": "er_sde(3, 1)",
}


def test_stochastic_solvers_are_the_stored_ones():
    measured = {}
    for row in stored("stochastic_solvers")["rows"]:
        key = row["solver"], row["target"], row["schedule"]
        measured.setdefault(key, []).append(row)
    columns = [
        (target, schedule)
        for target in ("gaussian", "mixture_2d")
        for schedule in ("vp_linear", "edm")
    ]
    rows = table("solvers/stochastic.md", "Solver | KL, VP")
    assert len(rows) == 13
    for head, *cells in rows:
        name = names(head)[0].removesuffix("()")
        name = STORED_NAMES.get(name, name)
        for cell, column in zip(cells, columns, strict=True):
            assert_shows(cell, [row["error"] for row in measured[name, *column]])
        if " at " in head:
            evaluations = [row["nfe"] for row in measured[name, *columns[0]]]
            assert evaluations == [int(n) for n in numbers(head)]


def test_published_stochastic_solvers_are_the_stored_ones():
    for head, *cells in table("solvers/stochastic.md", "Solver | VP, at 8, 16, 32"):
        name = names(head)[0].partition("(")[0]
        for cell, schedule in zip(cells, ("vp_linear", "edm"), strict=True):
            kl = unguarded(name, "gaussian", schedule)
            assert_shows(cell, [kl[budget] for budget in (8, 16, 32)])


def test_heunpp_beside_heun_is_the_stored_one():
    page = (PAGES / "solvers" / "stochastic.md").read_text(encoding="utf-8")
    shown = re.search(r"`heunpp`, which is.*?Its order", page, re.DOTALL)[0]
    measured = [
        row["error"]
        for name in ("heunpp", "heun")
        for row in stored("stochastic_solvers")["rows"]
        if (row["solver"], row["target"], row["schedule"])
        == (name, "mixture_2d", "vp_linear")
    ]
    decimals = [number for number in numbers(shown) if "." in number.rstrip(".")]
    assert all(map(rounded, measured, decimals)) and len(measured) == len(decimals)


# ----------------------------------------------------------------------- certificates


def test_certificates_are_the_stored_ones():
    page = (PAGES / "solvers" / "certificates.md").read_text(encoding="utf-8")
    text = " ".join(page.split())
    report = stored("certificates")
    libraries = ("diffjax", "k_diffusion", "diffusers")
    passed = [sum(c["passed"] for c in report[name].values()) for name in libraries]
    counts = [len(report[name]) for name in libraries]
    assert f"All {counts[0]} solvers here with fixed steps pass" in text
    assert passed[0] == counts[0]
    assert f"{passed[1]} of {counts[1]} samplers of k-diffusion 0.1.1." in text
    assert f"Of {counts[2]} schedulers of diffusers 0.42.1, {passed[2]} pass" in text
    kl = {
        name: entry["findings"]["distribution"]["kl"]["16"] or float("inf")
        for library in libraries
        for name, entry in report[library].items()
        if entry["findings"].get("distribution", {}).get("kl")
    }
    first, second, theirs = re.search(
        (
            r"with ([\d.e-]+) nats by `DEISMultistepScheduler` of order 3 and "
            r"([\d.e-]+) by `sa_solver\(3, 4, 0\)`.*k-diffusion has ([\d.e-]+)\."
        ),
        text,
    ).groups()
    ranked = sorted(kl, key=kl.get)
    assert ranked[:2] == [
        "diffusers:DEISMultistepScheduler(solver_order=3)",
        "diffjax:sa_solver(3, 4, 0)",
    ]
    best_of_theirs = min(v for name, v in kl.items() if name.startswith("k_diffusion:"))
    assert rounded(kl[ranked[0]], first) and rounded(kl[ranked[1]], second)
    assert rounded(best_of_theirs, theirs)


ORDERS = {
    "`UniPCMultistepScheduler`, orders 2 and 3": (
        "UniPCMultistepScheduler",
        "UniPCMultistepScheduler(solver_order=3)",
    ),
    "`DPMSolverMultistepScheduler`, order 3": (
        "DPMSolverMultistepScheduler(solver_order=3)",
    ),
}
"""First cell of the table of findings -> certificates of the order it states."""


def test_orders_of_the_findings_are_the_stored_ones():
    rows = dict(table("solvers/certificates.md", "Sampler | Finding"))
    for head, samplers in ORDERS.items():
        shown = re.search(r"order (\d\.\d)", rows[head])[1]
        for name in samplers:
            order = stored("certificates")["diffusers"][f"diffusers:{name}"]
            assert rounded(order["findings"]["order"]["steps"], shown)
