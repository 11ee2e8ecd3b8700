"""The places of a checkpoint's tensors in vLLM's parameters: fused and sharded linear layers, padded embeddings,
experts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from fastgrpo.rollout.weight_sync.live_weights import LayoutError, Place


@dataclass
class Layout:
    """Places by checkpoint name, and the rows of a parameter that no checkpoint fills."""

    places: dict[str, Place] = field(default_factory=dict)
    padding: dict[str, int] = field(default_factory=dict)
    others: dict[str, dict[str, Place]] = field(default_factory=dict)  # places under other names, by the first name


def weight_layout(model: nn.Module, renamed: Callable[[str], str] = lambda name: name) -> Layout:
    """The layout of an unquantised vLLM model.

    Checkpoint names are vLLM's own names, except in fused layers, whose members ``packed_modules_mapping`` names, and
    of experts, which have transformers 5's names; ``renamed`` makes transformers' names of vLLM's. vLLM's names, and
    those of single experts, stay possible. Raises LayoutError for a layer whose layout is not known.
    """
    fused: dict[str, list[str]] = getattr(model, "packed_modules_mapping", {})
    layout = Layout()
    seen: set[int] = set()
    rank = max((getattr(m, "tp_rank", 0) for m in model.modules()), default=0)
    for prefix, module in model.named_modules():
        if "MLAAttention" in {c.__name__ for c in type(module).__mro__}:
            raise LayoutError(f"{prefix}: latent attention computes from products of its weights that vLLM makes once")
        is_whole = _num_shards(module) == 1  # every process holds it whole, and the first counts it
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if id(parameter) not in seen:  # a tied head is the embedding
                seen.add(id(parameter))
                for member, place in _places(layout, module, prefix, name, parameter.data, fused):
                    layout.places[member] = replace(place, is_first=place.is_first and not (is_whole and rank > 0))
    return _with_names(layout, renamed)


def _num_shards(module: Any) -> int:
    of_experts = getattr(module, "moe_config", None)
    return getattr(module, "tp_size", 1) if of_experts is None else of_experts.moe_parallel_config.tp_size


def _with_names(layout: Layout, renamed: Callable[[str], str]) -> Layout:
    """The layout under transformers' names, with vLLM's as others."""
    for name in list(layout.places):
        if (new := renamed(name)) != name:
            place = layout.places[new] = layout.places.pop(name)
            layout.others[new] = layout.others.pop(name) if name in layout.others else {name: place}
    return layout


def _places(
    layout: Layout, module: Any, prefix: str, name: str, parameter: Tensor, fused: dict[str, list[str]]
) -> Iterator[tuple[str, Place]]:
    """The checkpoint tensors that a parameter holds: their names and places."""
    kinds = {c.__name__ for c in type(module).__mro__}
    leaf = name.rpartition(".")[2]
    if "RoutedExperts" in kinds and leaf in ("w13_weight", "w2_weight"):
        yield _experts(layout, module, prefix, name, parameter)
        return
    if parameter.dim() > 2 or leaf not in ("weight", "bias"):
        raise LayoutError(f"{name} {list(parameter.shape)} of {type(module).__name__} is no weight that can be written")
    if "QKVParallelLinear" in kinds:
        parts = _heads(module)
    elif "MergedColumnParallelLinear" in kinds:
        parts = list(_merged(module))
    else:
        yield name, _single(layout, module, kinds, name, parameter)
        return
    parent, _, own = prefix.rpartition(".")
    members = fused.get(own)
    if members is None or len(members) != len(parts):
        raise LayoutError(
            f"{name}: the members of the fused layer {own} are not known, {members} for {len(parts)} parts"
        )
    row = 0
    for member, (rows, total, is_first) in zip(members, parts, strict=True):
        yield f"{parent}.{member}.{leaf}", _rows_of(name, row, rows, total, parameter, is_first)
        row += rows[1] - rows[0]


AS_THEY_ARE = ("TRITON", "BATCHED_TRITON", "CPU")
"""vLLM's kernels for experts whose parameters keep the order of the checkpoint."""


