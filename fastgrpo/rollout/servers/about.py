"""What a vLLM server is, and whether a run can sample with it."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

OLDEST = (0, 27)
"""The first vLLM that labels weights."""


@dataclass(frozen=True, kw_only=True)
class About:
    """A server's own account of itself (`fastgrpo.rollout.vllm.routes`)."""

    vllm: str  # version
    model: str  # path or name
    model_type: str
    vocabulary: int
    layers: int
    width: int
    dtype: str
    quantization: str  # empty: none
    max_model_len: int
    max_sequences: int
    logprobs_mode: str
    kv_cache_tokens: int
    tensor_parallel: int
    pipeline_parallel: int
    data_parallel: int
    backend: str  # of weight transfer; empty: none
    process: str  # of no other server

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_json(cls, value: dict[str, Any]) -> Self:
        """Raises TypeError where fields are missing or unknown: the server has another fastgrpo."""
        return cls(**value)

    @property
    def num_workers(self) -> int:
        """Processes that hold weights."""
        return self.tensor_parallel


@dataclass(frozen=True, kw_only=True)
class Needed:
    """What a run, or an evaluation, needs of a server."""

    model_type: str
    vocabulary: int
    layers: int
    width: int
    dtype: str  # empty: any
    sequence_tokens: int  # of the longest prompt with the longest response
    per_token_versions: bool  # whether weights change under what is being drawn
    model: str = ""  # path or name of the model that an evaluation draws from; empty: a run writes its weights

    @property
    def who(self) -> str:
        return "this evaluation" if self.model else "this run"


def why_not(server: About, needed: Needed) -> str:
    """What keeps a run or an evaluation from sampling with this server, and what to do; empty if nothing does."""
    who = needed.who
    if needed.model and not _are_one(server.model, needed.model):
        return f"it serves another model, {server.model}: {who} is of {needed.model}, start one that serves this"
    for name, what in (("model_type", "type"), ("vocabulary", "vocabulary"), ("layers", "layers"), ("width", "width")):
        theirs, ours = getattr(server, name), getattr(needed, name)
        if theirs != ours:
            return f"it serves another model, {server.model}: its {what} is {theirs}, {_whose(needed)} {ours}"
    if not needed.model and (why := _why_not_written(server)):
        return why
    if server.quantization or server.dtype != (needed.dtype or server.dtype):
        theirs, ours = server.quantization or server.dtype, needed.dtype or server.dtype
        return f"it computes in {theirs}, {who} needs {ours}: start it with --dtype {ours}"
    if server.max_model_len < needed.sequence_tokens:
        return (
            f"it takes sequences of {server.max_model_len} tokens, {who} needs {needed.sequence_tokens}: start it "
            f"with --max-model-len {needed.sequence_tokens}"
        )
    if 0 < server.kv_cache_tokens < needed.sequence_tokens:
        return (
            f"its cache holds {server.kv_cache_tokens} tokens, and one sequence of {who} may have "
            f"{needed.sequence_tokens}: give it more memory"
        )
    if _major_minor(server.vllm) < OLDEST:
        return f"vLLM {server.vllm} does not label weights: it must be {OLDEST[0]}.{OLDEST[1]} or later"
    if server.pipeline_parallel > 1 or server.data_parallel > 1:
        return "only tensor parallelism is supported inside a server: start several servers in place of one"
    if needed.per_token_versions and _major_minor(server.vllm) < (0, 32):
        return (
            f"vLLM {server.vllm} does not say which weights drew a token: --rollout.max_staleness above 1 needs vLLM "
            "0.32 or later"
        )
    return ""


def _why_not_written(server: About) -> str:
    """What keeps a run from writing its weights into this server, and from training on what it draws with them."""
    if server.backend != "fastgrpo":
        return (
            f"its weights cannot be written, its backend of weight transfer is {server.backend or 'none'}: start it "
            'with --weight-transfer-config \'{"backend": "fastgrpo"}\', or by `fastgrpo serve`'
        )
    if server.logprobs_mode.rpartition(".")[2].lower() != "processed_logprobs":
        return (
            f"its logprobs are {server.logprobs_mode}, not those at the sampling temperature: start it with "
            "--logprobs-mode processed_logprobs"
        )
    return ""


def _whose(needed: Needed) -> str:
    return "here it is" if needed.model else "the policy's"


def _are_one(theirs: str, ours: str) -> bool:
    """Whether two paths or names are of one model."""
    return theirs == ours or (Path(theirs).is_dir() and Path(theirs).resolve() == Path(ours).resolve())


def _major_minor(version: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", version)  # a build without a version calls itself dev
    return (int(match[1]), int(match[2])) if match else (0, 0)
