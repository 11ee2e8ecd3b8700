"""What a server drew for one request, as it goes over HTTP: eight bytes a token."""

import json
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

ID, LOGPROB = np.dtype("<i4"), np.dtype("<f4")
SIZE_BYTES = 4


@dataclass(frozen=True, slots=True)
class Drawn:
    """One response, in a server's own terms."""

    finish_reason: str | None  # as vLLM names it
    ids: np.ndarray  # [num_tokens] int32
    logprobs: np.ndarray | None  # [num_tokens] float32; None: not asked for
    spans: tuple[tuple[int, str], ...] = ()  # (place, label): from this token on, these weights; empty: not known

    def to_bytes(self) -> bytes:
        """The header's size, the header in JSON, the ids, the logprobs."""
        if self.logprobs is not None:
            assert len(self.logprobs) == len(self.ids), f"{len(self.logprobs)} logprobs for {len(self.ids)} tokens"
        header = json.dumps(
            {
                "finish_reason": self.finish_reason,
                "num_tokens": len(self.ids),
                "has_logprobs": self.logprobs is not None,
                "spans": self.spans,
            }
        ).encode()
        logprobs = b"" if self.logprobs is None else self.logprobs.astype(LOGPROB).tobytes()
        return b"".join((len(header).to_bytes(SIZE_BYTES, "little"), header, self.ids.astype(ID).tobytes(), logprobs))

    @classmethod
    def of_bytes(cls, body: bytes) -> Self:
        """Raises ValueError for anything but the bytes of one response."""
        header, start = _header(body)
        try:
            count, has_logprobs = int(header["num_tokens"]), bool(header["has_logprobs"])
            spans = tuple((int(place), str(label)) for place, label in header["spans"])
            finish_reason = header["finish_reason"]
        except (LookupError, OverflowError, TypeError) as error:
            raise ValueError(f"its header lacks something: {error!r}") from error
        middle = start + count * ID.itemsize
        end = middle + count * LOGPROB.itemsize * has_logprobs
        if len(body) != end or count < 0:
            raise ValueError(f"it has {len(body)} bytes, and {end} by its header")
        ids = np.frombuffer(body, ID, count, start).astype(np.int32)
        logprobs = np.frombuffer(body, LOGPROB, count, middle).astype(np.float32) if has_logprobs else None
        return cls(finish_reason, ids, logprobs, spans)


def _header(body: bytes) -> tuple[dict[str, Any], int]:
    """The header, and where it ends."""
    end = SIZE_BYTES + int.from_bytes(body[:SIZE_BYTES], "little")
    try:
        header = json.loads(body[SIZE_BYTES:end])
    except ValueError as error:
        raise ValueError(f"it has no header: {error}") from error
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    return header, end
