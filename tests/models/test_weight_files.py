"""Weight files that do not hold the model whole."""

import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastgrpo.models.config_file import end_token_ids, read_config
from fastgrpo.models.weight_files import _say, read_weights
from tests.tiny import tiny_model

UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    for name in ("llama", "qwen2"):
        tiny_model(name).save_pretrained(folder / name)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved / "llama", tmp_path / "model")


def change(folder, **tensors):
    """Puts tensors into the weight file; None takes one out."""
    weights = load_file(folder / "model.safetensors") | tensors
    save_file({n: t for n, t in weights.items() if t is not None}, folder / "model.safetensors", {"format": "pt"})


def configure(folder, **settings):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))


def shard(folder):
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    index = {"metadata": {}, "weight_map": {n: f"model-{1 + (n == UP)}.safetensors" for n in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("name", ["llama", "qwen2"])  # with a head of its own, and tied
def test_whole_files_give_the_model_bit_for_bit(saved, name):
    model = read_weights(str(saved / name), dtype=torch.float32)
    assert all(torch.equal(w, model.state_dict()[n]) for n, w in tiny_model(name).state_dict().items())


@pytest.mark.parametrize("size", [0, 5, 50, 2000, -1])
def test_a_truncated_file_is_named(folder, size):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ValueError, match=rf"{file} is cut short or damaged"):
        read_weights(str(folder))


def test_a_truncated_shard_and_one_that_is_not_there_are_named(folder):
    shard(folder)
    with pytest.raises(ValueError, match=r"cannot be loaded: .*model-2\.safetensors"):
        read_weights(str(folder))
    (folder / "model-2.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match=rf"{folder}/model-2\.safetensors is cut short or damaged"):
        read_weights(str(folder))


def test_a_missing_tensor_is_named_and_never_drawn_at_random(folder):
    change(folder, **{UP: None, "lm_head.weight": None})
    with pytest.raises(ValueError, match=rf"lack lm_head\.weight, {UP}, which would be drawn at random"):
        read_weights(str(folder))


@pytest.mark.parametrize("settings", [{"num_hidden_layers": 3}, {"attention_bias": True}])
def test_what_a_larger_configuration_needs_is_named(folder, settings):
    configure(folder, **settings)
    with pytest.raises(ValueError, match=r"lack model\.layers\..* and \d+ more"):
        read_weights(str(folder))


@pytest.mark.parametrize("settings", [{"intermediate_size": 64}, {"num_key_value_heads": 4}, {"vocab_size": 7}])
def test_shapes_of_another_configuration_are_named_with_both(folder, settings):
    configure(folder, **settings)
    with pytest.raises(ValueError, match=r"other shapes than its config\.json needs: .* \[\d+, 32\] for \[\d+, 32\]"):
        read_weights(str(folder))


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.1.adapter.down.weight",
        "model.norm.bias",
        "lm_head.bias",
    ],
)
def test_a_tensor_that_a_layer_would_be_computed_without_is_named(folder, name):
    change(folder, **{name: torch.ones(4)})
    with pytest.raises(ValueError, match=rf"have {name}, which the model of its config\.json would leave out"):
        read_weights(str(folder))


def test_layers_beyond_the_last_one_are_named(folder):
    configure(folder, num_hidden_layers=1)
    with pytest.raises(ValueError, match=r"have model\.layers\.1\.input_layernorm\.weight, .* and 4 more, which"):
        read_weights(str(folder))


def test_parts_beside_the_language_model_are_said(folder, capsys):
    _say.cache_clear()
    change(folder, **{"visual.patch.weight": torch.ones(4), "model.layers.2.eh_proj.weight": torch.ones(4)})
    read_weights(str(folder))
    read_weights(str(folder))
    assert capsys.readouterr().out.count("note: ") == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_value_that_is_not_finite_is_found_and_its_tensor_named(folder, value, dtype):
    broken = load_file(folder / "model.safetensors")[UP]
    broken[3, 5] = value
    change(folder, **{UP: broken})
    with pytest.raises(ValueError, match=rf"have NaN or infinity in {UP} \(as {dtype}\)"):
        read_weights(str(folder), dtype=dtype)


class Planted:
    def __reduce__(self):
        return os.mkdir, (os.environ["PLANTED"],)


@pytest.mark.parametrize("write", [pickle.dumps, None])
def test_objects_in_a_bin_file_are_refused_and_not_executed(folder, tmp_path, monkeypatch, write):
    monkeypatch.setenv("PLANTED", str(tmp_path / "executed"))
    (folder / "model.safetensors").unlink()
    if write:
        (folder / "pytorch_model.bin").write_bytes(write(Planted()))
    else:
        torch.save({UP: Planted()}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"its \.bin file holds Python objects besides tensors"):
        read_weights(str(folder))
    assert not (tmp_path / "executed").exists()


def test_no_weights_at_all_are_refused(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"cannot be loaded: .*no file named model"):
        read_weights(str(folder))


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"hidden_size": -128}, "says hidden_size -128, which no model has"),
        ({"hidden_size": 0}, "says hidden_size 0"),
        ({"num_hidden_layers": 10**9}, "says num_hidden_layers 1000000000"),
        ({"vocab_size": 10**15}, "says vocab_size"),
        ({"rms_norm_eps": float("nan")}, "says rms_norm_eps nan"),
        ({"num_hidden_layers": "two"}, "cannot be read .*expected int, got str"),
        ({"num_attention_heads": 0}, "cannot be read"),
        ({"model_type": "nothing"}, "cannot be read"),
    ],
)
def test_a_configuration_of_no_model_is_refused(folder, settings, says):
    configure(folder, **settings)
    with pytest.raises(ValueError, match=says):
        read_config(str(folder))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b"\xff", b"[" * 200_000])
def test_a_configuration_that_is_no_json_is_refused(folder, content):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"the configuration of {folder} cannot be read"):
        read_config(str(folder))


def test_end_tokens_are_those_of_the_generation_settings_or_else_of_the_configuration(folder):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 5]}))
    assert end_token_ids(str(folder)) == (3, 5)
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.6}))
    assert end_token_ids(str(folder)) == (0,)
    (folder / "generation_config.json").unlink()
    assert end_token_ids(str(folder)) == (0,)
    configure(folder, eos_token_id=None)
    assert end_token_ids(str(folder)) == ()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"[" * 200_000])
def test_generation_settings_that_are_no_json_are_refused(folder, content):
    (folder / "generation_config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"generation_config\.json is no JSON"):
        end_token_ids(str(folder))


@pytest.mark.parametrize("ids", [[[1]], "x", -7, 1.5])
def test_end_tokens_that_are_none_are_refused(folder, ids):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    with pytest.raises(ValueError, match=r"as an end token|is no JSON"):
        end_token_ids(str(folder))


def test_quantized_weights_that_no_configuration_calls_so_are_refused(folder):
    name = "model.layers.0.mlp.up_proj.weight"
    change(folder, **{name: load_file(folder / "model.safetensors")[name].to(torch.int8)})
    with pytest.raises(ValueError, match=rf"are quantized \({name} is I8\).*no quantization_config"):
        read_weights(str(folder))
