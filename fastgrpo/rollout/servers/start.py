"""From a run's settings to its servers."""

import functools
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import torch
from transformers import AutoConfig

from fastgrpo.config import Config
from fastgrpo.ranks import Ranks, Role
from fastgrpo.ranks.limits import allow_open_files
from fastgrpo.rollout.prompts_in_order import PromptsInOrder
from fastgrpo.rollout.servers.about import Needed
from fastgrpo.rollout.servers.home import Home, Homes
from fastgrpo.rollout.servers.key import BEGIN, published_key
from fastgrpo.rollout.servers.own import addresses, own_host, servers_folder
from fastgrpo.rollout.servers.pool import OF_TRAIN, Flags, ServerPool
from fastgrpo.rollout.servers.rollouts import ServerRollouts, Weights
from fastgrpo.rollout.servers.watch import ServerWatch, host_towards
from fastgrpo.rollout.servers.weight_sender import WeightSender
from fastgrpo.rollout.weight_sync import Manifest
from fastgrpo.types import Sampling


def start_servers(
    config: Config,
    ranks: Ranks,
    prompts: PromptsInOrder,
    sampling: Sampling,
    wire: Manifest,
    weights: Weights,
    dtype: torch.dtype,
) -> ServerRollouts:
    """Rollouts by the servers that are named, or by the launch's own. All ranks call it.

    ``wire``: names and shapes of the weights, which servers get in ``dtype``. Raises Refused.
    """
    allow_open_files()
    named = ranks.together(lambda: servers_of(config, ranks) if ranks.is_first else None)
    home, homes = meet_homes(ranks, "" if named is None else named.key, prompts)
    pool, sender, watch = None, None, None
    if named is not None:
        pool = ServerPool(config.deadline, config.rollout.max_sequences, named.max_losses)
        sender = WeightSender(pool, host_towards, wire, ranks.device, config.deadline.sync_s)
        needed, keep = needed_of(config, str(dtype).removeprefix("torch.")), config.rollout.kv_on_sync == "keep"
        watch = ServerWatch(pool, named.addresses, named.key, needed, keep_cache=keep, homes=homes)
    return ServerRollouts(pool, sender, watch, home, config, ranks, prompts, sampling, weights, dtype)


@dataclass(frozen=True)
class Named:
    """Who the servers are."""

    addresses: Callable[[], list[str]]  # may change
    key: str
    max_losses: int | None


def servers_of(config: Config, ranks: Ranks) -> Named:
    """The servers that are named, or the launch's own, for its first rank.

    Raises ValueError for what is no address, and for a file without a key.
    """
    rollout = config.rollout
    if rollout.servers:
        key, named = server_key(rollout.server_key_file), lambda: named_servers(rollout.servers)
        named()  # those that are no addresses are refused now
        return Named(named, key, None)
    key, told = published_key(servers_folder(config))
    ranks.store.set(BEGIN, told)
    own = addresses(ranks.store, Role.of_this_rank(rollout.gpus).num_samplers // rollout.tensor_parallel)
    if told != "-":  # each has read it
        (servers_folder(config) / told).unlink(missing_ok=True)
    return Named(lambda: own, key, rollout.max_engine_restarts)


def meet_homes(ranks: Ranks, server_key: str, prompts: PromptsInOrder) -> tuple[Home | None, Homes]:
    """This rank as the home of the groups that it judges, where it is not the first, and all as the first asks them."""
    token, key = ranks.from_first((secrets.token_hex(32), server_key))
    home = ranks.together(lambda: None if ranks.is_first else Home(own_host(), token, key, prompts.at))
    return home, Homes(ranks.gather([] if home is None else [home.url]), token)


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


def named_servers(named: tuple[str, ...], flags: Flags = OF_TRAIN) -> list[str]:
    """The addresses, and those in files that are named in their place, one on a line.

    Raises ValueError for what is no address, and where there is none; OSError for a file that cannot be read.
    """
    texts: list[str] = []
    for text in named:
        texts += [text] if "://" in text else Path(text).read_text(encoding="utf-8").split()
    if not texts:
        raise ValueError(f"{flags.servers}: {', '.join(named)} names no server")
    return list(dict.fromkeys(_address(text, flags) for text in texts))


def are_elsewhere(named: tuple[str, ...]) -> bool:
    """Whether any server may be on another machine, for all that is known before the run."""
    try:
        hosts = [urlsplit(url).hostname or "" for url in named_servers(named)]
    except (OSError, ValueError):  # a file that is not there yet; what is wrong is said when the run begins
        return True
    return not all(host in ("localhost", "::1") or host.startswith("127.") for host in hosts)


def _address(text: str, flags: Flags) -> str:
    try:
        parts = urlsplit(text)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        is_one = is_one and not (parts.username or parts.password or parts.query or parts.fragment)
    except ValueError:  # of brackets that are not closed, and of ports
        is_one = False
    if not is_one:
        raise ValueError(f"{flags.servers} needs addresses as http://host:8000, got {text!r}")
    return text.rstrip("/")


def server_key(path: str, flags: Flags = OF_TRAIN) -> str:
    """The key of the servers, from this file or the environment; empty: none. Raises ValueError for a file without."""
    if not path:
        return environment_key()
    try:
        key = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{flags.key_file} {path}: {error}") from error
    if not key or not key.isprintable() or " " in key:
        raise ValueError(f"{flags.key_file} {path} must hold one key, of printable characters without spaces")
    return key


@functools.cache
def environment_key() -> str:
    """The key in the environment, and no more there: verifiers and what they run would inherit it."""
    return os.environ.pop("VLLM_API_KEY", "")
