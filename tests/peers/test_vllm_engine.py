"""vLLM behind the rollout protocol: its logprobs are the trainer's, its responses depend on nothing but their keys."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastgrpo.config import ModelConfig
from fastgrpo.models.load import load_causal_lm
from fastgrpo.rollout.builtin import engine as builtin
from fastgrpo.rollout.builtin.engine import BuiltinEngine
from fastgrpo.rollout.builtin.kv_cache import ATTENTION
from fastgrpo.rollout.generate import generate, requests_of
from fastgrpo.rollout.sampling_noise import stream_keys
from fastgrpo.rollout.vllm.engine import VllmEngine
from fastgrpo.types import Group, Prompt, Request, Response, Sampling
from tests.peers import vllm_models as tiny

vllm = pytest.importorskip("vllm", reason="needs vLLM, in an environment of its own: `make test-full`")
pytestmark = pytest.mark.peers

NAME = "qwen2_tied"
TEMPERATURE = 0.8
BLOCK = 128  # tokens of one of vLLM's cache blocks on a CPU


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> str:
    return tiny.save(Path(tmp_path_factory.mktemp("model")), NAME, tiny.random_weights(NAME, 0))


@pytest.fixture(scope="module")
def started(path) -> Iterator[VllmEngine]:
    engine = tiny.start(path)
    yield engine
    engine.close()


@pytest.fixture
def engine(started) -> Iterator[VllmEngine]:
    """Nothing under way, and the first weights."""
    started.write_weights(tiny.random_weights(NAME, 0).items(), 0)
    yield started
    started.cancel(list(started._drawing))
    started.settings = dataclasses.replace(started.settings, kv_on_sync="recompute")


def trainer(seed: int, pairs: list[tuple[Prompt, Response]]) -> list[np.ndarray]:
    return tiny.trainer_logprobs(NAME, tiny.random_weights(NAME, seed), pairs, TEMPERATURE)


def rollout(pairs: list[tuple[Prompt, Response]]) -> list[np.ndarray]:
    return [response.rollout_logprobs for _, response in pairs]


def test_engines_and_trainer_agree_on_the_logprobs_of_ten_thousand_tokens(engine, path, monkeypatch):
    sampling = Sampling(5, 64, TEMPERATURE, (), 11)
    prompts = tiny.prompts(32, longest=40)
    groups = generate(engine, prompts, sampling)
    pairs = tiny.pairs_of(groups)
    assert sum(len(r) for _, r in pairs) >= 10_000
    assert tiny.largest_gap(rollout(pairs), trainer(0, pairs)) < 1e-3

    monkeypatch.setattr(builtin, "sample", forced(groups, sampling))
    model = load_causal_lm(ModelConfig(path=path), torch.device("cpu"), torch.float32, ATTENTION)
    theirs = tiny.pairs_of(generate(BuiltinEngine(model, 160), prompts, sampling))
    assert [r.response_ids.tolist() for _, r in theirs] == [r.response_ids.tolist() for _, r in pairs]
    assert tiny.largest_gap(rollout(theirs), rollout(pairs)) < 1e-3
    assert engine.policy_version == 0 and {r.finish_reason for _, r in pairs} == {"length"}


def forced(groups: list[Group], sampling: Sampling) -> Any:
    """In place of the built-in engine's draw: the tokens of these responses, and their logprobs by definition."""
    tokens: dict[int, np.ndarray] = {}
    for group in groups:
        for index, sample in enumerate(group):
            key = stream_keys(sampling.seed, torch.tensor([group[0].prompt.position]), torch.tensor([index]))
            tokens[int(key)] = sample.response.response_ids

    def draw(
        logits: Tensor, temperature: float, keys: Tensor, places: Tensor, top_p: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        pairs = zip(keys.tolist(), places.tolist(), strict=True)
        ids = torch.tensor([int(tokens[k][min(p, len(tokens[k]) - 1)]) for k, p in pairs])
        logprobs = torch.log_softmax(logits / temperature, -1)
        return ids, logprobs.gather(1, ids[:, None]).squeeze(1), torch.zeros(len(ids))

    return draw


def ids_of(responses: dict[int, Response]) -> dict[int, list[int]]:
    return {i: r.response_ids.tolist() for i, r in responses.items()}


def test_a_response_depends_on_its_prompt_its_sample_and_the_seed_alone(engine):
    requests = requests_of(tiny.prompts(8), Sampling(3, 24, TEMPERATURE, tuple(range(8)), 7))
    together = tiny.drawn(engine, requests)
    order = np.random.default_rng(0).permutation(len(requests))
    shuffled = tiny.drawn(engine, [requests[i] for i in order])
    one_by_one: dict[int, Response] = {}
    for request in requests:
        one_by_one.update(tiny.drawn(engine, [request]))
    staggered: dict[int, Response] = {}
    for request in requests:
        engine.submit([request])
        staggered.update(engine.step())
    staggered.update(tiny.rest_of(engine))
    assert ids_of(together) == ids_of(shuffled) == ids_of(one_by_one) == ids_of(staggered)
    assert len({tuple(ids) for ids in ids_of(together).values()}) == len(requests)
    for others in (shuffled, one_by_one, staggered):
        assert (
            tiny.largest_gap(
                [others[i].rollout_logprobs for i in together], [r.rollout_logprobs for r in together.values()]
            )
            < 1e-4
        )
    again = requests_of(tiny.prompts(8), Sampling(3, 24, TEMPERATURE, tuple(range(8)), 8))
    assert ids_of(tiny.drawn(engine, again)) != ids_of(together)


def test_a_stop_token_ends_a_response_and_belongs_to_it(engine):
    stops = tuple(range(10))
    responses = tiny.responses_of(engine, 16, Sampling(4, 32, TEMPERATURE, stops, 3))
    reasons = [r.finish_reason for r in responses]
    assert {"stop", "length"} == set(reasons)
    for response in responses:
        ids = response.response_ids.tolist()
        assert not set(ids[:-1]) & set(stops)
        assert (ids[-1] in stops) == (response.finish_reason == "stop")
        assert len(ids) == len(response.rollout_logprobs)
        assert response.finish_reason == "stop" or len(ids) == 32


def test_without_stop_tokens_the_models_own_end_token_ends_nothing(engine):
    responses = tiny.responses_of(engine, 16, Sampling(4, 64, TEMPERATURE, (), 3))
    assert {len(r) for r in responses} == {64}
    assert any(0 in r.response_ids[:-1] for r in responses)  # eos_token_id of the model's files


def test_greedy_responses_have_logprobs_that_the_trainer_has(engine):
    groups = generate(engine, tiny.prompts(8), Sampling(1, 24, 0.0))
    pairs = tiny.pairs_of(groups)
    ours = tiny.trainer_logprobs(NAME, tiny.random_weights(NAME, 0), pairs, 1.0)
    assert tiny.largest_gap(rollout(pairs), ours) < 1e-3


def test_with_top_p_only_the_nucleus_is_drawn_and_no_logprob_is_claimed(engine):
    """First tokens of many samples against the trainer's probabilities of the nucleus."""
    prompt = tiny.prompts(1, longest=20)[0]
    sampling = Sampling(400, 1, TEMPERATURE, (), 5, top_p=0.5)
    [group] = generate(engine, [prompt], sampling)
    whole = np.exp([_first_logprobs(prompt)])[0]
    order = np.argsort(-whole)
    size = int(np.searchsorted(np.cumsum(whole[order]), 0.5)) + 1
    drawn = {int(s.response.response_ids[0]) for s in group}
    assert 1 < size < 100 and drawn <= set(order[:size].tolist()) and len(drawn) > 1
    assert all(np.isnan(s.response.rollout_logprobs).all() for s in group)


def _first_logprobs(prompt: Prompt) -> np.ndarray:
    """Of every token of the vocabulary as a first one."""
    pairs = [
        (prompt, Response(np.array([i], np.int32), np.zeros(1, np.float32), "length", 0))
        for i in range(tiny.VOCABULARY)
    ]
    return np.array([logprobs[0] for logprobs in trainer(0, pairs)])


def test_cancelled_requests_come_never_and_leave_the_others_alone(engine):
    requests = requests_of(tiny.prompts(6), Sampling(2, 24, TEMPERATURE, (), 7))
    whole = tiny.drawn(engine, requests)
    engine.submit(requests)
    for _ in range(5):
        engine.step()
    engine.cancel([r.id for r in requests if r.id % 3 == 0])
    rest = tiny.rest_of(engine)
    assert ids_of(rest) == {i: ids for i, ids in ids_of(whole).items() if i % 3}
    engine.cancel([0, 99])
    assert not engine.is_unfinished()


# Weights that change while responses are being drawn.


def drawn_over_writes(engine: VllmEngine, requests: list[Request], writes: dict[int, int]) -> dict[int, Response]:
    """``writes``: token count after which weights of a seed are written; the seed is their version."""
    engine.submit(requests)
    responses: dict[int, Response] = {}
    for place in range(max(writes) + 1):
        if place in writes:
            engine.write_weights(tiny.random_weights(NAME, writes[place]).items(), writes[place])
        responses.update(engine.step())
    return {**responses, **tiny.rest_of(engine)}


def paired(requests: list[Request], responses: dict[int, Response]) -> list[tuple[Prompt, Response]]:
    return [(r.prompt, responses[r.id]) for r in requests]


def test_each_token_is_marked_with_the_version_that_drew_it(engine):
    requests = requests_of(tiny.prompts(6), Sampling(2, 24, TEMPERATURE, (), 7))
    responses = drawn_over_writes(engine, requests, {5: 1, 9: 2, 10: 4})
    for response in responses.values():
        assert response.policy_version == 0
        assert response.version_changes == ((5, 1), (9, 2), (10, 4))
        assert response.token_versions().tolist() == [0] * 5 + [1] * 4 + [2] + [4] * 14


def test_several_writes_between_two_tokens_count_as_the_last_and_before_the_first_as_no_change(engine):
    requests = requests_of(tiny.prompts(4), Sampling(1, 12, TEMPERATURE, (), 7))
    engine.submit(requests)
    engine.write_weights(tiny.random_weights(NAME, 1).items(), 1)
    for _ in range(4):
        engine.step()
    engine.write_weights(tiny.random_weights(NAME, 2).items(), 2)
    engine.write_weights(tiny.random_weights(NAME, 3).items(), 3)
    for response in tiny.rest_of(engine).values():
        assert (response.policy_version, response.version_changes) == (1, ((4, 3),))


def test_after_a_write_running_responses_go_on_as_under_the_new_weights_alone(engine):
    """Keys and values of what was drawn before are computed anew."""
    prompts = [*tiny.prompts(6), *tiny.prompts(2, longest=200, seed=5, first=6)]
    requests = requests_of(prompts, Sampling(2, 40, TEMPERATURE, (), 7))
    pairs = paired(requests, drawn_over_writes(engine, requests, {7: 1, 20: 2}))
    theirs = [trainer(seed, pairs) for seed in range(3)]
    for i, (_, response) in enumerate(pairs):
        wanted = np.concatenate([theirs[0][i][:7], theirs[1][i][7:20], theirs[2][i][20:]])
        assert np.abs(response.rollout_logprobs - wanted).max() < 1e-4
    assert max(np.abs(p[1].rollout_logprobs - t)[7:].max() for p, t in zip(pairs, theirs[0], strict=True)) > 0.5


def test_kept_keys_and_values_are_those_of_the_old_weights(engine):
    """What ``kv_on_sync="keep"`` means, and that the check above can fail."""
    engine.settings = dataclasses.replace(engine.settings, kv_on_sync="keep")
    requests = requests_of(tiny.prompts(6), Sampling(2, 40, TEMPERATURE, (), 7))
    pairs = paired(requests, drawn_over_writes(engine, requests, {7: 1}))
    new = trainer(1, pairs)
    assert tiny.largest_gap([r[:7] for r in rollout(pairs)], [t[:7] for t in trainer(0, pairs)]) < 1e-4
    assert tiny.largest_gap([r[7:] for r in rollout(pairs)], [t[7:] for t in new]) > 0.05


def long_prompts(count: int = 3) -> list[Prompt]:
    random = np.random.default_rng(3)
    shared = random.integers(1, tiny.VOCABULARY, 2 * BLOCK + 9).astype(np.int32)
    return [Prompt.of_ids(np.append(shared, np.int32(i + 1)).astype(np.int32), i) for i in range(count)]


def after_a_write(engine: VllmEngine, version: int) -> float:
    """Draws from long prompts, writes other weights, and draws again: the gap to the trainer's logprobs."""
    sampling = Sampling(2, 12, TEMPERATURE, (), 7)
    generate(engine, long_prompts(), sampling)
    engine.write_weights(tiny.random_weights(NAME, 9).items(), version)
    pairs = tiny.pairs_of(generate(engine, long_prompts(), sampling))
    return tiny.largest_gap(rollout(pairs), trainer(9, pairs))


@pytest.mark.parametrize("version", [1, 0])
def test_a_prompt_that_was_cached_before_a_write_is_read_anew_after_it(engine, version):
    """Also where the writer gives both weights the same version."""
    assert after_a_write(engine, version) < 1e-4


def test_one_salt_for_all_weights_would_find_keys_and_values_of_the_old_ones(engine, monkeypatch):
    add = engine.engine.add_request
    monkeypatch.setattr(
        engine.engine, "add_request", lambda i, prompt, *rest: add(i, {**prompt, "cache_salt": "one"}, *rest)
    )
    assert after_a_write(engine, 1) > 0.5


@pytest.mark.parametrize("kv_on_sync", ["recompute", "keep"])
def test_a_request_that_waited_through_a_write_reads_its_prompt_under_the_new_weights(engine, kv_on_sync):
    """Its prompt was cached by a request that was drawn before."""
    engine.settings = dataclasses.replace(engine.settings, kv_on_sync=kv_on_sync)
    sampling = Sampling(1, 12, TEMPERATURE, (), 7)
    first, second = requests_of(long_prompts(2), sampling)
    engine.submit([first])
    engine.step()
    engine.submit([second])
    engine.write_weights(tiny.random_weights(NAME, 9).items(), 1)
    responses = tiny.rest_of(engine)
    pairs = [(second.prompt, responses[second.id])]
    assert (pairs[0][1].policy_version, pairs[0][1].version_changes) == (1, ())
    assert tiny.largest_gap(rollout(pairs), trainer(9, pairs)) < 1e-4
