"""``python -m tests.models.page`` writes the table of docs/models.md anew."""

import sys
from collections.abc import Mapping
from pathlib import Path

from transformers import __version__

from tests.models.every_model import TYPES, Verdict, verdict_on

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- python -m tests.models.page: from here on generated -->\n", "<!-- to here -->\n"
_YES, _NO = "yes", "-"
_MOST = 150  # characters of a reason


def row(name: str, verdict: Verdict) -> str:
    """A type's line of the table."""

    def has(check: str) -> str:
        return _YES if check in verdict.checks else _NO

    cells = (f"`{name}`", TYPES[name], verdict.outcome, has("sharing"), has("checkpointing"), has("sampling"))
    return f"| {' | '.join(cells)} | {_short(verdict.reason)} |\n"


def table(verdicts: Mapping[str, Verdict]) -> str:
    count = {
        kind: sum(v.outcome == kind for v in verdicts.values()) for kind in ("packed", "rows", "refused", "not built")
    }
    right = count["packed"] + count["rows"]
    sampled = sum("sampling" in v.checks for v in verdicts.values())
    return "".join(
        (
            f"transformers {__version__} knows {len(verdicts)} types of causal language models. {right} are right: "
            f"{count['packed']} packed, {count['rows']} in rows; the built-in engine samples from {sampled} of them. "
            f"{count['refused']} are refused in words. Of {count['not built']} no small model can be made here.\n\n",
            "| type | class | trainer | shared prompts | recomputing | built-in engine | why not all of it |\n",
            "|---|---|---|---|---|---|---|\n",
            *(row(name, verdict) for name, verdict in sorted(verdicts.items())),
        )
    )


def _short(reason: str) -> str:
    line = " ".join(reason.split()).replace("|", "/")
    return line if len(line) <= _MOST else line[: _MOST - 1] + "…"


def main() -> None:
    verdicts = {name: verdict_on(name) for name in TYPES}
    head, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(head + BEGIN + table(verdicts) + END + rest.partition(END)[2])


if __name__ == "__main__":
    sys.exit(main())
