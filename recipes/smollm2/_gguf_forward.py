"""A Llama computed from the tensors of a GGUF file as that format means them: what a conversion is compared with."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class GgufLlama:
    """Reads the weights itself, and rotates neighbouring pairs, which GGUF orders the heads' rows for; transformers
    rotates halves, so that a conversion reorders them. All in float64."""

    def __init__(self, file: Path) -> None:
        from gguf import GGUFReader
        from gguf.quants import dequantize

        reader = GGUFReader(file)
        self.weights = {
            t.name: torch.tensor(dequantize(t.data, t.tensor_type), dtype=torch.float64).reshape(
                *map(int, t.shape[::-1])
            )
            for t in reader.tensors
        }

        def fact(name: str) -> Any:
            return reader.fields[f"llama.{name}"].contents()

        self.num_layers, self.eps = fact("block_count"), fact("attention.layer_norm_rms_epsilon")
        self.num_heads, self.num_kv_heads = fact("attention.head_count"), fact("attention.head_count_kv")
        self.head_width, self.rope_base = fact("rope.dimension_count"), fact("rope.freq_base")

    def logprobs(self, ids: Tensor) -> Tensor:  # [T] -> [T, V] of what follows each token
        hidden = self.weights["token_embd.weight"][ids]
        for layer in range(self.num_layers):
            hidden = hidden + self._attention(f"blk.{layer}", self._norm(hidden, f"blk.{layer}.attn_norm"))
            hidden = hidden + self._feed_forward(f"blk.{layer}", self._norm(hidden, f"blk.{layer}.ffn_norm"))
        head = self.weights.get("output.weight", self.weights["token_embd.weight"])  # tied where it has none
        return (self._norm(hidden, "output_norm") @ head.T).log_softmax(-1)

    def _norm(self, hidden: Tensor, name: str) -> Tensor:
        return hidden * (hidden.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.weights[f"{name}.weight"]

    def _attention(self, block: str, hidden: Tensor) -> Tensor:
        def heads(name: str, count: int) -> Tensor:  # [count, T, E]
            return (hidden @ self.weights[f"{block}.{name}.weight"].T).unflatten(-1, (count, -1)).transpose(0, 1)

        query, key = self._rotated(heads("attn_q", self.num_heads)), self._rotated(heads("attn_k", self.num_kv_heads))
        repeats = self.num_heads // self.num_kv_heads
        key, value = (t.repeat_interleave(repeats, 0) for t in (key, heads("attn_v", self.num_kv_heads)))
        scores = query @ key.transpose(1, 2) / self.head_width**0.5
        future = torch.ones_like(scores, dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(future, -torch.inf).softmax(-1) @ value
        return mixed.transpose(0, 1).flatten(1) @ self.weights[f"{block}.attn_output.weight"].T

    def _rotated(self, heads: Tensor) -> Tensor:  # [count, T, E]
        frequencies = self.rope_base ** (-torch.arange(0, self.head_width, 2, dtype=torch.float64) / self.head_width)
        angles = torch.arange(heads.shape[1], dtype=torch.float64)[:, None] * frequencies
        pairs = torch.view_as_complex(heads.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)

    def _feed_forward(self, block: str, hidden: Tensor) -> Tensor:
        gate, up = (hidden @ self.weights[f"{block}.ffn_{name}.weight"].T for name in ("gate", "up"))
        return (F.silu(gate) * up) @ self.weights[f"{block}.ffn_down.weight"].T
