"""Keys and values of the sequences that are being decoded, and the attention that reads and writes them."""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fastgrpo_kernels import decode_attention, has_decode_attention
from torch import Tensor

from fastgrpo.models.attention import HALF, padded_attention, register, varlen_attention
from fastgrpo.models.attention_options import attend, options_of
from fastgrpo.models.layout import PackedLayout, held_by

ATTENTION = "fastgrpo_rollout"


def on_device(values: np.ndarray, device: torch.device) -> Tensor:
    """A copy that the host does not wait for."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


class Prefill:
    """Collects the keys and values of packed prompts, layer by layer."""

    def __init__(self, cu_seqlens: Tensor, max_seqlen: int) -> None:
        self.cu_seqlens, self.max_seqlen = cu_seqlens, max_seqlen
        self.layout = PackedLayout(cu_seqlens, max_seqlen)
        self.layers: list[tuple[Tensor, Tensor]] = []  # of each call of attention: keys [K, T, E], values [K, T, F]

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **named: Any
    ) -> Tensor:
        self.layers.append((key[0], value[0]))
        if options_of(query, mask, named).beyond_plain:
            return self._one_by_one(module, query, key, value, mask, named)
        attention = varlen_attention if query.is_cuda and query.dtype in HALF else padded_attention
        return attention(module, query, key, value, mask, layout=self.layout, **named)[0]

    def _one_by_one(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, named: dict[str, Any]
    ) -> Tensor:
        """Attention that writes its scores down, [heads, L, L] in float32: those of one prompt at a time."""
        found = []
        for begin, end in pairwise(self.cu_seqlens.tolist()):
            layout = PackedLayout(self.cu_seqlens.new_tensor([0, end - begin]), end - begin)
            q, k, v = (t[:, :, begin:end] for t in (query, key, value))
            found.append(padded_attention(module, q, k, v, mask, layout=layout, **named)[0])
        return torch.cat(found, dim=1)

    def bytes_per_token(self) -> float:
        return sum(t.nbytes for layer in self.layers for t in layer) / int(self.layers[0][0].shape[1])


class SlotCache:
    """One slot per sequence that is being decoded, keys [slots, K, capacity, E] and values [slots, K, capacity, F] for
    each call of attention, in the order of the forward pass; the capacity grows as needed.

    Lengths are known on both sides: to ask a GPU for them would wait for it at every token.
    """

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.layers: list[tuple[Tensor, Tensor]] = []
        self.lengths = torch.zeros(0, dtype=torch.int64)  # [slots] tokens whose keys and values are stored
        self._host_lengths = np.zeros(num_slots, dtype=np.int64)
        self._mask = torch.zeros(0, dtype=torch.bool)
        self._rows = torch.zeros(0, dtype=torch.int64)
        self._calls = 0  # of attention, in this forward pass

    def admit(
        self,
        taken: np.ndarray,  # [B] slots
        prefill: Prefill,
        served: np.ndarray,  # [B] prompts of the prefill
        prompt_lengths: np.ndarray,  # [B]
    ) -> None:
        """Copies each prompt of a prefill into its slot: a group shares one prefill."""
        device = prefill.cu_seqlens.device
        slots, prompts = on_device(taken, device), on_device(served, device)
        starts, lengths = prefill.cu_seqlens[:-1].long(), prefill.cu_seqlens.diff().long()
        if not self.layers:
            self._allocate(prefill)
        self._reserve(prefill.max_seqlen + 1)
        columns = torch.arange(prefill.max_seqlen, device=slots.device)
        # Columns beyond a prompt repeat its last token; they are overwritten before they are ever attended to.
        tokens = starts[prompts, None] + torch.minimum(columns, lengths[prompts, None] - 1)  # [B, L]
        for (keys, values), (new_keys, new_values) in zip(self.layers, prefill.layers, strict=True):
            keys[slots, :, : prefill.max_seqlen] = new_keys[:, tokens].transpose(0, 1)
            values[slots, :, : prefill.max_seqlen] = new_values[:, tokens].transpose(0, 1)
        self.lengths[slots] = lengths[prompts]
        self._host_lengths[taken] = prompt_lengths

    def extend(self, count: int) -> None:
        """Adds free slots."""
        for i, (keys, values) in enumerate(self.layers):
            self.layers[i] = F.pad(keys, (0,) * 6 + (0, count)), F.pad(values, (0,) * 6 + (0, count))
        self.lengths = F.pad(self.lengths, (0, count))
        self._host_lengths = np.pad(self._host_lengths, (0, count))
        self.num_slots += count

    def free(self, idle: np.ndarray) -> None:
        """Forgets what these slots hold: idle, they must not keep the others' attention long."""
        if self.layers:
            self.lengths[on_device(idle, self.lengths.device)] = 0
            self._host_lengths[idle] = 0

    def keep(self, kept: np.ndarray) -> None:
        """Drops all other slots; the kept ones move to the front in order."""
        slots = on_device(kept, self.lengths.device)
        for i, (keys, values) in enumerate(self.layers):
            self.layers[i] = keys[slots], values[slots]
        self.lengths = self.lengths[slots]
        self._host_lengths = self._host_lengths[kept]
        self.num_slots = len(kept)

    def begin_token(self) -> None:
        """Makes room for one more token in every slot."""
        self._reserve(int(self._host_lengths.max()) + 1)
        columns = torch.arange(self.capacity, device=self.lengths.device)
        self._mask = (columns <= self.lengths[:, None])[:, None, None]  # [slots, 1, 1, L]
        self._rows = torch.arange(self.num_slots, device=self.lengths.device)
        self._calls = 0

    def end_token(self) -> None:
        self.lengths += 1
        self._host_lengths += 1

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **named: Any
    ) -> Tensor:
        keys, values = self.layers[self._calls]
        self._calls += 1
        options = options_of(query, mask, named)
        if not options.beyond_plain and has_decode_attention(query.device, query.dtype):
            one, its_key, its_value = (t[:, :, 0].contiguous() for t in (query, key, value))
            found = decode_attention(
                one, its_key, its_value, keys, values, self.lengths, scale=options.scale, window=options.window
            )
            return found[:, None]
        keys[self._rows, :, self.lengths] = key[:, :, 0]
        values[self._rows, :, self.lengths] = value[:, :, 0]
        slots, heads, _, width = query.shape
        # The query heads that share a key/value head stand as its queries: nothing is repeated.
        grouped = query.reshape(slots, keys.shape[1], heads // keys.shape[1], width)
        seen = self._windowed(options.window)
        if options.beyond_plain:
            sinks = None if options.sinks is None else options.sinks.view(keys.shape[1], -1, 1)
            output = attend(grouped, keys, values, seen, options, sinks)
        else:
            output = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=seen, scale=options.scale)
        return output.reshape(slots, 1, heads, values.shape[3])

    def _windowed(self, sliding_window: int | None) -> Tensor:
        if sliding_window is None or self.capacity <= sliding_window:
            return self._mask
        columns = torch.arange(self.capacity, device=self.lengths.device)
        return self._mask & (columns > self.lengths[:, None] - sliding_window)[:, None, None]

    def _allocate(self, prefill: Prefill) -> None:
        def empty(like: Tensor) -> Tensor:
            return like.new_zeros(self.num_slots, like.shape[0], prefill.max_seqlen, like.shape[2])

        self.layers = [(empty(keys), empty(values)) for keys, values in prefill.layers]
        self.lengths = torch.zeros(self.num_slots, dtype=torch.int64, device=prefill.cu_seqlens.device)

    @property
    def capacity(self) -> int:
        return self.layers[0][0].shape[2]

    def _reserve(self, num_tokens: int) -> None:
        """Grows by an eighth and to whole eights. Attention reads all of the capacity, under a mask: a view of a part
        is not contiguous and takes twice the time, so little of it should be empty."""
        if num_tokens > self.capacity:
            extra = -(-(num_tokens + num_tokens // 8) // 8) * 8 - self.capacity
            for i, (keys, values) in enumerate(self.layers):  # layer by layer: two whole caches would not fit
                self.layers[i] = F.pad(keys, (0, 0, 0, extra)), F.pad(values, (0, 0, 0, extra))


def _rollout_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **named: Any,
) -> tuple[Tensor, None]:
    kv: Prefill | SlotCache = held_by(module).kv
    return kv.attend(module, query, key, value, attention_mask, **named), None


register(ATTENTION, _rollout_attention)
