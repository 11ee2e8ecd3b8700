"""What becomes of every type of causal LM that the installed transformers knows, in small and with random weights."""

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from fastgrpo.config import Config, ModelConfig, RolloutConfig
from fastgrpo.models.load import OWN, attention_of, check_model
from fastgrpo.models.tiny import CannotShrink, tiny_config
from fastgrpo.models.tiny_sizes import VOCABULARY
from fastgrpo.proof.architecture import Failure, prove_architecture
from fastgrpo.proof.model import ON_A_CPU, require_proven
from fastgrpo.rollout.engines import engine_kind

TYPES: dict[str, str] = dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
"""Type of a configuration -> the class of its causal LM."""
_INDEXER = {"n_heads": 16, "kv_heads": 1, "head_dim": 128, "budget": 2048, "compress_ratio": 4}
_QWEN4 = {f"indexer_{name}": value for name, value in _INDEXER.items()}
_CONV = ["conv", "conv", "full_attention"]
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
SETTINGS: dict[str, dict[str, Any]] = {
    "bert-generation": {"is_decoder": True},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE}},
    "deepseek_v2": {"num_experts_per_tok": 6},
    "dots1": {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 1, "topk_group": 1},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128, "num_experts": 8, "moe_topk": 2},
    "lfm2": {"layer_types": _CONV * 8, "num_hidden_layers": 24, "full_attn_idxs": None},
    "lfm2_moe": {"layer_types": _CONV * 8, "num_hidden_layers": 24},
    "ministral": {"head_dim": 128},
    "nemotron": {"head_dim": 128, "num_key_value_heads": 8},
    "qwen4_exp_text": _QWEN4,
}
"""What a type's own defaults leave open, or leave out although most of its models have it."""


@dataclass(frozen=True)
class Verdict:
    """``packed``: right with sequences end to end. ``rows``: with a padded row each, under the model's own attention.
    ``refused``: in words. ``not built``: no small model of the type can be made or run here."""

    outcome: str
    checks: tuple[str, ...] = ()
    reason: str = field(default="")  # why it is not packed, or what of it is not right

    @property
    def is_right(self) -> bool:
        return self.outcome in ("packed", "rows")


def verdict_on(name: str) -> Verdict:
    """Lets through whatever is neither right nor refused in words: a traceback."""
    logging.set_verbosity_error()
    try:
        config = AutoConfig.for_model(name, **SETTINGS.get(name, {}))
    except Exception as error:  # its own defaults are not valid
        return Verdict("not built", reason=_said(error))
    try:
        checks = _proven(config, ON_A_CPU)
        return Verdict("packed" if "packing" in checks else "rows", checks)
    except CannotShrink as error:
        return Verdict("not built", reason=str(error))
    except Failure as failure:
        if failure.check == "sampling":
            return Verdict(
                "packed" if "packing" in failure.passed else "rows", failure.passed, _without_numbers(failure)
            )
        reason = _without_numbers(failure)
    except ValueError as error:
        return Verdict("refused", reason=str(error))
    try:
        return Verdict("rows", _proven(config, OWN), reason)
    except Failure as failure:
        return Verdict("refused", failure.passed, _without_numbers(failure))


def pass_the_door(name: str, folder: Path, attention: str, engine: str) -> str:
    """What a run of a model of this type says, from its configuration alone. Raises ValueError if it is refused."""
    config = AutoConfig.for_model(name, **SETTINGS.get(name, {}))
    with contextlib.suppress(CannotShrink):
        config = tiny_config(config)
    config.save_pretrained(folder)
    model = ModelConfig(path=str(folder), attention=attention)
    check_model(model, VOCABULARY, longest_sequence=16)
    chosen = attention_of(model, torch.device("cpu"), torch.float32)
    return require_proven(Config(model=model, rollout=RolloutConfig(engine=engine)), chosen)


def _proven(config: Any, attention: str) -> tuple[str, ...]:
    engine_of = engine_kind("builtin").of_model if attention == ON_A_CPU else None
    return tuple(prove_architecture(config, attention, engine_of))


def _without_numbers(failure: Failure) -> str:
    """What every machine says alike."""
    error = " ".join(failure.error.split())
    return f"{failure.check}: {error[:130]}" if error else f"{failure.check}: other logprobs"


def _said(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
