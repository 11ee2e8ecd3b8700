"""From hidden states to the GRPO loss and its gradient in one op: three matmuls, one chunk of logits.

The derivative of the loss to a token's logprob depends on that logprob and on what is known beforehand, so a chunk's
logits become their own gradient as soon as they are there, and are never computed again. Where one ratio holds for a
whole response (GSPO) the chunk has to be the whole micro-batch, or the logits are computed twice: four matmuls.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgrpo_kernels.checks import ascending_rows, boundaries, head_inputs, logit_transform, require, split_temperature
from fastgrpo_kernels.dispatch import running_on
from fastgrpo_kernels.group_advantages import Baseline, Scale, group_advantages
from fastgrpo_kernels.grpo_loss import as_count, check_tokens
from fastgrpo_kernels.head import Head, HeadGradients, make_head
from fastgrpo_kernels.objective import METRICS, Objective
from fastgrpo_kernels.primitives import LogitTransform, RowStats, TokenGradient, Tokens, statistics_dtype


class GrpoOutput(NamedTuple):
    """The loss has a gradient, the others are for looking at; 0 outside the response mask."""

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
    rows: Tensor | None = None,  # [R] int64, ascending
    entropy: bool = False,
    chunk_tokens: int | None = None,
) -> GrpoOutput:
    """Loss of a packed micro-batch, see `objective.py`, differentiable in hidden, weight and bias.

    With ``rewards`` and ``cu_groups`` (or ``group_size``) in place of ``advantages`` the way from rewards to gradients
    is this one call. ``rows`` names the tokens that can have a gradient, where the caller knows them on the host:
    `loss_rows` finds them. The others never enter a matmul, and their logprobs are 0. Without it, rows outside a
    response mask on the CPU are left out. Logits exist for ``chunk_tokens`` rows at one time; None chooses.

    The gradient is formed in the forward pass if anything requires one, and given out once: a second backward pass
    through the same call raises torch's error about a tensor that was changed in place.

    Raises ValueError for shapes, dtypes and constants that do not fit, and for a sharded weight.
    """
    given = _prepare(
        hidden, weight, target_ids, old_logprobs, advantages, response_mask, num_loss_tokens, objective, bias=bias,
        temperature=temperature, softcap=softcap, ref_logprobs=ref_logprobs, rollout_logprobs=rollout_logprobs,
        token_weights=token_weights, cu_seqlens=cu_seqlens, rewards=rewards, cu_groups=cu_groups,
        group_size=group_size, baseline=baseline, scale=scale, rows=rows, entropy=entropy, chunk_tokens=chunk_tokens,
    )  # fmt: skip
    forms = torch.is_grad_enabled()
    outputs = _linear_grpo(
        given.hidden, given.weight, given.bias, given.target_ids, *given.fields, given.num_loss_tokens,
        *split_temperature(given.transform), given.transform.softcap, given.objective.encode(), given.entropy,
        given.chunk_tokens, *(forms and t is not None and t.requires_grad for t in given.leaves),
    )  # fmt: skip
    return given.output(outputs)


def linear_grpo_into(
    main_gradient: Tensor,  # [V, D] float32 (float64 for float64)
    hidden: Tensor,
    weight: Tensor,
    target_ids: Tensor,
    old_logprobs: Tensor | None,
    advantages: Tensor | None,
    response_mask: Tensor | None,
    num_loss_tokens: int | float | Tensor,
    objective: Objective | None = None,
    **options: Any,
) -> tuple[GrpoOutput, Tensor]:  # and the gradient of hidden [T, D]
    """`linear_grpo` that adds the weight's gradient to a buffer of the optimizer's: no [V, D] tensor is made.

    The options are `linear_grpo`'s, without bias and rows. A plain function, outside autograd and torch.compile: hand
    the gradient of hidden on with ``hidden.backward(gradient)``. Not for float16, whose gradients need a loss scale.
    """
    wide = statistics_dtype(hidden.dtype)
    require(
        main_gradient.shape == weight.shape and main_gradient.dtype == wide,
        lambda: (
            f"main_gradient must be {wide} of the weight's shape {list(weight.shape)}, got {main_gradient.dtype} "
            f"{list(main_gradient.shape)}"
        ),
    )
    unwanted = {"bias", "rows"} & options.keys()
    require(not unwanted, lambda: f"linear_grpo_into takes no {' and no '.join(sorted(unwanted))}: use linear_grpo")
    every_row = torch.arange(len(hidden), device=hidden.device)
    given = _prepare(
        hidden, weight, target_ids, old_logprobs, advantages, response_mask, num_loss_tokens, objective,
        rows=every_row, **options,
    )  # fmt: skip
    require(given.hidden.dtype != torch.float16, "float16 gradients need a loss scale: use linear_grpo")
    with torch.no_grad(), running_on(hidden):
        outputs = _run(
            given.hidden, given.weight, None, given.target_ids, given.transform, given.fields, given.num_loss_tokens,
            given.objective, given.entropy, given.chunk_tokens, (True, False, False), into_weight=main_gradient,
        )  # fmt: skip
    return given.output(outputs), outputs[5]


@dataclass(frozen=True)
class _Prepared:
    """Checked inputs of the rows that enter the matmuls, as the op takes them."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    target_ids: Tensor
    fields: list[Tensor | None]  # old_logprobs, advantages, mask, ref_logprobs, rollout_logprobs, weights, cu_seqlens
    num_loss_tokens: Tensor
    transform: LogitTransform
    objective: Objective
    entropy: bool
    chunk_tokens: int
    rows: Tensor | None
    num_tokens: int

    @property
    def leaves(self) -> tuple[Tensor | None, ...]:
        return self.hidden, self.weight, self.bias

    def output(self, outputs: tuple[Tensor, ...]) -> GrpoOutput:
        """In the caller's rows."""
        loss, logprobs, entropies, ratio, metrics, *_ = outputs
        if self.rows is not None:
            everywhere = logprobs.new_zeros(self.num_tokens)
            logprobs, ratio = everywhere.index_copy(0, self.rows, logprobs), everywhere.index_copy(0, self.rows, ratio)
            entropies = everywhere.index_copy(0, self.rows, entropies) if self.entropy else entropies
        return GrpoOutput(loss, logprobs, entropies if self.entropy else None, ratio, metrics)


