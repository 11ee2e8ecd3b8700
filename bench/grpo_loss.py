"""Logprobs to the GRPO loss and its gradient, beside a copy of as many bytes and eager torch.

Eager torch computes only the loss; ours gives every metric in the same pass.
"""

from collections.abc import Callable, Sequence

import torch
from fastgrpo_kernels import Objective, grpo_loss, reference
from torch import Tensor

from bench.head_implementations import CLIP_HIGH, CLIP_LOW, backends, eager_token_loss, within
from bench.kernel_inputs import TokenInputs
from bench.kernel_subjects import Headline, Implementation, Measured, Outcome, Shape, Subject, Table, run_subject
from bench.memory_bound import COMPILED, EAGER, LIMIT, compiled, copy_of
from bench.memory_bound import headline as shared_headline

MODE = "forward and backward"
SHAPES = {"cpu": (2**20,), "cuda": (2**20,), "quick": (2**14,)}
BYTES_OF_A_TOKEN = 29
"""Read: logprob, old logprob, advantage and mask; written: gradient and ratio; the backward pass reads the gradient,
scales it and writes it."""


def main(argv: Sequence[str]) -> int:
    """Measures. Returns 1 if a row fails, or our error is more than twice that of plain torch in the same dtype."""
    description = (__doc__ or "").split("\n")[0]
    return run_subject(Subject("grpo_loss", description, "T", SHAPES, tables, headline, rounds=50), argv)


def tables(device: torch.device) -> list[Table]:
    return [
        Table(
            mode=MODE,
            implementations=implementations(device),
            plain=EAGER,
            inputs=lambda shape, device, seed=0: TokenInputs.random(*shape, device, seed),
            oracle=lambda inputs: differentiated(exact_loss)(inputs.exact()),
            oracle_shape=(4096,),
            limit=LIMIT,
            limit_work=lambda inputs: copy_of(BYTES_OF_A_TOKEN * len(inputs.logprobs), inputs.logprobs.device),
            rotated_bytes=num_bytes,
        )
    ]


def implementations(device: torch.device) -> list[Implementation]:
    ours = [Implementation(name, within(block, differentiated(our_loss)), why) for name, why, block in backends(device)]
    why_not = "" if device.type == "cuda" else "needs CUDA"
    return [
        *ours,
        Implementation(EAGER, differentiated(eager_token_loss)),
        Implementation(COMPILED, differentiated(compiled(eager_token_loss)), why_not),
    ]


def differentiated(loss: Callable[[TokenInputs], Tensor]) -> Callable[[TokenInputs], Outcome]:
    def run(inputs: TokenInputs) -> Outcome:
        value = loss(inputs)
        (gradient,) = torch.autograd.grad(value, inputs.logprobs)
        return {"loss": value.detach(), "grad_logprobs": gradient}

    return run


def our_loss(inputs: TokenInputs) -> Tensor:
    return grpo_loss(
        inputs.logprobs, inputs.old_logprobs, inputs.advantages, inputs.response_mask, inputs.num_loss_tokens
    ).loss


def exact_loss(inputs: TokenInputs) -> Tensor:
    return reference.grpo_loss(
        inputs.logprobs, inputs.old_logprobs, inputs.advantages, inputs.num_loss_tokens,
        Objective(clip_low=CLIP_LOW, clip_high=CLIP_HIGH), response_mask=inputs.response_mask,
    )  # fmt: skip


def num_bytes(shape: Shape) -> int:
    return BYTES_OF_A_TOKEN * shape[0]


def headline(measured: Measured) -> Headline:
    return shared_headline(measured, MODE, num_bytes(measured.shape))
