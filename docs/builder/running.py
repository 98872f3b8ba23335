"""Running all pages, each once for each text, in processes of their own."""

import concurrent.futures
import multiprocessing
import os
import pathlib
import tempfile

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
    new = {n: t for n, t in texts.items() if blocks.blocks(t) and t not in _done}
    if not new:
        return []
    faults = []
    workers = min(len(new), os.cpu_count() or 1)
    context = multiprocessing.get_context("spawn")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        runs = {n: pool.submit(run_page, n, t) for n, t in new.items()}
        for name, future in runs.items():
            outcome, files = future.result()
            _done[new[name]] = outcome, files
            print(f"ran {name} in {outcome.seconds:.1f} s", flush=True)
            faults += outcome.faults
    return faults


def figures(text: str) -> dict[str, bytes]:
    """Figures of a page that was run.

    Args:
      text: Its Markdown.

    Returns:
      The files by name. Empty if it has not been run.
    """
    return _done[text][1] if text in _done else {}
