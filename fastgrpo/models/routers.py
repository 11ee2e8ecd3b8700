"""The routers of a mixture of experts: which modules choose the experts of a token, and by which logits."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.output_capturing import OutputRecorder

from fastgrpo.models.decoder import decoder_of


class Routers(NamedTuple):
    """The routers of a decoder, as transformers itself records them."""

    outputs: list[tuple[nn.Module, int]]  # of each router, or module that has one: the place of logits in what it gives
    num_chosen: int  # experts of a token

    @contextmanager
    def watched(self) -> Iterator[list[Tensor]]:
        """The logits [U, experts] of every router in forward passes within this block, in order.

        Passes outside, such as those of layers that recompute their activations, add nothing.
        """
        seen: list[Tensor] = []

        def note(place: int) -> Any:
            def hook(module: nn.Module, given: Any, output: Any) -> None:
                logits = output[place] if isinstance(output, tuple) else output
                seen.append(logits.flatten(0, -2))

            return hook

        handles = [module.register_forward_hook(note(place)) for module, place in self.outputs]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()


def routers_of(model: PreTrainedModel) -> Routers:
    """The routers of a model's decoder. Raises ValueError for a model without any, or for which transformers has no
    loss that balances them: other models were balanced by other means, such as a bias.
    """
    decoder = decoder_of(model)
    known: Any = (getattr(decoder, "_can_record_outputs", None) or {}).get("router_logits", [])
    recorders: list[OutputRecorder] = known if isinstance(known, list) else [known]
    outputs = [
        (module, recorder.index)
        for name, module in decoder.named_modules()
        for recorder in recorders
        if isinstance(module, recorder.target_class) and (recorder.layer_name or "") in name
    ]
    num_chosen = getattr(decoder.config, "num_experts_per_tok", None)
    has_loss = hasattr(sys.modules[type(model).__module__], "load_balancing_loss_func")
    if not outputs or num_chosen is None or not has_loss:
        raise ValueError(
            f"--objective.router_aux_coef balances the experts of a mixture by transformers' own loss, and it has none "
            f"for a {type(model).__name__}: leave it 0"
        )
    return Routers(outputs, num_chosen)
