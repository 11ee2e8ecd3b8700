"""The tokenizer as its file says, and not as the architecture suggests."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import cached_file

from fastgrpo.types import Prompt


def load_tokenizer(path: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub id or folder, from its ``tokenizer.json`` where it has one.

    transformers 5's AutoTokenizer gives a Qwen2 model Qwen2's pre-tokenizer whatever that file says; a model distilled
    into another vocabulary, as DeepSeek's are, would then be trained on other tokens than it was made with. Plain texts
    begin with BOS where the file says so or ``add_bos_token`` does. Text is decoded as it was written.

    Raises ValueError where there is none, and for files that cannot be read.
    """
    try:
        if cached_file(path, "tokenizer.json", _raise_exceptions_for_missing_entries=False) is not None:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
            if get_tokenizer_config(path).get("add_bos_token"):
                _begin_texts(tokenizer)
        else:
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
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
    # Llama 3's files ask for it, and some releases of transformers do it: "3 . 5" would come to rewards as "3. 5".
    tokenizer.clean_up_tokenization_spaces = False
    return tokenizer


def num_rows_needed(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the largest id that a text without control tokens can have.

    Control tokens do not count: Gemma 3's tokenizer has one for images, beyond the rows of its models of text.
    """
    control = {n for n, token in tokenizer.added_tokens_decoder.items() if token.special}
    return 1 + max((n for n in tokenizer.get_vocab().values() if n not in control), default=-1)


def require_rows(prompts: Iterable[Prompt], num_rows: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ValueError for a prompt with a token that the model has no row for."""
    for prompt in prompts:
        if (largest := int(prompt.prompt_ids.max())) >= num_rows:
            raise ValueError(
                f"The prompt in row {prompt.row} has {tokenizer.decode([largest])!r} ({largest}), and the model only "
                f"{num_rows} rows: use the tokenizer that belongs to the model, or take the token out of the text."
            )


def _begin_texts(tokenizer: PreTrainedTokenizerFast) -> None:
    """Puts BOS before texts, if nothing does: DeepSeek's file leaves it to a class that no longer reads the setting."""
    name, begin = tokenizer.bos_token, tokenizer.bos_token_id
    if begin is None or tokenizer("a")["input_ids"][:1] == [begin]:
        return
    first = processors.TemplateProcessing(single=[name, "$A"], pair=[name, "$A", "$B"], special_tokens=[(name, begin)])
    core = tokenizer.backend_tokenizer
    core.post_processor = processors.Sequence([core.post_processor, first]) if core.post_processor else first


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
