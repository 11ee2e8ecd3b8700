"""Each part of the trainer and the engine that is made wrong by a little is found, by the check of its name."""

import pytest
import torch
from transformers import AutoConfig
from transformers.models.llama import modeling_llama

from fastgrpo.config import Config, ModelConfig, RolloutConfig
from fastgrpo.models import attention
from fastgrpo.models.tiny import CannotShrink
from fastgrpo.policy import packing, policy
from fastgrpo.proof.architecture import Failure, prove_architecture
from fastgrpo.proof.model import ON_A_CPU, require_proven, require_sampled
from fastgrpo.rollout.builtin import engine, kv_cache
from fastgrpo.rollout.engines import engine_kind

ENGINE = engine_kind("builtin").of_model


def prove(name: str, **settings):
    return prove_architecture(AutoConfig.for_model(name, **settings), ON_A_CPU, ENGINE)


def failure_of(name: str, **settings) -> Failure:
    with pytest.raises(Failure) as found:
        prove(name, **settings)
    return found.value


def test_a_model_that_is_right_passes_all_checks_and_nobody_else_sees_a_draw():
    before = torch.get_rng_state()
    assert prove("llama") == ["packing", "sharing", "checkpointing", "sampling"]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_window_that_attention_forgets_is_found(monkeypatch):
    real = attention.padded_attention

    def without_window(*inputs, sliding_window=None, **options):
        return real(*inputs, **options)

    monkeypatch.setitem(attention.AttentionInterface._global_mapping, ON_A_CPU, without_window)
    assert failure_of("mistral").check == "packing"
    # The first window of 28 layers may be the 21st's.
    late = failure_of("qwen2", use_sliding_window=True, max_window_layers=20, num_hidden_layers=28)
    assert late.check == "packing"


def test_rotary_factors_of_a_large_heads_width_are_tried_in_small():
    factors = {"short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
    sizes = {"hidden_size": 3072, "num_attention_heads": 24, "num_key_value_heads": 8, "partial_rotary_factor": 0.75}
    assert "sampling" in prove("phi3", **sizes, rope_scaling={"type": "longrope", **factors})


def test_positions_that_run_on_from_one_sequence_into_the_next_are_found(monkeypatch):
    real = packing.pack

    def runs_on(*inputs, **options):
        batch = real(*inputs, **options)
        object.__setattr__(batch, "position_ids", torch.arange(len(batch.position_ids)))
        return batch

    monkeypatch.setattr("fastgrpo.proof.architecture.pack", runs_on)
    # Rotary positions are relative: only learned ones show it.
    assert failure_of("gpt2").check == "packing"


def test_a_shared_prompt_in_the_wrong_places_is_found(monkeypatch):
    real = packing._share

    def shifted(*inputs):
        shared = real(*inputs)
        return packing.SharedPrompts(shared.select, shared.expand.roll(1))

    monkeypatch.setattr(packing, "_share", shifted)
    assert failure_of("llama").check == "sharing"


def test_a_softcap_that_the_head_forgets_is_found(monkeypatch):
    real = policy.linear_logprobs
    wrong = lambda *inputs, softcap, **options: real(*inputs, softcap=None, **options)  # noqa: E731
    monkeypatch.setattr(policy.Policy.forward, "__defaults__", (True, wrong))
    assert failure_of("gemma2", attn_logit_softcapping=None).check == "packing"


def test_a_layer_that_does_something_else_when_it_recomputes_is_found(monkeypatch):
    real = modeling_llama.LlamaDecoderLayer.forward

    def forward(self, *inputs, **options):
        return real(self, *inputs, **options) * (1.01 if self.training else 1.0)

    monkeypatch.setattr(modeling_llama.LlamaDecoderLayer, "forward", forward)
    assert failure_of("llama").check == "checkpointing"


def test_a_cache_that_forgets_the_window_is_found(monkeypatch):
    monkeypatch.setattr(kv_cache, "has_decode_attention", lambda device, dtype: False)  # as on a GPU
    monkeypatch.setattr(kv_cache.SlotCache, "_windowed", lambda self, window: self._mask)
    assert failure_of("mistral").check == "sampling"


def test_a_decode_step_in_cpp_that_forgets_the_window_is_found(monkeypatch):
    real = kv_cache.decode_attention
    wrong = lambda *token_and_cache, scale, window: real(*token_and_cache, scale=scale)  # noqa: E731
    monkeypatch.setattr(kv_cache, "decode_attention", wrong)
    assert failure_of("mistral").check == "sampling"


def test_an_engine_at_another_temperature_is_found(monkeypatch):
    real = engine.sample
    monkeypatch.setattr(engine, "sample", lambda logits, temperature, *rest: real(logits, temperature * 1.01, *rest))
    assert failure_of("llama").check == "sampling"


def test_states_that_run_on_from_sequence_to_sequence_are_found_and_rows_are_right():
    config = AutoConfig.for_model("qwen3_next")
    with pytest.raises(Failure, match="packing is off by"):
        prove_architecture(config, ON_A_CPU, None)
    assert prove_architecture(config, "sdpa", None) == ["rows", "checkpointing"]


def test_what_no_tiny_copy_can_be_made_of_says_so():
    with pytest.raises(CannotShrink, match="axial_pos_embds"):
        prove_architecture(AutoConfig.for_model("reformer", is_decoder=True), ON_A_CPU, None)


def config_of(tmp_path, name: str, rollout: str = "builtin", **settings) -> Config:
    AutoConfig.for_model(name, **settings).save_pretrained(tmp_path)
    return Config(model=ModelConfig(path=str(tmp_path)), rollout=RolloutConfig(engine=rollout))


def test_a_refusal_names_the_model_the_difference_the_cause_and_the_way_out(tmp_path):
    with pytest.raises(ValueError, match="would be trained wrongly") as refused:
        require_proven(config_of(tmp_path, "qwen3_next"), ON_A_CPU)
    said = str(refused.value)
    for part in (str(tmp_path), "qwen3_next", "are off by", "linear attention", "--model.attention sdpa is right"):
        assert part in said
    assert "--rollout.engine vllm" in said and "--model.skip_proof" in said


def test_what_is_proven_is_said(tmp_path):
    assert "packing, sharing, sampling" in require_proven(config_of(tmp_path, "llama"), ON_A_CPU)
    assert "rows" in require_proven(config_of(tmp_path, "bloom", "vllm"), "sdpa")


def test_an_evaluation_refuses_what_the_engine_would_sample_wrongly(tmp_path):
    with pytest.raises(ValueError, match="would be sampled wrongly"):
        require_sampled(config_of(tmp_path, "bloom"))
    assert require_sampled(config_of(tmp_path, "bloom", "vllm")) == ""
    assert "right in small" in require_sampled(config_of(tmp_path, "llama"))
    assert "no tiny copy" in require_sampled(config_of(tmp_path, "reformer", is_decoder=True))
