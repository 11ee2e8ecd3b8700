"""From hidden states to the GRPO loss and its gradient in one op: three matmuls, one chunk of logits.

The derivative of the loss to a token's logprob depends on that logprob and on what is known beforehand, so a chunk's
logits become their own gradient as soon as they are computed, and are not computed again. Where one ratio holds for a
whole response (GSPO) the chunk has to be the whole micro-batch, or the logits are computed twice: four matmuls.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._ops import add_op_namespace_prefix
from .checks import boundaries, linear_inputs, loss_token_count, readable, require, token_fields
from .derivatives import first_derivative_only
from .dispatch import running_on
from .group_advantages import Baseline, Scale, group_advantages
from .head import Head, HeadGradients, LinearInputs, empty_gradients, make_head
from .objective import METRICS, Objective
from .primitives import LogitTransform, RowStats, TokenFields


class GrpoOutput(NamedTuple):
    """The loss, which alone has a gradient, and what describes it; 0 outside the response mask."""

    loss: Tensor  # []
    logprobs: Tensor  # [T]
    entropy: Tensor | None  # [T] if asked for
    ratio: Tensor  # [T]
    metrics: Tensor  # [len(METRICS)] float64, sums over response tokens


def linear_grpo(
    hidden: Tensor,  # [T, D]
    weight: Tensor,  # [V, D]
    target_ids: Tensor,  # [T] int64
    old_logprobs: Tensor | None,  # [T]; None: the current ones, as in the first update of a step
    advantages: Tensor | None,  # [T]; None: from `rewards`
    response_mask: Tensor | None,  # [T] bool; None: every token is a response's
    num_loss_tokens: int | float | Tensor,  # response tokens of the whole update, over all ranks and micro-batches
    objective: Objective | None = None,
    *,
    bias: Tensor | None = None,  # [V]
    temperature: float | Tensor = 1.0,  # or [T]
    softcap: float | None = None,
    ref_logprobs: Tensor | None = None,  # [T]
    rollout_logprobs: Tensor | None = None,  # [T]
    token_weights: Tensor | None = None,  # [T]
    cu_seqlens: Tensor | None = None,  # [S + 1]
    rewards: Tensor | None = None,  # [S], one per response of `cu_seqlens`
    cu_groups: Tensor | None = None,  # [G + 1] responses of each group
    group_size: int | None = None,  # where all groups are alike
    baseline: Baseline = "mean",
    scale: Scale = "group",
    entropy: bool = False,
    skip_zero_advantage: bool = False,
    chunk_tokens: int | None = None,
) -> GrpoOutput:
    """Loss of a packed micro-batch, see `objective.py`, differentiable in hidden, weight and bias.

    With ``rewards`` and ``cu_groups`` (or ``group_size``) in place of ``advantages`` the advantages are
    `group_advantages` of them. Logits exist for ``chunk_tokens`` rows at one time; None chooses.

    Tokens outside the response mask enter no matmul on a CPU. Those without advantage enter one of three, or with
    ``skip_zero_advantage`` none, where nothing else acts on them: they then count in no metric, and their logprobs are
    0. On a GPU all tokens enter all matmuls, for their number would have to be waited for: there, give the tokens of
    responses alone.

    The gradient is formed in the forward pass if anything requires one, and given out once: a second backward pass
    through the same call raises torch's error about a tensor that was changed in place.

    Raises ValueError for shapes, dtypes and constants that do not fit, for a sharded weight, and for a field that asks
    for a gradient; NotImplementedError for forward mode, torch.func and second derivatives.
    """
    objective = objective or Objective()
    inputs = linear_inputs("linear_grpo", hidden, weight, bias, target_ids, temperature, softcap, chunk_tokens)
    if advantages is None:
        require(rewards is not None and cu_seqlens is not None, "without advantages, rewards and cu_seqlens are needed")
        assert rewards is not None and cu_seqlens is not None
        each = group_advantages(rewards, group_size, cu_groups=cu_groups, baseline=baseline, scale=scale)
        advantages = _advantages_of_tokens(each, cu_seqlens, len(hidden))
    else:
        require(rewards is None, "give advantages or rewards, not both")
    fields = TokenFields(
        old_logprobs, advantages, response_mask, ref_logprobs, rollout_logprobs, token_weights, cu_seqlens
    )
    fields = token_fields("linear_grpo", fields, objective, inputs.hidden)
    by_advantage = objective.entropy_coef == 0 and (objective.kl_coef == 0 or ref_logprobs is None)
    leaves = inputs.hidden, inputs.weight, inputs.bias
    needed = [torch.is_grad_enabled() and leaf is not None and leaf.requires_grad for leaf in leaves]
    chosen = by_advantage and (any(needed) or skip_zero_advantage)
    rows = _rows(fields, skip_zero_advantage) if chosen else _response_rows(fields.response_mask)
    if rows is not None:
        inputs, fields = inputs.select(rows), fields.select(rows)
    entropy = entropy or objective.entropy_coef != 0
    loss, logprobs, entropies, ratio, metrics, *_ = _linear_grpo(
        *inputs.encode(), *fields, loss_token_count(num_loss_tokens, hidden), objective.encode(), entropy, *needed
    )
    if rows is not None:
        logprobs, ratio = (_placed(values, rows, len(hidden)) for values in (logprobs, ratio))
        entropies = _placed(entropies, rows, len(hidden)) if entropy else entropies
    return GrpoOutput(loss, logprobs, entropies if entropy else None, ratio, metrics)


def _advantages_of_tokens(advantages: Tensor, cu_seqlens: Tensor, num_tokens: int) -> Tensor:  # [S] -> [T]
    boundaries(cu_seqlens, "cu_seqlens", num_tokens)
    require(
        len(cu_seqlens) == len(advantages) + 1,
        lambda: f"got {len(advantages)} rewards for {len(cu_seqlens) - 1} responses",
    )
    return torch.repeat_interleave(advantages, cu_seqlens.diff(), output_size=num_tokens)


def _rows(fields: TokenFields, skip_zero_advantage: bool) -> Tensor | None:  # [R] int64
    """The tokens to compute, those with an advantage first, so that the others lie in chunks without a gradient.

    None for all of them in their order: where that is what they are, they cannot be read, or whole responses count.
    """
    rows, advantages = _response_rows(fields.response_mask), fields.advantages
    if not readable(advantages) or fields.cu_seqlens is not None:
        return rows
    signal = advantages != 0 if rows is None else advantages[rows] != 0
    if signal.all():
        return rows
    rows = torch.arange(len(advantages)) if rows is None else rows
    return rows[signal] if skip_zero_advantage else torch.cat([rows[signal], rows[~signal]])


def _response_rows(response_mask: Tensor | None) -> Tensor | None:  # [R] int64
    """The tokens that the mask selects; None for all of them, and where they cannot be read."""
    if response_mask is None or not readable(response_mask):
        return None
    rows = response_mask.nonzero()[:, 0]
    return rows if len(rows) < len(response_mask) else None


def _placed(values: Tensor, rows: Tensor, num_tokens: int) -> Tensor:  # [R] -> [T]
    """The values of these tokens among all tokens, 0 for the others."""
    return values.new_zeros(num_tokens).index_copy(0, rows, values)


@torch.library.custom_op(add_op_namespace_prefix("linear_grpo"), mutates_args=())
def _linear_grpo(
    hidden: Tensor,  # from here on LinearInputs
    weight: Tensor,
    bias: Tensor | None,
    target_ids: Tensor,
    temperature: float,
    temperatures: Tensor | None,
    softcap: float,
    chunk_tokens: int,
    old_logprobs: Tensor | None,  # from here on TokenFields
    advantages: Tensor,
    response_mask: Tensor | None,
    ref_logprobs: Tensor | None,
    rollout_logprobs: Tensor | None,
    token_weights: Tensor | None,
    cu_seqlens: Tensor | None,
    num_loss_tokens: Tensor,
    objective: Sequence[float],
    entropy: bool,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    # loss, logprobs, entropy, ratio, metrics; then the gradients of hidden, weight and bias, [0] where not needed
    transform = LogitTransform.decode(temperature, temperatures, softcap)
    inputs = LinearInputs(hidden, weight, bias, target_ids, transform, chunk_tokens)
    fields = TokenFields(
        old_logprobs, advantages, response_mask, ref_logprobs, rollout_logprobs, token_weights, cu_seqlens
    )
    constants = Objective.decode(objective)
    needed = need_hidden, need_weight, need_bias
    with running_on(hidden):
        head = make_head(inputs, gradient=any(needed), of_entropy=any(needed) and constants.entropy_coef != 0)
        gradients = HeadGradients(head, *needed)
        # float16's smallest number is above a probability over num_loss_tokens: divided by it in the backward pass.
        upstream = num_loss_tokens if hidden.dtype == torch.float16 else None
        micro_batch = _ChunkedLoss(head, fields, num_loss_tokens, constants, entropy, upstream)
        micro_batch.run(gradients)
        return (*micro_batch.outputs(), *gradients.finished(hidden.dtype, _dtype_of_sums(hidden.dtype)))


def _dtype_of_sums(dtype: torch.dtype) -> torch.dtype:
    """The dtype of weight's and bias's gradients in the op's output: an undivided sum may be beyond float16."""
    return torch.float32 if dtype == torch.float16 else dtype


