"""The built-in engine: a decode loop over a transformers model, for any device and without vLLM."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from fastgrpo_kernels import linear_logits
from torch import Tensor
from transformers import PreTrainedModel

from fastgrpo.rollout.kv_cache import Prefill, SlotCache
from fastgrpo.rollout.noise import stream_keys
from fastgrpo.rollout.sampling import sample
from fastgrpo.types import Group, Prompt, Response, Sampling


class BuiltinEngine:
    """Prompts of a group share their prefill, finished sequences leave the batch, waiting ones enter.

    ``model`` must have been loaded with ``attn_implementation=kv_cache.ATTENTION``; its weights are the engine's own.
    """

    knows_entropy = True

    def __init__(self, model: PreTrainedModel, max_sequences: int) -> None:
        self.model = model.eval()
        self.max_sequences = max_sequences
        self._parameters = dict(model.named_parameters())

    @torch.no_grad()
    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        for name, value in weights:
            self._parameters[name].copy_(value)

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, policy_version: int) -> list[Group]:
        if not prompts:
            return []
        longest = max(len(p.prompt_ids) for p in prompts) + sampling.max_response_tokens
        slots = min(self.max_sequences, affordable_sequences(self.model, longest))
        decoding = _Decoding(self.model, prompts, sampling, slots)
        while decoding.is_unfinished():
            decoding.admit_waiting()
            decoding.decode_one_token()
            decoding.drop_finished()
        return decoding.groups(policy_version)


def affordable_sequences(model: PreTrainedModel, longest: int) -> int:
    """Sequences of ``longest`` tokens whose keys and values fit into 0.7 of the free memory of a GPU; at least 1."""
    device = next(model.parameters()).device
    if device.type != "cuda":
        return sys.maxsize
    config: Any = model.config
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    bytes_per_token = 2 * config.num_hidden_layers * heads * d_head * model.dtype.itemsize
    unused_by_torch = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + unused_by_torch
    return max(1, int(0.7 * free) // (bytes_per_token * longest))


@dataclass(slots=True)
class _Drawn:
    """What has been sampled so far, by request; request r is sample r % group_size of prompt r // group_size."""

    ids: Tensor  # [N, max_response_tokens] int32
    logprobs: Tensor  # [N, max_response_tokens] float32
    entropies: Tensor  # [N] float32, summed over the response
    lengths: Tensor  # [N] int64
    stopped: Tensor  # [N] bool


