"""The tokenizer as its file says, and not as the architecture suggests."""

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import cached_file


def load_tokenizer(path: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub id or folder, from its ``tokenizer.json`` where it has one.

    transformers 5's AutoTokenizer gives a Qwen2 model Qwen2's pre-tokenizer whatever that file says; a model distilled
    into another vocabulary, as DeepSeek's are, would then be trained on other tokens than it was made with.
    """
    if cached_file(path, "tokenizer.json", _raise_exceptions_for_missing_entries=False) is not None:
        return PreTrainedTokenizerFast.from_pretrained(path)
    return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
