"""What each field of a configuration becomes in a tiny copy. A field of another name stays as it is: where a copy then
cannot be made or is not small, the proof says so.
"""

from collections.abc import Sequence
from typing import Any

VOCABULARY = 64
FIRST_TOKEN = 8
"""Ids below may be special tokens."""
SHORT = 5
"""What windows, chunks and other lengths become, so that a sequence of twelve tokens is longer."""
_HEADS, _WIDTH_OF_HEAD, _WIDTH = 4, 8, 32
_FEED_FORWARD, _OF_EXPERT, _EXPERTS, _STATE = 40, 24, 4, 8

_LAYERS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers", "num_encoder_layers",
    "num_decoder_layers", "num_layers_per_stack", "num_blocks",
)  # fmt: skip
_NAMES_BY_SIZE: list[tuple[int, str]] = [
    (VOCABULARY, "vocab_size vocab_size_per_layer_input encoder_hash_byte_group_vocab"),
    (
        _WIDTH,
        "hidden_size d_model n_embd emb_dim embedding_size word_embed_proj_dim embed_dim d_embed hidden_dim dim_model "
        "lru_width embedding_dim input_embedding_size output_embedding_size out_hidden_size",
    ),
    (
        _FEED_FORWARD,
        "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim n_inner dff dim_ff ffn_hidden_size "
        "feed_forward_size intermediate_size_mlp dense_intermediate_size d_inner",
    ),
    (
        _OF_EXPERT,
        "moe_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size "
        "shared_intermediate_size expert_ffn_hidden_size",
    ),
    (
        _HEADS,
        "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads attention_heads "
        "num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads linear_num_heads "
        "linear_num_value_heads index_n_heads num_query_groups",
    ),
    (
        _WIDTH_OF_HEAD,
        "head_dim d_head dim_head kv_channels swa_head_dim linear_head_dim linear_key_head_dim linear_value_head_dim "
        "global_head_dim attention_head_size index_head_dim v_head_dim qk_nope_head_dim swa_v_head_dim",
    ),
    (_EXPERTS, "num_experts num_local_experts n_routed_experts moe_num_experts zero_expert_num"),
    (8, "mamba_n_heads mamba_d_head mamba_num_heads mamba_head_dim mamba_headdim n_mamba_heads qk_rope_head_dim"),
    (4, "rotary_dim time_step_rank mamba_dt_rank index_topk_blocks"),
    (2, "linear_num_key_heads n_groups"),
    (2 * _WIDTH_OF_HEAD, "qk_head_dim"),
    (2 * _WIDTH, "mamba_d_ssm"),
    (20, "q_lora_rank"),
    (
        16,
        "kv_lora_rank o_lora_rank hc_lowrank hidden_size_per_layer_input laurel_rank router_hidden_size adapter_rank "
        "gated_norm_rank",
    ),
    (_STATE, "mamba_d_state ssm_state_size state_size"),
]
_SIZES = {name: size for size, names in _NAMES_BY_SIZE for name in names.split()}
"""What a field becomes, if the configuration has it and it is larger."""
_LENGTHS = (
    "sliding_window", "sliding_window_size", "attention_window_size", "local_attention", "window_size",
    "attention_chunk_size", "floor_scale", "keep_window_size", "index_topk", "index_block_size",
)  # fmt: skip
_KEYS_VALUES = ("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads")
_TOP_K = (
    "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k", "top_k", "top_k_experts",
    "n_group", "num_expert_group",
)  # fmt: skip
_LEFT_OUT = ("dtype", "torch_dtype", "quantization_config")


def num_layers_of(values: dict[str, Any]) -> int | None:
    """The number of layers that the fields of a configuration name."""
    return next((values[n] for n in _LAYERS if isinstance(values.get(n), int)), None)


def shrunk(values: dict[str, Any], layers: Sequence[int]) -> dict[str, Any]:
    """The fields of a configuration, made small one by one, of which these layers are left."""
    layers_now = num_layers_of(values)
    small = {name: _field(name, value, values, layers_now, layers) for name, value in values.items()}
    return {name: value for name, value in small.items() if name not in _LEFT_OUT}


def _field(name: str, value: Any, values: dict[str, Any], layers_now: int | None, layers: Sequence[int]) -> Any:
    if isinstance(value, dict):
        return _mapping(name, value, layers)
    if isinstance(value, list | tuple) and not isinstance(value, str):
        return _list(name, list(value), layers_now, layers)
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if name.endswith(("token_id", "_index")) and "image" not in name and "audio" not in name:
        return min(value, FIRST_TOKEN - 1)
    if name in _LAYERS:
        return min(value, len(layers))
    if name in _LENGTHS:
        return min(value, SHORT) if value > 0 else value
    if name in _KEYS_VALUES:
        return _key_value_heads(value, values)
    if name in _TOP_K:
        return min(value, 2)
    if name == "attention_hidden_size":
        return min(value, 2 * _WIDTH if value > values.get("hidden_size", value) else _WIDTH)
    if name == "topk_group":
        return 1  # of two groups
    if name == "head_dim" and value == values.get("qk_head_dim"):
        return min(value, _SIZES["qk_head_dim"])
    if name == "num_heads" and "state_size" in values:
        return min(value, 2 * _HEADS)  # of Mamba 2: as many as are twice the width
    if name == "num_kv_shared_layers":
        return min(value, len(layers) // 3)
    size = _SIZES.get(name)
    return value if size is None else min(value, size)


def _mapping(name: str, value: dict[Any, Any], layers: Sequence[int]) -> dict[Any, Any]:
    if name == "per_layer_config":
        return {type(k)(layers.index(int(k))): shrunk(v, layers) for k, v in value.items() if int(k) in layers}
    if name.endswith("_config"):
        return shrunk(value, layers)
    pairs = int(_WIDTH_OF_HEAD * value.get("partial_rotary_factor", 1.0)) // 2
    return {k: _of_rotation(k, v, pairs) if isinstance(v, list) else v for k, v in value.items()}


def _of_rotation(name: str, value: list[Any], pairs: int) -> list[Any]:
    """A list of rotary embeddings: a number for each pair of a head's dimensions, or how many pairs are whose."""
    if name in ("short_factor", "long_factor"):
        return value[:pairs]
    if name == "mrope_section" and sum(value) > pairs:
        others = [1] * (len(value) - 1)
        return [pairs - len(others), *others]
    return value


def _list(name: str, value: list[Any], layers_now: int | None, layers: Sequence[int]) -> list[Any]:
    if name.endswith("token_id"):
        return [min(v, FIRST_TOKEN - 1) for v in value]
    if layers_now is not None and len(value) == layers_now:
        kept = [value[n] for n in layers if n < len(value)]
        return [_SIZES.get(name, v) if type(v) is int and name in _SIZES else v for v in kept]
    if name.endswith(("_layers", "_idxs", "_layer_ids")) and all(type(v) is int for v in value):
        return [layers.index(v) for v in value if v in layers]
    return value


def _key_value_heads(value: int, values: dict[str, Any]) -> int:
    heads = next((values[n] for n in ("num_attention_heads", "n_head", "n_heads") if values.get(n)), None)
    return _HEADS if value == heads and value >= _HEADS else min(value, 2)
