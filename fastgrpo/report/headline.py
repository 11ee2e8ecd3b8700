"""The few numbers in the page's header that say how a run went."""

from fastgrpo.pages import Fact, amount, counted, duration
from fastgrpo.report.read import Run, number

_INCIDENTS = {
    "skipped_updates": "skipped update",
    "verifier_failures": "verifier failure",
    "rewards_not_finite": "NaN or infinite reward",
    "responses_without_reward": "unrewarded response",
}
_COUNTED_UP = {"engine_restarts": "engine restart", "responses_redrawn": "redrawn response"}
"""Metrics that count from the beginning of the process."""
_TEXTS = {"verifier_failures": "last_verifier_error"}
"""What a run says of the last incident of a kind."""


def headline(run: Run) -> list[Fact]:
    """The numbers of the header, accuracies first, without those that the run did not record."""
    samples, temperature = run.setting("evaluation.samples_per_prompt"), run.setting("evaluation.temperature")
    how = f"mean of {samples} samples, temperature {temperature}" if samples and temperature is not None else ""
    facts = [
        _accuracy(run, "Held-out accuracy, sampled", "accuracy", "held_out_accuracy", how),
        _accuracy(run, "Held-out accuracy, greedy", "greedy", "held_out_greedy", "one response a problem"),
        _steps(run),
        _train_time(run),
        _throughput(run),
    ]
    return [fact for fact in facts if fact]


def incidents(run: Run) -> list[str]:
    """The failures that the run survived, in plain words; empty for a healthy run."""
    counts = {metric: run.total(metric) for metric in _INCIDENTS}
    counts |= {metric: float(max(run.known(metric), default=0.0)) for metric in _COUNTED_UP}
    return [
        counted(count, (_INCIDENTS | _COUNTED_UP)[metric]) + _last_words(run, metric)
        for metric, count in counts.items()
        if count
    ]


def _last_words(run: Run, metric: str) -> str:
    text = run.metrics.texts.get(_TEXTS.get(metric, ""), "")
    return f", the last: {text}" if text else ""


def subtitle(run: Run) -> list[str]:
    """Model, recipe, machine and seed."""
    about = run.about
    ranks = number(about.get("num_ranks"))
    machine = [str(about["device"])] if about.get("device") else []
    machine += [counted(ranks, "rank")] if ranks else []
    seed = run.summary.get("seed", run.setting("seed"))
    parts = [about.get("model"), about.get("recipe"), ", ".join(machine), f"seed {seed}" if seed is not None else ""]
    return [str(part) for part in parts if part]


def _accuracy(run: Run, label: str, name: str, metric: str, how: str) -> Fact | None:
    """The accuracy before and after from the summary or, while the run goes on, from its first and last evaluation."""
    known = run.known(metric)
    before, after = (number(run.summary.get(f"{name}_{when}")) for when in ("before", "after"))
    if before is None and len(known):
        before = float(known[0])
    if after is None and len(known) > 1:
        after = float(known[-1])
    if before is None and after is None:
        return None
    if before is None or after is None:
        return Fact(label=label, value=f"{before if after is None else after:.1%}", detail=how)
    points = 100 * (after - before)
    detail = f"{points:+.1f} points" + (f" · {how}" if how else "")
    return Fact(label=label, before=f"{before:.1%}", value=f"{after:.1%}", detail=detail)


def _steps(run: Run) -> Fact:
    planned = number(run.setting("steps"))
    unfinished = f"of {planned:,}, not finished" if planned else "not finished"
    state = "finished" if run.summary else unfinished
    tokens = run.last("total_tokens")
    return Fact(
        label="Steps", value=f"{run.num_steps:,}", detail=state + (f" · {amount(tokens)} tokens" if tokens else "")
    )


def _train_time(run: Run) -> Fact | None:
    seconds = number(run.summary.get("train_s")) or run.total("step_s")
    if not seconds:
        return None
    per_step = f"{seconds / run.num_steps:.3g} s a step" if run.num_steps else ""
    return Fact(label="Training time", value=duration(seconds), detail=per_step)


def _throughput(run: Run) -> Fact | None:
    speed = number(run.summary.get("tokens_per_s"))
    if speed is None:
        seconds, tokens = run.total("step_s"), run.last("total_tokens")
        speed = tokens / seconds if seconds and tokens else None
    if speed is None:
        return None
    ranks = number(run.about.get("num_ranks"))
    detail = f"{speed / ranks:,.0f} a rank" if ranks and ranks > 1 else ""
    return Fact(label="Tokens per second", value=f"{speed:,.0f}", detail=detail)
