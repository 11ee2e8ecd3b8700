"""``fastgrpo report RUN``: writes the page of a run and prints its path; ``python -m fastgrpo.report RUN``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fastgrpo.command_line import did_you_mean, exit_codes, expanded, ignore_lost_output, run_command
from fastgrpo.report import write_report

RUNS = Path("runs")


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the page and returns 0. Exits with a message and status 2 if there is no run to report."""
    parser = argparse.ArgumentParser("fastgrpo report", description="Write the report page of a run.")
    parser.add_argument("run", metavar="RUN", help="a run folder, or the name of one under runs/")
    name = parser.parse_args(argv).run
    ignore_lost_output()
    try:
        print(write_report(find_run(name)))
    except ValueError as error:
        parser.error(str(error))
    return exit_codes.DONE


def find_run(name: str) -> Path:
    """The folder itself where it exists, else the one of that name under runs/. Raises ValueError with the nearest."""
    for folder in (Path(expanded(name)), RUNS / name):
        if folder.is_dir():
            return folder
    runs = sorted(folder.name for folder in RUNS.iterdir() if folder.is_dir()) if RUNS.is_dir() else []
    raise ValueError(
        f"looked for the folder {name} and for {RUNS / name}, and there is neither"
        f"{did_you_mean(Path(name).name, runs) or '.'} Give the name of a run under {RUNS}/, or the folder of a run"
    )


if __name__ == "__main__":
    run_command(main)
