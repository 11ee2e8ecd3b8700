"""Models and data that TRL's own tests load from the hub, made on disk under the same names, tiny and random."""

import json
from pathlib import Path

import torch
import transformers
import trl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

ORGANIZATION = "trl-internal-testing"
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SHAPE = {
    "hidden_size": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 2048,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "output_router_logits": True}
# The hub's name: the transformers class, the chat template of TRL, what the configuration has besides.
MODELS = {
    "tiny-Qwen2ForCausalLM-2.5": ("Qwen2ForCausalLM", "qwen2_5", {}),
    "tiny-Qwen2ForSequenceClassification-2.5": ("Qwen2ForSequenceClassification", "qwen2_5", {"num_labels": 1}),
    "tiny-Qwen3ForCausalLM": ("Qwen3ForCausalLM", "qwen3", {"head_dim": 2}),
    "tiny-Qwen3ForSequenceClassification": (
        "Qwen3ForSequenceClassification",
        "qwen3",
        {"num_labels": 1, "head_dim": 2},
    ),
    "tiny-LlamaForCausalLM-3.2": ("LlamaForCausalLM", "llama3_2", {}),
    "tiny-LlamaForSequenceClassification-3.2": ("LlamaForSequenceClassification", "llama3_2", {"num_labels": 1}),
    "tiny-MistralForCausalLM-0.2": ("MistralForCausalLM", "qwen2_5", {}),
    "tiny-Cohere2ForCausalLM": ("Cohere2ForCausalLM", "cohere2", {"logit_scale": 0.125}),
    "tiny-Gemma2ForCausalLM": ("Gemma2ForCausalLM", "gemma", {"head_dim": 2}),
    "tiny-Qwen3MoeForCausalLM": ("Qwen3MoeForCausalLM", "qwen3", {**EXPERTS, "head_dim": 2}),
}


def make(folder: Path) -> None:
    """Makes all of them; ``from_pretrained`` and ``load_dataset`` find them by name when they run in the folder."""
    for name, (model_class, template, extra) in MODELS.items():
        _save_model(folder / ORGANIZATION / name, model_class, template, extra)
    _save_data(folder / ORGANIZATION / "zen")


def _save_model(folder: Path, class_name: str, template: str, extra: dict) -> None:
    tokenizer = _tokenizer(template)
    model_class = getattr(transformers, class_name)
    torch.manual_seed(0)
    model = model_class(model_class.config_class(vocab_size=len(tokenizer), **SHAPE, **extra))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer(template: str) -> transformers.PreTrainedTokenizerFast:
    """One token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIALS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIALS,
    )
    fast.chat_template = (Path(trl.__file__).parent / "chat_templates" / f"{template}.jinja").read_text()
    return fast


def _save_data(folder: Path) -> None:
    """As many prompts as the hub's set has: 17 to train, 2 to test."""
    starts = [f"{word} is better than" for word in ("Beautiful", "Explicit", "Simple", "Flat", "Now") * 4][:19]
    kinds = {
        "standard_prompt_only": [{"prompt": s} for s in starts],
        "conversational_prompt_only": [{"prompt": [{"role": "user", "content": s}]} for s in starts],
    }
    configs = []
    for kind, rows in kinds.items():
        splits = {"train": rows[:17], "test": rows[17:]}
        (folder / kind).mkdir(parents=True)
        for split, part in splits.items():
            (folder / kind / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
        files = [{"split": split, "path": f"{kind}/{split}.jsonl"} for split in splits]
        configs.append({"config_name": kind, "data_files": files})
    (folder / "README.md").write_text(f"---\n{json.dumps({'configs': configs})}\n---\n")  # JSON is YAML
