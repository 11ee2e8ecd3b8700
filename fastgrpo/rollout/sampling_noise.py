"""Counter-based sampling noise: a draw is a function of (seed, prompt, sample, position), of nothing else.

So a response does not depend on its neighbours in the batch, on the number of ranks, or on what was drawn before, and
there is no random state to save.
"""

import torch
from torch import Tensor

# Steele, Lea, Flood: Fast splittable pseudorandom number generators (OOPSLA 2014), the splitmix64 finaliser,
# on int64 because torch has no unsigned arithmetic: the products wrap alike.
_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's on int64 repeats the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:  # int64 -> int64
    """A bijection of 64 bits whose output passes for random for consecutive inputs."""
    x = x + _GOLDEN
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def stream_keys(seed: int, prompt_positions: Tensor, samples: Tensor) -> Tensor:
    """One key per response, int64, from int64 tensors of the same shape."""
    return mix(mix(mix(torch.full_like(prompt_positions, seed)) ^ prompt_positions) ^ samples)


def response_seed(seed: int, prompt_position: int, sample: int) -> int:
    """The same key as a number in [0, 2**63), for samplers that take a seed for each request."""
    return int(stream_keys(seed, torch.tensor([prompt_position]), torch.tensor([sample]))) & (2**63 - 1)


def uniform(keys: Tensor, token_positions: Tensor) -> Tensor:
    """float64 in [0, 1), one per (response, place in the response)."""
    return _shift_right(mix(keys ^ mix(token_positions)), 11).double() * 2.0**-53
