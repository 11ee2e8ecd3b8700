"""The page of an evaluation, one self-contained file: accuracies beside published ones, curves, lengths, transcripts.

It needs no network and no server. What it shares with the report of a run is in `fastgrpo.pages`.
"""

from fastgrpo.evaluation.page.build import comparison_page, page

__all__ = ["comparison_page", "page"]
