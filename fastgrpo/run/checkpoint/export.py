"""The export: weights, configuration and tokenizer as ``from_pretrained`` reads them."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import PreTrainedModel


def write_export(
    folder: Path, weights: dict[str, Tensor], model: PreTrainedModel, tokenizer: Any, dtype: torch.dtype
) -> None:
    """Writes a folder that ``from_pretrained`` loads. ``weights`` are whole, by the model's names, in ``dtype``."""
    folder.mkdir(parents=True, exist_ok=True)
    save_torch_state_dict(weights, folder, metadata={"format": "pt"})
    config = type(model.config).from_dict(model.config.to_dict())
    config.dtype = dtype
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