class _ChunkedLoss:
    """The loss of a micro-batch and its gradients, a chunk of logits at a time."""

    def __init__(
        self,
        head: Head,
        fields: TokenFields,
        num_loss_tokens: Tensor,
        objective: Objective,
        entropy: bool,
        upstream: Tensor | None,  # [] gradient of the loss; None: 1
    ) -> None:
        self.head, self.fields, self.objective = head, fields, objective
        self.num_loss_tokens, self.entropy, self.upstream = num_loss_tokens, entropy, upstream
        self.stats = RowStats.empty(head.hidden, entropy)
        self.ratio, self.grad_logprobs = (torch.zeros_like(self.stats.logprobs) for _ in range(2))
        self.grad_entropy = torch.zeros_like(self.ratio) if objective.entropy_coef else None
        self.losses: list[Tensor] = []
        self.metrics: list[Tensor] = []

    def run(self, gradients: HeadGradients) -> None:
        """Computes each chunk's logits once; twice if there are several and the objective needs whole responses."""
        chunks = list(self.head.chunks())
        if not self.objective.needs_whole_responses or len(chunks) <= 1:
            for rows in chunks:
                self.forward(rows)
                self.token_objective(rows)
                self.backward(rows, gradients)
            return
        for rows in chunks:
            self.forward(rows)
        self.token_objective(slice(0, len(self.head.hidden)))
        for rows in chunks if gradients.needed else ():
            self.head.recompute(rows, self.stats.lse[rows])
            self.backward(rows, gradients)

    def forward(self, rows: slice) -> None:
        """One matmul: the chunk's logits and their statistics."""
        self.stats.write(rows, self.head.forward(rows, self.entropy))

    def token_objective(self, rows: slice) -> None:
        """The loss of these tokens, and its derivatives to their logprobs and entropies."""
        stats = self.stats.of(rows)
        result = self.head.primitives.token_objective(
            stats.logprobs, stats.entropy, self.fields.chunk(rows), self.num_loss_tokens, self.objective
        )
        self.losses.append(result.loss)
        self.metrics.append(result.metrics)
        self.ratio[rows], self.grad_logprobs[rows] = result.ratio, result.grad_logprobs
        if self.grad_entropy is not None and result.grad_entropy is not None:
            self.grad_entropy[rows] = result.grad_entropy

    def backward(self, rows: slice, gradients: HeadGradients) -> None:
        """Two matmuls; none on a CPU where every derivative is 0, which a GPU would have to be waited for to know."""
        if not gradients.needed:
            return
        of_logprobs = self.grad_logprobs[rows]
        of_entropy = None if self.grad_entropy is None else self.grad_entropy[rows]
        if not of_logprobs.is_cuda and of_entropy is None and not of_logprobs.any():
            gradients.skip(rows)
            return
        if self.upstream is not None:
            of_logprobs = of_logprobs * self.upstream
            of_entropy = None if of_entropy is None else of_entropy * self.upstream
        gradients.add(rows, self.head.gradient(rows, self.stats.of(rows), of_logprobs, of_entropy))

    def outputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Loss, logprobs, entropy ([0] where it was not asked for), ratio and metrics."""
        logprobs, _, entropy = self.stats.encode()
        mask = self.fields.response_mask
        if mask is not None:
            logprobs = torch.where(mask, logprobs, 0.0)
            entropy = torch.where(mask, entropy, 0.0) if self.entropy else entropy
        if not self.losses:
            return logprobs.sum(), logprobs, entropy, self.ratio, logprobs.new_zeros(len(METRICS), dtype=torch.float64)
        loss, metrics = torch.stack(self.losses).sum(), torch.stack(self.metrics).sum(0)
        return loss, logprobs, entropy, self.ratio, metrics


@_linear_grpo.register_fake
def _(hidden: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    *_, entropy, need_hidden, need_weight, need_bias = rest
    needed = need_hidden, need_weight, need_bias
    logprobs, _, entropies = RowStats.empty(hidden, entropy).encode()
    return (
        logprobs.new_empty(()),
        logprobs,
        entropies,
        torch.empty_like(logprobs),
        hidden.new_empty(len(METRICS), dtype=torch.float64),
        *empty_gradients(hidden, weight, bias, needed, _dtype_of_sums(hidden.dtype)),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, *_, num_loss_tokens, _, _, need_hidden, need_weight, need_bias = inputs
    ctx.needed = need_hidden, need_weight, need_bias
    ctx.num_inputs = len(inputs)
    ctx.save_for_backward(num_loss_tokens if hidden.dtype == torch.float16 else None, *output[-3:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    first_derivative_only("linear_grpo")
    gradients: list[Tensor | None] = [None] * 3
    num_loss_tokens, *formed = ctx.saved_tensors
    if grad_loss is not None and num_loss_tokens is not None:
        # Of float16, not divided yet, and in float32 where they are sums over tokens.
        factor = grad_loss / num_loss_tokens
        gradients = [(g.float() * factor).half() if n else None for n, g in zip(ctx.needed, formed, strict=True)]
    elif grad_loss is not None:
        for i, (needed, gradient) in enumerate(zip(ctx.needed, formed, strict=True)):
            if needed:
                # In place, which a second call would notice: a copy of dW costs as much as dW. Not while it is traced.
                eager = type(gradient) is Tensor
                gradients[i] = gradient.mul_(grad_loss) if eager else gradient * grad_loss
    return (*gradients, *[None] * (ctx.num_inputs - 3))


_linear_grpo.register_autograd(_autograd, setup_context=_setup_context)
