"""The policy: a transformers causal LM whose forward pass ends in logprobs, not in logits."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fastgrpo_kernels import linear_logprobs
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from fastgrpo.attention import IMPLEMENTATIONS, PackedLayout, can_share_prompts, choose_attention
from fastgrpo.config import ModelConfig
from fastgrpo.packing import SequenceCost
from fastgrpo.policy.activations import dropout_rates, layers_of, recompute_first
from fastgrpo.types import PackedBatch


class Policy(nn.Module):
    """Root module of the trained weights.

    The LM head is applied inside this forward, in chunks and to response rows alone: no ``[T, V]`` tensor exists, and
    under FSDP2 the head's weight is gathered only here. ``head_chunk_tokens`` 0 leaves the chunk to the op.
    """

    def __init__(self, model: PreTrainedModel, temperature: float, head_chunk_tokens: int) -> None:
        super().__init__()
        _refuse_scaled_logits(model.config)
        self.model = model
        self.temperature = temperature
        self.head_chunk_tokens = head_chunk_tokens

    @property
    def can_share_prompts(self) -> bool:
        return can_share_prompts(self.model.config._attn_implementation)

    def forward(
        self, batch: PackedBatch, entropy: bool = True, op: Callable[..., Any] = linear_logprobs
    ) -> Any:  # what the op returns: logprobs [R], and entropy [R] if asked for
        """The op of `fastgrpo_kernels` on the R response tokens of the batch, in order; logprobs are float32.

        It runs in here because here the head's weight is whole.
        """
        input_ids, position_ids, response_rows = batch.input_ids, batch.position_ids, batch.response_rows
        if batch.shared is not None:
            input_ids, position_ids = input_ids[batch.shared.select], position_ids[batch.shared.select]
            response_rows = batch.shared.expand[response_rows]
        layout = PackedLayout(batch.cu_seqlens, batch.max_seqlen, batch.shared)
        if self.model.config._attn_implementation == IMPLEMENTATIONS["padded"]:
            layout.padding(len(input_ids))
        hidden = self.model.base_model(
            input_ids=input_ids[None], position_ids=position_ids[None], use_cache=False, layout=layout
        ).last_hidden_state[0]
        head = self.model.get_output_embeddings()
        return op(
            hidden.index_select(0, response_rows),
            head.weight,
            batch.at_responses(batch.target_ids),
            bias=head.bias,
            temperature=self.temperature,
            entropy=entropy,
            chunk_tokens=self.head_chunk_tokens or None,
        )


def compute_dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    if config.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, config.dtype)


def master_dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    """Dtype that the optimizer updates: never below float32."""
    return torch.promote_types(compute_dtype(config, device), torch.float32)


def load_causal_lm(
    config: ModelConfig, device: torch.device, dtype: torch.dtype, attention: str, place: bool = True
) -> PreTrainedModel:
    """A causal LM of a hub id or folder, in evaluation mode: dropout would make logprobs random. It is made for the
    device, and brought there unless ``place`` is false."""
    model = AutoModelForCausalLM.from_pretrained(
        config.path, dtype=dtype, attn_implementation=attention, trust_remote_code=config.trust_remote_code
    )
    if config.liger and device.type == "cuda":
        apply_liger(model)
    if place:
        torch.nn.Module.to(model, device)
    return model.eval()


def load_policy(config: ModelConfig, temperature: float, device: torch.device) -> Policy:
    """A policy for this device that is still on the CPU: `shard` brings each rank its part."""
    attention = choose_attention(config.attention, device, compute_dtype(config, device))
    model = load_causal_lm(config, device, master_dtype(config, device), attention, place=False)
    return as_policy(model, config, temperature)


def as_policy(
    model: PreTrainedModel, config: ModelConfig, temperature: float, policy_class: type[Policy] = Policy
) -> Policy:
    """A loaded model as a policy, with this configuration's checkpointing, compilation and head."""
    if config.activation_checkpointing is True:  # auto: when it is known what is free
        recompute_first(model, len(layers_of(model)))
    if config.compile:
        for layer in layers_of(model):  # they share their code: what the first compiles, all run
            layer.forward = torch.compile(layer.forward, dynamic=True)
    return policy_class(model, temperature, config.head_chunk_tokens)


