"""Running all pages, each once for each text, in processes of their own."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import pathlib
import tempfile
from concurrent.futures.process import BrokenProcessPool

from docs.builder import blocks

_done: dict[str, tuple[blocks.Outcome, dict[str, bytes]]] = {}
"""Outcomes and figures by the text of the page. A server runs changed pages only."""


def run_page(name: str, text: str) -> tuple[blocks.Outcome, dict[str, bytes]]:
    """Run a page in a folder of its own.

    Args:
      name: The page, for messages.
      text: Its Markdown.

    Returns:
      The outcome, and the files that it wrote, by name.
    """
    with tempfile.TemporaryDirectory() as folder:
        outcome = blocks.run(text, name, pathlib.Path(folder))
        return outcome, {
            path.name: path.read_bytes()
            for path in pathlib.Path(folder).iterdir()
            if path.suffix in (".png", ".svg")
        }


def run_pages(texts: dict[str, str]) -> list[str]:
    """Run pages that have not been run with this text, on all cores.

    Args:
      texts: Markdown by the name of the page.

    Returns:
      The faults.
    """
    misread = {name: blocks.misread(text, name) for name, text in texts.items()}
    faults = [fault for page in misread.values() for fault in page]
    new = {
        name: text
        for name, text in texts.items()
        if blocks.blocks(text) and not misread[name] and text not in _done
    }
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    unfinished = _run_in_pool(new, faults)
    # A process that ends takes all pages of its pool with it. Run alone, a page that
    # ends its process is known.
    for name in unfinished:
        if _run_in_pool({name: new[name]}, faults):
            faults.append(f"{name}: the process ended while it ran")
    return faults


def _run_in_pool(texts, faults):
    """Run pages and add to `faults`. Returns the names of those without an outcome."""
    if not texts:
        return []
    finished = set()
    workers = min(len(texts), os.cpu_count() or 1)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        with contextlib.suppress(BrokenProcessPool):
            runs = [(n, pool.submit(run_page, n, t)) for n, t in texts.items()]
            for name, future in runs:
                with contextlib.suppress(BrokenProcessPool):
                    outcome, files = future.result()
                    finished.add(name)
                    _done[texts[name]] = outcome, files
                    print(f"ran {name} in {outcome.seconds:.1f} s", flush=True)
                    faults += outcome.faults
    return [name for name in texts if name not in finished]


def figures(text: str) -> dict[str, bytes]:
    """Figures of a page that was run.

    Args:
      text: Its Markdown.

    Returns:
      The files by name. Empty if it has not been run.
    """
    return _done[text][1] if text in _done else {}
