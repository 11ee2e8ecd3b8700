"""The tokenizer as its file says, and not as the architecture suggests."""

import json
from collections.abc import Collection
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import cached_file


def load_tokenizer(path: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub id or folder, from its ``tokenizer.json`` where it has one.

    transformers 5's AutoTokenizer gives a Qwen2 model Qwen2's pre-tokenizer whatever that file says; a model distilled
    into another vocabulary, as DeepSeek's are, would then be trained on other tokens than it was made with. Raises
    ValueError where there is none, and for files that cannot be read.
    """
    try:
        if cached_file(path, "tokenizer.json", _raise_exceptions_for_missing_entries=False) is not None:
            return PreTrainedTokenizerFast.from_pretrained(path)
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except OSError as error:
        raise ValueError(
            f"{path}: there is no tokenizer, neither in a folder nor on the hub ({_first_line(error)}). Give a local "
            f"folder, or a hub id that this machine can reach"
        ) from error
    except Exception as error:  # the libraries' errors on broken files share no base class
        raise ValueError(
            f"{path}: its tokenizer cannot be read ({type(error).__name__}: {_first_line(error)}): "
            f"{_broken_file(path) or 'tokenizer.json or tokenizer_config.json'} is damaged. Get the files anew"
        ) from error


def end_token_note(tokenizer: PreTrainedTokenizerBase, stop_token_ids: Collection[int], flag: str) -> str:
    """A line about a tokenizer whose end token ends no response; empty where it does. ``flag`` sets what does."""
    end = tokenizer.eos_token_id
    if end is None or end in stop_token_ids:
        return ""
    return (
        f"note: the tokenizer's end token {tokenizer.eos_token!r} ({end}) ends no response, since the model's "
        f"generation settings name {', '.join(map(str, stop_token_ids)) or 'none'}: {flag} {end} makes it one"
    )


def _broken_file(path: str) -> str:
    """The first file of a folder's tokenizer that is no JSON; empty where all are."""
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        file = Path(path) / name
        if file.is_file():
            try:
                json.loads(file.read_bytes())
            except (ValueError, RecursionError):
                return str(file)
    return ""


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0][:300]
