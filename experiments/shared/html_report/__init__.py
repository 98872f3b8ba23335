"""The report of a run: one HTML page that needs no other file and no script.

`skeleton.page` is the skeleton of every page. `numbers` shows nested results as tables,
and `figure` embeds an image. All text is escaped where it enters the page.
"""

from .report import Figure, Report, caption_of, captions, paragraphs, prose, whole
from .skeleton import STYLE, download, figure, fold, label, page, rich, section
from .tables import Pair, cell, joined, number, numbers, table, with_error

__all__ = [
    "STYLE",
    "Figure",
    "Pair",
    "Report",
    "caption_of",
    "captions",
    "cell",
    "download",
    "figure",
    "fold",
    "joined",
    "label",
    "number",
    "numbers",
    "page",
    "paragraphs",
    "prose",
    "rich",
    "section",
    "table",
    "whole",
    "with_error",
]
