"""The prediction of the LM head's time on a GPU."""

import pytest

from bench import head_model
from bench.__main__ import main

H100, _, A800 = head_model.DEVICES


def test_the_limit_is_the_flops_where_waves_and_bytes_cost_nothing():
    tokens, width, vocabulary = 128 * 132, 1536, 256 * 132
    flops = 3 * 2 * tokens * width * vocabulary
    assert head_model.matmul_s(H100, tokens, vocabulary, width, 2) == pytest.approx(flops / 3 / H100.flops_per_s)


def test_a_part_of_a_wave_takes_a_whole_one_and_bytes_may_take_longer():
    whole = head_model.matmul_s(H100, 128, 128 * 132, 4096, 2)
    assert head_model.matmul_s(H100, 128, 256 * 132 + 1, 4096, 2) > 1.4 * whole
    assert head_model.matmul_s(H100, 8192, 8192, 64, 4) == pytest.approx((2 * 64 * 16384 + 4 * 8192**2) / 3.0e12)


def test_the_bars_are_predicted_with_the_epilogues_that_were_counted(capsys):
    epilogues = head_model.counted_epilogues()
    assert epilogues[90] <= 900 and epilogues[80] <= 900
    for device, bar in ((H100, 1.15), (A800, 1.25)):
        limit = head_model.limit_s(device, head_model.SHAPE)
        for way in ("tiles", "persistent tiles") if device.sm >= 90 else ("cuBLAS logits",):
            assert sum(head_model.parts(device, head_model.SHAPE, way, epilogues[device.sm]).values()) <= bar * limit
    assert main(["head_model"]) == 0
    assert "predicted" in capsys.readouterr().out