def _prepare(
    hidden: Tensor,
    weight: Tensor,
    target_ids: Tensor,
    old_logprobs: Tensor | None,
    advantages: Tensor | None,
    response_mask: Tensor | None,
    num_loss_tokens: int | float | Tensor,
    objective: Objective | None,
    *,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    ref_logprobs: Tensor | None = None,
    rollout_logprobs: Tensor | None = None,
    token_weights: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    rewards: Tensor | None = None,
    cu_groups: Tensor | None = None,
    group_size: int | None = None,
    baseline: Baseline = "mean",
    scale: Scale = "group",
    rows: Tensor | None = None,
    entropy: bool = False,
    chunk_tokens: int | None = None,
) -> _Prepared:
    objective = objective or Objective()
    hidden, weight, bias, target_ids = head_inputs(hidden, weight, bias, target_ids)
    num_tokens, dtype = len(hidden), statistics_dtype(hidden.dtype)
    transform = logit_transform(temperature, softcap, num_tokens, hidden.dtype)
    require(chunk_tokens is None or chunk_tokens > 0, lambda: f"chunk_tokens must be above 0, got {chunk_tokens}")
    if advantages is None:
        require(rewards is not None and cu_seqlens is not None, "without advantages, rewards and cu_seqlens are needed")
        assert rewards is not None and cu_seqlens is not None
        boundaries(cu_seqlens, "cu_seqlens", num_tokens)
        each = group_advantages(rewards, group_size, cu_groups=cu_groups, baseline=baseline, scale=scale)
        require(
            len(cu_seqlens) == len(each) + 1, lambda: f"got {len(each)} rewards for {len(cu_seqlens) - 1} responses"
        )
        advantages = torch.repeat_interleave(each, cu_seqlens.diff(), output_size=num_tokens)
    else:
        require(rewards is None, "give advantages or rewards, not both")
    fields = check_tokens(
        num_tokens, dtype, hidden.device, objective, old_logprobs, advantages, response_mask, ref_logprobs,
        rollout_logprobs, token_weights, cu_seqlens,
    )  # fmt: skip
    if rows is None and response_mask is not None and hidden.device.type == "cpu" and not torch.compiler.is_compiling():
        rows = response_mask.nonzero()[:, 0]
    elif rows is not None:
        ascending_rows(rows, num_tokens)
    if rows is not None and len(rows) < num_tokens:
        hidden, target_ids = hidden.index_select(0, rows), target_ids.index_select(0, rows)
        *of_tokens, starts = fields
        fields = [None if f is None else f.index_select(0, rows) for f in of_tokens]
        fields.append(None if starts is None else torch.searchsorted(rows, starts))  # chosen tokens before each
        if isinstance(transform.temperature, Tensor):
            transform = LogitTransform(transform.temperature.index_select(0, rows), transform.softcap)
    else:
        rows = None
    return _Prepared(
        hidden, weight, bias, target_ids, fields, as_count(num_loss_tokens, hidden.device, dtype), transform, objective,
        entropy or objective.entropy_coef != 0, chunk_tokens or 0, rows, num_tokens,
    )  # fmt: skip


