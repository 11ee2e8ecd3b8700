"""What a model does to hidden states before its head and to logits after it, measured and not looked up by name."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from fastgrpo.models.decoder import decoder_of

_LARGEST = 1e12  # a logit that every softcap cuts
_SMALLEST = 1e-3  # one that none bends
_TOLERANCE = 1e-6  # models that turn logits into float32 round there


class HeadOptions(TypedDict):
    bias: Tensor | None  # [V]
    temperature: float
    softcap: float | None


@dataclass(frozen=True, slots=True)
class Head:
    """``logits = scale * hidden @ weight.T + bias_scale * bias``, and where there is a softcap
    ``softcap * tanh(logits / softcap)`` of them. The two factors differ in models that scale their hidden states.
    """

    scale: float = 1.0
    softcap: float | None = None
    bias_scale: float = 1.0

    def options(self, bias: Tensor | None, temperature: float) -> "HeadOptions":
        """What the LM head's ops need to give the logprobs of ``softmax(logits / temperature)``: a factor before the
        softcap is one of the temperature and of the softcap."""
        if bias is not None and self.bias_scale != self.scale:
            bias = bias * (self.bias_scale / self.scale)
        softcap = None if self.softcap is None else self.softcap / self.scale
        return {"bias": bias, "temperature": temperature / self.scale, "softcap": softcap}

    def bend(self, logits: Tensor) -> Tensor:
        """The model's logits, of those that its weights give."""
        logits = logits if self.scale == 1.0 else logits * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


class _Output(BaseModelOutputWithPast):
    """Has nothing of what else a decoder may give, such as a router's choices."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class UnknownHead(ValueError):
    """The model does something to its hidden states or logits that no ``Head`` describes; the message says what."""


@torch.no_grad()
def measure_head(model: PreTrainedModel) -> Head:
    """The head of a model, found by calling the model's own forward pass with known hidden states and known logits.

    Neither layers nor weights are used, so that a model on the meta device will do. Raises UnknownHead.
    """
    name, embedding = type(model).__name__, model.get_output_embeddings()
    if not isinstance(embedding, nn.Linear):
        raise UnknownHead(f"the head of a {name} is {_kind(embedding)}, and fastgrpo computes linear ones only")
    vocabulary, width = embedding.weight.shape
    hidden = torch.linspace(-1.0, 1.0, width, dtype=torch.float64).expand(1, 1, width)
    known = torch.linspace(-60.0, 60.0, max(vocabulary, 4), dtype=torch.float64)[:vocabulary].clone()
    known[0], known[-1] = _LARGEST, _SMALLEST
    reached, logits = _passed(model, embedding, hidden, known)
    before = _factor(reached, hidden)
    if before is None:
        raise UnknownHead(f"a {name} changes its hidden states before the head by more than a factor")
    scale, largest = float(logits[-1] / _SMALLEST), float(logits[0])
    softcap = None if abs(largest / _LARGEST / scale - 1) < _TOLERANCE else largest
    head = Head(scale, softcap)
    # Once more the other way round: beside the largest logit nothing that was added to it is seen.
    for given, found in ((known, logits), (known.flip(0), _passed(model, embedding, hidden, known.flip(0))[1])):
        if not torch.allclose(head.bend(given), found, rtol=_TOLERANCE, atol=_TOLERANCE * _SMALLEST):
            raise UnknownHead(f"a {name} changes its logits by more than a factor and a softcap")
    return Head(_round(scale * before), softcap, _round(scale))


def _passed(model: PreTrainedModel, embedding: nn.Module, hidden: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """The hidden states [1, 1, D] that reach the head of those that the decoder gives, and the logits [V] that the
    model makes of those that the head gives."""
    name, seen = type(model).__name__, list[Tensor]()

    def head(rows: Tensor, *_: Any, **__: Any) -> Tensor:
        if rows.is_meta or rows.shape != hidden.shape:
            raise UnknownHead("its hidden states pass through weights of their own")
        seen.append(rows)
        return known.expand(*rows.shape[:-1], -1)

    def decoder(*_: Any, **__: Any) -> _Output:
        return _Output(last_hidden_state=hidden)  # type: ignore[arg-type]

    ids = torch.zeros(1, 1, dtype=torch.int64)
    with _calling(decoder_of(model), decoder), _calling(embedding, head):
        try:
            logits = model(input_ids=ids, use_cache=False).logits
        except Exception as error:  # of code that meets what it was not made for
            raise UnknownHead(
                f"a {name} makes its logits of its decoder's hidden states by more than one linear head with a factor "
                f"and a softcap, and fastgrpo computes nothing else there"
            ) from error
    if len(seen) != 1 or logits.shape[-1] != len(known):
        raise UnknownHead(f"a {name} does not make its logits of its decoder's hidden states by one linear head")
    return seen[0].double(), logits.double().flatten()


def _factor(found: Tensor, given: Tensor) -> float | None:
    factor = float(found.flatten()[0] / given.flatten()[0])
    return factor if torch.allclose(found, given * factor, rtol=_TOLERANCE, atol=_TOLERANCE) else None


def _round(value: float) -> float:
    """Without what float32 adds: 1.0 where a model only passed through it."""
    return float(f"{value:.7g}")


def _kind(module: object) -> str:
    return "none" if module is None else f"a {type(module).__name__}"


@contextmanager
def _calling(module: nn.Module, function: Callable[..., Any]) -> Iterator[None]:
    """The module's forward pass is this function."""
    before = module.__dict__.get("forward")
    module.forward = function
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before
