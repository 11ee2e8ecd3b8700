"""Why there is nothing to learn from some responses, and what to change: pure functions of counts and settings."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from fastgrpo.algorithm.signal_counts import SignalCounts

MOST = 0.5
"""Share of the responses from which on what is wrong with them is a cause."""
NEARLY_ALL = 0.9
"""Share of cut responses from which on what is missing at their ends, as a box, is no cause of its own."""
RARE = 0.02
"""Share up to which responses hardly ever are right, or hardly ever wrong."""
FEW_BOXES = 0.1
MORE_GROUPS = 2
"""Groups by which one temperature, or one verifier, must have more signal than another to be worth a change."""


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What has a say in whether there is signal, besides the responses themselves."""

    reward: str  # its name
    demands_box: bool | None  # whether it accepts nothing outside of a box; None: not known
    temperature: float
    max_response_tokens: int  # at which responses were cut
    runs_max_response_tokens: int  # at which the run cuts them
    group_size: int  # of the run
    chat_template: bool
    asks_for_box: bool  # the prompt does
    last_failure: str = ""  # of the reward
    others: Mapping[str, SignalCounts] = field(default_factory=dict)  # the same responses by other verifiers
    temperatures: Mapping[float, SignalCounts] = field(default_factory=dict)  # the same draws at others


@dataclass(frozen=True)
class Cause:
    """One reason why there is nothing to learn."""

    name: str
    why: str  # with the counts
    mends: tuple[str, ...]  # what to change, the likeliest first


Rule = Callable[[SignalCounts, Circumstances], Cause | None]
"""The cause that it is about where the counts show it, else None."""


def causes_of(counts: SignalCounts, about: Circumstances) -> list[Cause]:
    """The causes that the counts show, the most certain first; one at least where no group has signal."""
    return list(_found(counts, about)) if counts.responses else []


def _found(counts: SignalCounts, about: Circumstances) -> Iterator[Cause]:
    has_certain = False
    cut_first = counts.cut >= NEARLY_ALL * counts.responses
    for rule in sorted(CERTAIN, key=lambda rule: not (cut_first and rule is is_cut)):
        if cause := rule(counts, about):
            has_certain = True
            yield cause
    for rule in FURTHER:
        if cause := rule(counts, about):
            yield cause
    if (not has_certain or about.others) and (cause := hardly_right(counts, about)):
        yield cause


def reward_fails(counts: SignalCounts, about: Circumstances) -> Cause | None:
    if counts.failures < MOST * counts.responses:
        return None
    last = f", the last time so: {about.last_failure}" if about.last_failure else ""
    return Cause(
        "reward_fails",
        f"the reward {about.reward} failed on {_of(counts.failures, counts)}{last}",
        ("mend the reward", "if it is slow, give it time by --reward.timeout_s and --reward.workers"),
    )


def no_reward(counts: SignalCounts, about: Circumstances) -> Cause | None:
    if counts.without_reward < MOST * counts.responses:
        return None
    return Cause(
        "no_reward",
        f"{_of(counts.without_reward, counts)} have no reward: {about.reward} returned None, NaN or infinite",
        ("let the reward return a number for every response",),
    )


def ends_at_once(counts: SignalCounts, about: Circumstances) -> Cause | None:
    if counts.ended_at_once < MOST * counts.responses:
        return None
    template = (
        "--data.no_chat_template, with words of your own in --data.template, if the model is a base model"
        if about.chat_template
        else "--data.chat_template, if the model was tuned to one"
    )
    return Cause(
        "ends_at_once",
        f"{_of(counts.ended_at_once, counts)} end with their first token",
        (template, "a --data.template without white space or an end token at its end"),
    )


def is_cut(counts: SignalCounts, about: Circumstances) -> Cause | None:
    if counts.cut < MOST * counts.responses:
        return None
    limit, of_run = about.max_response_tokens, about.runs_max_response_tokens
    longer = f"longer responses: --rollout.max_response_tokens {2 * limit}"
    if limit < of_run:
        longer += f" (the run's own limit is {of_run}; responses were cut earlier to spare time)"
    endless = (
        "if longer ones are cut too, the model writes no token that ends them: --rollout.stop_token_ids, "
        "or the chat template that it was tuned to"
    )
    return Cause("is_cut", f"{_of(counts.cut, counts)} are cut at {limit} tokens", (longer, endless))


def has_no_box(counts: SignalCounts, about: Circumstances) -> Cause | None:
    """A reward that is known to want a box, or a prompt that asks for one, and responses that hardly ever have it."""
    wants = about.demands_box or (about.demands_box is None and about.asks_for_box and counts.right == 0)
    if not wants or counts.boxed > FEW_BOXES * counts.responses or counts.right > counts.boxed:
        return None
    why = f"{_of(counts.boxed, counts)} have a box"
    why += f", and {about.reward} accepts nothing else" if about.demands_box else ", which the prompt asks for"
    ask = "words that ask for it: --data.suffix ' Put your final answer within \\boxed{}.'"
    return Cause(
        "has_no_box",
        why,
        (
            *_another_verifier(about),
            *(() if about.asks_for_box else (ask,)),
            "a prompt that shows the form: --data.template with a solved example before {problem}",
        ),
    )


