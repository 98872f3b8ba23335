"""The report of a run: one HTML page that needs no other file and no script.

`run_page` is the page of a run, in the skeleton of `skeleton.page`. `tables.numbers`
shows nested results as tables, and `figure` embeds an image. All text is escaped where
it enters the page.
"""

from .report import Figure, Report, paragraphs, run_page
from .skeleton import STYLE, figure, label
from .tables import Pair, joined, number, with_error

__all__ = [
    "STYLE",
    "Figure",
    "Pair",
    "Report",
    "figure",
    "joined",
    "label",
    "number",
    "paragraphs",
    "run_page",
    "with_error",
]
