"""Hidden states to the GRPO loss and its gradients, beside three matmuls, plain torch and the peers' heads.

Peers that compute only logprobs are followed by an eager loss. Plain cross entropy, which is not the GRPO loss, is
timed as a related kernel and not compared.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from fastgrpo_kernels import Objective, reference

from bench.head_implementations import (
    CLIP_HIGH,
    CLIP_LOW,
    NAIVE,
    OverwrittenByTorch,
    differentiated,
    head_backends,
    head_implementations,
    naive_logprobs,
    our_grpo,
    our_two_ops,
    three_matmuls,
    with_eager_loss,
    within,
)
from bench.headlines import peak_gb, peak_of_plain, times_limit
from bench.kernel_inputs import HeadInputs
from bench.kernel_subjects import Headline, Implementation, Measured, Outcome, Subject, Table, run_subject

MODE = "forward and backward"
WITHOUT_SIGNAL = "forward and backward, 60 % of the tokens without advantage"
ORACLE_SHAPE = (128, 256, 4104)
SHAPES = {"cpu": (1024, 896, 65536), "cuda": (16384, 1536, 151936), "quick": (128, 64, 1000)}


def main(argv: Sequence[str]) -> int:
    """Measures. Returns 1 if a row fails, or our error is more than twice that of plain torch in the same dtype."""
    description = (__doc__ or "").split("\n")[0]
    return run_subject(Subject("linear_grpo", description, "T,D,V", SHAPES, tables, headline), argv)


def tables(device: torch.device) -> list[Table]:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return [
        Table(
            mode=MODE,
            implementations=implementations(device),
            plain=NAIVE,
            inputs=lambda shape, device, seed=0: HeadInputs.random(*shape, dtype, device),
            oracle=oracle,
            oracle_shape=ORACLE_SHAPE,
            limit="three matmuls",
            limit_work=three_matmuls,
            dtype=dtype,
        ),
        *([_without_signal()] if device.type == "cpu" else []),  # a GPU would have to be waited for
    ]


def _without_signal() -> Table:
    """The limit is three matmuls of all tokens."""

    def inputs(shape: tuple[int, int, int], device: torch.device, seed: int = 0) -> HeadInputs:
        found = HeadInputs.random(*shape, torch.float32, device)
        without = torch.arange(len(found.advantages)) < 0.6 * len(found.advantages)
        return replace(found, advantages=found.advantages.masked_fill(without, 0.0))

    _, why_not, block = next(iter(head_backends(torch.device("cpu"))))
    skipping = within(block, differentiated(partial(our_grpo, skip_zero_advantage=True)))
    implementations = [
        Implementation("ours, tokens without advantage skipped", skipping, why_not),
        Implementation("ours, their logprobs computed", within(block, differentiated(our_grpo)), why_not),
        Implementation(NAIVE, differentiated(with_eager_loss(naive_logprobs))),
    ]
    return Table(
        mode=WITHOUT_SIGNAL,
        implementations=implementations,
        plain=NAIVE,
        inputs=inputs,
        oracle=oracle,
        oracle_shape=ORACLE_SHAPE,
        limit="three matmuls",
        limit_work=three_matmuls,
    )


def implementations(device: torch.device) -> list[Implementation]:
    from bench.peers.kernels import GRPO

    found = head_implementations(device, our_grpo, differentiated, with_eager_loss, OverwrittenByTorch.grpo)
    _, why_not, block = next(iter(head_backends(device)))
    two_ops = Implementation("ours, in two ops (four matmuls)", within(block, differentiated(our_two_ops)), why_not)
    fused = [Implementation(peer.name, differentiated(peer), peer.why_not(device)) for peer in GRPO]
    return [*found, two_ops, *fused]


def oracle(inputs: HeadInputs) -> Outcome:
    exact = inputs.exact()
    objective = Objective(clip_low=CLIP_LOW, clip_high=CLIP_HIGH)

    def loss(x: HeadInputs) -> torch.Tensor:
        return reference.linear_grpo(
            x.hidden, x.weight, x.target_ids, x.old_logprobs, x.advantages, x.num_tokens, objective
        )

    return differentiated(loss)(exact)


def headline(measured: Measured) -> Headline:
    if measured.device.type == "cuda":
        return [
            times_limit(measured, MODE, "{} / three matmuls", "<= 1.15x"),
            peak_gb(measured, MODE, "{}, peak", "<= 2.3 GB"),
        ]
    return [
        times_limit(measured, MODE, "{} / three matmuls", "<= 1.00x"),
        peak_of_plain(measured, MODE, "{}, peak / naive's", "<= 0.31x"),
        times_limit(measured, WITHOUT_SIGNAL, "{} / three matmuls of all", "<= 0.50x"),
    ]
