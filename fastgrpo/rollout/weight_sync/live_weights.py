"""The parameters of a live engine, addressed by checkpoint name."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastgrpo.rollout.weight_sync.checksum import checksum


class LayoutError(ValueError):
    """The engine's parameters do not have the layout that the sync would write; the message names one of them."""


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a checkpoint tensor, or of the part that this process holds, in the live parameters."""

    parameter: str  # name of the live parameter
    row: int  # its first row
    rows: tuple[int, int]  # of the checkpoint tensor that are held here
    columns: tuple[int, int] | None  # of the checkpoint tensor that are held here; None for a vector
    shape: tuple[int, ...]  # of the checkpoint tensor
    is_first: bool = True  # false if another process holds the same part and counts it in its checksums

    @property
    def is_whole(self) -> bool:
        return self.rows == (0, self.shape[0]) and (self.columns is None or self.columns == (0, self.shape[1]))

    def part_of(self, tensor: Tensor) -> Tensor:
        """The part of a checkpoint tensor that is held here, as a view."""
        part = tensor[slice(*self.rows)]
        return part if self.columns is None else part[:, slice(*self.columns)]


class LiveWeights:
    """Writes weights by checkpoint name into the storage of the live parameters, which never moves.

    ``after_write`` is called once after every write. If layers compute from copies of their weights, it makes the
    copies anew.

    Raises LayoutError if a place is outside its parameter, if two places overlap, or if an element of a parameter has
    no place and is not padding.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        places: Mapping[str, Place],
        after_write: Callable[[], None] = lambda: None,
        padding: Mapping[str, int] | None = None,  # rows at the end of a parameter that no checkpoint fills
    ) -> None:
        self.places = dict(places)
        self.views = {name: _view(name, parameters, place) for name, place in places.items()}
        self.after_write = after_write
        _require_covered(parameters, places, padding or {})

    @classmethod
    def of_modules(cls, model: nn.Module) -> "LiveWeights":
        """The live weights of a model whose parameters are the checkpoint's tensors, one to one."""
        parameters = {n: p.data for n, p in model.named_parameters()}
        places = {
            n: Place(n, 0, (0, len(p)), (0, p.shape[1]) if p.dim() > 1 else None, tuple(p.shape))
            for n, p in parameters.items()
        }
        return cls(parameters, places)

    @torch.no_grad()
    def write(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Copies whole checkpoint tensors, or the parts held here, into the live parameters.

        Raises KeyError for an unknown name and ValueError for another shape.
        """
        for name, value in weights:
            place = self.places[name]
            if tuple(value.shape) != place.shape:
                raise ValueError(f"{name} must have shape {list(place.shape)}, got {list(value.shape)}")
            self.views[name].copy_(place.part_of(value))
        self.after_write()

    def checksums(self) -> dict[str, int]:
        """Checksums of the parts held here, by checkpoint name; the sum over processes is that of the whole tensor."""
        return {
            name: checksum(
                self.views[name],
                place.rows[0],
                place.columns[0] if place.columns else 0,
                place.shape[1] if place.columns else None,
            )
            for name, place in self.places.items()
            if place.is_first
        }


def _view(name: str, parameters: Mapping[str, Tensor], place: Place) -> Tensor:
    parameter = parameters[place.parameter]
    held = place.rows[1] - place.rows[0]
    view = parameter[place.row : place.row + held]
    wanted = (held,) if place.columns is None else (held, place.columns[1] - place.columns[0])
    if tuple(view.shape) != wanted or not view.is_contiguous():
        raise LayoutError(
            f"{name}: rows {place.row}..{place.row + held} of the engine's {place.parameter} must be a contiguous "
            f"{list(wanted)}, it is {list(parameter.shape)} with strides {list(parameter.stride())}"
        )
    return view


def _require_covered(parameters: Mapping[str, Tensor], places: Mapping[str, Place], padding: Mapping[str, int]) -> None:
    covered: dict[str, list[tuple[int, int]]] = {name: [] for name in parameters}
    for place in places.values():
        covered[place.parameter].append((place.row, place.row + place.rows[1] - place.rows[0]))
    for name, ranges in covered.items():
        end = 0
        for start, stop in sorted(ranges):
            if start != end:
                raise LayoutError(f"rows {end}..{start} of the engine's {name} belong to no weight or to two")
            end = stop
        if end + padding.get(name, 0) != len(parameters[name]):
            raise LayoutError(f"rows {end}..{len(parameters[name])} of the engine's {name} belong to no weight")
