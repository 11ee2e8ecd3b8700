import json

import pytest
import torch
from transformers import AutoConfig

from fastgrpo.config import Config, ModelConfig, RolloutConfig
from fastgrpo.models import tiny_sizes
from fastgrpo.models.decoder import layers_of
from fastgrpo.models.head import measure_head
from fastgrpo.models.load import shapes_of
from fastgrpo.models.tiny import CannotShrink, tiny_config, tiny_model
from fastgrpo.models.tiny_sizes import SHORT
from fastgrpo.proof.model import ON_A_CPU, require_proven


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("gemma3_text", ["sliding_attention"] * 5 + ["full_attention"]),
        ("qwen3_next", ["linear_attention"] * 3 + ["full_attention"]),
        ("llama", None),
    ],
)
def test_layers_of_every_kind_are_kept_and_no_more(name, pattern):
    small = tiny_config(AutoConfig.for_model(name))
    assert small.num_hidden_layers == len(pattern or "12")
    if pattern:
        assert small.layer_types == pattern


def test_the_first_mixture_of_experts_of_a_model_that_begins_without_is_kept():
    small = tiny_config(AutoConfig.for_model("glm4_moe", first_k_dense_replace=3))
    model = tiny_model(small)
    assert [hasattr(layer.mlp, "experts") for layer in layers_of(model)][-2:] == [False, True]
    assert small.num_experts_per_tok == 2 and small.n_routed_experts == 4


def test_windows_are_shorter_than_what_is_tried_and_options_stay():
    small = tiny_config(AutoConfig.for_model("gemma2", query_pre_attn_scalar=100, final_logit_softcapping=7.0))
    assert small.sliding_window == SHORT
    assert (small.query_pre_attn_scalar, small.final_logit_softcapping) == (100, 7.0)


def test_weights_make_predictions_that_differ():
    torch.manual_seed(0)
    logits = tiny_model(tiny_config(AutoConfig.for_model("llama")))(torch.arange(8, 20)[None]).logits
    assert logits.std() > 0.3


def test_sizes_of_unknown_names_are_not_built(monkeypatch):
    monkeypatch.delitem(tiny_sizes._SIZES, "intermediate_size")
    with pytest.raises(CannotShrink, match="weights are left"):
        tiny_config(AutoConfig.for_model("llama", intermediate_size=1_000_000))


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own_llama"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

    def forward(self, *inputs, **options):
        output = super().forward(*inputs, **options)
        output.logits = output.logits * 0.5
        return output
"""


def test_code_that_comes_with_a_model_is_proven_too(tmp_path):
    """Its head halves the logits, which the measured head knows."""
    (tmp_path / "own_code.py").write_text(CODE)
    config = AutoConfig.for_model("llama").to_dict()
    names = {"AutoConfig": "own_code.OwnConfig", "AutoModelForCausalLM": "own_code.OwnForCausalLM"}
    config |= {"model_type": "own_llama", "auto_map": names, "architectures": ["OwnForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = ModelConfig(path=str(tmp_path), trust_remote_code=True)
    loaded = Config(model=model, rollout=RolloutConfig(engine="builtin"))
    assert "(packing, sharing, sampling)" in require_proven(loaded, ON_A_CPU)
    assert measure_head(shapes_of(model)).scale == 0.5
