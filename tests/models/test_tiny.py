import pytest
import torch
from transformers import AutoConfig

from fastgrpo.models.decoder import layers_of
from fastgrpo.models.tiny import SHORT, tiny_config, tiny_model


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
