"""What a model itself says: its own forward pass, one sequence at a time, with its own attention, masks and head."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fastgrpo.types import Sample


def own_logprobs(model: PreTrainedModel, sample: Sample, temperature: float) -> Tensor:  # [num_response_tokens]
    """``log_softmax(model(input_ids).logits / temperature)`` of a response's tokens, in float32 or wider."""
    prompt, response = (torch.from_numpy(ids).long() for ids in (sample.prompt.prompt_ids, sample.response.response_ids))
    device = next(model.parameters()).device
    ids = torch.cat([prompt, response]).to(device)
    logits = model(input_ids=ids[None, :-1], use_cache=False).logits[0, len(prompt) - 1 :]
    wide = torch.promote_types(logits.dtype, torch.float32)
    logprobs = torch.log_softmax(logits.to(wide) / temperature, dim=-1)
    return logprobs.gather(1, response.to(device)[:, None])[:, 0]
