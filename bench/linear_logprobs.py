"""Hidden states to logprobs, forward alone and with backward, beside bare matmuls, plain torch and the peers' heads.

Plain cross entropy with one mean per call, which cannot give a token's logprob, is timed as a related kernel and not
compared.
"""

from collections.abc import Sequence

import torch
from fastgrpo_kernels import reference
from torch import Tensor

from bench.head_implementations import (
    NAIVE,
    OverwrittenByTorch,
    differentiated,
    head_implementations,
    one_matmul,
    our_logprobs,
    scored,
    three_matmuls,
)
from bench.headlines import peak_gb, times_limit
from bench.kernel_inputs import HeadInputs
from bench.kernel_subjects import Headline, Measured, Subject, Table, run_subject
from bench.linear_grpo import ORACLE_SHAPE, SHAPES

FORWARD, BOTH = "forward", "forward and backward"


def main(argv: Sequence[str]) -> int:
    """Measures. Returns 1 if a row fails, or our error is more than twice that of plain torch in the same dtype."""
    description = (__doc__ or "").split("\n")[0]
    return run_subject(Subject("linear_logprobs", description, "T,D,V", SHAPES, tables, headline), argv)


def tables(device: torch.device) -> list[Table]:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    modes = (
        (FORWARD, scored, OverwrittenByTorch.scored, "one matmul", one_matmul),
        (BOTH, differentiated, OverwrittenByTorch.differentiated, "three matmuls", three_matmuls),
    )
    return [
        Table(
            mode=mode,
            implementations=head_implementations(device, our_logprobs, run, lambda logprobs: logprobs, in_place),
            plain=NAIVE,
            inputs=lambda shape, device, seed=0: HeadInputs.random(*shape, dtype, device),
            oracle=lambda inputs, run=run: run(exact_logprobs)(inputs.exact()),
            oracle_shape=ORACLE_SHAPE,
            limit=limit,
            limit_work=limit_work,
            dtype=dtype,
        )
        for mode, run, in_place, limit, limit_work in modes
    ]


def exact_logprobs(inputs: HeadInputs) -> Tensor:
    return reference.linear_logprobs(inputs.hidden, inputs.weight, inputs.target_ids)[0]


def headline(measured: Measured) -> Headline:
    on_gpu = measured.device.type == "cuda"
    found = [
        times_limit(measured, FORWARD, "forward: {} / one matmul", "<= 1.08x" if on_gpu else "none"),
        times_limit(measured, BOTH, "forward and backward: {} / three matmuls", "none: it needs four"),
    ]
    return [*found, peak_gb(measured, FORWARD, "forward: {}, peak", "<= 0.2 GB")] if on_gpu else found