def is_right(counts: SignalCounts, about: Circumstances) -> Cause | None:
    judged = counts.responses - counts.without_reward
    if not judged or counts.right < judged * (1 - RARE):
        return None
    return Cause(
        "is_right",
        f"{_of(counts.right, counts)} are right",
        ("harder data: --data.train, or --data.levels where it has levels",),
    )


def groups_agree(counts: SignalCounts, about: Circumstances) -> Cause | None:
    """Rewards differ between groups, and within none."""
    if counts.with_signal or not counts.rewards_differ:
        return None
    warmer = round(about.temperature * 1.25, 2)
    return Cause(
        "groups_agree",
        f"in each of {counts.groups} groups all rewards are equal, and between groups they differ: "
        f"{_of(counts.right, counts)} are right",
        (
            f"more variety: --rollout.temperature {warmer:g}, or --rollout.group_size {2 * about.group_size}",
            "data that is neither easy nor hard for the model, if a temperature does not help",
        ),
    )


def equal_numbers(counts: SignalCounts, about: Circumstances) -> Cause | None:
    """Some responses are right and some are not, and the rewards are equal all the same."""
    if counts.rewards_differ or not counts.right or counts.right == counts.responses - counts.without_reward:
        return None
    return Cause(
        "equal_numbers",
        f"all rewards are equal, though {_of(counts.right, counts)} are right",
        ("a reward that tells right from wrong: look at its parts and their weights",),
    )


def other_verifier(counts: SignalCounts, about: Circumstances) -> Cause | None:
    name, other = _best_other(about)
    if other is None or other.with_signal < counts.with_signal + MORE_GROUPS or has_no_box(counts, about):
        return None
    return Cause(
        "other_verifier",
        f"{about.reward} finds {_of(counts.right, counts)} right, and {name} finds {other.right} of the same",
        _another_verifier(about),
    )


def other_temperature(counts: SignalCounts, about: Circumstances) -> Cause | None:
    others = {t: c for t, c in about.temperatures.items() if t != about.temperature}
    if not others:
        return None
    best = max(others, key=lambda t: (others[t].with_signal, -abs(t - about.temperature)))
    if others[best].with_signal < counts.with_signal + MORE_GROUPS:
        return None
    return Cause(
        "other_temperature",
        f"at temperature {best:g} {others[best].with_signal} of {others[best].groups} groups have signal, at "
        f"{about.temperature:g} {counts.with_signal}",
        (f"--rollout.temperature {best:g}",),
    )


def hardly_right(counts: SignalCounts, about: Circumstances) -> Cause | None:
    """For where nothing else is wrong with responses of which hardly any is right, or other verifiers say the same."""
    few = RARE * counts.responses
    if counts.right > few or (counts.rewards_differ and not counts.right):
        return None
    name, most = max(((n, c.right) for n, c in about.others.items()), key=lambda found: found[1], default=("", 0))
    if most > few:
        return None
    others = f", and no other verifier finds more than {most} ({name})" if name else ""
    return Cause(
        "hardly_right",
        f"{_of(counts.right, counts)} are right{others}",
        (
            "easier data: --data.train, or --data.levels 1 2 where it has levels",
            f"more responses to each problem, where one in so many is right: --rollout.group_size "
            f"{4 * about.group_size}",
            "a model that solves such problems now and then",
        ),
    )


CERTAIN: tuple[Rule, ...] = (reward_fails, no_reward, ends_at_once, has_no_box, is_cut, is_right, equal_numbers)
"""Each is enough to explain that there is nothing to learn."""
FURTHER: tuple[Rule, ...] = (groups_agree, other_verifier, other_temperature)


def _of(count: int, counts: SignalCounts) -> str:
    return f"{count} of {counts.responses} responses"


def _best_other(about: Circumstances) -> tuple[str, SignalCounts | None]:
    """The verifier by which most groups have signal, and of those the one that accepts least."""
    if not about.others:
        return "", None
    name = max(about.others, key=lambda n: (about.others[n].with_signal, -about.others[n].right))
    return name, about.others[name]


def _another_verifier(about: Circumstances) -> tuple[str, ...]:
    name, other = _best_other(about)
    if other is None:
        return ("a verifier that reads answers without a box: `reward = simplerl_mix` in the recipe",)
    if not other.with_signal or other.right <= RARE * other.responses:
        return (f"another verifier alone does not help: the best, {name}, finds {other.right} of them right",)
    finds = f"which finds {other.right} of them right, and signal in {other.with_signal} of {other.groups} groups"
    return (f"another verifier: `reward = {name}` in the recipe, {finds}",)
