"""Weights written into live vLLM engines, bit for bit: in one process, over several, from another process."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from fastgrpo.rollout.compare_weights import added
from fastgrpo.rollout.vllm.engine import VllmEngine
from fastgrpo.rollout.weight_sync import (
    LayoutError,
    LiveWeights,
    checksum,
)
from fastgrpo.types import Response, Sampling
from tests.conftest import TINY
from tests.launched import run_ranks
from tests.peers import vllm_models as tiny
from tests.peers.server_processes import KEY, ServerProcess
from tests.peers.vllm_models import Weights

vllm = pytest.importorskip("vllm", reason="needs vLLM, in an environment of its own: `make test-full`")
pytestmark = pytest.mark.peers

ENVIRONMENT = dict(os.environ)  # vLLM adds to it what would mislead other launches
NUM_SYNCS = 100
LONG = Sampling(1, 80, 0.8, (), 3)
SHORT = Sampling(4, 24, 0.8, (), 7)
each_architecture = pytest.mark.parametrize("name", tiny.ARCHITECTURES)


def checksums_of(weights: Weights, dtype: torch.dtype = torch.float32) -> dict[str, int]:
    return {n: checksum(w.to(dtype)) for n, w in weights.items()}


def assert_same_responses(got: list[Response], want: list[Response], tolerance: float = 1e-4) -> None:
    for ours, theirs in zip(got, want, strict=True):
        assert ours.response_ids.tolist() == theirs.response_ids.tolist()
        assert np.abs(ours.rollout_logprobs - theirs.rollout_logprobs).max() < tolerance


def gap_to_trainer(engine: VllmEngine, name: str, weights: Weights) -> float:
    """The largest difference of fresh responses' logprobs to what the trainer's policy makes of these weights."""
    responses = tiny.responses_of(engine, 8, SHORT)
    prompts = [p for p in tiny.prompts(8) for _ in range(SHORT.group_size)]
    ours = tiny.trainer_logprobs(name, weights, zip(prompts, responses, strict=True), SHORT.temperature)
    return tiny.largest_gap([r.rollout_logprobs for r in responses], ours)


def run(code: str, num_ranks: int, timeout_s: float) -> None:
    with mock.patch.dict(os.environ, ENVIRONMENT, clear=True):
        run_ranks(f"from tests.peers import vllm_ranks; vllm_ranks.{code}", num_ranks, timeout_s)


# One engine, many claims.


@pytest.fixture(scope="module", params=["live", "repack"])
def engine(request, tmp_path_factory) -> Iterator[VllmEngine]:
    path = tiny.save(tmp_path_factory.mktemp("qwen2"), "qwen2_tied", tiny.random_weights("qwen2_tied", 0))
    engine = tiny.start(path, cpu_layers=request.param)
    yield engine
    engine.close()


def model_of(engine: VllmEngine) -> nn.Module:
    return engine._rpc(lambda worker: worker.model_runner.get_model())[0]


def test_a_write_moves_no_parameter_and_calls_none_of_vllms_loaders(engine, monkeypatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("vLLM's own loading was called")

    runner = engine._rpc(lambda worker: worker.model_runner)[0]
    monkeypatch.setattr(model_of(engine), "load_weights", refuse)
    monkeypatch.setattr(runner, "reload_weights", refuse)
    addresses, before = engine._rpc("sync_addresses"), engine.checksums()

    weights = tiny.random_weights("qwen2_tied", 1)
    engine.write_weights(weights.items(), 1)

    assert engine.not_in_place == ""
    assert engine._rpc("sync_addresses") == addresses
    after = engine.checksums()
    assert after == checksums_of(weights)
    assert not [name for name in before if before[name] == after[name]]
    assert gap_to_trainer(engine, "qwen2_tied", weights) < 1e-4


def test_an_unknown_name_and_another_shape_are_refused(engine):
    weights = tiny.random_weights("qwen2_tied", 0)
    with pytest.raises(KeyError, match="lm_head"):
        engine.write_weights([("lm_head.weight", weights["model.embed_tokens.weight"])], 1)
    with pytest.raises(ValueError, match=r"model.norm.weight must have shape \[128\]"):
        engine.write_weights([("model.norm.weight", torch.ones(127))], 1)


def test_a_parameter_of_vllm_that_is_not_known_is_refused_by_name(engine):
    from fastgrpo.rollout.vllm.layout import weight_layout

    model = model_of(engine)
    mlp = model.get_submodule("model.layers.0.mlp")
    for name, shape in {"weight_scale": (4,), "w13_weight": (2, 4, 4), "weight": (2, 2, 2)}.items():
        mlp.register_parameter(name, nn.Parameter(torch.ones(shape), requires_grad=False))
        with pytest.raises(LayoutError, match=rf"model\.layers\.0\.mlp\.{name} "):
            weight_layout(model)
        delattr(mlp, name)


def test_packed_layers_without_repacking_would_answer_from_old_weights(engine, monkeypatch):
    if engine.settings.cpu_layers == "live":
        pytest.skip("live layers have no packed copy")
    live: LiveWeights = engine._rpc(lambda worker: worker.sync_weights)[0]
    monkeypatch.setattr(live, "after_write", lambda: None)
    weights = tiny.random_weights("qwen2_tied", 2)
    engine.write_weights(weights.items(), 2)
    assert gap_to_trainer(engine, "qwen2_tied", weights) > 0.5
    monkeypatch.undo()
    engine.write_weights(weights.items(), 3)
    assert gap_to_trainer(engine, "qwen2_tied", weights) < 1e-4


# Every architecture, a hundred syncs in a row.


def sync_often(
    engine: VllmEngine, name: str, dtype: torch.dtype, last: Weights, sync: Callable[[Weights, int], None]
) -> None:
    """New random weights each time, ``last`` the last time, while requests are being drawn; bit-equal each time."""
    free, responses = 0, {}
    for version in range(1, NUM_SYNCS + 1):
        weights = tiny.random_weights(name, 1000 + version) if version < NUM_SYNCS else last
        free = tiny.in_flight(engine, free, LONG, responses)
        assert engine._drawing
        sync(weights, version)
        assert engine.checksums() == checksums_of(weights, dtype), version
        if version in (1, NUM_SYNCS):
            tiny.assert_same_bits(tiny.parameters(engine)[0], tiny.laid_out(weights), dtype)
    last_responses = tiny.rest_of(engine)
    assert {r.token_versions()[-1] for r in last_responses.values()} == {NUM_SYNCS}
    assert max(len(r.version_changes) for r in responses.values()) == LONG.max_response_tokens - 1


@dataclass
class Course:
    fresh: list[Response]  # before anything was written
    after: list[Response]  # after the last sync


@pytest.fixture(scope="module")
def courses() -> dict[Any, dict[str, Course]]:
    return {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@each_architecture
@pytest.mark.parametrize("mode", ["live", "repack"])
def test_a_hundred_syncs_with_requests_in_flight_each_leave_the_trainers_bits(name, dtype, mode, courses, tmp_path):
    first, last = (0, 1) if mode == "live" else (1, 0)
    path = tiny.save(tmp_path, name, tiny.random_weights(name, first), dtype)
    engine = tiny.start(path, dtype, mode)
    try:
        assert engine.not_in_place == ""
        addresses = engine._rpc("sync_addresses")
        fresh = tiny.responses_of(engine, 8, SHORT)
        sync_often(
            engine,
            name,
            dtype,
            tiny.random_weights(name, last),
            lambda weights, version: engine.write_weights(weights.items(), version),
        )
        assert engine._rpc("sync_addresses") == addresses
        courses.setdefault((name, dtype), {})[mode] = Course(fresh, tiny.responses_of(engine, 8, SHORT))
    finally:
        engine.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@each_architecture
def test_after_a_hundred_syncs_an_engine_draws_what_a_fresh_one_draws(name, dtype, courses):
    """Live layers end with the weights that the packed ones were loaded from, and the other way round."""
    modes = courses.get((name, dtype), {})
    if len(modes) < 2:
        pytest.skip("needs the syncs of both modes before it")
    tolerance = 1e-4
    assert_same_responses(modes["live"].after, modes["repack"].fresh, tolerance)
    assert_same_responses(modes["repack"].after, modes["live"].fresh, tolerance)


# Mixtures of experts.


@pytest.mark.parametrize("name", tiny.MIXTURES)
def test_experts_are_written_in_place_as_one_tensor_and_one_by_one(name, tmp_path):
    engine = tiny.start(tiny.save(tmp_path, name, tiny.random_weights(name, 0)))
    try:
        assert engine.not_in_place == ""
        assert gap_to_trainer(engine, name, tiny.random_weights(name, 0)) < 1e-4
        addresses = engine._rpc("sync_addresses")
        for version in (1, 2, 3):
            weights = tiny.random_weights(name, version)
            written = tiny.one_by_one(name, weights) if version == 3 else weights
            engine.write_weights(written.items(), version)
            assert engine.checksums() == checksums_of(weights)
            assert gap_to_trainer(engine, name, weights) < 1e-4
        assert engine._rpc("sync_addresses") == addresses
    finally:
        engine.close()


# Without a layout.


@pytest.mark.parametrize("mode", ["live", "repack"])
@pytest.mark.parametrize("name", ["qwen2_tied", "llama", "qwen3_moe"])
def test_without_a_layout_vllms_reload_takes_the_weights_and_the_engine_says_so(name, mode, tmp_path, monkeypatch):
    def refuse(model: nn.Module, renamed: Callable[[str], str]) -> None:
        raise LayoutError("strange.weight is no weight that can be written")

    monkeypatch.setattr("fastgrpo.rollout.vllm.weight_writer.weight_layout", refuse)
    said: list[str] = []
    monkeypatch.setattr("fastgrpo.rollout.vllm.engine.log.warning", lambda text, *values: said.append(text % values))
    engine = tiny.start(tiny.save(tmp_path, name, tiny.random_weights(name, 0)), cpu_layers=mode)
    try:
        addresses = engine._rpc("sync_addresses")
        for version in (1, 2):
            weights = tiny.random_weights(name, version)
            engine.write_weights(weights.items(), version)
            assert gap_to_trainer(engine, name, weights) < 1e-4
            tiny.assert_same_bits(tiny.parameters(engine)[0], tiny.laid_out(weights), torch.float32)
        assert engine._rpc("sync_addresses") == addresses
        assert engine.not_in_place == "strange.weight is no weight that can be written"
        assert said == [
            "weights go through vLLM's own reload, not into place: strange.weight is no weight that can be written"
        ]
        assert engine.checksums() == {}
    finally:
        engine.close()


# Two processes of one engine.


@pytest.mark.parametrize("name, key_heads", [("qwen2_tied", 1), ("mistral", 2)])
def test_an_engine_over_two_trainer_ranks_is_written_by_both(name, key_heads, tmp_path):
    tiny.save(
        tmp_path, name, tiny.random_weights(name, 0, num_key_value_heads=key_heads), num_key_value_heads=key_heads
    )
    run(f"colocated({str(tmp_path)!r}, {name!r}, {key_heads})", 2, 300)


# Servers.


@pytest.mark.parametrize("name, key_heads, num_syncs", [("qwen2_tied", 1, 20), ("qwen3_moe", 2, 10)])
def test_two_trainer_ranks_send_sharded_weights_to_servers_of_one_and_of_two_processes(
    name, key_heads, num_syncs, tmp_path
):
    """With fewer key heads than processes both hold the same; the last process's vocabulary is padded."""
    changes = {"num_key_value_heads": key_heads}
    path = tiny.save(tmp_path, name, tiny.random_weights(name, 0, **changes), **changes)
    settings = ["--model.path", path, "--data.max_prompt_tokens", "64", "--rollout.max_response_tokens", "48"]
    settings += ["--optimizer.tokens_per_microbatch", "256"]
    servers = [
        ServerProcess(TINY, tmp_path, tmp_path / f"{n}.log", *settings, "--rollout.tensor_parallel", str(n))
        for n in (1, 2)
    ]
    try:
        for server in servers:
            server.start()
        for server in servers:
            server.wait_until_ready()
        urls = [server.url for server in servers]
        run(f"trainer({path!r}, {name!r}, {num_syncs}, {KEY!r}, {urls!r}, **{changes!r})", 2, 400)
    finally:
        for server in servers:
            server.kill()


def test_checksums_of_shards_add_up_as_int64_does():
    assert added([{"w": 2**62}, {"w": 2**62}, {"w": 1}]) == {"w": -(2**63) + 1}


# Another trainer.


def test_the_example_for_other_trainers_works_as_it_is_written(tmp_path):
    path = tiny.save(tmp_path, "qwen2_tied", tiny.random_weights("qwen2_tied", 0))
    run(f"follow_the_example({path!r})", 1, 200)
