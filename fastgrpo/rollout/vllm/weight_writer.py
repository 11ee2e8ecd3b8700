"""The methods that are added to a vLLM worker so that its weights can be written (``worker_extension_cls``).

vLLM mixes this class into its worker, in whatever process that runs. The methods are called by ``collective_rpc``.
The copy itself is in `weight_sync.live_weights`.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fastgrpo.rollout.vllm import cpu_layers
from fastgrpo.rollout.vllm.layout import weight_layout
from fastgrpo.rollout.vllm.names import hub_named, renaming, require_same_names, trained_model
from fastgrpo.rollout.weight_sync.broadcast import Manifest, Receiver, SyncGroup, find_store
from fastgrpo.rollout.weight_sync.live_weights import LayoutError, LiveWeights

if not torch.cuda.is_available():
    cpu_layers.install()  # before the model is loaded: vLLM imports this class as its worker starts


class WeightSyncWorker:
    """Weight sync for a vLLM worker.

    Every name begins with ``sync_``, ``write_`` or ``receive_``, because vLLM refuses names that its worker has.
    """

    model_runner: Any
    vllm_config: Any
    device: torch.device
    _sync_found: tuple[LiveWeights | None, str]
    _sync_receiver: Receiver
    _sync_model: torch.nn.Module | None

    def sync_layout(self) -> str:
        """Why the weights cannot be written in place; empty if they can. Reads the layout once."""
        if "_sync_found" not in vars(self):
            try:
                self._sync_found = live_weights(self.model_runner.get_model()), ""
            except LayoutError as error:
                self._sync_found = None, str(error)
        return self._sync_found[1]

    @property
    def sync_weights(self) -> LiveWeights | None:
        self.sync_layout()
        return self._sync_found[0]

    def write_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Writes whole checkpoint tensors from this process's memory; without a layout, by vLLM's own reload."""
        if self.sync_weights is not None:
            self.sync_weights.write(weights)
        else:
            from vllm.config import set_current_vllm_config

            with set_current_vllm_config(self.vllm_config):
                self.model_runner.reload_weights(weights_iterator=hub_named(weights, self._sync_trained()))
            cpu_layers.repack_of(self.model_runner.get_model())()  # vLLM does not renew a tied head's packed copy

    def _sync_trained(self) -> torch.nn.Module | None:
        """transformers' model of the same configuration, without weights."""
        if "_sync_model" not in vars(self):
            self._sync_model = trained_model(self.model_runner.get_model().config)
        return self._sync_model

    def receive_join(
        self, host: str, port: int, first_rank: int, size: int, timeout_s: float, manifest: Manifest
    ) -> None:
        """Joins the sender's group. The processes of an engine have consecutive ranks."""
        from vllm.distributed import get_tensor_model_parallel_rank

        rank = first_rank + get_tensor_model_parallel_rank()
        group = SyncGroup.join(find_store(host, port, size, timeout_s), rank, size, self.device, timeout_s)
        self._sync_receiver = Receiver(group, self.sync_weights, manifest)

    def receive_weights(self) -> None:
        """Receives one sync: every tensor into its place or, without a layout, by vLLM's reload."""
        if self.sync_weights is not None:
            self._sync_receiver.receive()
        else:
            incoming = self._sync_receiver.incoming()
            self.write_weights(incoming)
            for _ in incoming:  # this process must take part in every broadcast, even if the reload did not read all
                pass

    def sync_checksums(self) -> dict[str, int]:
        return {} if self.sync_weights is None else self.sync_weights.checksums()

    def sync_addresses(self) -> dict[str, int]:
        """The address of every live parameter; it must never change."""
        return {n: p.data_ptr() for n, p in self.model_runner.get_model().named_parameters()}


def live_weights(model: Any) -> LiveWeights:
    """The live weights of a vLLM model in this process. Raises LayoutError."""
    layout = weight_layout(model, renaming(getattr(model.config, "model_type", "")))
    require_same_names(layout.places, trained_model(model.config))
    parameters = {n: p.data for n, p in model.named_parameters()}
    return LiveWeights(parameters, layout.places, cpu_layers.repack_of(model), layout.padding, layout.others)
