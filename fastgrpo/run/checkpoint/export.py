"""The export of a checkpoint: the base model's folder with the trained weights, as ``from_pretrained`` reads it."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from fastgrpo.config import ModelConfig
from fastgrpo.data import load_tokenizer
from fastgrpo.policy.policy import Policy
from fastgrpo.policy.sharding import full_weights
from fastgrpo.run.checkpoint.base_files import base_files, folder_of
from fastgrpo.run.checkpoint.memory import free_memory_bytes
from fastgrpo.run.checkpoint.reload import INDEX, WEIGHTS, Shapes, reload_differences, shapes_in, some

LARGEST_SHARD_BYTES = 5 * 10**9
CONFIG = "config.json"


class Exporter:
    """Writes a model as its base came: the same names of tensors, and every file besides them byte for byte, but for
    the dtype in ``config.json``."""

    def __init__(self, base: ModelConfig, model: PreTrainedModel, dtype: torch.dtype) -> None:
        self.base, self.model, self.dtype = base, model, dtype
        self.files: dict[str, bytes] = {}  # of an export, besides its weights, by their names
        self.shapes: Shapes = {}  # of its tensors, by theirs

    def prepare(self) -> list[str]:
        """Reads what exports have of the base, and tries an export out with weights on the meta device. Returns what is
        worth a line. To be called by who writes.

        Raises ValueError if an export could not be written.
        """
        name = type(self.model).__name__
        if getattr(self.model, "hf_quantizer", None) is not None:
            raise ValueError(f"the weights of this {name} are quantized, and whole ones are trained: give those")
        if getattr(self.model, "_hf_peft_config_loaded", False):
            raise ValueError(f"{self.base.path} holds an adapter of a {name}: merge it into the weights")
        try:
            self.files = base_files(self.base.path)
            config = _config_of(json.loads(self.files[CONFIG]), self.model, self.dtype)
            self.files[CONFIG] = _text(config)
            self.shapes = self._shapes()
            self._read_back(has_code="auto_map" in config)
            unused = shapes_in(folder_of(self.base.path)).keys() - self.shapes.keys() - self._tied.keys()
        except Exception as error:
            raise ValueError(
                f"a {name} cannot be exported, and so no checkpoint could be written: {type(error).__name__}: {error}"
            ) from error
        return [f"exports leave out {some(unused)} of {self.base.path}: the model does not use it"] if unused else []

    def _read_back(self, has_code: bool) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self._write_files(Path(folder))
            load_tokenizer(folder, self.base.trust_remote_code)
            if has_code:  # which the start has run already, from the base
                return
            with torch.device("meta"):
                loaded = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
        made, needed = ({n: w.shape for n, w in m.state_dict().items()} for m in (loaded, self.model))
        if type(loaded).__name__ != type(self.model).__name__ or made != needed:
            raise ValueError(f"its {CONFIG} would make a {type(loaded).__name__} of other weights")

    def _shapes(self) -> Shapes:
        weights = {n: torch.empty(w.shape, dtype=w.dtype, device="meta") for n, w in self.model.state_dict().items()}
        return {name: tuple(weight.shape) for name, weight in self.original(weights).items()}

    def gather(self, policy: Policy, keep: bool) -> dict[str, Tensor]:
        """Copies of the weights in the export's dtype and of the persistent buffers as they are, by the model's names.

        All ranks take part; those that do not keep them get none.
        """
        weights: dict[str, Tensor] = {}
        for name, weight in full_weights(policy):
            if keep:
                weights[name] = weight.detach().to("cpu", self.dtype, copy=True)
        if keep:
            weights |= {name: b.detach().to("cpu", copy=True) for name, b in _persistent_buffers(self.model)}
        return weights

    def write(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """Writes a folder that ``from_pretrained`` loads, of what `gather` returned."""
        self._write_files(folder)
        _write_weights(folder, self.original(weights))

    def differences(self, folder: Path, weights: dict[str, Tensor]) -> list[str]:
        """In what an export differs from what was to be exported, which is in nothing.

        It is loaded where the free memory holds it; the names and shapes of its files are compared always.
        """
        written, wanted = shapes_in(folder), self.shapes
        if written != wanted:
            return [f"{some(n for n in written.keys() | wanted.keys() if written.get(n) != wanted.get(n))}"]
        if free_memory_bytes() < sum(4 * w.numel() for w in weights.values()) * 1.5:
            return []
        return reload_differences(folder, weights, self.model, self.base.trust_remote_code)

    def original(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights by the names and in the shapes that the base has them in: transformers fuses experts and renames
        as it loads."""
        kept = dict(weights)
        for name, source in self._tied.items():  # one tensor under two names
            if name in kept:
                kept.setdefault(source, kept.pop(name))
        for name in self.model._keys_to_ignore_on_save or ():
            kept.pop(name, None)
        return revert_weight_conversion(self.model, kept)

    @property
    def _tied(self) -> dict[str, str]:
        return getattr(self.model, "all_tied_weights_keys", None) or {}

    def _write_files(self, folder: Path) -> None:
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)


def _config_of(base: dict[str, Any], model: PreTrainedModel, dtype: torch.dtype) -> dict[str, Any]:
    """The configuration as the base has it, or the model's own where that is a part of the base that loads alone."""
    name = str(dtype).removeprefix("torch.")
    config = base
    if base.get("model_type") != model.config.model_type and type(model.config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        config = json.loads(model.config.to_json_string(use_diff=True))
    if getattr(model.config, "quantization_config", None) is None:
        config.pop("quantization_config", None)  # the model was made whole as it was loaded
    for part in (config, *(v for k, v in config.items() if k.endswith("_config") and isinstance(v, dict))):
        part.update({key: name for key in ("dtype", "torch_dtype") if key in part})
    if "torch_dtype" not in config:
        config["dtype"] = name
    return {**config, "architectures": [type(model).__name__]}


def _persistent_buffers(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Those that belong to a model's weights, such as what balances experts; no others are in its state."""
    kept = model.state_dict().keys()
    return ((name, buffer) for name, buffer in model.named_buffers() if name in kept)


def _write_weights(folder: Path, weights: dict[str, Tensor]) -> None:
    shards: list[dict[str, Tensor]] = [{}]
    sizes = [0]
    for name, weight in weights.items():
        if sizes[-1] and sizes[-1] + weight.nbytes > LARGEST_SHARD_BYTES:
            shards.append({})
            sizes.append(0)
        shards[-1][name] = weight
        sizes[-1] += weight.nbytes
    if len(shards) == 1:
        names = [WEIGHTS]
    else:
        names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
        places = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        index = {"metadata": {"total_size": sum(sizes)}, "weight_map": places}
        (folder / INDEX).write_bytes(_text(index))
    for file, shard in zip(names, shards, strict=True):
        save_file({n: w.contiguous() for n, w in shard.items()}, folder / file, metadata={"format": "pt"})


def _text(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
