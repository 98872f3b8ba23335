"""The site in a real browser: every page, at two widths, without a network."""

import html
import pathlib
import re

import pytest

from tests import site

pytestmark = pytest.mark.slow

WIDTHS = {"desktop": 1280, "phone": 390}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The site, built strictly: a broken link or a fault of a page fails."""
    return site.build(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def chromium():
    with site.browser() as browser:
        yield browser


def pages(folder):
    """All pages but those of the sources, which are one template, and the one that a
    server shows for a wrong address.
    """
    return sorted(
        path
        for path in folder.rglob("*.html")
        if path.relative_to(folder).parts[0] != "source" and path.name != "404.html"
    )


@pytest.fixture(params=WIDTHS)
def window(request, chromium):
    """A page of the browser that collects faults."""
    view = chromium.new_page(viewport={"width": WIDTHS[request.param], "height": 900})
    faults = []
    report = lambda kind: lambda event: faults.append(f"{kind}: {event}")
    view.on(
        "console",
        lambda m: m.type in ("error", "warning") and report("console")(m.text),
    )
    view.on("pageerror", report("error"))
    # A request is aborted where the test goes on to the next page.
    left = "net::ERR_ABORTED"
    view.on("requestfailed", lambda r: r.failure == left or report("missing")(r.url))
    view.on(
        "request",
        lambda r: r.url.startswith(("file:", "data:", "blob:")) or report("net")(r.url),
    )
    view.faults = faults
    yield view
    view.close()


LOOK = """() => ({
  images: [...document.images].filter(i => i.complete && i.naturalWidth === 0)
    .map(i => i.src),
  wide: document.documentElement.scrollWidth - window.innerWidth,
  wider: [...document.querySelectorAll('article *')].filter(e =>
    e.getBoundingClientRect().right > window.innerWidth + 1 &&
    !e.closest('pre, table, .md-typeset__scrollwrap, .formula, .scroll, svg, math'))
    .slice(0, 3).map(e => e.outerHTML.slice(0, 120)),
  unnamed: [...document.querySelectorAll('article img:not([alt])')].length,
})"""


def test_every_page_is_whole(folder, window):
    """No error, no missing image, nothing wider than the window, no network."""
    assert len(pages(folder)) > 60
    broken = {}
    for path in pages(folder):
        window.faults.clear()
        window.goto(path.as_uri())
        seen = window.evaluate(LOOK)
        faults = [*window.faults, *(f"no image: {url}" for url in seen["images"])]
        faults += [f"wider than the window by {seen['wide']}"] * (seen["wide"] > 0)
        faults += [f"reaches out of the window: {e}" for e in seen["wider"]]
        faults += ["an image without alt text"] * seen["unnamed"]
        if faults:
            broken[path.relative_to(folder).as_posix()] = faults
    assert not broken, "\n".join(f"{p}: {f}" for p, all in broken.items() for f in all)


def test_the_search_finds_a_page_without_a_network(folder, window):
    window.goto((folder / "howto" / "index.html").as_uri())
    window.wait_for_load_state("networkidle")
    if window.viewport_size["width"] < 1000:
        window.click("label.md-header__button[for=__search]")
    window.locator("input[name=query]").press_sequentially("inversion")
    window.wait_for_selector(".md-search-result__item a")
    titles = window.locator(".md-search-result__item h1").all_inner_texts()
    assert any("inversion" in title.lower() for title in titles)
    with window.expect_navigation():
        window.locator(".md-search-result__item a", has_text="inversion").first.click()
    assert "inversion" in window.inner_text("article").lower()
    assert not window.faults


@pytest.mark.parametrize(
    ("words", "page"),
    [
        ("bpd", "howto/bits_per_dim"),
        ("OOM", "howto/gradient_through_sampler"),
        ("NLL", "howto/log_prob"),
        ("SDEdit", "howto/img2img"),
        ("Euler a", "solvers/names"),
        ("write my own solver", "howto/my_solver"),
    ],
)
def test_the_search_finds_users_words(folder, window, words, page):
    """Among the first three pages, though brackets or commas touch the word there."""
    window.goto((folder / "index.html").as_uri())
    window.wait_for_load_state("networkidle")
    if window.viewport_size["width"] < 1000:
        window.click("label.md-header__button[for=__search]")
    window.locator("input[name=query]").press_sequentially(words)
    links = ".md-search-result__item > a"
    window.wait_for_selector(links)
    addresses = [a.get_attribute("href") for a in window.locator(links).all()[:3]]
    assert any(f"/{page}.html" in address for address in addresses), addresses


def test_the_colours_change(folder, window):
    window.goto((folder / "index.html").as_uri())
    colour = lambda: window.evaluate("getComputedStyle(document.body).backgroundColor")
    light = colour()
    window.evaluate("document.querySelectorAll('[name=__palette]')[1].click()")
    assert colour() != light


def test_links_of_the_built_site_lead_somewhere(folder):
    """Of all pages, those of the sources and of the API among them."""
    files = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    anchors: dict[pathlib.Path, set[str]] = {}

    def ids(path):
        if path not in anchors:
            text = (folder / path).read_text(encoding="utf-8")
            anchors[path] = set(map(html.unescape, re.findall(r'\bid="([^"]+)"', text)))
            anchors[path] |= set(re.findall(r'<a name="([^"]+)"', text))
        return anchors[path]

    broken = set()
    for path in pages(folder):
        text = path.read_text(encoding="utf-8")
        for link in re.findall(r'<a [^>]*?href="([^"]*)"', text):
            address, _, anchor = html.unescape(link).partition("#")
            if re.match(r"\w+:", address):
                continue
            target = (path.parent / address).resolve() if address else path
            target = target.relative_to(folder.resolve())
            if target not in files:
                broken.add(f"{path.relative_to(folder)}: {link}")
            elif anchor and target.suffix == ".html" and anchor not in ids(target):
                broken.add(f"{path.relative_to(folder)}: {link}")
    assert not broken, "\n".join(sorted(broken))