def sequence_cost(model_config: Any) -> SequenceCost:
    """FLOPs by sequence length of a decoder of this transformers configuration."""
    d_head = getattr(model_config, "head_dim", None) or model_config.hidden_size // model_config.num_attention_heads
    num_kv = getattr(model_config, "num_key_value_heads", None) or model_config.num_attention_heads
    return SequenceCost.of_transformer(
        num_layers=model_config.num_hidden_layers,
        d_model=model_config.hidden_size,
        d_feed_forward=model_config.intermediate_size,
        d_query=model_config.num_attention_heads * d_head,
        d_key_value=num_kv * d_head,
    )


def check_model(config: ModelConfig, tokenizer_size: int, longest_sequence: int) -> int:
    """The number of parameters, from the model's configuration alone: no weight is loaded.

    Raises ValueError if the tokenizer can make ids that the model has no row for, or a sequence can outgrow its
    positions.
    """
    model_config = AutoConfig.from_pretrained(config.path, trust_remote_code=config.trust_remote_code)
    if tokenizer_size > model_config.vocab_size:
        raise ValueError(
            f"the tokenizer of {config.path} has {tokenizer_size} tokens, its model only {model_config.vocab_size} "
            f"rows: use the tokenizer that belongs to the model, or resize the model's embeddings"
        )
    positions = getattr(model_config, "max_position_embeddings", None)
    if positions is not None and longest_sequence > positions:
        raise ValueError(
            f"{config.path} has {positions} positions, and prompt and response may take {longest_sequence} tokens: "
            f"lower --rollout.max_response_tokens or --data.max_prompt_tokens"
        )
    _refuse_position_scaling(model_config, longest_sequence)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config, trust_remote_code=config.trust_remote_code)
    if not hasattr(model.base_model, "layers") or not hasattr(model_config, "intermediate_size"):
        raise ValueError(
            f"{config.path} is a {type(model).__name__}, whose parts have other names than those of the decoders that "
            f"fastgrpo knows (Llama, Mistral, Qwen2, Qwen3 and their kind)"
        )
    _refuse_scaled_logits(model_config)
    if config.activation_checkpointing is True and (rates := dropout_rates(model_config)):
        raise ValueError(
            f"the model's config has dropout ({rates}), and transformers recomputes in training mode only, in which "
            f"logprobs would be random: set it to 0, or --model.activation_checkpointing False"
        )
    return model.num_parameters()


def find_model(path: str) -> None:
    """Raises ValueError if ``path`` looks like a local folder that is not there or holds no model."""
    folder = Path(path)
    looks_local = path.startswith((".", "/", "~")) or path.count("/") != 1
    if (folder.exists() or looks_local) and not (folder / "config.json").is_file():
        raise ValueError(f"--model.path {path} holds no config.json: give a model folder or a hub id owner/name")


def apply_liger(model: PreTrainedModel) -> None:
    """liger-kernel's layers in place of the model's own, where it is installed and knows the architecture."""
    from importlib.util import find_spec

    if find_spec("liger_kernel") is None:
        print("fastgrpo: liger-kernel is not installed, taking the model's own layers", flush=True)
        return
    from liger_kernel.transformers import _apply_liger_kernel_to_instance  # pyright: ignore[reportMissingImports]

    # Only the layers: its fused losses stand where our own head does.
    _apply_liger_kernel_to_instance(model=model, cross_entropy=False, fused_linear_cross_entropy=False)


def _refuse_scaled_logits(model_config: Any) -> None:
    for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        value = getattr(model_config, name, None)
        if value not in (None, 1, 1.0):
            raise ValueError(f"this model transforms its logits ({name} = {value}), which the policy's head lacks")


def _refuse_position_scaling(model_config: Any, longest_sequence: int) -> None:
    """Some rotary embeddings depend on the longest sequence of the batch, so sampler and trainer would disagree."""
    rope = getattr(model_config, "rope_parameters", None) or {}
    names = ("original_max_position_embeddings", "max_position_embeddings")
    known = [rope.get(names[0]), *(getattr(model_config, name, None) for name in names)]
    original = next((n for n in known if n), math.inf)
    if rope.get("rope_type") in ("longrope", "dynamic") and longest_sequence > original:
        raise ValueError(
            f"this model scales its positions ({rope['rope_type']}) beyond {original} tokens by the longest sequence "
            f"of a batch: keep prompt and response, now {longest_sequence}, within {original} tokens"
        )
