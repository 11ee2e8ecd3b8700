"""Other projects' kernels for the LM head, called by their public functions, if they are installed.

They need environments of their own, so a run shows those of its own environment. The calls of cut-cross-entropy, QuACK,
RL-Kernel, flash-attn and of everything that needs a GPU follow their documentation and have not been run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.kernel_inputs import HeadInputs
from bench.kernel_subjects import Unavailable

Function = Callable[[HeadInputs], Tensor]


@dataclass(frozen=True)
class Peer:
    """A function from inputs to logprobs, a GRPO loss or a mean cross entropy; its list below says which."""

    name: str
    package: str
    load: Callable[[], Function]  # imports it
    needs_cuda: bool = False

    def __call__(self, inputs: HeadInputs) -> Tensor:
        return _loaded(self.load)(inputs)

    def why_not(self, device: torch.device) -> str:
        """Why it cannot run here, or "". The package is only looked for and not imported."""
        if find_spec(self.package) is None:
            return "not installed"
        return "needs CUDA" if self.needs_cuda and device.type != "cuda" else ""


@cache
def _loaded(load: Callable[[], Function]) -> Function:
    try:
        return load()
    except (ImportError, AttributeError) as error:
        raise Unavailable(f"not in this version: {error}") from error


def _trl() -> Function:
    """TRL >= 1.16: cuBLAS on tiles, reduced by Triton kernels, or by torch on a CPU."""
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer import utils

    tile = utils._CHUNKED_LOGPROB_CHUNK_SIZE
    return lambda x: ChunkedLogProbFunction.apply(x.hidden, x.weight, None, x.target_ids, 1.0, tile, None, 1.0, ())[0]


def _trl_logits() -> Function:
    """TRL's Triton kernel on given logits; it computes the entropy as well."""
    from trl.kernels import selective_log_softmax_and_entropy

    def logprobs(x: HeadInputs) -> Tensor:
        logits = F.linear(x.hidden, x.weight)
        return selective_log_softmax_and_entropy(x.by_response(logits), x.by_response(x.target_ids))[0].flatten()

    return logprobs


def _verl_torch() -> Function:
    """verl's default for fused kernels: 512 tokens at a time, in torch."""
    from verl.utils.experimental.torch_functional import FusedLinearForPPO

    head = FusedLinearForPPO()
    return lambda x: head(x.hidden, x.weight, x.target_ids)[0]


def _verl_triton() -> Function:
    """verl's Triton kernels. D must be a multiple of 128."""
    from verl.utils.kernel.linear_cross_entropy import linear_cross_entropy

    return lambda x: linear_cross_entropy(x.hidden, x.weight, x.target_ids, 1.0, "none")[0]


def _liger_scaled() -> Function:
    """Liger's scaled cross entropy: CuTe kernels on Hopper, else verl's torch loop."""
    from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction

    return lambda x: (
        -LigerFusedLinearScaledCrossEntropyFunction.apply(x.hidden, x.weight, x.target_ids, 1.0, -100, 1, False)
    )


def _flash_attn() -> Function:
    """All logits in the dtype of hidden, overwritten by their gradient: the fastest way without a fused head."""
    from flash_attn.ops.triton.cross_entropy import cross_entropy_loss

    return lambda x: -cross_entropy_loss(F.linear(x.hidden, x.weight), x.target_ids, inplace_backward=True)[0]


def _cut_cross_entropy() -> Function:
    """Cut cross entropy with its defaults: gradients below a threshold are left out."""
    from cut_cross_entropy import linear_cross_entropy

    return lambda x: -linear_cross_entropy(x.hidden, x.weight, x.target_ids, reduction="none")


def _cut_cross_entropy_exact() -> Function:
    from cut_cross_entropy import linear_cross_entropy

    return lambda x: -linear_cross_entropy(x.hidden, x.weight, x.target_ids, reduction="none", impl="cce_exact")


def _rl_kernel() -> Function:
    from rl_engine.backends.shared.triton.logprob.linear_logp import TritonLinearLogpOp

    op = TritonLinearLogpOp()
    return lambda x: op(x.hidden, x.weight, x.target_ids)


def _liger_grpo() -> Function:
    """Liger's fused linear GRPO loss, one response at a time; compiled on GPUs, where the loss takes some time."""
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    constants = {"beta": 0.0, "use_ref_model": False, "epsilon_low": 0.2, "epsilon_high": 0.28, "loss_type": "dapo"}

    def loss(x: HeadInputs) -> Tensor:
        ids = x.by_response(x.target_ids)
        fused = LigerFusedLinearGRPOLoss(compiled=x.hidden.is_cuda, **constants)
        old = x.by_response(x.old_logprobs)
        hidden, mask = x.by_response(x.hidden), torch.ones_like(ids)
        return fused(hidden, x.weight, ids, mask, x.response_advantages, old_per_token_logps=old)[0]

    return loss


def _liger_grpo_triton() -> Function:
    """Liger's Triton GRPO loss on given logits, with an unused row for each response; the gradient overwrites them."""
    from liger_kernel.transformers.grpo_loss import triton_grpo_loss

    def loss(x: HeadInputs) -> Tensor:
        hidden = F.pad(x.by_response(x.hidden), (0, 0, 0, 1))
        reduced, _ = triton_grpo_loss(
            F.linear(hidden, x.weight), x.by_response(x.old_logprobs), None, x.by_response(x.target_ids),
            x.response_advantages, temperature=1.0, beta=0.0, eps_low=0.2, eps_high=0.28, reduce=True,
        )  # fmt: skip
        return reduced

    return loss


def _torch_chunked() -> Function:
    options = torch.nn.LinearCrossEntropyOptions()
    return lambda x: F.linear_cross_entropy(x.hidden, x.weight, x.target_ids, options=options)


def _quack() -> Function:
    """QuACK: Hopper and later, mean or sum only. T and V must be multiples of 8."""
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    return lambda x: chunked_linear_cross_entropy(x.hidden, x.weight, x.target_ids, chunk_size=4096, reduction="mean")


LOGPROBS = (
    Peer("TRL chunked", "trl", _trl),
    Peer("TRL Triton on logits", "trl", _trl_logits, needs_cuda=True),
    Peer("verl torch, 512 tokens", "verl", _verl_torch),
    Peer("verl Triton", "verl", _verl_triton, needs_cuda=True),
    Peer("Liger scaled cross entropy", "liger_kernel", _liger_scaled),
    Peer("flash-attn in-place cross entropy", "flash_attn", _flash_attn, needs_cuda=True),
    Peer("cut-cross-entropy", "cut_cross_entropy", _cut_cross_entropy, needs_cuda=True),
    Peer("cut-cross-entropy, exact", "cut_cross_entropy", _cut_cross_entropy_exact, needs_cuda=True),
    Peer("RL-Kernel Triton", "rl_engine", _rl_kernel, needs_cuda=True),
)
GRPO = (
    Peer("Liger chunked GRPO", "liger_kernel", _liger_grpo),
    Peer("Liger Triton GRPO on logits", "liger_kernel", _liger_grpo_triton, needs_cuda=True),
)
CROSS_ENTROPY = (
    Peer("torch linear_cross_entropy", "torch", _torch_chunked),
    Peer("QuACK", "quack", _quack, needs_cuda=True),
)
