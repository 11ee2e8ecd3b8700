import numpy as np
import torch

from fastgrpo.rollout.sampling_noise import mix, stream_keys, uniform


def splitmix64(state: int) -> int:
    """The finaliser in Python's own integers."""
    mask = 2**64 - 1
    z = (state + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_mix_is_splitmix64():
    states = [0, 1, 2, 12345, 2**63 - 1, -1, -(2**63)]
    assert [x % 2**64 for x in mix(torch.tensor(states)).tolist()] == [splitmix64(s % 2**64) for s in states]


def test_draws_are_uniform_and_unrelated_along_every_coordinate():
    prompts, samples = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    keys = stream_keys(1, prompts, samples)
    draws = torch.stack([uniform(keys, torch.full_like(keys, t)) for t in range(64)]).numpy()  # [place, prompt, sample]
    assert draws.min() >= 0 and draws.max() < 1
    counts = np.histogram(draws, bins=256, range=(0, 1))[0]
    expected = draws.size / 256
    assert ((counts - expected) ** 2 / expected).sum() < 255 + 5 * np.sqrt(2 * 255)
    for axis in range(3):
        neighbours = np.corrcoef(np.delete(draws, -1, axis).ravel(), np.delete(draws, 0, axis).ravel())[0, 1]
        assert abs(neighbours) < 5 / np.sqrt(draws.size)


def test_keys_do_not_collide():
    prompts, samples = torch.meshgrid(torch.arange(2000), torch.arange(64), indexing="ij")
    assert len(stream_keys(1, prompts, samples).unique()) == 128_000
