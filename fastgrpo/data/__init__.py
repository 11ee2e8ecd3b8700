"""Data set rows -> prompts.

``read`` and ``parquet`` find rows, ``schemas`` understands them (``messages`` of a chat, ``answers`` of a gold,
``instructions`` around a problem), ``problems`` keeps each problem once, ``prompts`` makes token ids (``chat_template``
their texts, ``prompt_checks`` and ``stop_tokens`` what is odd about them) and puts them in the order of a run.
``identity`` tells one set of them from another.
"""

from fastgrpo.data.columns import with_columns
from fastgrpo.data.identity import identity_of, other_than
from fastgrpo.data.problems import Problems, load_problems
from fastgrpo.data.prompts import PromptStream, encode, held_out_prompts
from fastgrpo.data.tokenizer import load_tokenizer

__all__ = [
    "Problems",
    "PromptStream",
    "encode",
    "held_out_prompts",
    "identity_of",
    "load_problems",
    "load_tokenizer",
    "other_than",
    "with_columns",
]
