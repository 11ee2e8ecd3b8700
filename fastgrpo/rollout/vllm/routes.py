"""What a trainer asks of a vLLM server, under vLLM's own guarded prefix: with ``--api-key`` nobody else may.

These routes are all that a trainer needs; the server's development mode, whose routes no key guards, stays off. Import
it in a vLLM server only.
"""

import asyncio
import uuid
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Body, HTTPException, Request, Response
from pydantic import NonNegativeInt
from vllm import SamplingParams
from vllm import __version__ as vllm_version
from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest
from vllm.entrypoints.serve.utils.api_utils import with_cancellation
from vllm.sampling_params import RequestOutputKind

from fastgrpo.rollout.servers.about import About
from fastgrpo.rollout.servers.drawn import Drawn

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


@router.post("/generate")
@with_cancellation  # it looks for the request by the name `raw_request`
async def generate(
    raw_request: Request,
    token_ids: Annotated[list[NonNegativeInt], Body(min_length=1)],
    cache_salt: Annotated[str, Body(min_length=1)],
    sampling_params: Annotated[SamplingParams, Body()],
) -> Response:
    """Draws one response, as `/inference/v1/generate` does, and answers in eight bytes a token (`Drawn`).

    If the trainer hangs up, the engine stops drawing.
    """
    engine = _engine(raw_request)
    if (largest := max(token_ids)) >= engine.vllm_config.model_config.get_vocab_size():
        # Without a tokenizer vLLM does not look, and such an id ends its engine.
        raise HTTPException(400, f"Token id {largest} is out of vocabulary")
    sampling_params.flat_logprobs = True
    sampling_params.output_kind = RequestOutputKind.FINAL_ONLY
    prompt = {"type": "token", "prompt_token_ids": token_ids, "cache_salt": cache_salt}
    async for output in engine.generate(prompt, sampling_params, uuid.uuid4().hex):
        last = output.outputs[0]
    return Response(_drawn(last).to_bytes(), media_type="application/octet-stream")


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


def _drawn(output: Any) -> Drawn:
    """vLLM's output of a request. Of a position's logprobs the first is the sampled token's."""
    flat = output.logprobs
    logprobs = None if flat is None else np.array(flat.logprobs, np.float32)[np.array(flat.start_indices, np.int64)]
    spans = getattr(output, "weight_versions", None) or ()  # since vLLM 0.32
    return Drawn(
        output.finish_reason,
        np.array(output.token_ids, np.int32),
        logprobs,
        tuple((span.start, span.version) for span in spans),
    )


async def _in_words(call: Any) -> None:
    """Awaits a call of the workers; what one of them raises becomes the answer."""
    try:
        await call
    except Exception as error:
        raise HTTPException(500, str(error)) from error
