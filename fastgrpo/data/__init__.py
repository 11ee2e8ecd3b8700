"""Data set rows -> prompts: ``read`` finds rows, ``schemas`` understands them, ``problems`` keeps each problem once,
``prompts`` makes token ids and puts them in the order of a run."""

from fastgrpo.data.columns import with_columns
from fastgrpo.data.problems import Problems, load_problems
from fastgrpo.data.prompts import PromptStream, encode, held_out_prompts
from fastgrpo.data.tokenizer import load_tokenizer

__all__ = [
    "Problems",
    "PromptStream",
    "encode",
    "held_out_prompts",
    "load_problems",
    "load_tokenizer",
    "with_columns",
]