def _experts(layout: Layout, module: Any, prefix: str, name: str, parameter: Tensor) -> tuple[str, Place]:
    """The place of all experts' gate and up weights, or of their down weights, as transformers 5 has them: one tensor.
    Experts one by one, as the hub has them, are noted among the others."""
    settings = module.moe_config
    parallel, count = settings.moe_parallel_config, settings.num_logical_experts
    rank, size = parallel.tp_rank, parallel.tp_size
    backend = getattr(getattr(module.quant_method, "unquantized_backend", None), "name", "quantised")
    width, hidden = settings.intermediate_size_per_partition_unpadded, settings.hidden_dim_unpadded
    is_up = name.endswith("w13_weight")
    wanted = (count, 2 * width, hidden) if is_up else (count, hidden, width)
    knows = backend in AS_THEY_ARE and not module.is_fused_checkpoint_transposed and not parallel.use_ep
    if not knows or tuple(parameter.shape) != wanted:
        raise LayoutError(
            f"{name} {list(parameter.shape)}: experts of vLLM's kernel {backend} can be written in place as "
            f"{list(wanted)}, on every rank, in the order of the checkpoint"
        )
    experts, held = prefix.removesuffix(".routed_experts"), (rank * width, (rank + 1) * width)
    if is_up:
        members = {module.ckpt_gate_proj_name: 0, module.ckpt_up_proj_name: width}
        each = {
            f"{experts}.{i}.{member}.weight": Place(
                name, i * 2 * width + start, held, (0, hidden), (size * width, hidden)
            )
            for i in range(count)
            for member, start in members.items()
        }
        shape = (count, 2 * width * size, hidden)
        whole = Place(name, 0, held, (0, hidden), shape, blocks=2 * count)
    else:
        each = {
            f"{experts}.{i}.{module.ckpt_down_proj_name}.weight": Place(
                name, i * hidden, (0, hidden), held, (hidden, size * width)
            )
            for i in range(count)
        }
        whole = Place(name, 0, (0, count * hidden), held, (count, hidden, width * size))
    fused = f"{experts}.{'gate_up_proj' if is_up else 'down_proj'}"
    layout.others[fused] = each
    return fused, Place.whole(name, whole.shape) if size == 1 else whole


Part = tuple[tuple[int, int], int, bool]
"""Rows of a checkpoint tensor, how many it has, and whether this process is the first that holds them."""


def _heads(module: Any) -> list[Part]:
    """The parts of a fused query, key and value layer. If there are more ranks than key heads, they share key heads."""
    queries, keys = module.num_heads * module.head_size, module.num_kv_heads * module.head_size
    replicas = module.num_kv_head_replicas
    group, copy = divmod(module.tp_rank, replicas)
    total_keys = module.total_num_kv_heads * module.head_size
    q = ((module.tp_rank * queries, (module.tp_rank + 1) * queries), module.total_num_heads * module.head_size, True)
    k = ((group * keys, (group + 1) * keys), total_keys, copy == 0)
    return [q, k, k]


def _merged(module: Any) -> Iterator[Part]:
    for total in module.output_sizes:
        size = total // module.tp_size
        yield (module.tp_rank * size, (module.tp_rank + 1) * size), total, True


def _single(layout: Layout, module: Any, kinds: set[str], name: str, parameter: Tensor) -> Place:
    if "VocabParallelEmbedding" in kinds:
        start, stop = module.shard_indices.org_vocab_start_index, module.shard_indices.org_vocab_end_index
        layout.padding[name] = len(parameter) - (stop - start)
        return _rows_of(name, 0, (start, stop), module.org_vocab_size, parameter, True)
    rank, size = getattr(module, "tp_rank", 0), getattr(module, "tp_size", 1)
    if "ColumnParallelLinear" in kinds:
        rows = len(parameter)
        return _rows_of(name, 0, (rank * rows, (rank + 1) * rows), rows * size, parameter, True)
    if "RowParallelLinear" in kinds and parameter.dim() == 2:
        rows, columns = parameter.shape
        held = (rank * columns, (rank + 1) * columns)
        return Place(name, 0, (0, rows), held, (rows, columns * size))
    return _rows_of(name, 0, (0, len(parameter)), len(parameter), parameter, rank == 0 or size == 1)


def _rows_of(name: str, row: int, rows: tuple[int, int], total: int, parameter: Tensor, is_first: bool) -> Place:
    if parameter.dim() == 1:
        return Place(name, row, rows, None, (total,), is_first)
    return Place(name, row, rows, (0, parameter.shape[1]), (total, parameter.shape[1]), is_first)
