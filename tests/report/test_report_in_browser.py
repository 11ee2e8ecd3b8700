"""The page as a browser shows it: the charts draw, the table fills and answers, and no text of a model runs."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from fastgrpo.report import write_report

FakeRun = Callable[..., Path]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PLOTS = 15


class Shown(NamedTuple):
    dom: str
    console: list[str]  # errors of scripts, and what the content security policy refused

    @property
    def title(self) -> str:
        return re.findall(r"<title>(.*?)</title>", self.dom)[0]

    @property
    def num_drawn(self) -> int:
        """Charts with at least one trace on them."""
        return len(re.findall(r'<g class="(?:scatterlayer|barlayer) mlayer">(?=<g class="trace)', self.dom))

    @property
    def rows(self) -> list[str]:
        return re.findall(r'<tr class="row.*?</tr>', self.dom, re.DOTALL)

    @property
    def count(self) -> str:
        return re.findall(r'<p id="count"[^>]*>(.*?)</p>', self.dom)[0]


@pytest.fixture
def show(tmp_path: Path) -> Callable[..., Shown]:
    if CHROMIUM is None and os.environ.get("CI"):
        pytest.fail("chromium is not on PATH: install it (apt-get install chromium), CI does not skip this test.")
    if CHROMIUM is None:
        pytest.skip("chromium is not on PATH")
    return lambda page, *flags: _show(CHROMIUM, page, tmp_path / "browser", *flags)


def _show(browser: str, page: Path, profile: Path, *flags: str) -> Shown:
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", f"--user-data-dir={profile}",
        "--enable-logging=stderr", "--virtual-time-budget=10000", "--window-size=1200,900", *flags, "--dump-dom",
        page.resolve().as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, check=True, timeout=120)
    errors = done.stderr.decode(errors="replace").splitlines()
    return Shown(done.stdout.decode(errors="replace"), [line for line in errors if "CONSOLE" in line])


def acting(page: Path, script: str) -> Path:
    """A copy of the page on which a script acts as its reader. The page itself would refuse a script."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
    copy = page.with_name("acting.html")
    copy.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    return copy


def test_charts_draw_and_rows_appear(fake_run: FakeRun, show: Callable[..., Shown]) -> None:
    shown = show(write_report(fake_run()))
    assert shown.console == []
    assert shown.num_drawn == PLOTS
    assert len(shown.rows) == 40
    assert shown.count == "960 of 960 match."
    assert "Show 40 more" in shown.dom


def test_one_step_draws(fake_run: FakeRun, show: Callable[..., Shown]) -> None:
    shown = show(write_report(fake_run(num_steps=1, finished=False)))
    assert shown.console == []
    assert shown.num_drawn == PLOTS
    assert len(shown.rows) == 8


def test_page_without_rollouts_draws(fake_run: FakeRun, show: Callable[..., Shown]) -> None:
    shown = show(write_report(fake_run(num_steps=3, rollouts=[])))
    assert shown.console == []
    assert shown.num_drawn == PLOTS
    assert shown.rows == []


def test_hostile_texts_do_not_run(fake_run: FakeRun, show: Callable[..., Shown]) -> None:
    texts = [
        "</script><script>document.title = 'broken'</script>",
        "<img src=x onerror=\"document.title = 'broken'\">",
        "null \x00 escape \x1b[31m",
        "half a pair \ud83d and 数学 😀",
    ]
    rollouts = [{"step": 1, "prompt": text, "response": text, "answer": text, "reward": 1.0} for text in texts]
    page = write_report(fake_run(num_steps=2, rollouts=rollouts))
    shown = show(page)
    assert shown.console == []
    assert shown.title == "justrl-1.5b · fastgrpo"
    assert len(shown.rows) == len(texts)
    assert shown.num_drawn == PLOTS
    opened = show(acting(page, "for (const b of document.querySelectorAll('.open')) b.closest('tr').click()"))
    assert opened.title == "justrl-1.5b · fastgrpo"
    assert "<pre>&lt;img src=x onerror=" in opened.dom
    assert "null \N{SYMBOL FOR NULL} escape \N{SYMBOL FOR ESCAPE}[31m" in opened.dom
    assert "数学 😀" in opened.dom


def test_filters_sorting_and_reading(fake_run: FakeRun, show: Callable[..., Shown]) -> None:
    rollouts = [
        {"step": step, "response": f"Some words, then {n}.", "reward": reward, "num_response_tokens": n}
        for step in (1, 2, 3)
        for n, reward in ((7, 1.0), (1234, -1.0), (30, -1.0))
    ]
    page = write_report(fake_run(num_steps=3, rollouts=rollouts))
    act = """
        const form = document.getElementById("filters");
        document.querySelector("[value=wrong]").click();
        form.step.value = 2;
        form.text.value = "WORDS";
        form.dispatchEvent(new Event("input"));
        const head = document.querySelector("[data-sort=num_response_tokens] button");
        head.click();
        head.click();
        document.querySelector("tr.row").click();
    """
    shown = show(acting(page, act))
    assert shown.console == []
    assert shown.count == "2 of 9 match."
    assert ">1,234<" in shown.rows[0]
    assert ">30<" in shown.rows[1]
    assert re.search(r"<pre>Some <mark>words</mark>, then 1234\.</pre>", shown.dom)
    assert 'aria-sort="descending"' in shown.dom
    assert 'aria-expanded="true"' in shown.dom


def test_theme_follows_the_reader(fake_run: FakeRun, show: Callable[..., Shown]) -> None:
    page = write_report(fake_run(num_steps=2, rollouts=[]))
    light, dark = (show(page, f"--blink-settings=preferredColorScheme={scheme}").dom for scheme in (1, 0))
    assert "background: rgb(255, 255, 255)" in light
    assert "background: rgb(27, 30, 34)" in dark
