"""What torch asks of an op: schema, fake tensors, autograd, torch.compile, autocast, sharded weights."""

from importlib import import_module

import pytest
import torch
from fastgrpo_kernels import (
    Objective,
    group_advantages,
    grpo_loss,
    linear_grpo,
    linear_logprobs,
    logprobs_from_logits,
)

from tests.kernels.cases import OBJECTIVES, make_case, value_and_gradients

OBJECTIVE = Objective(kl_coef=0.1, entropy_coef=0.1)
NUMBERS = OBJECTIVE.encode()


def leaf(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)), requires_grad=True)


def op_inputs():
    """Arguments of each custom op as its public function passes them."""
    hidden, weight, bias, ids = leaf(6, 4), leaf(9, 4), leaf(9), torch.tensor([0, 3, 8, 1, 1, 5])
    field, mask, count = torch.rand(6), torch.tensor([True] * 5 + [False]), torch.tensor(5.0)
    row = (torch.rand(6), torch.rand(6), torch.rand(6))
    return {
        "linear_logprobs": (hidden, weight, bias, ids, 0.7, None, 0.0, 4, True),
        "linear_logprobs_backward": (
            hidden.detach(), weight.detach(), bias.detach(), ids, 0.7, None, 0.0, 4, *row[:2], field, None,
            True, True, True,
        ),
        "linear_grpo": (
            hidden, weight, bias, ids, 0.7, None, 0.0, 4, field, field, mask, field, None, None, None, count, NUMBERS,
            True, True, True, True,
        ),
        "grpo_loss": (leaf(6), leaf(6), field, field, mask, field, None, None, None, count, NUMBERS),
        "group_advantages": (torch.rand(6), None, 3, False, "group", 1e-6),
        "logprobs_from_logits": (leaf(6, 9), ids, 0.7, None, 0.0, True, False),
        "logprobs_from_logits_backward": (
            torch.randn(6, 9), ids, 0.7, None, 0.0, *row, field, field, torch.empty(6, 9),
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", op_inputs())
def test_torch_finds_nothing_wrong_with_the_op(name):
    torch.library.opcheck(getattr(torch.ops.fastgrpo, name).default, op_inputs()[name])


@pytest.mark.parametrize("name", ["sapo", "dppo_tv", "dppo_kl", "gmpo", "gspo"])
def test_torch_finds_nothing_wrong_with_any_objective(name):
    _, entropy, *fields, count, _ = op_inputs()["grpo_loss"]
    fields[-1] = torch.tensor([0, 2, 6]) if OBJECTIVES[name].needs_whole_responses else None
    op = torch.ops.fastgrpo.grpo_loss.default
    torch.library.opcheck(op, (leaf(6), entropy.detach(), *fields, count, OBJECTIVES[name].encode()))


def test_every_op_of_the_library_is_checked():
    """Fails for a new op until `op_inputs` has it."""
    registered = {
        schema.name.split("::")[1] for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("fastgrpo::")
    }
    assert registered == op_inputs().keys()


def step(hidden, weight, ids, rewards, old_logprobs):
    advantages = group_advantages(rewards, 3).repeat_interleave(5)
    fused = linear_grpo(hidden, weight, ids, old_logprobs, advantages, None, 30, OBJECTIVE, ref_logprobs=old_logprobs)
    logprobs, entropy = linear_logprobs(hidden, weight, ids, entropy=True)
    separate = grpo_loss(
        logprobs, old_logprobs, advantages, None, 30, OBJECTIVE, entropy=entropy, ref_logprobs=old_logprobs
    )
    from_logits, _ = logprobs_from_logits(hidden @ weight.T, ids)
    return fused.loss + separate.loss + from_logits.sum()


@pytest.mark.parametrize("dynamic", [False, True])
def test_torch_compile_takes_all_ops_in_one_graph(dynamic):
    torch._dynamo.reset()
    ids, rewards = torch.randint(50, (30,)), torch.randn(6)
    hidden, weight, old = leaf(30, 8), leaf(50, 8), -torch.rand(30)
    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    results = []
    for function in (step, compiled):
        hidden.grad = weight.grad = None
        loss = function(hidden, weight, ids, rewards, old)
        loss.backward()
        results.append((loss.detach(), hidden.grad, weight.grad))
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, eager)


def test_a_constant_of_the_objective_that_changes_compiles_no_more_than_once_each():
    """The constants are data of the graph, not of the kernels."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()

    @torch.compile(fullgraph=True, backend=counter)
    def loss(logprobs, advantages):
        return grpo_loss(logprobs, None, advantages, None, 5, Objective(clip_high=0.3)).loss

    for _ in range(3):
        loss(leaf(5), torch.rand(5))
    assert counter.frame_count == 1


def test_autocast_casts_the_head_as_a_linear_layer_would():
    case = make_case(20, 16, 65).to(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = value_and_gradients(case, lambda c: c.ours(Objective()).loss)
    rounded = case.to(torch.bfloat16)
    explicit = value_and_gradients(rounded, lambda c: c.ours(Objective()).loss)
    assert torch.equal(under[0], explicit[0])
    for gradient, expected in zip(under[1:], explicit[1:], strict=True):
        assert gradient.dtype == torch.float32 and torch.equal(gradient, expected.float())


def test_a_sharded_weight_is_refused_and_one_inside_fsdps_root_is_not(tmp_path):
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(65, 16)
            self.head = torch.nn.Linear(16, 65, bias=False)

        def forward(self, ids, advantages):
            return linear_grpo(self.embedding(ids), self.head.weight, ids, None, advantages, None, len(ids)).loss

    ids, advantages = torch.randint(65, (20,)), torch.randn(20)
    plain = Model()
    plain(ids, advantages).backward()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        sharded = Model()
        sharded.load_state_dict(plain.state_dict())
        fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(ValueError, match="weight is a DTensor"):
            linear_grpo(torch.zeros(20, 16), sharded.head.weight, ids, None, advantages, None, 20)
        sharded(ids, advantages).backward()
        for name, parameter in sharded.named_parameters():
            torch.testing.assert_close(parameter.grad.full_tensor(), plain.get_parameter(name).grad)
    finally:
        dist.destroy_process_group()


def test_no_tensor_of_all_tokens_by_vocabulary_exists():
    """Looks at the tensors of every operation that the implementations of both passes run."""
    grpo, logprobs = (import_module(f"fastgrpo_kernels.{name}") for name in ("linear_grpo", "linear_logprobs"))
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for tensor in torch.utils._pytree.tree_leaves((args, result)):
                largest = max(largest, tensor.numel() if isinstance(tensor, torch.Tensor) else 0)
            return result

    ids, field, count = torch.randint(101, (256,)), torch.rand(256), torch.tensor(256.0)
    hidden, weight = torch.randn(256, 8), torch.randn(101, 8)
    with Watch():
        made = logprobs._forward._init_fn(hidden, weight, None, ids, 1.0, None, 0.0, 32, True)
        logprobs._backward._init_fn(
            hidden, weight, None, ids, 1.0, None, 0.0, 32, *made[:2], field, field, True, True, False
        )
        grpo._linear_grpo._init_fn(
            hidden, weight, None, ids, 1.0, None, 0.0, 32, field, field, None, None, None, None, None, count,
            Objective().encode(), True, True, True, False,
        )  # fmt: skip
    assert largest == 32 * 101
