"""A mixture of experts in the place of the tiny recipe's model, and how far its sampler is from its trainer::

python -m tests.run.mixture --rollout.engine vllm --model.dtype bfloat16 [--dense]
"""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from fastgrpo.json_lines import JsonLines
from fastgrpo.train import main
from tests import tiny_recipe
from tests.tiny import EXPERTS, SHAPE

MEASURED = {
    "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 4, "head_dim": 32, "num_experts": 16,
    "num_experts_per_tok": 4, "moe_intermediate_size": 64, "norm_topk_prob": True, "max_position_embeddings": 512,
}  # fmt: skip


def put_mixture(base: Path, scale: float, dense: bool = False, **changes: Any) -> None:
    """Puts a random Qwen3-MoE, or a dense Qwen3, into a base folder that has a tokenizer; its matrices times a scale,
    because the usual initialisation makes nearly uniform predictions, which hide mistakes."""
    tokenizer = AutoTokenizer.from_pretrained(base / "model")
    end = tokenizer.eos_token_id
    shape = {"head_dim": 8, **SHAPE, **EXPERTS, "eos_token_id": end, "pad_token_id": end, "vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    model: PreTrainedModel
    if dense:
        model = Qwen3ForCausalLM(Qwen3Config(**{**shape, **changes}))
    else:
        model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**{**shape, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale if parameter.dim() > 1 else 1.0)
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=end)
    (base / "model" / "model.safetensors").unlink()
    model.save_pretrained(base / "model")


def measure(*arguments: str) -> None:
    """Prints what two steps say of sampler and trainer."""
    runs = Path(tempfile.mkdtemp())
    base = runs / "tiny" / "base"
    tiny_recipe.prepare(tiny_recipe.config, base, print)
    put_mixture(base, 3.0, "--dense" in arguments, **MEASURED)
    longer = ["--rollout.max_response_tokens", "64", "--optimizer.tokens_per_microbatch", "1024"]
    short = ["--runs_dir", str(runs), "--steps", "2", "--evaluation.every_steps", "0", *longer]
    assert main([tiny_recipe.__file__, *short, *(a for a in arguments if a != "--dense")]) == 0
    steps = JsonLines(runs / "tiny" / "metrics.jsonl").read()[-2:]
    for name in ("rollout_kl", "logprob_diff_p99", "logprob_diff_above_001_frac"):
        print(name, max(abs(step[name]) for step in steps))
    shutil.rmtree(runs)


if __name__ == "__main__":
    measure(*sys.argv[1:])
