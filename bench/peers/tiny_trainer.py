"""A GRPOTrainer of TRL around a small random model, for `bench.trl_head`: runs in TRL's environment."""

import warnings
from pathlib import Path

import trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, set_seed


def grpo_trainer(folder: Path, vocabulary: int, width: int) -> trl.GRPOTrainer:
    """Float32 on the CPU, one layer of 64 hidden units, weights of seed 0."""
    warnings.filterwarnings("ignore")
    set_seed(0)
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    return trl.GRPOTrainer(
        model=Qwen2ForCausalLM(config),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=trl.GRPOConfig(
            output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", gradient_checkpointing=False, seed=0
        ),
        train_dataset=Dataset.from_list([{"prompt": "w1"}] * 8),
        processing_class=_words(),
    )


def _words() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(64)}, unk_token="w1"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w0", pad_token="w0")
