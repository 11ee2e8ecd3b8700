"""The built-in engine: a decode loop over a transformers model, for any device and without vLLM."""

import sys
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from fastgrpo_kernels import linear_logits
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from fastgrpo.models.decoder import decoder_of
from fastgrpo.models.head import Head, measure_head
from fastgrpo.models.layout import held_by, hold_layout
from fastgrpo.rollout.builtin.kv_cache import Prefill, SlotCache, on_device
from fastgrpo.rollout.builtin.sampling import sample
from fastgrpo.rollout.sampling_noise import stream_keys
from fastgrpo.rollout.weight_sync import LiveWeights
from fastgrpo.types import Request, Response, Sampling

RECOMPUTED_TOKENS = 16384
"""Tokens whose keys and values are computed anew in one pass after the weights changed."""


class BuiltinEngine:
    """Decodes in continuous batches. A group's prompt is prefilled once; finished sequences leave, waiting ones enter.

    ``model`` must have been loaded with ``attn_implementation=kv_cache.ATTENTION``; its weights are the engine's own.
    ``kv_on_sync`` says what becomes of the keys and values of running responses when weights are written.
    """

    not_in_place = ""

    def __init__(
        self, model: PreTrainedModel, max_sequences: int, kv_on_sync: Literal["recompute", "keep"] = "recompute"
    ) -> None:
        self.model, self.head = model.eval(), measure_head(model)
        hold_layout(model)
        self.max_sequences = max_sequences
        self.kv_on_sync = kv_on_sync
        self.policy_version = 0
        self.weights = LiveWeights.of_modules(model)
        self._decodings: dict[Sampling, _Decoding] = {}

    def submit(self, requests: Sequence[Request]) -> None:
        for request in requests:
            if request.sampling not in self._decodings:
                self._decodings[request.sampling] = _Decoding(
                    self.model, self.head, request.sampling, self.max_sequences
                )
            self._decodings[request.sampling].waiting.append(request)

    @torch.inference_mode()
    def step(self) -> list[tuple[int, Response]]:
        finished = []
        for sampling, decoding in list(self._decodings.items()):
            finished += decoding.step(self.policy_version)
            if not decoding.is_unfinished():
                del self._decodings[sampling]
        return finished

    @torch.inference_mode()
    def cancel(self, ids: Iterable[int]) -> None:
        ids = set(ids)
        for sampling, decoding in list(self._decodings.items()):
            decoding.cancel(ids)
            if not decoding.is_unfinished():
                del self._decodings[sampling]

    def is_unfinished(self) -> bool:
        return bool(self._decodings)

    def write_weights(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
        self.weights.write(weights)
        self.weights_changed(policy_version)

    @torch.inference_mode()
    def weights_changed(self, policy_version: int) -> None:
        self.policy_version = policy_version
        for decoding in self._decodings.values():
            decoding.weights_changed(policy_version, recompute=self.kv_on_sync == "recompute")

    def checksums(self) -> dict[str, int]:
        return self.weights.checksums()

    def release_memory(self) -> None:
        """Does nothing: the cache went with the last response."""

    def close(self) -> None:
        self._decodings.clear()


def affordable_sequences(bytes_per_token: float, longest: int, device: torch.device) -> int:
    """Sequences of ``longest`` tokens whose keys and values fit into 0.7 of the free memory of a GPU; at least 1."""
    if device.type != "cuda":
        return sys.maxsize
    unused_by_torch = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + unused_by_torch
    return max(1, int(0.7 * free / (bytes_per_token * longest)))


@dataclass(slots=True)
class _Slots:
    """What is being drawn, by slot: the first axis of every tensor."""

    keys: Tensor  # int64, of the noise
    last_ids: Tensor  # int64, sampled and not yet read by the model
    ids: Tensor  # [slots, max_response_tokens] int32
    logprobs: Tensor  # [slots, max_response_tokens] float32
    entropies: Tensor  # float32, summed over the response
    lengths: Tensor  # int64, tokens drawn

    @classmethod
    def empty(cls, max_response_tokens: int, device: torch.device) -> "_Slots":
        def zeros(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.zeros((0, *shape), dtype=dtype, device=device)

        return cls(
            keys=zeros(torch.int64),
            last_ids=zeros(torch.int64),
            ids=zeros(torch.int32, max_response_tokens),
            logprobs=zeros(torch.float32, max_response_tokens),
            entropies=zeros(torch.float32),
            lengths=zeros(torch.int64),
        )

    def keep(self, slots: Tensor) -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[slots])

    def extend(self, count: int) -> None:
        for field in fields(self):
            old = getattr(self, field.name)
            setattr(self, field.name, F.pad(old, (0, 0) * (old.dim() - 1) + (0, count)))


class _Decoding:
    """Slots that decode, each for a request, and requests that wait; all are drawn alike."""

    def __init__(self, model: PreTrainedModel, head: Head, sampling: Sampling, max_sequences: int) -> None:
        self.model, self.head, self.sampling, self.max_sequences = model, head, sampling, max_sequences
        self.device = next(model.parameters()).device
        self.stop_ids = torch.tensor(sampling.stop_token_ids, device=self.device, dtype=torch.int64)
        self.waiting: deque[Request] = deque()
        self.cache = SlotCache(0)
        self.slots = _Slots.empty(sampling.max_response_tokens, self.device)
        self.requests: list[Request | None] = []  # of each slot
        self.versions: list[list[tuple[int, int]]] = []  # of each slot: (place, policy version) of each change
        self.busy = np.zeros(0, dtype=bool)  # [slots]
        self.drawn = np.zeros(0, dtype=np.int64)  # [slots] tokens drawn, as `slots.lengths` has it on the device

    def is_unfinished(self) -> bool:
        return bool(self.waiting) or bool(self.busy.any())

    def step(self, policy_version: int) -> list[tuple[int, Response]]:
        finished = self._admit_waiting(policy_version)
        finished += self._decode_one_token()
        self._drop_idle()
        return finished

    def cancel(self, ids: set[int]) -> None:
        self.waiting = deque(r for r in self.waiting if r.id not in ids)
        slots = [i for i, r in enumerate(self.requests) if r is not None and r.id in ids]
        self._free(np.array(slots, dtype=np.int64))

    def weights_changed(self, policy_version: int, *, recompute: bool) -> None:
        for slot in np.flatnonzero(self.busy):
            self.versions[slot].append((int(self.drawn[slot]), policy_version))
        if recompute:
            self._recompute()

    def _admit_waiting(self, policy_version: int) -> list[tuple[int, Response]]:
        """Fills free slots, a group's worth at a time at least: prefilling single sequences wastes the pass."""
        self._make_room()
        free = np.flatnonzero(~self.busy)
        count = min(len(free), len(self.waiting))
        if count == 0 or (count < self.sampling.group_size and count < len(self.waiting) and self.busy.any()):
            return []
        requests = [self.waiting.popleft() for _ in range(count)]
        taken = free[:count]
        prompts = {r.prompt.position: r.prompt for r in requests}
        order = {position: i for i, position in enumerate(prompts)}
        served = np.array([order[r.prompt.position] for r in requests])
        prefill, logits = self._prefill([p.prompt_ids for p in prompts.values()])
        self.cache.admit(taken, prefill, served, np.array([len(r.prompt.prompt_ids) for r in requests]))
        positions, samples = (
            on_device(np.array(numbers), self.device)
            for numbers in ([r.prompt.position for r in requests], [r.index for r in requests])
        )
        slots = on_device(taken, self.device)
        self.slots.keys[slots] = stream_keys(self.sampling.seed, positions, samples)
        self.slots.lengths[slots] = 0
        self.slots.entropies[slots] = 0.0
        self.drawn[taken] = 0
        self.busy[taken] = True
        for slot, request in zip(taken.tolist(), requests, strict=True):
            self.requests[slot] = request
            self.versions[slot] = [(0, policy_version)]
        return self._draw(taken, slots, logits[on_device(served, self.device)])

    def _make_room(self) -> None:
        """Adds slots, as many as there is work for, up to what memory holds."""
        wanted = int(self.busy.sum()) + len(self.waiting)
        if wanted <= len(self.busy):
            return
        most = self.max_sequences
        if self.device.type == "cuda":
            longest = max(len(r.prompt.prompt_ids) for r in self.waiting) + self.sampling.max_response_tokens
            affordable = affordable_sequences(self.bytes_per_token, longest, self.device)
            most = min(most, int(self.busy.sum()) + affordable)
        extra = min(wanted, most) - len(self.busy)
        if extra > 0:
            self.cache.extend(extra)
            self.slots.extend(extra)
            self.busy, self.drawn = np.pad(self.busy, (0, extra)), np.pad(self.drawn, (0, extra))
            self.requests += [None] * extra
            self.versions += [[] for _ in range(extra)]

    @cached_property
    def bytes_per_token(self) -> float:
        """Of keys and values, as the model itself makes them."""
        return self._prefill([np.zeros(1, dtype=np.int64)])[0].bytes_per_token()

    def _decode_one_token(self) -> list[tuple[int, Response]]:
        if not self.busy.any():
            return []
        cache = self.cache
        cache.begin_token()
        with self._attention():
            hidden = self._hidden(self.slots.last_ids[:, None], cache.lengths[:, None], cache)[:, 0]
        cache.end_token()
        running = np.flatnonzero(self.busy)
        if self.busy.all():
            return self._draw(running, torch.arange(len(running), device=self.device), self._logits(hidden))
        slots = on_device(running, self.device)
        return self._draw(running, slots, self._logits(hidden[slots]))

    def _drop_idle(self) -> None:
        """Drops free slots, which only cost time when nobody waits, once an eighth of all is free."""
        idle = len(self.busy) - self.busy.sum()
        if self.waiting or idle * 8 < len(self.busy) or not self.busy.any():
            return
        kept = np.flatnonzero(self.busy)
        self.cache.keep(kept)
        self.slots.keep(on_device(kept, self.device))
        self.drawn = self.drawn[kept]
        self.requests = [self.requests[i] for i in kept]
        self.versions = [self.versions[i] for i in kept]
        self.busy = np.ones(len(kept), dtype=bool)

    def _recompute(self) -> None:
        """Computes the keys and values of what is being drawn anew, under the current weights."""
        running = np.flatnonzero(self.busy).tolist()
        ids = self.slots.ids.cpu().numpy()
        read = {}  # slot -> the tokens whose keys and values the cache holds
        for slot in running:
            request = self.requests[slot]
            assert request is not None
            read[slot] = np.concatenate([request.prompt.prompt_ids, ids[slot, : self.drawn[slot] - 1]])
        for part in _parts(running, [len(read[slot]) for slot in running], RECOMPUTED_TOKENS):
            prefill, _ = self._prefill([read[slot] for slot in part])
            lengths = np.array([len(read[slot]) for slot in part])
            self.cache.admit(np.array(part), prefill, np.arange(len(part)), lengths)

    def _prefill(self, sequences: Sequence[np.ndarray]) -> tuple[Prefill, Tensor]:  # logits [len(sequences), V]
        lengths = torch.tensor([len(ids) for ids in sequences])
        cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        ids = torch.from_numpy(np.concatenate(sequences).astype(np.int64))
        positions = torch.arange(len(ids)) - cu_seqlens[:-1].repeat_interleave(lengths)
        prefill = Prefill(cu_seqlens.int().to(self.device), int(lengths.max()))
        hidden = self._hidden(ids[None].to(self.device), positions[None].to(self.device), prefill)[0]
        if not prefill.layers:
            raise ValueError(
                f"a {type(self.model).__name__} computes attention by code of its own, whose keys and values the "
                f"built-in engine cannot keep: take --rollout.engine vllm"
            )
        return prefill, self._logits(hidden[cu_seqlens[1:].to(self.device) - 1])

    def _hidden(self, ids: Tensor, positions: Tensor, kv: Prefill | SlotCache) -> Tensor:
        held_by(self.model).kv = kv
        return decoder_of(self.model)(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state

    def _attention(self) -> AbstractContextManager[None]:
        """The attention backends to choose from: on a GPU not cuDNN's, which compiles anew for every cache capacity."""
        if self.device.type == "cpu":
            return nullcontext()
        return sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])

    def _logits(self, hidden: Tensor) -> Tensor:
        head = self.model.get_output_embeddings()
        return self.head.bend(linear_logits(hidden, head.weight, head.bias))

    def _draw(
        self,
        running: np.ndarray,  # [B]
        slots: Tensor,  # [B] the same on the device
        logits: Tensor,  # [B, V]
    ) -> list[tuple[int, Response]]:
        drawn = self.slots
        places = drawn.lengths[slots]
        sampling = self.sampling
        ids, logprobs, entropy = sample(logits, sampling.temperature, drawn.keys[slots], places, sampling.top_p)
        drawn.ids[slots, places] = ids.int()
        drawn.logprobs[slots, places] = logprobs.float()
        drawn.entropies[slots] += entropy.float()
        drawn.lengths[slots] = places + 1
        drawn.last_ids[slots] = ids
        self.drawn[running] += 1
        # The one wait of a token, and none where nothing ends early.
        stopped = torch.isin(ids, self.stop_ids).cpu().numpy() if len(self.stop_ids) else np.zeros(len(running), bool)
        done = stopped | (self.drawn[running] >= sampling.max_response_tokens)
        return self._finish(running[done], stopped[done]) if done.any() else []

    def _finish(self, done: np.ndarray, stopped: np.ndarray) -> list[tuple[int, Response]]:
        drawn, slots = self.slots, on_device(done, self.device)
        ids, logprobs = drawn.ids[slots].cpu().numpy(), drawn.logprobs[slots].cpu().numpy()
        entropies = drawn.entropies[slots].tolist()
        finished = []
        for row, slot in enumerate(done.tolist()):
            request, length = self.requests[slot], int(self.drawn[slot])
            assert request is not None
            (_, first), *changes = self.versions[slot]
            response = Response(
                response_ids=ids[row, :length].copy(),
                rollout_logprobs=logprobs[row, :length].copy(),
                finish_reason="stop" if stopped[row] else "length",
                policy_version=first,
                mean_entropy=entropies[row] / length,
                version_changes=tuple(changes),
            )
            finished.append((request.id, response))
        self._free(done)
        return finished

    def _free(self, slots: np.ndarray) -> None:
        self.busy[slots] = False
        for slot in slots.tolist():
            self.requests[slot] = None
        self.cache.free(slots)


def _parts(items: list[int], sizes: list[int], most: int) -> list[list[int]]:
    """Consecutive items together while their sizes sum to at most ``most``; one at least."""
    parts: list[list[int]] = []
    room = 0
    for item, size in zip(items, sizes, strict=True):
        if not parts or size > room:
            parts.append([])
            room = most
        parts[-1].append(item)
        room -= size
    return parts
