"""Exports are what was trained, by the names and with the files of the base: through transformers, to the last bit."""

import json

import pytest
import torch
from huggingface_hub import constants
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from fastgrpo.config import ModelConfig
from fastgrpo.run.checkpoint import Exporter, export
from fastgrpo.run.checkpoint.base_files import base_files
from tests.models.exports import as_base, export_differs, names_in, trained, write_export
from tests.run.test_hub import cached

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LATENT = {
    "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "num_key_value_heads": 4,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16,
}  # fmt: skip
TYPES = {
    "qwen2": {"tie_word_embeddings": True},
    "llama": {"tie_word_embeddings": False},
    "gemma3_text": {"sliding_window": 8},
    "qwen3_moe": {},  # experts that are fused as they are loaded
    "mixtral": {},  # and renamed
    "apertus": {},  # buffers that belong to the weights
    "deepseek_v3": LATENT,  # both
}


def small(kind):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL | TYPES[kind])).eval()


@pytest.mark.parametrize("kind", TYPES)
def test_an_export_loads_to_what_was_trained_and_has_the_names_and_files_of_its_base(kind):
    assert export_differs(small(kind)) == []


def test_what_an_export_lacks_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_persistent_buffers", lambda model: iter(()))
    assert any("act_fn" in found for found in export_differs(small("apertus")))


def exported(tmp_path, change=lambda base: None, kind="qwen2", **settings):
    base = as_base(small(kind), tmp_path / "base")
    change(base)
    exporter, _ = write_export(trained(base), base, tmp_path / "hf", **settings)
    return base, tmp_path / "hf", exporter


def test_every_file_that_loading_may_need_comes_as_it_was(tmp_path):
    came = {
        "generation_config.json": '{"do_sample": false,  "temperature": 0.6, "top_p": 0.9}',
        "chat_template.jinja": "{{ messages }}\r\n",
        "additional_chat_templates/tool.jinja": "{{ tools }}",
        "modeling_own.py": "class Own: pass  # ß",
        "preprocessor_config.json": "{}",
        "tokenizer.model": "\x00\x01",
        "merges.txt": "a b\n",
    }
    stays = {"README.md": "of the base", "model.gguf": "weights", ".gitattributes": "", "old/config.json": "{}"}

    def change(base):
        for name, text in {**came, **stays}.items():
            (base / name).parent.mkdir(exist_ok=True)
            (base / name).write_text(text, newline="")

    base, folder, _ = exported(tmp_path, change)
    for name in (*came, "tokenizer.json", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (base / name).read_bytes(), name
    assert not any((folder / name).exists() for name in stays)


def test_the_configuration_is_the_bases_but_for_the_dtype(tmp_path):
    def as_of_transformers_4(base):
        config = json.loads((base / "config.json").read_text())
        rope = config.pop("rope_parameters")
        config |= {
            "rope_theta": rope["rope_theta"],
            "torch_dtype": config.pop("dtype"),
            "architectures": ["Qwen2Model"],
        }
        config |= {"auto_map": {"AutoConfig": "configuration_own.Own"}, "own": [1], "temperature": 0.3}
        (base / "config.json").write_text(json.dumps(config))

    base, folder, _ = exported(tmp_path, as_of_transformers_4, dtype=torch.bfloat16)
    before, after = (json.loads((f / "config.json").read_text()) for f in (base, folder))
    assert after == before | {"torch_dtype": "bfloat16", "architectures": ["Qwen2ForCausalLM"]}
    with safe_open(folder / "model.safetensors", "pt") as tensors:
        assert {tensors.get_tensor(name).dtype for name in tensors.keys()} == {torch.bfloat16}  # noqa: SIM118


def test_many_bytes_come_in_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "LARGEST_SHARD_BYTES", 20_000)
    _, folder, exporter = exported(tmp_path, kind="qwen3_moe")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    sizes = [f.stat().st_size for f in folder.glob("model-*.safetensors")]
    assert len(sizes) > 3 and max(sizes) < 30_000 and index["weight_map"].keys() == names_in(folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name, weight in exporter.model.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name]), name


