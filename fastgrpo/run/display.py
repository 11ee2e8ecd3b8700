"""What a person sees of a run while it goes."""

import sys
import time
from typing import Any

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

COLUMNS = {
    "step": "{:.0f}",
    "reward": "{:+.3f}",
    "held_out_accuracy": "{:.3f}",
    "response_length": "{:.1f}",
    "entropy": "{:.3f}",
    "clip_frac": "{:.4f}",
    "grad_norm": "{:.3f}",
    "tokens_per_s": "{:,.0f}",
    "step_s": "{:.2f}",
}
HEADINGS = {
    "held_out_accuracy": "held-out",
    "response_length": "length",
    "clip_frac": "clipped",
    "grad_norm": "grad norm",
    "tokens_per_s": "tokens/s",
    "step_s": "s/step",
}


class Display:
    """A live table in a terminal, a plain line a step elsewhere. ``quiet`` ranks show nothing."""

    LAST_ROWS = 12

    def __init__(self, num_steps: int, quiet: bool) -> None:
        self.console = Console(quiet=quiet, soft_wrap=True, highlight=False)
        self.num_steps = num_steps
        self.rows: list[dict[str, Any]] = []
        self.started, self.first_step = time.perf_counter(), 0
        self.live = Live(console=self.console, refresh_per_second=4) if sys.stdout.isatty() and not quiet else None

    def __enter__(self) -> "Display":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def begin(self, step: int) -> None:
        """Starts the estimate of the time left: training goes on after this step."""
        self.started, self.first_step = time.perf_counter(), step

    def show(self, metrics: dict[str, Any]) -> None:
        self.rows.append(metrics)
        left = self._left_s(metrics["step"])
        if self.live:
            self.live.update(self._table(left))
        else:
            cells = (f"{HEADINGS.get(n, n)} {_cell(metrics, n)}" for n in COLUMNS if n != "step")
            self.say(f"step {metrics['step']}/{self.num_steps}  " + "  ".join(cells) + f"  left {_duration(left)}")

    def _left_s(self, step: int) -> float:
        done = step - self.first_step
        return (time.perf_counter() - self.started) / max(done, 1) * (self.num_steps - step)

    def _table(self, left_s: float) -> Table:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)  # all headings in 80 columns
        table.caption = f"{self.rows[-1]['step']} of {self.num_steps} steps, {_duration(left_s)} left"
        for name in COLUMNS:
            table.add_column(HEADINGS.get(name, name), justify="right")
        for row in self.rows[-self.LAST_ROWS :]:
            table.add_row(*(_cell(row, name) for name in COLUMNS))
        return table


def _cell(metrics: dict[str, Any], name: str) -> str:
    value = metrics.get(name)
    return "-" if value is None or value != value else COLUMNS[name].format(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s"
