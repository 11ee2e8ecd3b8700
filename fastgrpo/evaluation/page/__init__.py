"""The page of an evaluation, one self-contained file: accuracies beside published ones, curves, lengths, transcripts.

It needs no network and no server. Its style and its script are those of the run report, `fastgrpo.report`.
"""

from fastgrpo.evaluation.page.build import comparison_page, page

__all__ = ["comparison_page", "page"]
