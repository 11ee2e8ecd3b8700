"""The parameters of a live engine, addressed by checkpoint name."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastgrpo.rollout.weight_sync.checksum import checksum, wrapped


class LayoutError(ValueError):
    """The engine's parameters do not have the layout that the sync would write; the message names one of them."""


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a checkpoint tensor, or of the part that this process holds, in the live parameters.

    A tensor's columns are its last dimension, its rows all others together; a vector is rows alone. Rows may be in
    blocks, of each of which the same rows are held: gate and up weights of many experts, for example.
    """

    parameter: str  # name of the live parameter
    row: int  # its first row
    rows: tuple[int, int]  # of each block of the checkpoint tensor that are held here
    columns: tuple[int, int] | None  # of the checkpoint tensor that are held here; None for a vector
    shape: tuple[int, ...]  # of the checkpoint tensor
    is_first: bool = True  # false if another process holds the same part and counts it in its checksums
    blocks: int = 1

    @classmethod
    def whole(cls, parameter: str, shape: tuple[int, ...]) -> "Place":
        """That of a tensor that is a live parameter."""
        return cls(parameter, 0, (0, _num_rows(shape)), (0, shape[-1]) if len(shape) > 1 else None, shape)

    @property
    def num_rows(self) -> int:
        """The rows that are held."""
        return self.blocks * (self.rows[1] - self.rows[0])

    @property
    def block_rows(self) -> int:
        """The rows of a block of the checkpoint tensor."""
        return _num_rows(self.shape) // self.blocks

    @property
    def is_whole(self) -> bool:
        return self.rows == (0, self.block_rows) and (self.columns is None or self.columns == (0, self.shape[-1]))

    def part_of(self, tensor: Tensor) -> Tensor:  # [rows], [rows, columns] or [blocks, rows, columns]
        """The part of a checkpoint tensor that is held here, as a view."""
        part = self._in_blocks(_as_rows(tensor))
        part = part[..., slice(*self.rows)] if self.columns is None else part[..., slice(*self.rows), :]
        return part if self.columns is None else part[..., slice(*self.columns)]

    def view_of(self, parameter: Tensor) -> Tensor:
        """The same part in the live parameter, in the same shape."""
        return self._in_blocks(_as_rows(parameter)[self.row : self.row + self.num_rows])

    def _in_blocks(self, rows: Tensor) -> Tensor:
        return rows if self.blocks == 1 else rows.unflatten(0, (self.blocks, -1))

    def checksum(self, view: Tensor) -> int:
        """What the part in this view adds to the checksum of the whole tensor."""
        column, width = (0, None) if self.columns is None else (self.columns[0], self.shape[-1])
        blocks = [view] if self.blocks == 1 else view.unbind()
        first = (self.rows[0] + i * self.block_rows for i in range(self.blocks))
        return wrapped(sum(checksum(part, row, column, width) for part, row in zip(blocks, first, strict=True)))


class LiveWeights:
    """Writes weights by checkpoint name into the storage of the live parameters, which never moves.

    ``after_write`` is called once after every write. If layers compute from copies of their weights, it makes the
    copies anew.

    ``others`` are names under which a trainer may write parts of a tensor in its stead, such as the experts one by one.
    Checksums are those of ``places``.

    Raises LayoutError if a place is outside its parameter, if two places overlap, or if an element of a parameter has
    no place and is not padding.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        places: Mapping[str, Place],
        after_write: Callable[[], None] = lambda: None,
        padding: Mapping[str, int] | None = None,  # rows at the end of a parameter that no checkpoint fills
        others: Mapping[str, Mapping[str, Place]] | None = None,  # by the name of the whole tensor
    ) -> None:
        self.places, self.others = dict(places), dict(others or {})
        self.writable = {**self.places, **{n: p for parts in self.others.values() for n, p in parts.items()}}
        self.views = {name: _view(name, parameters, place) for name, place in self.writable.items()}
        self.after_write = after_write
        _require_covered(parameters, places, padding or {})

    @classmethod
    def of_modules(cls, model: nn.Module) -> "LiveWeights":
        """The live weights of a model whose parameters are the checkpoint's tensors, one to one."""
        parameters = {n: p.data for n, p in model.named_parameters()}
        return cls(parameters, {n: Place.whole(n, tuple(p.shape)) for n, p in parameters.items()})

    def names_for(self, given: Collection[str]) -> set[str]:
        """The names that a trainer must write all of, if it writes some of these."""
        wanted = set(self.places)
        for name, parts in self.others.items():
            if name not in given and not parts.keys().isdisjoint(given):
                wanted = wanted - {name} | parts.keys()
        return wanted

    @torch.no_grad()
    def write(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Copies whole checkpoint tensors, or the parts held here, into the live parameters.

        Raises KeyError for an unknown name and ValueError for another shape.
        """
        for name, value in weights:
            place = self.writable[name]
            if tuple(value.shape) != place.shape:
                raise ValueError(f"{name} must have shape {list(place.shape)}, got {list(value.shape)}")
            self.views[name].copy_(place.part_of(value))
        self.after_write()

    def checksums(self) -> dict[str, int]:
        """Checksums of the parts held here, by checkpoint name; the sum over processes is that of the whole tensor."""
        return {name: place.checksum(self.views[name]) for name, place in self.places.items() if place.is_first}


def _num_rows(shape: tuple[int, ...]) -> int:
    return math.prod(shape[:-1]) if len(shape) > 1 else math.prod(shape)


def _as_rows(tensor: Tensor) -> Tensor:  # [rows] or [rows, columns], a view
    if tensor.dim() == 2:
        return tensor
    return tensor.view(-1) if tensor.dim() < 2 else tensor.view(-1, tensor.shape[-1])


def _view(name: str, parameters: Mapping[str, Tensor], place: Place) -> Tensor:
    parameter = parameters[place.parameter]
    num_columns = parameter.shape[-1] if parameter.dim() > 1 else None
    wanted = None if place.columns is None else place.columns[1] - place.columns[0]
    fits = num_columns == wanted and place.row + place.num_rows <= _num_rows(tuple(parameter.shape))
    if not (fits and parameter.is_contiguous()):
        held = [place.num_rows] if wanted is None else [place.num_rows, wanted]
        raise LayoutError(
            f"{name}: rows {place.row}..{place.row + place.num_rows} of the engine's {place.parameter} must be a "
            f"contiguous {held}, it is {list(parameter.shape)} with strides {list(parameter.stride())}"
        )
    return place.view_of(parameter)


def _require_covered(parameters: Mapping[str, Tensor], places: Mapping[str, Place], padding: Mapping[str, int]) -> None:
    covered: dict[str, list[tuple[int, int]]] = {name: [] for name in parameters}
    for place in places.values():
        covered[place.parameter].append((place.row, place.row + place.num_rows))
    for name, ranges in covered.items():
        end = 0
        for start, stop in sorted(ranges):
            if start != end:
                raise LayoutError(f"rows {end}..{start} of the engine's {name} belong to no weight or to two")
            end = stop
        num_rows = _num_rows(tuple(parameters[name].shape))
        if end + padding.get(name, 0) != num_rows:
            raise LayoutError(f"rows {end}..{num_rows} of the engine's {name} belong to no weight")
