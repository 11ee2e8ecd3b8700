"""Which derivatives the ops give: the first one, in reverse. Others are refused: torch would take them for 0."""

import torch
from torch import Tensor
from torch.autograd import forward_ad


def check_derivatives(op: str, inputs: dict[str, Tensor | None], constants: dict[str, Tensor | None]) -> None:
    """Raises NotImplementedError for tangents and for tensors of torch.func's transforms, in inputs and in constants.

    Raises ValueError for a constant that asks for a gradient, since it would get none.
    """
    for name, tensor in (inputs | constants).items():
        if tensor is None:
            continue
        if torch._C._functorch.is_batchedtensor(tensor):
            raise NotImplementedError(
                f"{op} has no rule for vmap, and {name} is mapped: tokens are rows of one call already, so lay the "
                "batch end to end, or call the op in a loop"
            )
        if forward_ad.unpack_dual(tensor).tangent is not None or _is_of_torch_func(tensor):
            raise NotImplementedError(
                f"{op} gives derivatives by backward() alone, and {name} is differentiated in forward mode or by "
                f"torch.func: use torch.autograd.grad, or fastgrpo_kernels.reference, which is plain torch"
            )
    asking = [name for name, tensor in constants.items() if tensor is not None and tensor.requires_grad]
    if asking and torch.is_grad_enabled():
        raise ValueError(
            f"{op} gives no gradient to {', '.join(asking)}, which asks for one: pass {asking[0]}.detach()"
        )


def _is_of_torch_func(tensor: Tensor) -> bool:
    """Whether torch.func differentiates by it; while torch.compile traces, which refuses that itself, False."""
    return not torch.compiler.is_compiling() and torch._C._functorch.is_gradtrackingtensor(tensor)


def first_derivative_only(op: str) -> None:
    """Raises NotImplementedError in a backward pass that makes a graph, for second derivatives."""
    if torch.is_grad_enabled():
        raise NotImplementedError(
            f"{op} gives first derivatives alone, and this backward pass makes a graph of its own: leave out "
            "create_graph=True, or use fastgrpo_kernels.reference, which torch differentiates as often as asked"
        )
