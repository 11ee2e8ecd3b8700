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
from tests.report.test_report import PLOTS, SMALL, WITHOUT_FAILURES

FakeRun = Callable[..., Path]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Shown(NamedTuple):
    dom: str
    console: list[str]  # errors of scripts, and what the content security policy refused

    @property
    def title(self) -> str:
        return re.findall(r"<title>(.*?)</title>", self.dom)[0]

    @property
    def num_drawn(self) -> int:
        """Charts that a script has drawn."""
        return self.dom.count('<div class="uplot')

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
    """A copy of the page on which a script acts as its reader, once all is shown. The page itself would refuse it."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
    copy = page.with_name("acting.html")
    copy.write_text(
        text.replace("</body>", f"<script>shown_.then(() => {{ {script} }});</script></body>"), encoding="utf-8"
    )
    return copy


def test_charts_draw_and_rows_appear(fake_run: FakeRun, show: Callable[..., Shown]) -> None:
    shown = show(write_report(fake_run()))
    assert shown.console == []
    assert shown.num_drawn == PLOTS + SMALL
    assert len(shown.rows) == 40
    assert shown.count == "960 of 960 match."
    assert "Show 40 more" in shown.dom


def test_one_step_draws(fake_run: FakeRun, show: Callable[..., Shown]) -> None:
    shown = show(write_report(fake_run(num_steps=1, finished=False)))
    assert shown.console == []
    assert shown.num_drawn == WITHOUT_FAILURES
    assert len(shown.rows) == 8


def test_page_without_rollouts_draws(fake_run: FakeRun, show: Callable[..., Shown]) -> None:
    shown = show(write_report(fake_run(num_steps=3, rollouts=[])))
    assert shown.console == []
    assert shown.num_drawn == PLOTS + SMALL
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
    assert shown.num_drawn == WITHOUT_FAILURES
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


INK = """
    const inked = (canvas, hex) => {
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      const [r, g, b] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
      let count = 0;
      for (let i = 0; i < data.length; i += 4)
        count += data[i + 3] > 200 && [r, g, b].every((value, n) => Math.abs(data[i + n] - value) < 5);
      return count;
    };
    const say = (value) => { document.title = value; };
"""


def test_curves_are_painted_in_their_colours(fake_run: FakeRun, show: Callable[..., Shown]) -> None:
    page = write_report(fake_run())
    count = """
        const bare = [];
        for (const holder of document.querySelectorAll(".plot[data-chart]")) {
          const colours = holder.dataset.chart === "step_s" ? ["#5e94df", "#5e94e0"] : ["#3b7dd8", "#d9731a"];
          const canvas = holder.querySelector("canvas");
          if (!colours.some((colour) => inked(canvas, colour) > 20)) bare.push(holder.dataset.chart);
        }
        say(`bare: ${bare.join(" ")}.`);
    """
    assert show(acting(page, INK + count)).title == "bare: ."


def test_reader_zooms_all_charts_reads_values_and_hides_a_series(fake_run: FakeRun, show: Callable[..., Shown]) -> None:
    page = write_report(fake_run(num_steps=60))
    act = """
        const plot = (name) => document.querySelector(`[data-chart="${name}"]`);
        const key = (name) => plot(name).previousElementSibling;
        for (const pressed of ["ArrowLeft", "ArrowLeft", "+"])
          plot("entropy").dispatchEvent(new KeyboardEvent("keydown", { key: pressed }));
        const zoomed = !document.getElementById("unzoom").hidden;
        const button = key("truncated_frac").querySelector("button.item");
        button.click();
        setTimeout(() => {
          const at = ["reward", "entropy"].map((name) => key(name).querySelector(".at").textContent);
          const unzoom = document.getElementById("unzoom");
          unzoom.click();
          say([...at, zoomed, button.getAttribute("aria-pressed"), unzoom.hidden].join(" / "));
        }, 100);
    """
    shown = show(acting(page, INK + act))
    assert shown.console == []
    assert shown.title == "step 58 / step 58 / true / false / true"


def test_theme_follows_the_reader(fake_run: FakeRun, show: Callable[..., Shown]) -> None:
    page = write_report(fake_run(num_steps=2, rollouts=[]))
    act = 'say(getComputedStyle(document.querySelector("figure")).backgroundColor + colours.card)'
    schemes = (f"--blink-settings=preferredColorScheme={scheme}" for scheme in (1, 0))
    light, dark = (show(acting(page, INK + act), scheme).title for scheme in schemes)
    assert light == "rgb(255, 255, 255)#ffffff"
    assert dark == "rgb(27, 30, 34)#1b1e22"
