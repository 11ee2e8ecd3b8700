"""`decode_attention` against torch's own attention in float64."""

import pytest
import torch
import torch.nn.functional as F
from fastgrpo_kernels import decode_attention

CAPACITY = 40
# slots, query heads, key/value heads, width, value width
SHAPES = {
    "one of each": (1, 1, 1, 16, 16),
    "SmolLM2's heads": (5, 9, 3, 64, 64),
    "as many keys as queries": (3, 4, 4, 32, 32),
    "more queries a key than fit side by side": (2, 22, 2, 64, 64),
    "widths that no vector divides": (4, 6, 2, 20, 37),
}


def made(shape, dtype):
    """A token and a cache of that dtype whose free places hold NaN, and lengths from none to all but one."""
    slots, heads, kv_heads, width, value_width = shape
    torch.manual_seed(0)
    lengths = torch.linspace(CAPACITY - 1, 0, slots).long()
    token = [torch.randn(slots, n, w) for n, w in ((heads, width), (kv_heads, width), (kv_heads, value_width))]
    cache = [torch.randn(slots, kv_heads, CAPACITY, w) for w in (width, value_width)]
    for slot, length in enumerate(lengths):
        for tensor in cache:
            tensor[slot, :, length:] = torch.nan
    return [t.to(dtype) for t in token], [t.to(dtype) for t in cache], lengths


def one_by_one(token, cache, lengths, dtype, scale, window):
    """Torch's own attention, for each slot over its own tokens alone."""
    found = []
    for slot, length in enumerate(lengths):
        query, key, value = (t[slot].to(dtype) for t in token)
        first = 0 if window is None else max(0, int(length) + 1 - window)
        keys, values = (
            torch.cat([old[slot, :, :length].to(dtype), new[:, None]], dim=1)[:, first:]
            for old, new in zip(cache, (key, value), strict=True)
        )
        found.append(F.scaled_dot_product_attention(query[:, None], keys, values, scale=scale, enable_gqa=True)[:, 0])
    return torch.stack(found)


@pytest.mark.parametrize("backend", ["plain", "native"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 1, 7])
@pytest.mark.parametrize("name", SHAPES)
def test_decode_attention_is_as_exact_as_torchs_own(backend, name, dtype, window):
    token, cache, lengths = made(SHAPES[name], dtype)
    oracle = one_by_one(token, cache, lengths, torch.float64, 0.3, window)
    torchs = one_by_one(token, cache, lengths, dtype, 0.3, window)
    # Plain torch reads what stands in free places, under a mask of zeros.
    caches = [t.clone() if backend == "native" else t.nan_to_num(0.0) for t in cache]
    ours = decode_attention(*token, *caches, lengths, scale=0.3, window=window)
    floor = 4 * torch.finfo(dtype).eps
    assert (ours.double() - oracle).abs().max() <= 2 * (torchs.double() - oracle).abs().max() + floor


@pytest.mark.parametrize("backend", ["plain", "native"], indirect=True)
def test_the_tokens_key_and_value_are_written_at_its_place_and_nowhere_else(backend):
    (query, key, value), cache, lengths = made(SHAPES["SmolLM2's heads"], torch.bfloat16)
    written = [t.nan_to_num(0.5) for t in cache]
    before = [t.clone() for t in written]
    decode_attention(query, key, value, *written, lengths)
    for old, new, token in zip(before, written, (key, value), strict=True):
        for slot, length in enumerate(lengths):
            old[slot, :, length] = token[slot]
        assert torch.equal(old, new)


@pytest.mark.parametrize("backend", ["native"], indirect=True)
def test_a_response_does_not_depend_on_its_neighbours(backend):
    token, cache, lengths = made(SHAPES["SmolLM2's heads"], torch.float32)
    together = decode_attention(*token, *(t.clone() for t in cache), lengths)
    alone = [
        decode_attention(*(t[[i]] for t in token), *(t[[i]].clone() for t in cache), lengths[[i]])
        for i in range(len(lengths))
    ]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("backend", ["native"], indirect=True)
def test_a_full_slot_and_shapes_that_do_not_fit_are_refused(backend):
    (query, key, value), cache, lengths = made(SHAPES["SmolLM2's heads"], torch.float32)
    with pytest.raises(RuntimeError, match="no room for one more"):
        decode_attention(query, key, value, *cache, torch.full_like(lengths, CAPACITY))
    with pytest.raises(RuntimeError, match="no room for one more"):
        decode_attention(query, key, value, *cache, torch.full_like(lengths, -1))
    with pytest.raises(RuntimeError, match="key must be contiguous"):
        decode_attention(query, key[:, :2], value, *cache, lengths)
    with pytest.raises(RuntimeError, match="dtype"):
        decode_attention(query, key.bfloat16(), value, *cache, lengths)
