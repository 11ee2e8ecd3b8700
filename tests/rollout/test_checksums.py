"""Checksums of weights: those of parts add up, and every difference shows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgrpo.rollout.compare_weights import WeightMismatch, added, require_equal
from fastgrpo.rollout.weight_sync import checksum

DTYPES = [torch.float32, torch.bfloat16, torch.float64]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def wrapped(total: int) -> int:
    return (total + 2**63) % 2**64 - 2**63


@settings(deadline=None)
@given(
    st.sampled_from(DTYPES),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.sampled_from([1, 64]),  # rows of any length, and rows that may be read in words of four bytes
    st.integers(0, 2**31),
)
def test_checksums_of_parts_add_up_to_that_of_the_whole(dtype, heights, widths, unit, seed):
    widths = [unit * width for width in widths]
    columns = sum(widths)
    whole = torch.randn(sum(heights), columns, generator=torch.Generator().manual_seed(seed)).to(dtype)
    total, row = 0, 0
    for strip in whole.split(heights):
        column = 0
        for part in strip.split(widths, 1):
            total += checksum(part.contiguous(), row, column, columns)
            column += part.shape[1]
        row += len(strip)
    assert wrapped(total) == checksum(whole)


@settings(deadline=None)
@given(st.sampled_from(DTYPES), st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 2**31))
def test_checksums_of_a_vectors_parts_add_up(dtype, lengths, seed):
    whole = torch.randn(sum(lengths), generator=torch.Generator().manual_seed(seed)).to(dtype)
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    parts = [{"w": checksum(part, start)} for part, start in zip(whole.split(lengths), starts, strict=True)]
    assert added(parts) == {"w": checksum(whole)}


@settings(deadline=None)
@given(st.sampled_from(DTYPES), st.integers(2, 9), st.integers(2, 9), st.integers(0, 2**31), st.data())
def test_a_checksum_sees_swapped_rows_swapped_columns_and_one_bit(dtype, rows, columns, seed, data):
    columns *= data.draw(st.sampled_from([1, 128]))
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)
    first, second = sorted(data.draw(st.sets(st.integers(0, rows - 1), min_size=2, max_size=2)))
    order = list(range(rows))
    order[first], order[second] = order[second], order[first]
    if not torch.equal(values[first], values[second]):
        assert checksum(values[order]) != checksum(values)
    left, right = sorted(data.draw(st.sets(st.integers(0, columns - 1), min_size=2, max_size=2)))
    order = list(range(columns))
    order[left], order[right] = order[right], order[left]
    if not torch.equal(values[:, left], values[:, right]):
        assert checksum(values[:, order].contiguous()) != checksum(values)
    bits = values.clone().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()])
    bits[first, left] ^= 1 << data.draw(st.integers(0, 8 * values.element_size() - 2))
    assert checksum(bits.view(dtype)) != checksum(values)


@each_dtype
def test_a_checksum_tells_the_zeros_apart_and_knows_the_same_nan(dtype):
    for shape in [(3, 4), (3, 128), (7,), (1,)]:
        zeros = torch.zeros(shape, dtype=dtype)
        assert checksum(zeros) != checksum(-zeros)
    assert checksum(torch.full((2, 2), torch.nan, dtype=dtype)) == checksum(torch.full((2, 2), torch.nan, dtype=dtype))


def test_nothing_has_the_checksum_zero():
    assert checksum(torch.zeros(0, 4)) == checksum(torch.zeros(0)) == 0


def test_a_checksum_over_several_chunks_is_that_of_the_definition():
    values = torch.randn(1030, 4100)  # more elements than one chunk holds
    bits = values.view(torch.int32).long()
    rows, columns = torch.arange(1030)[:, None], torch.arange(4100)[None]
    factors = [0x9E3779B97F4A7C15 - 2**64, 0xC2B2AE3D27D4EB4F - 2**64, 0x165667B19E3779F9]
    assert checksum(values) == int((bits * (factors[0] * rows + factors[1] * columns + factors[2])).sum())


def test_a_difference_is_named_with_the_engine():
    require_equal({"a": 1}, {"a": 1}, "engine 0")
    with pytest.raises(WeightMismatch, match="the weight b of engine 3 differs"):
        require_equal({"a": 1, "b": 2}, {"a": 1, "b": 3}, "engine 3")
    with pytest.raises(WeightMismatch, match="the weight b of the trainer is unknown to engine 3"):
        require_equal({"a": 1, "b": 2}, {"a": 1}, "engine 3")
