"""Model shapes, and the parameters, FLOPs, bytes and transformers configuration that follow from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Shape:
    """A decoder of Qwen2's or Qwen3's kind."""

    name: str
    family: Literal["qwen2", "qwen3"]
    num_layers: int
    width: int  # D
    feed_forward: int  # F
    num_heads: int  # H
    num_kv_heads: int  # K
    head_width: int  # E
    vocabulary: int  # V
    tied: bool = True

    @property
    def query_width(self) -> int:
        return self.num_heads * self.head_width

    @property
    def kv_width(self) -> int:
        return self.num_kv_heads * self.head_width

    @property
    def layer_matmul_weights(self) -> int:
        """Number of weights of a layer with which every token is multiplied."""
        attention = 2 * self.width * (self.query_width + self.kv_width)
        return attention + 3 * self.width * self.feed_forward

    @property
    def num_layer_parameters(self) -> int:
        others = self.query_width + 2 * self.kv_width if self.family == "qwen2" else 2 * self.head_width
        return self.layer_matmul_weights + others + 2 * self.width

    @property
    def num_parameters(self) -> int:
        embeddings = self.vocabulary * self.width * (1 if self.tied else 2)
        return self.num_layers * self.num_layer_parameters + self.width + embeddings

    def forward_flops(self, lengths: Sequence[int], head_rows: int) -> float:
        """FLOPs: two for each weight and token, both attention products over half of the pairs, the head's rows."""
        layers = 2.0 * self.num_layers * self.layer_matmul_weights * sum(lengths)
        pairs = 2.0 * self.num_layers * self.query_width * sum(n * n for n in lengths)
        return layers + pairs + 2.0 * self.vocabulary * self.width * head_rows

    def kv_bytes_per_token(self, itemsize: int) -> int:
        return 2 * self.num_layers * self.kv_width * itemsize

    def transformers_config(self) -> "PretrainedConfig":
        from transformers import Qwen2Config, Qwen3Config

        kind = Qwen2Config if self.family == "qwen2" else Qwen3Config
        extra = {"head_dim": self.head_width} if self.family == "qwen3" else {}
        return kind(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.feed_forward,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_kv_heads,
            max_position_embeddings=32768,
            tie_word_embeddings=self.tied,
            **extra,
        )


QWEN25_1_5B = Shape("Qwen2.5-1.5B", "qwen2", 28, 1536, 8960, 12, 2, 128, 151936)
QWEN3_0_6B = Shape("Qwen3-0.6B", "qwen3", 28, 1024, 3072, 16, 8, 128, 151936)
QWEN25_7B = Shape("Qwen2.5-7B", "qwen2", 28, 3584, 18944, 28, 4, 128, 152064, tied=False)
QWEN25_32B = Shape("Qwen2.5-32B", "qwen2", 64, 5120, 27648, 40, 8, 128, 152064, tied=False)
# recipes/quickstart.py's base model.
QUICKSTART = Shape("quickstart", "qwen2", 2, 128, 384, 4, 4, 32, 320)
# Qwen2.5-1.5B with about a sixth of the width and the vocabulary and a seventh of the layers.
SCALED_DOWN = Shape("Qwen2.5-1.5B scaled down", "qwen2", 4, 256, 1536, 4, 1, 64, 25600)
