"""A causal LM from a hub id or folder: checked by its configuration alone, then loaded for a device."""

import math
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from fastgrpo.config import ModelConfig
from fastgrpo.models.attention import IMPLEMENTATIONS, asked_of, choose_attention
from fastgrpo.models.config_file import read_config
from fastgrpo.models.decoder import decoder_of, layers_of
from fastgrpo.models.head import UnknownHead, measure_head
from fastgrpo.models.weight_files import read_weights

OWN = "eager"
"""Attention that every model has, and computes as it is defined."""


def compute_dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    """The dtype of the passes: ``config.dtype``, where ``auto`` is bfloat16 on CUDA and float32 on a CPU."""
    if config.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, config.dtype)


def master_dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    """The dtype of the weights that the optimizer updates: float32 or more."""
    return torch.promote_types(compute_dtype(config, device), torch.float32)


def load_causal_lm(
    config: ModelConfig, device: torch.device, dtype: torch.dtype, attention: str, place: bool = True
) -> PreTrainedModel:
    """The causal LM in evaluation mode, because dropout would make logprobs random.

    It is made for the device, and moved there unless ``place`` is false. Raises ValueError where its files do not hold
    the model whole.
    """
    model = read_weights(config.path, dtype=dtype, attn_implementation=OWN, trust_remote_code=config.trust_remote_code)
    set_attention(model, attention)
    if config.liger and device.type == "cuda":
        apply_liger(model)
    if dtype == torch.float64:
        one_expert_at_a_time(model)
    if place:
        torch.nn.Module.to(model, device)
    return model.eval()


def set_attention(model: PreTrainedModel, name: str) -> None:
    """Has a decoder compute with this attention from now on; one whose code takes none but its own keeps that."""
    decoder = decoder_of(model)
    if decoder._can_set_attn_implementation():
        decoder.set_attn_implementation(name)


def one_expert_at_a_time(model: PreTrainedModel) -> None:
    """Lets a mixture compute its experts one by one: torch's grouped matmul does not know float64."""
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")


def shapes_of(config: ModelConfig) -> PreTrainedModel:
    """The model on the meta device, by its configuration alone. Raises ValueError if transformers cannot make it."""
    model_config = read_config(config.path, config.trust_remote_code)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                model_config, trust_remote_code=config.trust_remote_code, attn_implementation=OWN
            )
        return model.eval()
    except Exception as error:  # of the model's own code, whatever its configuration makes it do
        raise ValueError(
            f"transformers cannot make a causal language model of the configuration of {config.path} "
            f"({type(error).__name__}: {str(error).strip().splitlines()[0]}): is its config.json whole, and of a "
            f"model that writes text?"
        ) from error


def attention_of(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> str:
    """The transformers name of the attention that this model is trained with.

    Raises ValueError if the setting cannot run there, or cannot compute what the model asks for.
    """
    chosen, model = choose_attention(config.attention, device, dtype), shapes_of(config)
    if chosen == OWN or not decoder_of(model)._can_set_attn_implementation():
        return OWN
    try:
        asked = asked_of(model)
    except ValueError as error:
        if chosen not in IMPLEMENTATIONS.values():  # it has the model's own masks
            return chosen
        raise ValueError(
            f"{config.path}: {error}. --model.attention eager is the model's own, with a padded row for each sequence, "
            f"and needs --rollout.engine vllm"
        ) from error
    return choose_attention(config.attention, device, dtype, asked)


def check_model(config: ModelConfig, num_rows_needed: int, longest_sequence: int) -> int:
    """The number of parameters, from the model's configuration alone: no weight is loaded.

    Raises ValueError if the tokenizer makes ids that the model has no row for, or a sequence can outgrow its
    positions, or fastgrpo cannot compute the model's head or find its layers.
    """
    model_config = read_config(config.path, config.trust_remote_code)
    text_config = model_config.get_text_config(decoder=True)
    if num_rows_needed > text_config.vocab_size:
        raise ValueError(
            f"the tokenizer of {config.path} has ids up to {num_rows_needed - 1}, its model only "
            f"{text_config.vocab_size} rows: use the tokenizer that belongs to the model, or resize the model's "
            f"embeddings"
        )
    positions = getattr(text_config, "max_position_embeddings", None)
    if positions is not None and longest_sequence > positions:
        raise ValueError(
            f"{config.path} has {positions} positions, and prompt and response may take {longest_sequence} tokens: "
            f"lower --rollout.max_response_tokens or --data.max_prompt_tokens"
        )
    _refuse_position_scaling(text_config, longest_sequence)
    model = shapes_of(config)
    layers_of(model)
    try:
        measure_head(model)
    except UnknownHead as error:
        raise ValueError(f"{config.path} cannot be trained: {error}") from error
    if config.activation_checkpointing is True and not model.supports_gradient_checkpointing:
        raise ValueError(
            f"transformers cannot recompute the activations of a {type(model).__name__}: "
            f"--model.activation_checkpointing False"
        )
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
    """Replaces the model's layers by liger-kernel's, if it is installed and knows the architecture."""
    from importlib.util import find_spec

    if find_spec("liger_kernel") is None:
        print("fastgrpo: liger-kernel is not installed, taking the model's own layers", flush=True)
        return
    from liger_kernel.transformers import _apply_liger_kernel_to_instance  # pyright: ignore[reportMissingImports]

    # Only the layers: our own head takes the place of its fused losses.
    _apply_liger_kernel_to_instance(model=model, cross_entropy=False, fused_linear_cross_entropy=False)


def _refuse_position_scaling(model_config: PretrainedConfig, longest_sequence: int) -> None:
    """Raises ValueError if positions depend on the longest sequence of a batch: sampler and trainer would differ."""
    rope = getattr(model_config, "rope_parameters", None) or {}
    names = ("original_max_position_embeddings", "max_position_embeddings")
    known = [rope.get(names[0]), *(getattr(model_config, name, None) for name in names)]
    original = next((n for n in known if n), math.inf)
    if rope.get("rope_type") in ("longrope", "dynamic") and longest_sequence > original:
        raise ValueError(
            f"this model scales its positions ({rope['rope_type']}) beyond {original} tokens by the longest sequence "
            f"of a batch: keep prompt and response, now {longest_sequence}, within {original} tokens"
        )


def dropout_rates(model_config: PretrainedConfig) -> dict[str, float]:
    """The dropout rates of a transformers configuration that are above 0, by name."""
    return {n: v for n, v in model_config.to_dict().items() if "drop" in n and isinstance(v, float) and v > 0}
