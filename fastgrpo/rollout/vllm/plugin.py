"""What `vllm serve` finds by vLLM's entry points: a weight transfer engine, and routes for a trainer.

vLLM calls `register` in every process of a server (group `vllm.general_plugins`), before the model is loaded, and
mounts `Routes` in the one that speaks HTTP (group `vllm.endpoint_plugins`) if ``VLLM_PLUGINS`` names it. Without
either's name in the command or the environment both do nothing.
"""

import contextlib
import multiprocessing
import os
from typing import Any

from fastgrpo.ranks.children import die_with_parent
from fastgrpo.rollout.vllm import cpu_layers
from fastgrpo.rollout.vllm.cpu_layers import BACKEND

END_TOGETHER = "FASTGRPO_SERVER_ENDS_TOGETHER"
"""In the environment of a server that a run has started: its engine and workers end with the process above them, and do
not hold their GPUs after it was killed."""


def register() -> None:
    """Makes the backend known to vLLM, and on a CPU layers that a write reaches."""
    import torch
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, "fastgrpo.rollout.vllm.weight_transfer", "InPlaceTransfer")
    if not torch.cuda.is_available():
        with contextlib.suppress(AttributeError):  # another vLLM, whose weights nobody will write
            cpu_layers.install()
    if os.environ.get(END_TOGETHER) and multiprocessing.parent_process() is not None:
        die_with_parent()


class Routes:
    """Mounts `fastgrpo.rollout.vllm.routes`."""

    name = "fastgrpo"
    required_tasks = ("generate",)

    def attach_router(self, app: Any) -> None:
        from fastgrpo.rollout.vllm.routes import router

        app.include_router(router)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Needs none: the routes find the engine where vLLM's own do."""
