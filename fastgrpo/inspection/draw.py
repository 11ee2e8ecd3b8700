"""Draws responses at several temperatures, by the same noise at each, and has them judged meanwhile."""

import signal
from collections.abc import Sequence

import torch
from rich.console import Console

from fastgrpo.algorithm import Algorithm
from fastgrpo.algorithm.judging import Judging
from fastgrpo.algorithm.scoring import with_rewards
from fastgrpo.algorithm.signal_counts import groups_of
from fastgrpo.config import Config
from fastgrpo.evaluation.progress import StageProgress
from fastgrpo.inspection.subject import Subject
from fastgrpo.models.load import compute_dtype
from fastgrpo.ranks.signals import Interrupted, signals_noted
from fastgrpo.rewards import VerifierPool
from fastgrpo.rollout.engine_protocol import RolloutEngine
from fastgrpo.rollout.engine_spec import EngineSpec
from fastgrpo.rollout.engines import check_engine, start_engine
from fastgrpo.rollout.generate import requests_of
from fastgrpo.types import Group, Response, Sample, Sampling

PLAIN = Algorithm()


class Stopped(Interrupted):
    """A signal ended the inspection."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(f"stopped by {number.name}; an inspection keeps nothing")
        self.number = number


def draw(
    config: Config,
    subject: Subject,
    temperatures: Sequence[float],
    pool: VerifierPool,
    device: torch.device,
    console: Console,
) -> dict[float, list[Group]]:
    """The groups of each temperature with their verdicts, and the rewards that these are worth before any shaping.

    Those of the run's own temperature are the run's own first draws, but for where they are cut. Raises Stopped on a
    signal.
    """
    check_engine(config, device, compute_dtype(config.model, device))
    engine = start_engine(EngineSpec(config, device.type, "own_process"))
    judging = Judging(subject.tokenizer, pool)
    num_responses = len(subject.prompts) * config.rollout.group_size * len(temperatures)
    try:
        with StageProgress("responses", num_responses, console=console) as progress, signals_noted() as noted:
            found = {}
            for temperature in temperatures:
                sampling = _sampling(config, subject, temperature)
                groups = _drawn(engine, subject, sampling, judging, progress, noted)
                judged = judging.judged(groups, sampling, config.reward.correct)
                samples = [sample for group in judged for sample in group]
                found[temperature] = groups_of(with_rewards(samples, PLAIN, config, 0), sampling.group_size)
            return found
    finally:
        judging.close()
        engine.close()


def _sampling(config: Config, subject: Subject, temperature: float) -> Sampling:
    return Sampling(
        group_size=config.rollout.group_size,
        max_response_tokens=config.rollout.max_response_tokens,
        temperature=temperature,
        stop_token_ids=subject.stop_token_ids,
        seed=config.seed,
    )


def _drawn(
    engine: RolloutEngine,
    subject: Subject,
    sampling: Sampling,
    judging: Judging,
    progress: StageProgress,
    noted: Sequence[signal.Signals],
) -> list[Group]:
    requests = requests_of(subject.prompts, sampling)
    responses: dict[int, Response] = {}
    engine.submit(requests)
    while engine.is_unfinished():
        for n, response in engine.step():
            responses[n] = response
            judging.begin(requests[n], response)
            progress.advance()
        if noted:
            raise Stopped(noted[0])
    return groups_of([Sample(r.prompt, responses[r.id]) for r in requests], sampling.group_size)
