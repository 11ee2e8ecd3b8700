"""What a trainer asks of a vLLM server, under vLLM's own guarded prefix: with ``--api-key`` nobody else may.

These four routes are all that a trainer needs beside vLLM's `/inference/v1/generate`; the server's development mode,
whose routes no key guards, stays off. Import it in a vLLM server only.
"""

import asyncio
import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Body, HTTPException, Request
from vllm import __version__ as vllm_version
from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest

from fastgrpo.rollout.servers.about import About

router = APIRouter(prefix="/inference/fastgrpo")

_PROCESS = uuid.uuid4().hex
_turn = asyncio.Lock()
"""Held by who changes weights: a sync that its trainer has given up must not go on in the middle of the next."""


@router.get("/about")
async def about(raw: Request) -> dict[str, Any]:
    """What the server is, for a trainer that compares it with what its run needs."""
    config = _engine(raw).vllm_config
    model, cache, parallel = config.model_config, config.cache_config, config.parallel_config
    text = model.hf_text_config
    return About(
        vllm=vllm_version,
        model=model.model,
        model_type=text.model_type,
        vocabulary=text.vocab_size,
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        dtype=str(model.dtype).removeprefix("torch."),
        quantization=model.quantization or "",
        max_model_len=model.max_model_len,
        max_sequences=config.scheduler_config.max_num_seqs,
        logprobs_mode=str(model.logprobs_mode),
        kv_cache_tokens=(cache.num_gpu_blocks or 0) * cache.block_size,
        tensor_parallel=parallel.tensor_parallel_size,
        pipeline_parallel=parallel.pipeline_parallel_size,
        data_parallel=parallel.data_parallel_size,
        backend=getattr(config.weight_transfer_config, "backend", "") or "",
        process=_PROCESS,
    ).to_json()


@router.get("/alive")
async def alive(raw: Request) -> dict[str, str]:
    """Answered by the engine itself, between two of its steps."""
    return {"version": await _engine(raw).get_weight_version()}


@router.post("/join")
async def join(raw: Request, meeting: Annotated[dict[str, Any], Body()]) -> dict[str, bool]:
    """Meets the sender of weights, and waits until all who shall are there."""
    async with _turn:
        await _in_words(_engine(raw).init_weight_transfer_engine(WeightTransferInitRequest(init_info=meeting)))
    return {"joined": True}


@router.post("/receive")
async def receive(
    raw: Request,
    number: Annotated[int, Body()],
    label: Annotated[str, Body()],
    with_checksums: Annotated[bool, Body()],
    keep_cache: Annotated[bool, Body()],
) -> dict[str, int]:
    """One sync. What is being drawn rests meanwhile, and every later token is labelled anew.

    After a failure nothing is drawn until a later sync has succeeded: half of the weights may be new.
    """
    engine, update = _engine(raw), {"number": number, "with_checksums": with_checksums}
    async with _turn:
        await engine.pause_generation(mode="keep", clear_cache=not keep_cache)
        await _in_words(engine.start_weight_update())
        await _in_words(engine.update_weights(WeightTransferUpdateRequest(update_info=update)))
        await engine.finish_weight_update(label)
        await engine.resume_generation()
    return {"number": number}


def _engine(raw: Request) -> Any:
    return raw.app.state.engine_client


async def _in_words(call: Any) -> None:
    """Awaits a call of the workers; what one of them raises becomes the answer."""
    try:
        await call
    except Exception as error:
        raise HTTPException(500, str(error)) from error
