"""Our implementations and plain torch's for the two LM-head subjects: from inputs to values and gradients."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from fastgrpo_kernels import dispatch, grpo_loss, head, linear_grpo, linear_logprobs, logprobs_from_logits
from torch import Tensor

from bench.kernel_inputs import HeadInputs, TokenInputs
from bench.kernel_subjects import NOT_BUILT, Implementation, Outcome

Function = Callable[[HeadInputs], Tensor]  # to logprobs [T] or a loss [], differentiable
CLIP_LOW, CLIP_HIGH = 0.2, 0.28


def backends(device: torch.device) -> Iterator[tuple[str, str, Callable[[], AbstractContextManager[None]]]]:
    """Our backends on this device: the name, the reason if it cannot run or "", and the block in which it runs."""
    if device.type == "cpu":
        yield "ours, native", "" if dispatch.native_is_built() else NOT_BUILT, lambda: dispatch.forced("native")
        yield "ours, plain torch", "", lambda: dispatch.forced("plain")
    else:
        yield "ours", "", nullcontext


def head_backends(device: torch.device) -> Iterator[tuple[str, str, Callable[[], AbstractContextManager[None]]]]:
    """The backends, on a GPU with each of the two matmuls that compute the logits."""
    yield from backends(device)
    if device.type == "cuda":
        yield "ours, cuBLAS logits", "", lambda: head.first_matmul("cublas")
        yield "ours, Triton tiles", "", lambda: head.first_matmul("triton")


def within(
    block: Callable[[], AbstractContextManager[None]], function: Callable[..., Outcome]
) -> Callable[..., Outcome]:
    """A function that runs, with its backward pass, inside the block."""

    def run(inputs: HeadInputs) -> Outcome:
        with block():
            return function(inputs)

    return run


def scored(logprobs: Function) -> Callable[[HeadInputs], Outcome]:
    """The forward pass alone."""

    def run(inputs: HeadInputs) -> Outcome:
        with torch.no_grad():
            return {"logprobs": logprobs(inputs)}

    return run


def differentiated(function: Function) -> Callable[[HeadInputs], Outcome]:
    """Forward and backward pass, of a loss or of logprobs with a given upstream gradient."""

    def run(inputs: HeadInputs) -> Outcome:
        value = function(inputs)
        name, upstream = ("loss", None) if value.dim() == 0 else ("logprobs", inputs.upstream.to(value.dtype))
        grad_hidden, grad_weight = torch.autograd.grad(value, (inputs.hidden, inputs.weight), upstream)
        return {name: value.detach(), "grad_hidden": grad_hidden, "grad_weight": grad_weight}

    return run


def with_eager_loss(logprobs: Function) -> Function:
    """The GRPO loss of a peer that computes only logprobs."""
    return lambda inputs: eager_grpo_loss(logprobs(inputs), inputs.old_logprobs, inputs.advantages, inputs.num_tokens)


def eager_grpo_loss(
    logprobs: Tensor,  # [T]
    old_logprobs: Tensor,  # [T]
    advantages: Tensor,  # [T]
    num_loss_tokens: int,
    response_mask: Tensor | None = None,  # [T] bool
) -> Tensor:  # []
    """The clipped surrogate as trainers write it in eager torch, without metrics."""
    log_ratio = logprobs - old_logprobs
    if response_mask is not None:
        log_ratio = torch.where(response_mask, log_ratio, 0.0)
    ratio = log_ratio.exp()
    loss = -torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH) * advantages)
    if response_mask is not None:
        loss = torch.where(response_mask, loss, 0.0)
    return loss.sum() / num_loss_tokens


def eager_token_loss(inputs: TokenInputs) -> Tensor:
    return eager_grpo_loss(
        inputs.logprobs, inputs.old_logprobs, inputs.advantages, inputs.num_loss_tokens, inputs.response_mask
    )


def our_grpo(inputs: HeadInputs, **options: bool) -> Tensor:
    return linear_grpo(
        inputs.hidden, inputs.weight, inputs.target_ids, inputs.old_logprobs, inputs.advantages, None,
        inputs.num_tokens, **options,
    ).loss  # fmt: skip


def our_logprobs(inputs: HeadInputs) -> Tensor:
    return linear_logprobs(inputs.hidden, inputs.weight, inputs.target_ids)[0]


def our_two_ops(inputs: HeadInputs) -> Tensor:
    return grpo_loss(our_logprobs(inputs), inputs.old_logprobs, inputs.advantages, None, inputs.num_tokens).loss


TEMPERATURE = 1.0


def naive_logprobs(inputs: HeadInputs) -> Tensor:
    """The logprobs as trainers without a fused head compute them. All logits are divided by the temperature, even 1."""
    logits = F.linear(inputs.hidden, inputs.weight).float() / TEMPERATURE
    return logits.gather(1, inputs.target_ids[:, None])[:, 0] - torch.logsumexp(logits, -1)


def log_softmax_logprobs(inputs: HeadInputs) -> Tensor:
    """The least memory that autograd needs: no temperature, and one tensor of logits saved."""
    logits = F.linear(inputs.hidden, inputs.weight).float()
    return torch.log_softmax(logits, -1).gather(1, inputs.target_ids[:, None])[:, 0]


def overwritten_logprobs(inputs: HeadInputs) -> Tensor:
    """All logits in one buffer, in the dtype of hidden, overwritten by their gradient, with our row pass."""
    logits = F.linear(inputs.hidden, inputs.weight)
    return logprobs_from_logits(logits, inputs.target_ids, overwrite_logits=True)[0]


class OverwrittenByTorch:
    """All logits in one buffer, overwritten by their gradient, without autograd: the least memory in plain torch."""

    @staticmethod
    def logprobs(inputs: HeadInputs) -> tuple[Tensor, Tensor]:  # [T] and log-softmax [T, V]
        log_softmax = inputs.hidden.detach() @ inputs.weight.detach().T
        torch.log_softmax(log_softmax, -1, out=log_softmax)
        return log_softmax.gather(1, inputs.target_ids[:, None])[:, 0], log_softmax

    @classmethod
    def scored(cls, inputs: HeadInputs) -> Outcome:
        return {"logprobs": cls.logprobs(inputs)[0]}

    @classmethod
    def differentiated(cls, inputs: HeadInputs) -> Outcome:
        logprobs, log_softmax = cls.logprobs(inputs)
        return {"logprobs": logprobs, **cls.gradients(inputs, log_softmax, inputs.upstream)}

    @classmethod
    def grpo(cls, inputs: HeadInputs) -> Outcome:
        logprobs, log_softmax = cls.logprobs(inputs)
        leaf = logprobs.requires_grad_()
        loss = eager_grpo_loss(leaf, inputs.old_logprobs, inputs.advantages, inputs.num_tokens)
        (upstream,) = torch.autograd.grad(loss, leaf)
        return {"loss": loss.detach(), **cls.gradients(inputs, log_softmax, upstream)}

    @staticmethod
    def gradients(inputs: HeadInputs, log_softmax: Tensor, upstream: Tensor) -> Outcome:
        grad_logits = log_softmax.exp_().mul_(-upstream[:, None])
        grad_logits.scatter_add_(1, inputs.target_ids[:, None], upstream[:, None])
        hidden, weight = inputs.hidden.detach(), inputs.weight.detach()
        return {"grad_hidden": grad_logits @ weight, "grad_weight": grad_logits.T @ hidden}


NAIVE = "naive (fp32 logits / temperature, logsumexp, autograd)"
LEAN = "log_softmax of fp32 logits, no temperature, autograd"
IN_PLACE_TORCH = "one logits buffer, overwritten, torch"
IN_PLACE_OURS = "one logits buffer, our row pass"


def head_implementations(
    device: torch.device,
    ours: Function,
    run: Callable[[Function], Callable[[HeadInputs], Outcome]],  # `scored` or `differentiated`
    of_logprobs: Callable[[Function], Function],  # from a peer's logprobs to what the subject computes
    in_place: Callable[[HeadInputs], Outcome],
) -> list[Implementation]:
    """Our implementations, plain torch's, then every peer's."""
    from bench.peers.kernels import CROSS_ENTROPY, LOGPROBS

    found = [Implementation(name, within(block, run(ours)), why_not) for name, why_not, block in head_backends(device)]
    found.append(Implementation(NAIVE, run(of_logprobs(naive_logprobs))))
    found.append(Implementation(LEAN, run(of_logprobs(log_softmax_logprobs))))
    # In 16 bits torch's own log_softmax would round each result.
    found.append(Implementation(IN_PLACE_TORCH, in_place, "" if device.type == "cpu" else "needs float32"))
    found.append(Implementation(IN_PLACE_OURS, run(of_logprobs(overwritten_logprobs))))
    for peer in LOGPROBS:
        found.append(Implementation(peer.name, run(of_logprobs(peer)), peer.why_not(device)))
    for peer in CROSS_ENTROPY:
        found.append(Implementation(f"{peer.name}, plain CE only", run(peer), peer.why_not(device), relative=True))
    return found


def three_matmuls(inputs: HeadInputs) -> Callable[[], None]:
    """The three matmuls that forward and backward pass need, into memory that is allocated before."""
    hidden, weight = inputs.hidden.detach(), inputs.weight.detach()
    logits = hidden.new_empty(len(hidden), len(weight))
    grad_hidden, grad_weight = torch.empty_like(hidden), torch.empty_like(weight)

    def work() -> None:
        torch.mm(hidden, weight.T, out=logits)
        torch.mm(logits, weight, out=grad_hidden)
        torch.mm(logits.T, hidden, out=grad_weight)

    return work


def one_matmul(inputs: HeadInputs) -> Callable[[], None]:
    hidden, weight = inputs.hidden.detach(), inputs.weight.detach()
    logits = hidden.new_empty(len(hidden), len(weight))
    return lambda: torch.mm(hidden, weight.T, out=logits)
