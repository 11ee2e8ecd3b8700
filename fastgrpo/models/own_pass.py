"""What a model itself says: its own forward pass of one sequence, with its own masks, positions and head."""

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel


def own_logprobs(
    model: PreTrainedModel, prompt_ids: np.ndarray, response_ids: np.ndarray, temperature: float
) -> Tensor:  # [num_response_tokens]
    """``log_softmax(model(input_ids).logits / temperature)`` at a response's tokens, in float32 or wider."""
    device = next(model.parameters()).device
    prompt, response = (torch.from_numpy(ids).long().to(device) for ids in (prompt_ids, response_ids))
    ids = torch.cat([prompt, response[:-1]])
    logits = model(input_ids=ids[None], use_cache=False).logits[0, len(prompt) - 1 :]
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.log_softmax(wide / temperature, dim=-1).gather(1, response[:, None])[:, 0]
