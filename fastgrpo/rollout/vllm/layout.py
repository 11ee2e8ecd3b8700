"""The places of a checkpoint's tensors in vLLM's parameters: fused and sharded linear layers, padded embeddings."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from fastgrpo.rollout.weight_sync.live_weights import LayoutError, Place


@dataclass
class Layout:
    """Places by checkpoint name, and the rows of a parameter that no checkpoint fills."""

    places: dict[str, Place] = field(default_factory=dict)
    padding: dict[str, int] = field(default_factory=dict)


def layout_of(model: nn.Module) -> Layout:
    """The layout of an unquantised vLLM model.

    Checkpoint names are vLLM's own names, except in fused layers, whose members ``packed_modules_mapping`` names.
    Raises LayoutError for a layer whose layout is not known.
    """
    fused: dict[str, list[str]] = getattr(model, "packed_modules_mapping", {})
    layout = Layout()
    seen: set[int] = set()
    rank = max((getattr(m, "tp_rank", 0) for m in model.modules()), default=0)
    for prefix, module in model.named_modules():
        is_whole = getattr(module, "tp_size", 1) == 1  # every process holds it whole, and the first counts it
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if id(parameter) not in seen:  # a tied head is the embedding
                seen.add(id(parameter))
                for member, place in _places(layout, module, prefix, name, parameter.data, fused):
                    layout.places[member] = replace(place, is_first=place.is_first and not (is_whole and rank > 0))
    return layout


def _places(
    layout: Layout, module: Any, prefix: str, name: str, parameter: Tensor, fused: dict[str, list[str]]
) -> Iterator[tuple[str, Place]]:
    """The checkpoint tensors that a parameter holds: their names and places."""
    kinds = {c.__name__ for c in type(module).__mro__}
    leaf = name.rpartition(".")[2]
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
