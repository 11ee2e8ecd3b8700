"""vLLM's linear layers on a CPU, with a stand-in for vLLM's dispatch: it packs a copy of the weight as vLLM does, and
where the CPU multiplies bfloat16 tiles it turns the bias into float32."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastgrpo.rollout.vllm.cpu_layers import repack_of, wrapped
from fastgrpo.rollout.weight_sync import LiveWeights


def dispatch_on_tiles(layer: Any, remove_weight: bool) -> None:
    weight = layer.weight.detach().float()  # a copy of its own
    if layer.bias is not None:
        layer.bias.data = layer.bias.to(torch.float32)
    layer.cpu_linear = lambda x, _, bias: F.linear(x.float(), weight, bias).to(x.dtype)
    if remove_weight:
        layer.weight = nn.Parameter(torch.empty(0))


def loaded(mode: str, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(8, 4, bias=bias, dtype=torch.bfloat16)
    wrapped(dispatch_on_tiles, lambda: mode)(layer, True)  # type: ignore[arg-type,return-value]
    return layer


def computed(layer: Any, x: torch.Tensor) -> torch.Tensor:
    return layer.cpu_linear(x, layer.weight, layer.bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mode", ["live", "repack"])
def test_a_layers_parameters_keep_dtype_and_place_and_it_computes_from_what_was_written_last(mode, bias):
    layer = loaded(mode, bias)
    addresses = {n: p.data_ptr() for n, p in layer.named_parameters()}
    live = LiveWeights(dict(layer.named_parameters()), LiveWeights.of_modules(layer).places, repack_of(layer))
    x = torch.randn(3, 8, dtype=torch.bfloat16)
    for seed in range(3):
        torch.manual_seed(seed)
        fresh = nn.Linear(8, 4, bias=bias)  # float32: what has bfloat16's values is written
        live.write(fresh.state_dict().items())
        fresh = fresh.to(torch.bfloat16)
        assert live.checksums() == LiveWeights.of_modules(fresh).checksums()
        assert {n: p.data_ptr() for n, p in layer.named_parameters()} == addresses
        torch.testing.assert_close(computed(layer, x), fresh(x), rtol=2e-2, atol=2e-2)


def test_a_layer_that_is_told_to_leave_its_bias_out_does():
    layer: Any = loaded("repack")
    x = torch.randn(3, 8, dtype=torch.bfloat16)
    bare = layer.cpu_linear(x, layer.weight, None)
    torch.testing.assert_close(bare, F.linear(x, layer.weight), rtol=2e-2, atol=2e-2)
    assert (computed(layer, x) - bare).abs().max() > 0.05


def test_dispatch_is_vllms_own_for_what_is_no_linear_layer():
    seen = []
    dispatch = wrapped(lambda layer, remove: seen.append((layer, remove)), lambda: "live")
    convolution, missing = nn.Conv1d(2, 2, 3), nn.Linear(2, 2, device="meta")
    dispatch(convolution, True)
    dispatch(missing, False)
    assert seen == [(convolution, True), (missing, False)]
