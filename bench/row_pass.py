"""A chunk of logits to logprobs and to its own gradient, beside a copy of as many bytes and eager torch.

`row_stats` and `row_gradient` run between the matmuls of the LM-head ops; `logprobs_from_logits` is an op of its own.
"""

from collections.abc import Callable, Sequence

import torch
from fastgrpo_kernels import logprobs_from_logits, reference
from fastgrpo_kernels.dispatch import primitives_for
from fastgrpo_kernels.primitives import LogitTransform
from torch import Tensor

from bench.head_implementations import backends, within
from bench.kernel_inputs import LogitInputs
from bench.kernel_subjects import Headline, Implementation, Measured, Outcome, Shape, Subject, Table, run_subject
from bench.memory_bound import EAGER, LIMIT, copy_of
from bench.memory_bound import headline as shared_headline

PRIMITIVES, OP = "row_stats and row_gradient", "logprobs_from_logits"
SHAPES = {"cpu": (384, 65536), "cuda": (2048, 151936), "quick": (64, 1000)}


def main(argv: Sequence[str]) -> int:
    """Measures. Returns 1 if a row fails, or our error is more than twice that of plain torch in the same dtype."""
    description = (__doc__ or "").split("\n")[0]
    return run_subject(Subject("row_pass", description, "R,V", SHAPES, tables, headline), argv)


def tables(device: torch.device) -> list[Table]:
    return [
        Table(
            mode=mode,
            implementations=implementations(device, ours),
            plain=EAGER,
            inputs=lambda shape, device, seed=0: LogitInputs.random(*shape, device),
            oracle=lambda inputs: differentiated(exact_logprobs)(inputs.exact()),
            oracle_shape=(64, 1000),
            limit=LIMIT,
            limit_work=lambda inputs: copy_of(num_bytes(inputs.logits.shape), inputs.logits.device),
            restore=LogitInputs.restore,
        )
        for mode, ours in ((PRIMITIVES, by_primitives), (OP, by_op))
    ]


def implementations(device: torch.device, ours: Callable[[LogitInputs], Outcome]) -> list[Implementation]:
    found = [Implementation(name, within(block, ours), why_not) for name, why_not, block in backends(device)]
    return [*found, Implementation(EAGER, differentiated(eager_logprobs))]


def by_primitives(inputs: LogitInputs) -> Outcome:
    """Both primitives in place, as between the matmuls."""
    logits, transform = inputs.logits.detach(), LogitTransform()
    primitives = primitives_for(logits.device)
    stats = primitives.row_stats(logits, inputs.target_ids, transform, False)
    primitives.row_gradient(logits, inputs.target_ids, transform, stats, inputs.upstream, None, logits)
    return {"logprobs": stats.logprobs, "grad_logits": logits}


def by_op(inputs: LogitInputs) -> Outcome:
    return differentiated(lambda x: logprobs_from_logits(x.logits, x.target_ids, overwrite_logits=True)[0])(inputs)


def differentiated(logprobs: Callable[[LogitInputs], Tensor]) -> Callable[[LogitInputs], Outcome]:
    def run(inputs: LogitInputs) -> Outcome:
        value = logprobs(inputs)
        (gradient,) = torch.autograd.grad(value, inputs.logits, inputs.upstream.to(value.dtype))
        return {"logprobs": value.detach(), "grad_logits": gradient}

    return run


def eager_logprobs(inputs: LogitInputs) -> Tensor:
    return torch.log_softmax(inputs.logits, -1).gather(1, inputs.target_ids[:, None])[:, 0]


def exact_logprobs(inputs: LogitInputs) -> Tensor:
    return reference.logprobs_from_logits(inputs.logits, inputs.target_ids)[0]


def num_bytes(shape: Shape) -> int:
    """Each logit is read twice, and its gradient written once, in float32."""
    return 12 * shape[0] * shape[1]


def headline(measured: Measured) -> Headline:
    return [line for mode in (PRIMITIVES, OP) for line in shared_headline(measured, mode, num_bytes(measured.shape))]
