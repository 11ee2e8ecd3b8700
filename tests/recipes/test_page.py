"""The two fidelity pages are what the program makes of the published runs and the recipes."""

import re
from pathlib import Path

import pytest

from tests.recipes.page import FULL_PAGE, PAGE, anchor, full_page, pages, with_tables
from tests.recipes.sources import RUNS, SYSTEMS

ROOT = PAGE.parents[1]


@pytest.mark.parametrize("page", [PAGE, FULL_PAGE], ids=lambda page: page.stem)
def test_a_fidelity_page_is_what_the_program_makes(page: Path) -> None:
    assert page.read_text() == pages()[page], "run `python -m tests.recipes.page`"


def test_a_page_without_the_table_of_a_system_or_with_one_of_no_system_is_refused() -> None:
    page = PAGE.read_text()
    for broken in (page.replace("<!-- table: DAPO -->", ""), page + "<!-- table: Nobody's -->\n<!-- end -->"):
        with pytest.raises(ValueError, match="one table for each"):
            with_tables(broken)


def test_the_full_page_has_every_recipe_and_every_path() -> None:
    for system, section in zip(SYSTEMS, full_page().split("\n## ")[1:], strict=True):
        assert section.startswith(system.title)
        for name, run in system.runs.items():
            inherited = RUNS[run.base].constants if run.base else {}
            assert f"`{name}`" in section
            assert all(f"| `{path}` |" in section for path in run.constants if path not in inherited)


@pytest.mark.parametrize("page", [PAGE, FULL_PAGE], ids=lambda page: page.stem)
def test_a_table_has_one_value_in_a_cell(page: Path) -> None:
    assert [line for line in page.read_text().split("\n") if line.startswith("|") and ";" in line] == []


def test_every_link_to_a_fidelity_page_finds_its_heading() -> None:
    links = set()
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        links |= set(re.findall(r"\]\((?:docs/)?(fidelity\w*\.md)#([^)]+)\)", path.read_text()))
    assert links
    for page, fragment in links:
        headings = re.findall(r"^#+ (.*)$", (PAGE.parent / page).read_text(), re.MULTILINE)
        assert fragment in [anchor(heading) for heading in headings], f"{page} has no heading #{fragment}"
