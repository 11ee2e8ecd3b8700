"""The report of a run, one self-contained page: curves, headline numbers and rollouts to read.

``python -m fastgrpo.report RUN`` writes ``report.html`` into the run folder. The page needs no network and no server.
"""

from fastgrpo.report.page import write_report

__all__ = ["write_report"]
