"""What the sampler knows between two steps: which prompts come next, and responses that no step has taken yet."""

from pathlib import Path
from typing import Any

from fastgrpo.codec import decode, encode
from fastgrpo.codec.conforms import conforms
from fastgrpo.types import Response

ROLLOUTS = "rollouts.codec"

_FIELDS = {
    "next_position": int,
    "put_back": list[int],
    # (position, policy version, whether a step waits for it, responses by their index in the group)
    "under_way": list[tuple[int, int, bool, dict[int, Response]]],
}


def save_rollouts(partial: Path, state: dict[str, Any]) -> None:
    """Writes the state of `Rollouts` into a checkpoint that is being written."""
    (partial / ROLLOUTS).write_bytes(encode(state))


def read_rollouts(path: Path) -> dict[str, Any]:
    """The state that was saved. Raises ValueError if the file holds another thing."""
    state = decode((path / ROLLOUTS).read_bytes(), [Response])
    if not isinstance(state, dict) or not {"next_position", "put_back"} <= state.keys() <= _FIELDS.keys():
        raise ValueError(f"{path / ROLLOUTS} does not hold {', '.join(_FIELDS)}")
    for name, value in state.items():
        if not conforms(value, _FIELDS[name]):
            raise ValueError(f"{path / ROLLOUTS}: {name} must be {_FIELDS[name]}, got a {type(value).__name__}")
    return state
