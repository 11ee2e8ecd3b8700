"""The command that starts a server which fits a run, without vLLM."""

import json
import os
import shlex
import sys
from dataclasses import replace
from functools import partial

import pytest
from transformers import Qwen2Config

from fastgrpo import serve
from fastgrpo.config import Config
from fastgrpo.config.settings import DataConfig, ModelConfig, RolloutConfig
from fastgrpo.rollout.servers import command
from fastgrpo.rollout.servers.command import server_command, server_environment
from fastgrpo.rollout.servers.start import environment_key


@pytest.fixture(autouse=True)
def as_if_vllm_were_here(monkeypatch):
    monkeypatch.setattr(command, "require_vllm", lambda: (0, 32))
    environment_key.cache_clear()
    for name in ("VLLM_API_KEY", "VLLM_PLUGINS", "VLLM_CPU_OMP_THREADS_BIND"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def config(tmp_path):
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    Qwen2Config(vocab_size=16, num_key_value_heads=1, **shape).save_pretrained(tmp_path / "model")
    return Config(
        model=ModelConfig(path=str(tmp_path / "model")),
        data=DataConfig(max_prompt_tokens=100),
        rollout=RolloutConfig(max_response_tokens=28, max_sequences=7),
    )


def value(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def on_gpu(config: Config, **rollout) -> list[str]:
    return server_command(replace(config, rollout=replace(config.rollout, **rollout)), "h", 1, on_cpu=False)


def test_a_server_listens_where_it_shall_and_fits_the_run(config):
    words = server_command(config, "10.0.0.1", 8123, on_cpu=True)
    assert config.model.path in words and value(words, "--host") == "10.0.0.1" and value(words, "--port") == "8123"
    assert value(words, "--max-model-len") == "128" and value(words, "--max-num-seqs") == "7"
    assert value(words, "--logprobs-mode") == "processed_logprobs" and value(words, "--generation-config") == "vllm"
    assert json.loads(value(words, "--weight-transfer-config")) == {"backend": "fastgrpo"}
    assert "--tokens-only" in words and "--trust-remote-code" not in words and value(words, "--dtype") == "float32"


def test_on_a_cpu_layers_cache_and_prompts_are_set(config):
    words = server_command(config, "h", 1, on_cpu=True)
    assert value(words, "--kv-cache-memory-bytes") == str(2**30) and "--enforce-eager" in words
    assert json.loads(value(words, "--additional-config")) == {"fastgrpo_cpu_layers": "live"}
    assert "--no-enable-chunked-prefill" in words and value(words, "--max-num-batched-tokens") == "8192"
    longer = replace(config, rollout=replace(config.rollout, max_response_tokens=9000, kv_cache_gib=2.5))
    words = server_command(longer, "h", 1, on_cpu=True)
    assert value(words, "--max-num-batched-tokens") == "9100"  # a prompt is read in one part
    assert value(words, "--kv-cache-memory-bytes") == str(5 * 2**29)


def test_on_a_gpu_the_rest_is_vllms_choice(config):
    words = on_gpu(config)
    for flag in ("--kv-cache-memory-bytes", "--enforce-eager", "--additional-config", "--no-enable-chunked-prefill"):
        assert flag not in words
    words = on_gpu(config, kv_cache_gib=0.5, enforce_eager=True, tensor_parallel=4, dtype="bfloat16")
    assert value(words, "--kv-cache-memory-bytes") == str(2**29) and "--enforce-eager" in words
    assert value(words, "--tensor-parallel-size") == "4" and value(words, "--dtype") == "bfloat16"


def test_code_of_the_models_own_is_trusted_only_where_the_run_does(config):
    words = server_command(replace(config, model=replace(config.model, trust_remote_code=True)), "h", 1, on_cpu=False)
    assert "--trust-remote-code" in words


def test_fp8_is_refused(config):
    with pytest.raises(ValueError, match=r"a server cannot take weights into fp8: leave --rollout.dtype"):
        on_gpu(config, dtype="fp8")


def test_without_vllm_the_command_says_how_to_get_it(config, monkeypatch):
    def missing() -> None:
        raise ValueError("sampling with vLLM needs vLLM")

    monkeypatch.setattr(command, "require_vllm", missing)
    with pytest.raises(ValueError, match="needs vLLM"):
        server_command(config, "h", 1, on_cpu=False)


def test_vllms_command_is_started_by_its_module_where_its_distribution_has_another_name(config, monkeypatch):
    def version(name: str) -> str:
        raise command.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(command.metadata, "version", version)
    assert on_gpu(config)[:5] == [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", config.model.path
    ]  # fmt: skip
    monkeypatch.setattr(command.metadata, "version", lambda name: "0.32.0")
    assert on_gpu(config)[:5] == [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", config.model.path]


def test_the_key_is_in_the_environment_beside_the_plugins(config, monkeypatch):
    environment = partial(server_environment, config=config, on_cpu=False)
    assert environment("sesame") == {"VLLM_PLUGINS": "fastgrpo", "VLLM_API_KEY": "sesame"}
    assert environment("") == {"VLLM_PLUGINS": "fastgrpo"}
    monkeypatch.setenv("VLLM_PLUGINS", "another,fastgrpo,third")
    assert environment("")["VLLM_PLUGINS"] == "another,fastgrpo,third"
    monkeypatch.setenv("VLLM_PLUGINS", "another")
    assert environment("")["VLLM_PLUGINS"] == "another,fastgrpo"


def test_on_a_cpu_no_server_is_bound_to_the_cores_of_another(config, monkeypatch):
    two = replace(config, rollout=replace(config.rollout, tensor_parallel=2))
    assert server_environment("", config, True)["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert server_environment("", two, True)["VLLM_CPU_OMP_THREADS_BIND"].count("|") == 1
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0")
    assert "VLLM_CPU_OMP_THREADS_BIND" not in server_environment("", two, True)


def served(config: Config, *words: str) -> int:
    return serve.main(["quickstart", "--device", "cpu", "--model.path", config.model.path, *words])


def test_serve_prints_the_command_without_the_key(config, capsys, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "sesame")
    assert served(config, "--print", "--port", "8123", "--rollout.max_response_tokens", "77") == 0
    words = shlex.split(capsys.readouterr().out)
    named = words[: words.index(sys.executable)]
    assert "VLLM_PLUGINS=fastgrpo" in named and config.model.path in words
    assert value(words, "--host") == "127.0.0.1" and value(words, "--port") == "8123"
    assert not any("sesame" in word for word in words)
    assert value(words, "--max-model-len") == "109"  # with the 32 tokens of the recipe's prompts


def test_serve_becomes_the_server_and_gives_it_the_key_of_the_file(config, tmp_path, monkeypatch):
    became = []
    monkeypatch.setattr(os, "execve", lambda *given: became.append(given))
    (tmp_path / "key").write_text("sesame\n")
    served(config, "--host", "10.0.0.1", "--rollout.server_key_file", str(tmp_path / "key"))
    ((program, words, environment),) = became
    assert program == words[0] == sys.executable and value(words, "--host") == "10.0.0.1"
    assert environment["VLLM_API_KEY"] == "sesame" and environment["VLLM_PLUGINS"] == "fastgrpo"
    assert environment["PATH"] == os.environ["PATH"] and not any("sesame" in word for word in words)


def test_serve_refuses_what_cannot_be_served(config, tmp_path, capsys):
    assert served(config, "--rollout.server_key_file", str(tmp_path / "gone")) == 2
    assert "fastgrpo: --rollout.server_key_file" in capsys.readouterr().err
