"""From a run's settings to its servers."""

import os
from pathlib import Path
from urllib.parse import urlsplit

from transformers import AutoConfig

from fastgrpo.config import Config
from fastgrpo.rollout.servers.about import Needed
from fastgrpo.rollout.servers.servers import Servers


def servers_of(config: Config, dtype: str) -> Servers:
    """The servers of this run, which are not spoken to yet. Raises ValueError for what is no address, and for a file
    without a key."""
    rollout = config.rollout
    return Servers(
        [_address(text) for text in rollout.servers],
        server_key(rollout.server_key_file),
        needed_of(config, dtype),
        keep_cache=rollout.kv_on_sync == "keep",
    )


def needed_of(config: Config, dtype: str) -> Needed:
    """What this run needs of a server."""
    model = AutoConfig.from_pretrained(config.model.path, trust_remote_code=config.model.trust_remote_code)
    text = model.get_text_config()
    return Needed(
        model_type=text.model_type,
        vocabulary=text.vocab_size,
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        dtype=dtype,
        sequence_tokens=config.data.max_prompt_tokens + config.rollout.max_response_tokens,
        per_token_versions=config.rollout.max_staleness > 1,
    )


def _address(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"--rollout.servers needs addresses as http://host:8000, got {text!r}")
    return text.rstrip("/")


def server_key(path: str) -> str:
    """The key of the servers, from this file or the environment; empty: none. Raises ValueError for a file without."""
    if not path:
        return os.environ.get("VLLM_API_KEY", "")
    try:
        key = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--rollout.server_key_file {path}: {error}") from error
    if not key:
        raise ValueError(f"--rollout.server_key_file {path} holds no key")
    return key
