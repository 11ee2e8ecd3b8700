"""``python -m fastgrpo.report RUN``: writes the page of a run and prints its path."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fastgrpo.report import write_report


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the page. Exits with a message and status 2 if there is no run to report."""
    parser = argparse.ArgumentParser(prog="python -m fastgrpo.report", description="Write the report page of a run.")
    parser.add_argument("run", metavar="RUN", help="a run folder, or the name of one under runs/")
    name = parser.parse_args(argv).run
    try:
        print(write_report(find_run(name)))
    except ValueError as error:
        parser.error(str(error))


def find_run(name: str) -> Path:
    """The folder itself if it exists, or else the folder of that name under runs/."""
    for folder in (Path(name), Path("runs") / name):
        if folder.is_dir():
            return folder
    raise ValueError(f"no run {name!r}: neither {Path(name)} nor {Path('runs') / name} is a folder.")


if __name__ == "__main__":
    main()