def loss_rows(
    response_mask: Tensor,  # [T] bool, on the CPU
    advantages: Tensor,  # [T], on the CPU
    objective: Objective | None = None,
) -> Tensor:  # [R] int64
    """The tokens that can have a gradient: of a response, and with an advantage unless something else moves them.

    `linear_grpo`'s metrics count these rows alone.
    """
    objective = objective or Objective()
    require(not response_mask.is_cuda and not advantages.is_cuda, "loss_rows is for tensors on the host: it would wait")
    others = objective.kl_coef != 0 or objective.entropy_coef != 0 or objective.needs_whole_responses
    return (response_mask if others else response_mask & (advantages != 0)).nonzero()[:, 0]


@torch.library.custom_op("fastgrpo::linear_grpo", mutates_args=())
def _linear_grpo(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target_ids: Tensor,
    old_logprobs: Tensor | None,
    advantages: Tensor,
    response_mask: Tensor | None,
    ref_logprobs: Tensor | None,
    rollout_logprobs: Tensor | None,
    token_weights: Tensor | None,
    cu_seqlens: Tensor | None,
    num_loss_tokens: Tensor,
    temperature: float,
    temperatures: Tensor | None,
    softcap: float,
    objective: Sequence[float],
    entropy: bool,
    chunk_tokens: int,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    # loss, logprobs, entropy, ratio, metrics; then the gradients of hidden, weight and bias, [0] where not needed
    fields = (old_logprobs, advantages, response_mask, ref_logprobs, rollout_logprobs, token_weights, cu_seqlens)
    transform = LogitTransform(temperature if temperatures is None else temperatures, softcap)
    with running_on(hidden):
        return _run(
            hidden, weight, bias, target_ids, transform, fields, num_loss_tokens, Objective.decode(list(objective)),
            entropy, chunk_tokens, (need_hidden, need_weight, need_bias),
        )  # fmt: skip


def _run(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target_ids: Tensor,
    transform: LogitTransform,
    fields: Sequence[Tensor | None],
    num_loss_tokens: Tensor,
    objective: Objective,
    entropy: bool,
    chunk_tokens: int,
    needed: tuple[bool, bool, bool],
    into_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    head = make_head(
        hidden, weight, bias, target_ids, transform, chunk_tokens,
        keep_logits=any(needed), keep_exact=objective.entropy_coef != 0,
    )  # fmt: skip
    gradients = HeadGradients(head, *needed, into_weight=into_weight)
    # Of float16, whose smallest number is above a probability over num_loss_tokens: divided by it in the backward.
    undivided = num_loss_tokens if hidden.dtype == torch.float16 else None
    work = _Work(head, fields, num_loss_tokens, objective, entropy, undivided)
    chunks = list(head.chunks())
    if objective.needs_whole_responses and len(chunks) > 1:
        for rows in chunks:
            work.look(rows)
        work.judge(slice(0, len(hidden)))
        if any(needed):
            for rows in chunks:
                head.look_again(rows)
                work.differentiate(rows, gradients)
    else:
        for rows in chunks:
            work.look(rows)
            work.judge(rows)
            if any(needed):
                work.differentiate(rows, gradients)
    return (*work.results(), *gradients.finished(hidden.dtype, _dtype_of_sums(hidden.dtype)))


def _dtype_of_sums(dtype: torch.dtype) -> torch.dtype:
    """In which the gradients of weight and bias leave the op: a sum that is not divided yet may be beyond float16."""
    return torch.float32 if dtype == torch.float16 else dtype


class _Work:
    """The three things that are done with a chunk: look at its logits, judge its tokens, differentiate."""

    def __init__(
        self,
        head: Head,
        fields: Sequence[Tensor | None],
        num_loss_tokens: Tensor,
        objective: Objective,
        entropy: bool,
        gradient_scale: Tensor | None,
    ) -> None:
        self.head, self.fields, self.objective = head, fields, objective
        self.num_loss_tokens, self.entropy, self.gradient_scale = num_loss_tokens, entropy, gradient_scale
        size, dtype = len(head.hidden), statistics_dtype(head.hidden.dtype)
        self.stats = RowStats(*(head.hidden.new_zeros(n, dtype=dtype) for n in (size, size, size if entropy else 0)))
        self.ratio, self.grad_logprobs = (torch.zeros_like(self.stats.logprobs) for _ in range(2))
        self.grad_entropy = torch.zeros_like(self.ratio) if objective.entropy_coef else None
        self.losses: list[Tensor] = []
        self.metrics: list[Tensor] = []

    def look(self, rows: slice) -> None:
        """One matmul: the chunk's logits, and what the row pass learns of them."""
        for to, values in zip(self.stats, self.head.look(rows, self.entropy), strict=True):
            if to is not None and values is not None:
                to[rows] = values

    def judge(self, rows: slice) -> None:
        """The objective of these tokens, and its derivatives."""
        result: TokenGradient = self.head.primitives.token_objective(
            self._tokens(rows), self.num_loss_tokens, self.objective
        )
        self.losses.append(result.loss)
        self.metrics.append(result.metrics)
        self.ratio[rows], self.grad_logprobs[rows] = result.ratio, result.grad_logprobs
        if self.grad_entropy is not None and result.grad_entropy is not None:
            self.grad_entropy[rows] = result.grad_entropy

    def differentiate(self, rows: slice, gradients: HeadGradients) -> None:
        """Two matmuls; none where the CPU, which need not wait to know, sees that every derivative is 0."""
        of_logprobs = self.grad_logprobs[rows]
        of_entropy = None if self.grad_entropy is None else self.grad_entropy[rows]
        if not of_logprobs.is_cuda and of_entropy is None and not of_logprobs.any():
            gradients.skip(rows)
            return
        logprobs, lse, entropy = self.stats
        stats = RowStats(logprobs[rows], lse[rows], entropy[rows] if self.entropy and entropy is not None else None)
        if self.gradient_scale is not None:
            of_logprobs = of_logprobs * self.gradient_scale
            of_entropy = None if of_entropy is None else of_entropy * self.gradient_scale
        gradients.add(rows, self.head.gradient(rows, stats, of_logprobs, of_entropy))

    def results(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        inside = self.fields[2]
        logprobs, _, entropy = self.stats
        assert entropy is not None
        if inside is not None:
            logprobs = torch.where(inside, logprobs, 0.0)
            entropy = torch.where(inside, entropy, 0.0) if self.entropy else entropy
        if not self.losses:
            return logprobs.sum(), logprobs, entropy, self.ratio, logprobs.new_zeros(len(METRICS), dtype=torch.float64)
        loss = torch.stack(self.losses).sum()
        return loss, logprobs, entropy, self.ratio, torch.stack(self.metrics).sum(0)

    def _tokens(self, rows: slice) -> Tokens:
        *of_tokens, cu_seqlens = self.fields
        old, advantages, mask, ref, rollout, weights = (None if f is None else f[rows] for f in of_tokens)
        assert advantages is not None
        entropy = self.stats.entropy[rows] if self.entropy and self.stats.entropy is not None else None
        return Tokens(
            self.stats.logprobs[rows],
            old,
            advantages,
            mask,
            ref,
            rollout,
            weights,
            entropy=entropy,
            cu_seqlens=cu_seqlens,
        )


@_linear_grpo.register_fake
def _(hidden, weight, bias, *args):  # type: ignore[no-untyped-def]
    entropy, _, need_hidden, need_weight, need_bias = args[-5:]
    logprobs = hidden.new_empty(len(hidden), dtype=statistics_dtype(hidden.dtype))
    summed = _dtype_of_sums(hidden.dtype)
    return (
        logprobs.new_empty(()),
        logprobs,
        logprobs.new_empty(len(hidden) if entropy else 0),
        torch.empty_like(logprobs),
        hidden.new_empty(len(METRICS), dtype=torch.float64),
        torch.empty_like(hidden) if need_hidden else hidden.new_empty(0),
        torch.empty_like(weight, dtype=summed) if need_weight else hidden.new_empty(0, dtype=summed),
        torch.empty_like(bias, dtype=summed) if need_bias else hidden.new_empty(0, dtype=summed),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.needed = inputs[-3:]
    ctx.num_inputs = len(inputs)
    num_loss_tokens = inputs[11] if inputs[0].dtype == torch.float16 else None
    ctx.save_for_backward(num_loss_tokens, *output[-3:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
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