class _Decoding:
    """The state of one ``generate``: slots that decode, each for a request, and requests that wait."""

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[Prompt], sampling: Sampling, max_sequences: int
    ) -> None:
        self.model, self.prompts, self.sampling = model, prompts, sampling
        self.device = next(model.parameters()).device
        num_requests = len(prompts) * sampling.group_size
        requests = torch.arange(num_requests, device=self.device)
        positions = torch.tensor([p.position for p in prompts], device=self.device)
        self.keys = stream_keys(
            sampling.seed, positions.repeat_interleave(sampling.group_size), requests % sampling.group_size
        )
        self.stop_ids = torch.tensor(sampling.stop_token_ids, device=self.device, dtype=torch.int64)
        shape = (num_requests, sampling.max_response_tokens)
        self.drawn = _Drawn(
            ids=torch.zeros(shape, dtype=torch.int32, device=self.device),
            logprobs=torch.zeros(shape, dtype=torch.float32, device=self.device),
            entropies=torch.zeros(num_requests, dtype=torch.float32, device=self.device),
            lengths=torch.zeros(num_requests, dtype=torch.int64, device=self.device),
            stopped=torch.zeros(num_requests, dtype=torch.bool, device=self.device),
        )
        self.next_request = 0
        slots = min(num_requests, max_sequences)
        self.cache = SlotCache(slots)
        self.request = torch.zeros(slots, dtype=torch.int64, device=self.device)  # [slots] request that a slot serves
        self.last_ids = torch.zeros(slots, dtype=torch.int64, device=self.device)  # [slots]
        self.busy = np.zeros(slots, dtype=bool)  # [slots]

    @property
    def num_waiting(self) -> int:
        return len(self.keys) - self.next_request

    def is_unfinished(self) -> bool:
        return self.num_waiting > 0 or bool(self.busy.any())

    def admit_waiting(self) -> None:
        """Fills free slots, a group's worth at a time at least: prefilling single sequences wastes the pass."""
        free = np.flatnonzero(~self.busy)
        count = min(len(free), self.num_waiting)
        if count == 0 or (count < self.sampling.group_size and count < self.num_waiting and self.busy.any()):
            return
        requests = torch.arange(self.next_request, self.next_request + count, device=self.device)
        self.next_request += count
        slots = torch.from_numpy(free[:count]).to(self.device)
        served = requests // self.sampling.group_size
        first, last = int(served[0]), int(served[-1])
        prefill, logits = self._prefill(self.prompts[first : last + 1])
        self.cache.admit(slots, prefill, served - first)
        self.request[slots] = requests
        self.busy[free[:count]] = True
        self._draw(slots, logits[served - first])

    def decode_one_token(self) -> None:
        if not self.busy.any():
            return
        cache = self.cache
        cache.begin_token()
        hidden = self._hidden(self.last_ids[:, None], cache.lengths[:, None], cache)[:, 0]
        cache.end_token()
        if self.busy.all():
            self._draw(torch.arange(len(self.busy), device=self.device), self._logits(hidden))
        else:
            slots = torch.from_numpy(np.flatnonzero(self.busy)).to(self.device)
            self._draw(slots, self._logits(hidden[slots]))

    def drop_finished(self) -> None:
        """With nobody waiting, free slots only cost time: the rest moves together once an eighth is free."""
        idle = len(self.busy) - self.busy.sum()
        if self.num_waiting or idle * 8 < len(self.busy) or not self.busy.any():
            return
        kept = torch.from_numpy(np.flatnonzero(self.busy)).to(self.device)
        self.cache.keep(kept)
        self.request, self.last_ids = self.request[kept], self.last_ids[kept]
        self.busy = np.ones(len(kept), dtype=bool)

    def groups(self, policy_version: int) -> list[Group]:
        ids, logprobs = self.drawn.ids.cpu().numpy(), self.drawn.logprobs.cpu().numpy()
        lengths, stopped = self.drawn.lengths.tolist(), self.drawn.stopped.tolist()
        entropies = self.drawn.entropies.tolist()
        responses = [
            Response(
                response_ids=ids[r, : lengths[r]].copy(),
                rollout_logprobs=logprobs[r, : lengths[r]].copy(),
                finish_reason="stop" if stopped[r] else "length",
                policy_version=policy_version,
                mean_entropy=entropies[r] / lengths[r],
            )
            for r in range(len(ids))
        ]
        size = self.sampling.group_size
        return [Group(p, responses[i * size : (i + 1) * size]) for i, p in enumerate(self.prompts)]

    def _prefill(self, prompts: Sequence[Prompt]) -> tuple[Prefill, Tensor]:  # logits [len(prompts), V]
        lengths = torch.tensor([len(p.prompt_ids) for p in prompts])
        cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        ids = torch.from_numpy(np.concatenate([p.prompt_ids for p in prompts]).astype(np.int64))
        positions = torch.arange(len(ids)) - cu_seqlens[:-1].repeat_interleave(lengths)
        prefill = Prefill(cu_seqlens.int().to(self.device), int(lengths.max()))
        hidden = self._hidden(ids[None].to(self.device), positions[None].to(self.device), prefill)[0]
        return prefill, self._logits(hidden[cu_seqlens[1:].to(self.device) - 1])

    def _hidden(self, ids: Tensor, positions: Tensor, kv: Prefill | SlotCache) -> Tensor:
        output = self.model.base_model(input_ids=ids, position_ids=positions, use_cache=False, kv=kv)
        return output.last_hidden_state

    def _logits(self, hidden: Tensor) -> Tensor:
        head = self.model.get_output_embeddings()
        return linear_logits(hidden, head.weight, head.bias)

    def _draw(self, slots: Tensor, logits: Tensor) -> None:
        request, drawn = self.request[slots], self.drawn
        places = drawn.lengths[request]
        ids, logprobs, entropy = sample(logits, self.sampling.temperature, self.keys[request], places)
        drawn.ids[request, places] = ids.int()
        drawn.logprobs[request, places] = logprobs.float()
        drawn.entropies[request] += entropy.float()
        drawn.lengths[request] = places + 1
        stopped = torch.isin(ids, self.stop_ids)
        drawn.stopped[request] = stopped
        self.last_ids[slots] = ids
        done = stopped | (places + 1 >= self.sampling.max_response_tokens)
        if done.any():
            self.busy[slots[done].cpu().numpy()] = False
            self.cache.lengths[slots[done]] = 0  # an idle slot must not keep the others' attention long
