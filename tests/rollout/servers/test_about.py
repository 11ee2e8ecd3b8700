"""Every reason for which a server is not taken names what is and what is to be done."""

from dataclasses import replace

import pytest

from fastgrpo.rollout.servers.about import About, why_not
from tests.rollout.servers.accounts import NEEDED, about


@pytest.mark.parametrize(
    "other, why",
    [
        ({"model_type": "llama"}, "it serves another model, /models/tiny: its type is llama, the policy's qwen2"),
        ({"vocabulary": 301}, "it serves another model, /models/tiny: its vocabulary is 301, the policy's 300"),
        ({"layers": 3}, "it serves another model, /models/tiny: its layers is 3, the policy's 2"),
        ({"width": 65}, "it serves another model, /models/tiny: its width is 65, the policy's 64"),
        ({"backend": ""}, "its weights cannot be written, its backend of weight transfer is none: start it with"),
        ({"backend": "nccl"}, '--weight-transfer-config \'{"backend": "fastgrpo"}\', or by `fastgrpo serve`'),
        ({"dtype": "bfloat16"}, "it computes in bfloat16, this run needs float32: start it with --dtype float32"),
        ({"quantization": "fp8"}, "it computes in fp8, this run needs float32: start it with --dtype float32"),
        (
            {"logprobs_mode": "LogprobsMode.RAW_LOGPROBS"},
            "its logprobs are LogprobsMode.RAW_LOGPROBS, not those at the sampling temperature: start it with "
            "--logprobs-mode processed_logprobs",
        ),
        (
            {"max_model_len": 127},
            "it takes sequences of 127 tokens, this run needs 128: start it with --max-model-len 128",
        ),
        ({"kv_cache_tokens": 127}, "its cache holds 127 tokens, and one sequence of this run may have 128: give it"),
        ({"pipeline_parallel": 2}, "only tensor parallelism is supported inside a server: start several servers"),
        ({"data_parallel": 2}, "only tensor parallelism is supported inside a server: start several servers"),
        ({"vllm": "dev"}, "vLLM dev does not label weights: it must be 0.27 or later"),
        ({"vllm": "0.26.0"}, "vLLM 0.26.0 does not label weights"),
        ({"vllm": "0.31.1"}, "vLLM 0.31.1 does not say which weights drew a token: --rollout.max_staleness above 1"),
    ],
    ids=lambda value: "".join(value) if isinstance(value, dict) else "",
)
def test_a_server_that_does_not_fit_is_told_apart(other, why):
    assert why in why_not(about(**other), NEEDED)


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"logprobs_mode": "LogprobsMode.PROCESSED_LOGPROBS"},
        {"max_model_len": 4096, "kv_cache_tokens": 10**6, "max_sequences": 1},
        {"kv_cache_tokens": 0},  # not known
        {"tensor_parallel": 8},
        {"vllm": "0.33.0"},
        {"vllm": "1.0.0"},
        {"model": "another/name"},
    ],
)
def test_a_server_that_fits_is_taken(other):
    assert why_not(about(**other), NEEDED) == ""


def test_older_servers_do_where_weights_never_change_under_what_is_drawn():
    assert why_not(about(vllm="0.27.0"), replace(NEEDED, per_token_versions=False)) == ""


def test_an_account_arrives_as_it_was_sent():
    sent = about(tensor_parallel=4)
    assert About.of_json(sent.to_json()) == sent and sent.num_workers == 4


@pytest.mark.parametrize("change", [lambda value: value.pop("width"), lambda value: value.update(colour="red")])
def test_an_account_with_other_fields_is_none(change):
    value = about().to_json()
    change(value)
    with pytest.raises(TypeError):
        About.of_json(value)


def test_an_evaluation_needs_the_model_and_not_what_training_needs():
    needed = replace(NEEDED, model="/models/tiny", dtype="")
    assert why_not(about(backend="", logprobs_mode="raw_logprobs", dtype="float16"), needed) == ""
    assert why_not(about(model="/models/other"), needed) == (
        "it serves another model, /models/other: this evaluation is of /models/tiny, start one that serves this"
    )
    assert "its layers is 3, here it is 2" in why_not(about(layers=3), needed)
    assert "it computes in awq, this evaluation needs float32" in why_not(about(quantization="awq"), needed)


def test_a_model_is_the_same_by_another_path_to_it(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "model")
    needed = replace(NEEDED, model=str(tmp_path / "model"))
    assert why_not(about(model=str(tmp_path / "link")), needed) == ""
    assert "another model" in why_not(about(model=str(tmp_path)), needed)
