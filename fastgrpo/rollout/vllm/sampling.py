"""A request as vLLM understands it, and the spans of a response that one policy version drew."""

from collections.abc import Iterable
from typing import Any

from fastgrpo.rollout.sampling_noise import response_seed
from fastgrpo.types import Request


def sampling_of(request: Request) -> dict[str, Any]:
    """The fields of vLLM's SamplingParams that say how this response is drawn."""
    sampling = request.sampling
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": response_seed(sampling.seed, request.prompt.position, request.index),
        "max_tokens": sampling.max_response_tokens,
        "stop_token_ids": list(sampling.stop_token_ids),
        "ignore_eos": True,  # the stop tokens are the recipe's, not those of the model's files
        "logprobs": 0 if sampling.top_p == 1 else None,  # of the sampled token alone
        "detokenize": False,
    }


def merged_changes(changes: Iterable[tuple[int, int]], length: int) -> tuple[int, tuple[tuple[int, int], ...]]:
    """The version of the first token, and the later (place, version) where it changed.

    Of several changes at one place the last counts, and none after the end.
    """
    by_place = sorted((place, version) for place, version in dict(changes).items() if place < length or place == 0)
    (_, first), *later = by_place
    kept, current = [], first
    for place, version in later:
        if version != current:
            kept.append((place, version))
            current = version
    return first, tuple(kept)
