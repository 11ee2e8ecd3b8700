"""What the benchmarks print must be right before it is fast."""

import pytest
import torch

from bench.__main__ import main, subjects
from bench.harness import PeakMemory, device_slug, num_cores, shown, timed
from bench.memory import full_size, scaled_down
from bench.memory_model import VARIANTS, predict
from bench.shapes import QUICKSTART, QWEN3_0_6B, QWEN25_1_5B, Shape
from bench.synthetic import response_mix

CPU = torch.device("cpu")


@pytest.mark.parametrize("shape", [QWEN25_1_5B, QWEN3_0_6B, QUICKSTART], ids=lambda s: s.name)
def test_a_shape_has_as_many_parameters_as_its_model(shape: Shape) -> None:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape.transformers_config())
    assert shape.num_parameters == model.num_parameters()


def test_forward_flops_are_those_that_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(QUICKSTART.transformers_config(), attn_implementation="eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.zeros(1, 64, dtype=torch.int64))
    pairs_twice = 2.0 * QUICKSTART.num_layers * QUICKSTART.query_width * 64**2  # eager computes the masked half too
    rotary = 2 * 64 * QUICKSTART.head_width / 2  # its outer product of positions and frequencies
    assert counter.get_total_flops() == pytest.approx(QUICKSTART.forward_flops([64], 64) + pairs_twice, abs=2 * rotary)


def test_unknown_subject_is_refused_with_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nosuch"]) == 2
    error = capsys.readouterr().err
    assert "no subject 'nosuch'" in error
    assert all(name in error for name in ("memory", "tokens_per_s", "learning_control"))


def test_every_subject_says_what_it_is() -> None:
    assert all(line.endswith((".", "?")) for line in subjects().values())


def test_device_slug_of_a_cpu_counts_the_cores_that_may_be_used() -> None:
    assert device_slug(CPU) == f"cpu-{num_cores()}-cores"


def test_device_slug_of_a_gpu_is_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert device_slug(torch.device("cuda")) == "nvidia-h200"


@pytest.mark.parametrize("num_tokens", [16384, 2048, 100])
def test_response_mix_has_exactly_the_tokens_asked_for(num_tokens: int) -> None:
    lengths = response_mix(num_tokens)
    assert sum(lengths) == num_tokens
    assert min(lengths) >= num_tokens // 16


def test_timed_runs_at_least_once_however_small_the_budget() -> None:
    calls = []
    timing = timed(lambda: calls.append(1), CPU, warmup_s=0, repeats=9, budget_s=0)
    assert timing.repeats == 1 and len(calls) == 2


def test_peak_memory_sees_what_is_freed_before_the_end() -> None:
    with PeakMemory(CPU) as peak:
        torch.ones(2**26, dtype=torch.uint8).add_(1)
    assert peak.bytes >= 0.9 * 2**26


def test_peak_memory_sees_what_malloc_takes_from_memory_that_was_freed_before() -> None:
    large = 30 * 2**20  # once one of these was freed, malloc takes the next ones from its heap
    torch.ones(large, dtype=torch.uint8)
    *freed, kept = [torch.ones(large - 4096, dtype=torch.uint8) for _ in range(8)]
    del freed
    with PeakMemory(CPU) as peak:
        torch.ones(2**26, dtype=torch.uint8).add_(1)
    assert peak.bytes >= 0.9 * 2**26 and len(kept) < large


def test_full_size_formula_orders_the_variants_and_counts_logits() -> None:
    for checkpointing in (False, True):
        peaks = [predict(full_size(checkpointing), v).peak for v in VARIANTS]
        assert peaks == sorted(peaks, reverse=True)
    packed = predict(full_size(True), "packed_logits")
    assert packed.head == 12 * 16384 * 151936
    assert scaled_down(False).num_tokens == 16384 // 8


def test_numbers_are_shown_to_three_digits() -> None:
    assert [shown(v) for v in (0.12345, 12345.6, 7, True, None, "x")] == ["0.123", "12,346", "7", "yes", "-", "x"]
