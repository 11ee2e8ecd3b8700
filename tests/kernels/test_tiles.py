"""The Triton matmuls whose epilogue makes exponentials of the logits, and stores them or nothing."""

from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from fastgrpo_kernels import Objective, dispatch, head, linear_logprobs, reference
from fastgrpo_kernels.head import choice
from fastgrpo_kernels.head.exponentials import ExponentialHead, TiledHead
from fastgrpo_kernels.head.logits import LogitsHead
from fastgrpo_kernels.primitives import LogitTransform

from tests.kernels.cases import OBJECTIVES, assert_as_exact_as_torch, make_case, value_and_gradients

pytest.importorskip("triton")
ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
# Interpreted, a 16-bit product of matrices is wrong (bfloat16) or slow, and tiles have to be small.
DTYPES = [torch.bfloat16, torch.float16] if ON_GPU else [torch.float32]


@pytest.fixture(autouse=True, params=["a program a tile", "persistent"])
def tiles(request, monkeypatch):
    from fastgrpo_kernels.gpu import tiles

    shape = tiles.TileShape() if ON_GPU else tiles.TileShape(rows=16, vocabulary=64, width=16, group=2)
    if request.param == "persistent":
        if ON_GPU and torch.cuda.get_device_capability()[0] < 9:
            pytest.skip("tensor descriptors are of sm_90 and later")
        monkeypatch.setattr(tiles, "_linear_tiles", None)  # it must not be that one
        shape = shape._replace(persistent=True)
    monkeypatch.setattr(tiles, "TileShape", lambda: shape)

    def tiled(inputs, gradient, of_entropy=False):
        return LogitsHead(inputs) if of_entropy else TiledHead(inputs, gradient)

    for name in ("linear_grpo", "linear_logprobs"):  # the modules, not the functions of that name
        monkeypatch.setattr(import_module(f"fastgrpo_kernels.{name}"), "make_head", tiled)
    with dispatch.forced("gpu"):
        yield


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["plain", "gspo", "k3", "sequence_mask", "entropy"])
@pytest.mark.parametrize("width", [24, 32])
def test_a_step_is_as_exact_as_plain_torch(dtype, name, width):
    case = make_case(37, width, 257, dtype=dtype, temperature=0.7)
    options = {"temperature": 0.7}
    ours = value_and_gradients(
        case.to(dtype, DEVICE), lambda c: c.ours(OBJECTIVES[name], chunk_tokens=20, entropy=True, **options).loss
    )
    torchs = value_and_gradients(case.to(dtype), lambda c: c.definition(OBJECTIVES[name], **options))
    oracle = value_and_gradients(case.to(torch.float64), lambda c: c.definition(OBJECTIVES[name], **options))
    assert_as_exact_as_torch(ours, torchs, oracle, largest_terms=1.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_tokens", [1, 16, 33])
def test_logprobs_and_entropy_are_float32_exact_whatever_the_weights(dtype, num_tokens):
    """They come from the accumulators, not from 16-bit logits, which would be off by up to 0.08."""
    case = make_case(num_tokens, 24, 500, dtype=dtype)
    temperature = torch.linspace(0.5, 2, num_tokens)
    given = case.to(dtype, DEVICE)
    with torch.no_grad():
        logprobs, entropy = linear_logprobs(
            given.hidden,
            given.weight,
            given.target_ids,
            bias=given.bias,
            temperature=temperature.to(DEVICE),
            entropy=True,
        )
    exact = case.to(torch.float64)
    expected = reference.linear_logprobs(
        exact.hidden, exact.weight, exact.target_ids, bias=exact.bias, temperature=temperature
    )
    for got, right in zip((logprobs, entropy), expected, strict=True):
        torch.testing.assert_close(got.double().cpu(), right.detach(), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_logits(dtype):
    for shift in (-1e4, 1e4):
        case = make_case(20, 16, 257, dtype=dtype, scale=100.0)
        biased = case.bias + shift
        given = case.to(dtype, DEVICE)
        with torch.no_grad():
            logprobs, entropy = linear_logprobs(
                given.hidden, given.weight, given.target_ids, bias=biased.to(DEVICE, dtype), entropy=True
            )
        exact = case.to(torch.float64)
        expected, _ = reference.linear_logprobs(
            exact.hidden, exact.weight, exact.target_ids, bias=biased.to(dtype).double()
        )
        assert torch.isfinite(logprobs).all() and torch.isfinite(entropy).all()
        torch.testing.assert_close(logprobs.double().cpu(), expected.detach(), rtol=1e-4, atol=2e-2)


@pytest.mark.parametrize("off", [-200.0, -40.0, 40.0, 200.0])
def test_an_offset_however_wrong_costs_no_digits(monkeypatch, off):
    """Products of large 16-bit numbers that cancel are rounded before they are added up for it."""
    right = TiledHead._target_logits
    monkeypatch.setattr(TiledHead, "_target_logits", lambda head, rows: right(head, rows) + off)
    case = make_case(20, 24, 257, dtype=DTYPES[0])
    loss = OBJECTIVES["plain"]
    ours = value_and_gradients(case.to(DTYPES[0], DEVICE), lambda c: c.ours(loss).loss)
    torchs = value_and_gradients(case.to(DTYPES[0]), lambda c: c.definition(loss))
    oracle = value_and_gradients(case.to(torch.float64), lambda c: c.definition(loss))
    assert_as_exact_as_torch(ours, torchs, oracle, largest_terms=1.0)


def test_without_a_gradient_to_come_no_logits_are_stored_in_any_form(monkeypatch):
    buffers = []
    make = TiledHead.__init__
    monkeypatch.setattr(
        TiledHead,
        "__init__",
        lambda self, *a: (make(self, *a), buffers.append(0 if self._buffer is None else self._buffer.numel()))[0],
    )
    case = make_case(20, 16, 257).to(DTYPES[0], DEVICE)
    with torch.no_grad():
        case.ours(Objective())
        linear_logprobs(case.hidden, case.weight, case.target_ids)
    assert buffers == [0, 0]
    case.ours(Objective())
    assert buffers[2] > 0


def test_a_gpu_takes_tiles_where_they_are_better(monkeypatch):
    """Tiles: never for an entropy's gradient, a softcap or float32; always for logprobs alone; else from Hopper on."""
    monkeypatch.undo()
    gpu = torch.device("cuda")
    for capability, expected in (((8, 0), False), ((9, 0), True), ((10, 0), True)):
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda _, found=capability: found)
        assert choice._tiles_are_better(gpu, gradient=True) is expected
        assert choice._tiles_are_better(gpu, gradient=False)
        with head.first_matmul("cublas"):
            assert not choice._tiles_are_better(gpu, gradient=False)


# What a call needs of its logits, and the head that it gets on sm_90 and on sm_80.
TILES, KEPT, LOGITS = TiledHead, ExponentialHead, LogitsHead
CHOICES = {
    "bfloat16, gradient": (torch.bfloat16, {"gradient": True}, 0.0, TILES, KEPT),
    "bfloat16, none": (torch.bfloat16, {"gradient": False}, 0.0, TILES, TILES),
    "bfloat16, entropy's gradient": (torch.bfloat16, {"gradient": True, "of_entropy": True}, 0.0, LOGITS, LOGITS),
    "bfloat16, softcap": (torch.bfloat16, {"gradient": False}, 30.0, LOGITS, LOGITS),
    "float16, gradient": (torch.float16, {"gradient": True}, 0.0, LOGITS, LOGITS),
    "float16, none": (torch.float16, {"gradient": False}, 0.0, TILES, TILES),
    "float32, gradient": (torch.float32, {"gradient": True}, 0.0, LOGITS, LOGITS),
    "float32, none": (torch.float32, {"gradient": False}, 0.0, LOGITS, LOGITS),
}


@pytest.mark.parametrize("call", CHOICES)
def test_each_call_on_a_gpu_gets_the_head_that_suits_it(call, monkeypatch):
    monkeypatch.undo()
    dtype, asked, softcap, on_90, on_80 = CHOICES[call]
    for name, head_class in (("LogitsHead", LOGITS), ("ExponentialHead", KEPT), ("TiledHead", TILES)):
        monkeypatch.setattr(choice, name, lambda *_, made=head_class: made)
    tensor = SimpleNamespace(device=torch.device("cuda"), dtype=dtype)
    inputs = head.LinearInputs(tensor, tensor, None, tensor, LogitTransform(softcap=softcap))
    for capability, expected in (((9, 0), on_90), ((8, 0), on_80)):
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda _, found=capability: found)
        assert head.make_head(inputs, **asked) is expected
