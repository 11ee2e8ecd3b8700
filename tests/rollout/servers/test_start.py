"""From --rollout.servers to addresses and a key."""

import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from transformers import Qwen2Config

from fastgrpo.config import Config
from fastgrpo.config.settings import DataConfig, ModelConfig, RolloutConfig
from fastgrpo.rollout.servers.start import are_elsewhere, environment_key, named_servers, needed_of, server_key
from tests.rollout.servers.accounts import NEEDED


def test_addresses_and_those_in_files_are_named_in_their_order_and_once(tmp_path):
    (tmp_path / "servers").write_text("http://b:8000\n\nhttps://c:1/  http://a:8000\n")
    named = ("http://a:8000/", str(tmp_path / "servers"), "http://d:8000")
    assert named_servers(named) == ["http://a:8000", "http://b:8000", "https://c:1", "http://d:8000"]


def test_a_file_is_read_anew(tmp_path):
    file = tmp_path / "servers"
    for address in ("http://a:1", "http://b:1"):
        file.write_text(address)
        assert named_servers((str(file),)) == [address]


@pytest.mark.parametrize(
    "text", ["ftp://a:8000", "http://", "http://:8000", "://a", "http://a:port", "http://a:99999", "http://[::1"]
)
def test_what_is_no_address_is_refused_and_named(text):
    with pytest.raises(ValueError, match=re.escape(f"needs addresses as http://host:8000, got '{text}'")):
        named_servers(("http://a:8000", text))


def test_a_file_of_nonsense_is_refused_and_its_word_named(tmp_path):
    (tmp_path / "servers").write_text("http://a:8000\nlocalhost:8000\n")
    with pytest.raises(ValueError, match="got 'localhost:8000'"):
        named_servers((str(tmp_path / "servers"),))


def test_a_file_that_names_nobody_is_refused_and_named(tmp_path):
    (tmp_path / "servers").write_text(" \n")
    with pytest.raises(ValueError, match=r"--rollout.servers: .*servers names no server"):
        named_servers((str(tmp_path / "servers"),))


def test_a_file_that_is_not_there_is_an_error_of_files(tmp_path):
    with pytest.raises(OSError, match="gone"):
        named_servers((str(tmp_path / "gone"),))


def test_the_key_is_the_files_or_else_the_environments(tmp_path, monkeypatch):
    (tmp_path / "key").write_text("  sesame\n")
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    environment_key.cache_clear()
    assert server_key("") == ""
    monkeypatch.setenv("VLLM_API_KEY", "another")
    environment_key.cache_clear()
    assert server_key("") == "another" and "VLLM_API_KEY" not in os.environ  # which verifiers inherit
    assert server_key("") == "another"
    environment_key.cache_clear()
    assert server_key(str(tmp_path / "key")) == "sesame"


@pytest.mark.parametrize(
    "content, why",
    [
        (b" \n", "must hold one key"),
        (b"two keys", "must hold one key"),
        (b"two\nkeys", "must hold one key"),
        (b"\xff\xfe", "utf-8"),
        (None, "No such file"),
    ],
)
def test_a_file_without_a_key_is_refused_and_named(tmp_path, content, why):
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"--rollout.server_key_file {file}.*{why}"):
        server_key(str(file))


def test_a_run_needs_its_own_model_and_room_for_its_longest_sequence(tmp_path):
    Qwen2Config(vocab_size=300, num_hidden_layers=2, hidden_size=64).save_pretrained(tmp_path)
    config = Config(
        model=ModelConfig(path=str(tmp_path)),
        data=DataConfig(max_prompt_tokens=100),
        rollout=RolloutConfig(max_response_tokens=28, max_staleness=2),
    )
    assert needed_of(config, "float32") == NEEDED
    once = replace(config, rollout=replace(config.rollout, max_staleness=1))
    assert needed_of(once, "bfloat16") == replace(NEEDED, dtype="bfloat16", per_token_versions=False)


def test_nccl_stays_on_loopback_unless_a_server_may_be_elsewhere(tmp_path):
    listed = tmp_path / "servers.txt"
    assert are_elsewhere((str(listed),))  # it may come later
    listed.write_text("http://localhost:8000\nhttp://[::1]:8000\n")
    assert not are_elsewhere((str(listed), "http://127.0.0.1:1"))
    assert are_elsewhere((str(listed), "http://10.77.0.1:8000"))


def test_a_run_without_servers_needs_no_http_client():
    """As on a machine that has but what was carried there."""
    code = "import sys; sys.modules['aiohttp'] = None; import fastgrpo.train, fastgrpo.run.setup, fastgrpo.evaluate"
    code += "; from fastgrpo.rollout.servers import key, pool"
    subprocess.run([sys.executable, "-c", code], check=True)
