"""All results of a device in one table, from the JSON files of the other subjects."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from bench import harness


def main(argv: Sequence[str]) -> int:
    """Prints the table. Returns 1 if there are no results."""
    parser = argparse.ArgumentParser(prog="bench summary", description=__doc__)
    parser.add_argument("--device", default="", help="a folder of the results; all of them if not given")
    folder = parser.parse_args(argv).device
    files = sorted(harness.RESULTS.glob(f"{folder or '*'}/*.json"))
    rows = [[f"{file.parent.name}  {file.stem}", *row] for file in files for row in _headline(file)]
    if not rows:
        print(f"no results in {harness.RESULTS / folder}")
        return 1
    harness.print_table("results", ("device, subject", "what", "value", "limit or peer"), rows)
    return 0


def _headline(file: Path) -> list[list[str]]:
    """The headline of a results file; a broken file is named and does not hide the others."""
    try:
        return json.loads(file.read_text(encoding="utf-8")).get("headline", [])
    except (ValueError, AttributeError) as error:
        return [["is no results file", str(error), "-"]]
