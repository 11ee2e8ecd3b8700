"""What a model's folder says of it in JSON: its configuration, and the tokens that end a response."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

from transformers import AutoConfig, GenerationConfig, PretrainedConfig

LARGEST = {
    "vocab_size": 1 << 26,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 24,
    "num_hidden_layers": 1 << 12,
    "num_attention_heads": 1 << 16,
    "num_key_value_heads": 1 << 16,
    "head_dim": 1 << 16,
    "max_position_embeddings": 1 << 40,
}
"""What no model comes near to, and what a machine would work on without end."""

NEVER_ZERO = {"vocab_size", "hidden_size", "num_hidden_layers"}


def read_config(path: str, trust_remote_code: bool = False) -> PretrainedConfig:
    """The configuration of a hub id or folder. Raises ValueError for one that cannot be read or is of no model."""
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:  # bad JSON, bad types and a hub that is not there have no common base class
        raise ValueError(
            f"the configuration of {path} cannot be read ({type(error).__name__}: {_first_line(error)}): give a model "
            f"with a whole config.json"
        ) from error
    if wrong := list(_impossible(config)):
        raise ValueError(f"the config.json of {path} says {', '.join(wrong[:5])}, which no model has: get it anew")
    return config


def _impossible(config: PretrainedConfig) -> Iterator[str]:
    for part in {id(c): c for c in (config, config.get_text_config())}.values():
        for name, value in part.to_dict().items():
            if isinstance(value, float):
                is_possible = math.isfinite(value)
            else:
                is_possible = not isinstance(value, int) or _is_size(name, value)
            if not is_possible:
                yield f"{name} {value}"


def _is_size(name: str, value: int) -> bool:
    return name not in LARGEST or int(name in NEVER_ZERO) <= value <= LARGEST[name]


def num_rows(path: str, trust_remote_code: bool = False) -> int:
    """The rows of the model's embedding, one for each token that it reads or samples."""
    rows: int = read_config(path, trust_remote_code).get_text_config(decoder=True).vocab_size
    return rows


def end_token_ids(path: str, trust_remote_code: bool = False) -> tuple[int, ...]:
    """The end tokens of the model's generation settings, or, where these name none, of its configuration; empty where
    there are none.

    Raises ValueError for files that cannot be read.
    """
    try:
        ids = GenerationConfig.from_pretrained(path).eos_token_id
    except Exception as error:  # an absent file too
        if (file := Path(path) / "generation_config.json").is_file() and not _is_json(file):
            raise ValueError(f"{file} is no JSON: get it anew, or take it away") from error
        ids = None
    if ids is None:  # settings of sampling alone name none
        ids = read_config(path, trust_remote_code).get_text_config().eos_token_id
    ids = () if ids is None else tuple(ids) if isinstance(ids, list | tuple) else (ids,)
    if wrong := [n for n in ids if type(n) is not int or n < 0]:
        raise ValueError(
            f"{path} names {wrong[0]!r} as an end token (eos_token_id), which must be the number of a token: mend its "
            f"generation_config.json or config.json"
        )
    return ids


def _is_json(file: Path) -> bool:
    try:
        return isinstance(json.loads(file.read_bytes()), dict)
    except (ValueError, RecursionError):
        return False


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or "no reason given"
