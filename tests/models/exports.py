"""A model through an export and back."""

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from fastgrpo.config import ModelConfig
from fastgrpo.run.checkpoint import Exporter

SET_AS_IT_IS_LOADED = ("balancing_biases",)
"""Of Zaya: transformers 5.20 puts its last number into place whatever the file says."""


def as_base(model: PreTrainedModel, folder: Path, whole: PretrainedConfig | None = None) -> Path:
    """The model as a hub has it, with a tokenizer and generation settings, and with the configuration of the whole that
    it is a part of."""
    model.save_pretrained(folder)
    if whole is not None:
        whole.save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({"a": 0, "b": 1, "<eos>": 2}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(folder)
    return folder


@torch.no_grad()
def trained(base: Path) -> PreTrainedModel:
    """The model of a base folder with other weights and persistent buffers."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    state, generator = model.state_dict(), torch.Generator().manual_seed(1)
    buffers = (b for name, b in model.named_buffers() if name in state and not name.endswith(SET_AS_IT_IS_LOADED))
    for tensor in (*model.parameters(), *buffers):
        if tensor.is_floating_point():
            tensor.mul_(1 + 0.1 * torch.rand(tensor.shape, generator=generator).to(tensor.dtype))
    return model


def write_export(
    model: PreTrainedModel, base: Path, folder: Path, dtype: torch.dtype = torch.float32
) -> tuple[Exporter, dict[str, torch.Tensor]]:
    """Returns what wrote it, and the weights that it was given."""
    exporter = Exporter(ModelConfig(path=str(base)), model, dtype)
    exporter.prepare()
    policy: Any = SimpleNamespace(model=model)
    weights = exporter.gather(policy, keep=True)
    exporter.write(folder, weights)
    return exporter, weights


@torch.no_grad()
def export_differs(model: PreTrainedModel, whole: PretrainedConfig | None = None) -> list[str]:
    """What an export of the model, as it would be after training, changes of it: its logits after a reload, the names
    of its tensors, or its files; empty if nothing."""
    with tempfile.TemporaryDirectory() as folder:
        base, exported = as_base(model, Path(folder) / "base", whole), Path(folder) / "hf"
        after = trained(base)
        exporter, weights = write_export(after, base, exported)
        found = exporter.differences(exported, weights)
        loaded = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
        vocabulary = after.config.get_text_config().vocab_size
        ids = torch.randint(3, min(vocabulary, 64), (2, 12), generator=torch.Generator().manual_seed(0))
        logits = [m(input_ids=ids, use_cache=False).logits for m in (after, loaded)]
        if not torch.equal(*logits):
            found.append(f"logits differ by {float((logits[0] - logits[1]).abs().max())}")
        if names_in(base) != names_in(exported):
            found.append(f"names differ: {sorted(names_in(base) ^ names_in(exported))[:6]}")
        files = [{f.name for f in place.iterdir() if f.suffix != ".safetensors"} for place in (base, exported)]
        if files[0] != files[1]:
            found.append(f"files differ: {files[0] ^ files[1]}")
        return found


def names_in(folder: Path) -> set[str]:
    names: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            names |= set(tensors.keys())
    return names
