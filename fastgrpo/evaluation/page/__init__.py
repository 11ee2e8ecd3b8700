"""An evaluation as one self-contained page: accuracies beside published ones, curves, lengths and transcripts to read.

It needs no network and no server; its style and its drawing are the run report's, `fastgrpo.report`.
"""

from fastgrpo.evaluation.page.build import comparison_page, page

__all__ = ["comparison_page", "page"]
