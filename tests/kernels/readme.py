"""The Python blocks of kernels/README.md, by the heading that they stand under."""

import re
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "kernels" / "README.md").read_text(encoding="utf-8")


def blocks() -> list[tuple[str, str]]:
    """Heading and code of each, in the page's order."""
    found, heading = [], ""
    for line, code in re.findall(r"^#+ ([^\n]+)$|^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        heading = line or heading
        found += [(heading, code)] if code else []
    return found


def block(heading: str) -> str:
    return dict(blocks())[heading]
