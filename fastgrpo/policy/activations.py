"""Which layers keep what their backward pass needs, and which compute it again.

A layer that keeps its activations costs memory, one that recomputes them a second forward pass. `auto` measures what a
layer keeps, and recomputes as many as the free memory of a GPU asks for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from fastgrpo.config import ModelConfig, OptimizerConfig
from fastgrpo.models.attention import IMPLEMENTATIONS
from fastgrpo.models.decoder import decoder_of, layers_of
from fastgrpo.models.load import dropout_rates
from fastgrpo.models.packed_batch import PackedBatch
from fastgrpo.policy.packing import pack
from fastgrpo.ranks import Ranks
from fastgrpo.types import Prompt, Response, Sample

USABLE_SHARE = 0.85
"""Of the free memory: blocks of changing sizes leave gaps between them, and cuBLAS and NCCL take theirs later."""
IN_PROPORTION = {IMPLEMENTATIONS["varlen"], IMPLEMENTATIONS["flash_attn"]}
"""Attention whose memory grows with the tokens."""
_MEASURED_TOKENS = (256, 512)
_CHUNK_TOKENS = 4096  # of the LM head's op on a GPU, unless it is told another
_ITEMSIZE = 2  # of the compute dtype on a GPU


class _Policy(Protocol):
    model: PreTrainedModel

    def __call__(self, batch: PackedBatch, entropy: bool, op: Callable[..., Any]) -> Any: ...
    def parameters(self) -> Any: ...


def recompute_first(model: PreTrainedModel, count: int) -> None:
    """Lets the first ``count`` layers recompute: when their turn comes, the later ones have freed what they kept.

    transformers recomputes in training mode. Where a layer decides for itself, it alone is put into that mode, and its
    parts stay in evaluation. Elsewhere the whole model recomputes or nothing of it. Not for a model with dropout: a
    layer that draws by its own mode would make logprobs random.
    """
    if count == 0:
        return
    model.gradient_checkpointing_enable({"use_reentrant": False})
    if not _layers_decide(model):
        model.train()
        return
    model.eval()
    for i, layer in enumerate(layers_of(model)):
        layer.gradient_checkpointing = layer.training = i < count  # type: ignore[assignment]


def fit(policy: _Policy, ranks: Ranks, model: ModelConfig, optimizer: OptimizerConfig, loss_path: str = "fused") -> int:
    """The number of layers that recompute from now on, the same on every rank.

    For ``activation_checkpointing`` auto on a GPU, after everything else that stays in memory is there: by what a layer
    keeps and what is free. All layers, where what they keep is not in proportion to the tokens (attention that pads or
    has a mask of all token pairs, logits of a whole micro-batch); none of a model with dropout, or whose layers do not
    decide for themselves. All ranks must take part.
    """
    layers = len(layers_of(policy.model))
    if model.activation_checkpointing != "auto":
        return layers if model.activation_checkpointing else 0
    can = _layers_decide(policy.model) and not dropout_rates(policy.model.config)
    if ranks.device.type != "cuda" or not can:
        return 0
    count = layers
    if loss_path != "definition" and decoder_of(policy.model).config._attn_implementation in IN_PROPORTION:
        needs = Needs.of(policy, ranks, model, optimizer)
        count = needs.recomputed(layers, USABLE_SHARE * free_bytes(ranks.device))
    wanted = torch.tensor(count)
    dist.all_reduce(wanted, op=dist.ReduceOp.MAX, group=ranks.control)
    recompute_first(policy.model, int(wanted))
    return int(wanted)


def free_bytes(device: torch.device) -> int:
    """The free memory of a GPU, with what torch's allocator holds and nobody uses."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


@dataclass(frozen=True)
class Needs:
    """Bytes that an update takes beside the sharded weights."""

    layer: float  # kept by a layer for a micro-batch's backward pass
    layer_input: float  # all that a recomputing layer keeps
    fixed: float  # optimizer, gradients, gathered weights, LM head, and one layer's way back

    def recomputed(self, num_layers: int, free: float) -> int:
        """How many of the layers must recompute for the rest to fit; all of them if nothing does."""
        missing = self.fixed + num_layers * self.layer - free
        if missing <= 0:
            return 0
        if self.layer <= self.layer_input:
            return num_layers
        # From the first layer that recomputes on, one layer's activations are made anew in the backward pass.
        return min(num_layers, int(-(-(missing + self.layer) // (self.layer - self.layer_input))))

    @classmethod
    def of(cls, policy: _Policy, ranks: Ranks, model: ModelConfig, optimizer: OptimizerConfig) -> "Needs":
        """Measures with two short forward passes, in which all ranks take part, and counts from the shapes."""
        tokens, layers = optimizer.tokens_per_microbatch, layers_of(policy.model)
        (vocabulary, width), num_layers = policy.model.get_output_embeddings().weight.shape, len(layers)
        widest = max(size for p in layers.parameters() if p.dim() == 2 for size in p.shape)
        parameters = sum(p.numel() for p in policy.parameters())
        shard = parameters / ranks.mesh["shard"].size()
        if optimizer.reduce_every_microbatch:
            root = 2 * vocabulary * width
            gathered, gradients = root + 2 * (parameters - root) / num_layers, shard  # a layer, and the next one
        else:  # of earlier micro-batches whole; this one's gradients come while activations go
            gathered, gradients = parameters, parameters
        # The gradient of the head in float32 and in 16 bits, a chunk of its logits, and the hidden rows on both sides.
        chunk = model.head_chunk_tokens or _CHUNK_TOKENS
        head = (4 + _ITEMSIZE) * vocabulary * width + _ITEMSIZE * (chunk * vocabulary + 4 * tokens * width)
        way_back = 2 * tokens * _ITEMSIZE * widest
        return cls(
            layer=tokens * kept_bytes_per_token(policy, ranks.device) / num_layers,
            layer_input=tokens * _ITEMSIZE * width,
            fixed=8 * shard + 4 * gradients + _ITEMSIZE * gathered + head + way_back,
        )


def kept_bytes_per_token(policy: _Policy, device: torch.device) -> float:
    """What all layers together keep of a token for the backward pass: the slope between two short forward passes."""
    few, many = (_kept_bytes(policy, n, device) for n in _MEASURED_TOKENS)
    return (many - few) / (_MEASURED_TOKENS[1] - _MEASURED_TOKENS[0])


def _kept_bytes(policy: _Policy, num_tokens: int, device: torch.device) -> int:
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        whole = tensor._base if tensor._base is not None else tensor
        if not isinstance(whole, nn.Parameter):  # gathered weights come and go, and others take their place
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    def hidden_only(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden

    ids = np.zeros(num_tokens, dtype=np.int32)
    response = Response(ids, np.zeros(num_tokens, dtype=np.float32), "stop", 0)
    batch = pack([Sample(Prompt.of_ids(ids[:1]), response)]).to(device)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = policy(batch, False, hidden_only)
        output.sum().backward()  # so that sharded weights are let go as after every pass
    for parameter in policy.parameters():
        parameter.grad = None
    return sum(storages.values())


def _layers_decide(model: PreTrainedModel) -> bool:
    """Whether each layer recomputes or not by itself."""
    return all(isinstance(layer, GradientCheckpointingLayer) for layer in layers_of(model))