def test_a_base_that_is_gone_is_still_exported(tmp_path):
    base = as_base(small("qwen2"), tmp_path / "base")
    exporter = Exporter(ModelConfig(path=str(base)), trained(base), torch.float32)
    exporter.prepare()
    base.rename(tmp_path / "elsewhere")
    exporter.write(tmp_path / "hf", dict(exporter.model.state_dict()))
    assert (tmp_path / "hf" / "tokenizer.json").exists()


def test_tensors_that_the_model_does_not_use_are_said_to_be_left_out(tmp_path):
    base = as_base(small("qwen2"), tmp_path / "base")
    model = small("qwen2")
    model.mtp = torch.nn.Linear(2, 2, bias=False)
    model.save_pretrained(base)
    exporter = Exporter(ModelConfig(path=str(base)), trained(base), torch.float32)
    assert exporter.prepare() == [f"exports leave out mtp.weight of {base}: the model does not use it"]


def test_a_model_that_cannot_be_written_is_refused_in_words(tmp_path):
    base = as_base(small("qwen2"), tmp_path / "base")
    (base / "tokenizer.json").write_text("{")
    with pytest.raises(
        ValueError, match="a Qwen2ForCausalLM cannot be exported, and so no checkpoint could be written"
    ):
        Exporter(ModelConfig(path=str(base)), trained(base), torch.float32).prepare()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda state: state.pop("model.norm.weight"), "model.norm.weight"),
        (lambda state: state["model.norm.weight"].add_(1e-3), "model.norm.weight is another tensor"),
        (lambda state: state.update(more=torch.zeros(2)), "more"),
    ],
)
def test_a_wrong_export_is_found_out(tmp_path, damage, says):
    _, folder, exporter = exported(tmp_path)
    weights = {n: w.clone() for n, w in exporter.model.named_parameters()}
    assert exporter.differences(folder, weights) == []
    damage(wrong := {n: w.detach().clone() for n, w in weights.items()})
    exporter.write(folder, wrong)
    assert any(says in found for found in exporter.differences(folder, weights))


def test_an_export_with_another_configuration_is_found_out(tmp_path):
    _, folder, exporter = exported(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    weights = dict(exporter.model.named_parameters())
    assert exporter.differences(folder, weights) == ["configuration rms_norm_eps: 0.5 there, 1e-06 in training"]


def test_without_the_memory_to_load_it_names_and_shapes_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "free_memory_bytes", lambda: 0)
    _, folder, exporter = exported(tmp_path)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    weights = {n: w.detach() for n, w in exporter.model.named_parameters()}
    assert exporter.differences(folder, weights) == []
    exporter.write(folder, {n: w for n, w in weights.items() if n != "model.norm.weight"})
    assert exporter.differences(folder, weights) == ["model.norm.weight"]


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own_of_a_test"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_a_model_with_code_of_its_own_is_exported_with_it(tmp_path):
    base = as_base(small("llama"), tmp_path / "base_with_code")
    (base / "modeling_own.py").write_text(CODE)
    code = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    config = json.loads((base / "config.json").read_text())
    config |= {"model_type": "own_of_a_test", "auto_map": code, "architectures": ["OwnForCausalLM"]}
    (base / "config.json").write_text(json.dumps(config))
    model = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=True, dtype=torch.float32)
    assert type(model).__name__ == "OwnForCausalLM"

    exporter = Exporter(ModelConfig(path=str(base), trust_remote_code=True), model, torch.float32)
    assert exporter.prepare() == []
    weights = dict(model.named_parameters())
    exporter.write(tmp_path / "exported_with_code", weights)
    assert json.loads((tmp_path / "exported_with_code" / "config.json").read_text()) == config
    assert exporter.differences(tmp_path / "exported_with_code", weights) == []


def test_the_files_of_a_hub_id_come_from_its_cache(tmp_path, monkeypatch):
    base = as_base(small("llama"), tmp_path / "base")
    (base / "preprocessor_config.json").write_text("{}")
    cache = tmp_path / "cache"
    cached(cache, "some/model", "models", base)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = base_files("some/model")
    assert found.keys() == {f.name for f in base.iterdir()} - {"model.safetensors"}
    assert all(content == (base / name).read_bytes() for name, content in found.items())
