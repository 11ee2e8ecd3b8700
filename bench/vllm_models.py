"""vLLM with a model of random weights, which is written once as a folder and loaded by every engine."""

import contextlib
import gc
import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.shapes import Shape
from bench.synthetic import random_model


def why_no_vllm() -> str:
    """Why vLLM cannot be measured here, in one line; empty if it can."""
    from fastgrpo.rollout.vllm.versions import require_vllm

    try:
        require_vllm()
    except ValueError as error:
        return str(error)
    if importlib.util.find_spec("vllm") is None:
        return "vLLM's distribution is installed and its package cannot be found"
    return ""


def quiet() -> None:
    """Makes vLLM print less, so that tables can be read. Must be called before vLLM is imported."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CONFIGURE_LOGGING", "1")


def write_model(shape: Shape, dtype: torch.dtype, folder: Path, device: torch.device) -> None:
    """Writes configuration and safetensors of a model whose biases and norms are random too, unlike the poison."""
    model = random_model(shape, device, dtype, "sdpa")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(folder)


def read_weights(folder: Path, device: torch.device) -> dict[str, Tensor]:
    """The weights by checkpoint name, copied to memory: safetensors would read pages of the file when they are used."""
    from safetensors.torch import load_file

    weights: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights |= {name: value.clone().to(device) for name, value in load_file(file).items()}
    return weights


def new_weights(folder: Path, device: torch.device) -> dict[str, Tensor]:
    """The folder's weights with the other sign: an engine that only loaded the folder has none of these."""
    return {name: -value for name, value in read_weights(folder, device).items()}


def start(folder: Path, device: torch.device, dtype: torch.dtype, **settings: Any) -> Any:
    """A `VllmEngine` in this process."""
    from fastgrpo.rollout.vllm.engine import VllmEngine, VllmSettings

    defaults = VllmSettings(
        path=str(folder),
        dtype=str(dtype).removeprefix("torch."),
        max_model_len=128,
        max_sequences=8,
        gpu_memory_frac=0.5,
        cpu_layers="live" if device.type == "cpu" else None,
        enforce_eager=True,
    )
    return VllmEngine(replace(defaults, **settings))


def live_weights(model: Any) -> Any:
    """The `LiveWeights` of a vLLM model in this process."""
    from fastgrpo.rollout.vllm import weight_writer as worker

    return worker.live_weights(model)


def dispatch_as_shipped() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """A function that gives a block in which vLLM chooses its linear layers itself; otherwise our choice stays.

    Must be called before the first engine of ours is made.
    """
    from vllm.model_executor.layers import utils

    shipped = utils.dispatch_cpu_unquantized_gemm
    assert not hasattr(shipped, "of_fastgrpo"), "an engine was made before"

    @contextlib.contextmanager
    def block() -> Iterator[None]:
        ours, utils.dispatch_cpu_unquantized_gemm = utils.dispatch_cpu_unquantized_gemm, shipped
        try:
            yield
        finally:
            utils.dispatch_cpu_unquantized_gemm = ours

    return block


def worker(engine: Any) -> Any:
    """vLLM's worker, which is in this process."""
    return engine.engine.collective_rpc(lambda worker: worker)[0]


@contextlib.contextmanager
def one_process_group() -> Iterator[None]:
    """A block at whose end the process groups that vLLM left are destroyed."""
    try:
        yield
    finally:
        gc.collect()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
