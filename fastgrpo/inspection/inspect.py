"""The inspection from beginning to end."""

from contextlib import ExitStack
from dataclasses import replace

from transformers.utils.logging import disable_progress_bar

from fastgrpo.algorithm.advantages import NEED_NO_GROUP
from fastgrpo.algorithm.no_signal import Circumstances
from fastgrpo.algorithm.signal_counts import SignalCounts
from fastgrpo.command_line.console import Page
from fastgrpo.inspection.asked import Asked, asked_of
from fastgrpo.inspection.draw import draw
from fastgrpo.inspection.options import Options
from fastgrpo.inspection.other_verifiers import by_others
from fastgrpo.inspection.printing import say_what_is_drawn, show_answers, show_finding, show_prompt
from fastgrpo.inspection.subject import prepare, read_subject
from fastgrpo.inspection.tables import by_temperature, by_verifier
from fastgrpo.inspection.verdict import Finding, finding_of
from fastgrpo.ranks import choose_device
from fastgrpo.run.barren import circumstances_of
from fastgrpo.run.verifiers import example_of, start_pool


def inspect(options: Options) -> Finding:
    """Draws, judges, and prints what is found. Raises ValueError for what the user can mend, mostly before weights
    load, RewardError if the reward cannot go on, and Interrupted on a signal."""
    disable_progress_bar()
    console = Page(soft_wrap=True, highlight=False)
    asked = asked_of(options)
    device = choose_device(asked.config.device)
    config = asked.sampled(device.type, options.answers)
    prepare(asked.recipe, config, lambda text: console.print(text, markup=False))
    subject = read_subject(asked.recipe, config, options.problems, lambda text: console.print(text, markup=False))
    temperatures = options.temperatures_for(config.rollout.temperature)
    with ExitStack() as ends:
        example = example_of(subject.prompts[0], config.data.train, with_row=False)  # its row has been read
        pool = ends.enter_context(start_pool(asked.recipe, config.reward, example))
        show_prompt(console, subject)
        say_what_is_drawn(console, asked, config, subject, temperatures)
        drawn = draw(config, subject, temperatures, pool, device, console)
        last_failure = pool.last_error.split("\n")[0]
    own = config.rollout.temperature
    counts = {t: SignalCounts.of(groups) for t, groups in drawn.items()}
    about = circumstances_of(asked.recipe, config, subject.prompts[0].text, last_failure)
    about = replace(
        about,
        runs_max_response_tokens=asked.config.rollout.max_response_tokens,
        group_size=asked.config.rollout.group_size,
        temperatures=counts,
    )
    if (found := _finding(asked, counts[own], about)).can_learn != "yes":
        others = by_others(drawn[own], config.reward, about.reward)
        found = _finding(asked, counts[own], replace(about, others=others))
        about = replace(about, others=others)
    show_answers(console, drawn[own][: options.shown], own)
    console.print("\nBy temperature (signal: groups whose rewards differ; length: the mean, in tokens):", markup=False)
    console.print(by_temperature(counts, own))
    if about.others:
        console.print(f"The same responses at temperature {own:g}, by other verifiers:", markup=False)
        console.print(by_verifier({about.reward: counts[own], **about.others}))
    show_finding(console, found)
    return found


def _finding(asked: Asked, counts: SignalCounts, about: Circumstances) -> Finding:
    config, algorithm = asked.config, asked.recipe.algorithm
    compares_groups = algorithm.advantages is None and config.objective.advantage not in NEED_NO_GROUP
    return finding_of(counts, about, compares_groups, config.data.prompts_per_step)
