"""verl's FSDP engine, executed as published on CPU, on materialised logits and on our op: nothing may differ."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path

import pytest
import torch
from fastgrpo_kernels.adapters.verl import use_linear_logprobs

from tests.kernels.readme import block
from tests.peers.off_policy import make_batch
from tests.peers.tiny_peers import ARCHITECTURES, Run, assert_close, save

pytest.importorskip("verl")
pytest.importorskip("peft", reason="verl's engine imports it")

pytestmark = pytest.mark.peers

from tests.peers.flash_attn_rows import stand_in_for_flash_attn  # noqa: E402

stand_in_for_flash_attn()  # 0.9.1 has functions of its own


def set_platform_to_cpu() -> None:
    """0.9 knows no platform without an accelerator, and has a seam for others; 0.8 takes the CPU by itself."""
    try:
        from verl.plugin.platform.platform_cuda import PlatformCUDA
        from verl.plugin.platform.platform_manager import set_platform
    except ModuleNotFoundError:
        return

    class CPU(PlatformCUDA):
        device_name = "cpu"
        device_module = torch.cpu

        def is_available(self) -> bool:
            return True

        def current_device(self) -> torch.device:
            return torch.device("cpu")

        def communication_backend_name(self) -> str:
            return "gloo"

    set_platform(CPU())


set_platform_to_cpu()  # before the engine is imported, which asks for the device then
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # about engines that are not installed
    from verl.trainer.config import CheckpointConfig
    from verl.utils import tensordict_utils
    from verl.workers.config import ActorConfig, FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead, FSDPEngineWithValueHead
    from verl.workers.utils.losses import ppo_loss
    from verl.workers.utils.padding import left_right_2_no_padding, no_padding_2_padding

TEMPERATURE = 0.7
IS_0_8 = metadata.version("verl") == "0.8.0"


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {name: save(tmp_path_factory.mktemp(name), name) for name in ARCHITECTURES}


def make_engine(folder: Path, *, fused: bool, remove_padding: bool = True, **model: object) -> FSDPEngineWithLMHead:
    """verl's engine with real FSDP2 over one rank, float32, as `engine_workers.py` makes it."""
    model_config = HFModelConfig(
        path=str(folder),
        use_fused_kernels=fused,
        use_remove_padding=remove_padding,
        override_config={"attn_implementation": "sdpa"},
        enable_gradient_checkpointing=False,
        **model,
    )
    engine_config = FSDPEngineConfig(
        strategy="fsdp2",
        use_torch_compile=False,
        use_fused_kernels=fused,
        mixed_precision={"param_dtype": "fp32", "reduce_dtype": "fp32"},
    )
    optimizer_config = FSDPOptimizerConfig(lr=1e-3, total_training_steps=10)
    engine = FSDPEngineWithLMHead(model_config, engine_config, optimizer_config, CheckpointConfig())
    engine.initialize()
    return engine


def rl_batch(*, fused: bool, remove_padding: bool):
    """The off-policy batch in verl's layout: prompts padded on the left, responses on the right."""
    batch = make_batch()
    longest = max(len(p) for p in batch.prompts)
    rows, width = batch.mask.shape
    prompts, responses = torch.zeros(rows, longest, dtype=torch.int64), torch.zeros(rows, width, dtype=torch.int64)
    prompt_mask = torch.zeros_like(prompts)
    for i, (prompt, response) in enumerate(zip(batch.prompts, batch.responses, strict=True)):
        prompts[i, longest - len(prompt) :] = torch.from_numpy(prompt).long()
        prompt_mask[i, longest - len(prompt) :] = 1
        responses[i, : len(response)] = torch.from_numpy(response).long()
    attention_mask = torch.cat([prompt_mask, batch.mask.long()], dim=1)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "input_ids": torch.cat([prompts, responses], dim=1),
        "attention_mask": attention_mask,
        "position_ids": (attention_mask.cumsum(1) - 1).clamp(min=0),
        "prompts": prompts,
        "responses": responses,
        "response_mask": batch.mask.long(),
        "old_log_probs": -4 - torch.rand(batch.mask.shape, generator=generator),
        "advantages": batch.advantages.float()[:, None].expand(batch.mask.shape) * batch.mask,
    }
    settings = {
        "temperature": TEMPERATURE,
        "use_remove_padding": remove_padding,
        "use_fused_kernels": fused,
        "use_dynamic_bsz": False,
        "micro_batch_size_per_gpu": 4,
        "global_batch_size": rows,
        "calculate_entropy": True,
        "return_model_output": True,
    }
    return left_right_2_no_padding(tensordict_utils.get_tensordict(tensors, settings))


def forward_backward(engine: FSDPEngineWithLMHead, *, fused: bool, remove_padding: bool = True) -> Run:
    """Logprobs and entropy over the responses, the loss of each micro-batch, and the gradient by every parameter."""
    config = ActorConfig(
        strategy="fsdp", rollout_n=8, ppo_micro_batch_size_per_gpu=4, entropy_coeff=0.1, use_torch_compile=False
    )
    data = rl_batch(fused=fused, remove_padding=remove_padding)
    engine.module.train()
    output = engine.forward_backward_batch(data, partial(ppo_loss, config))
    found = {k: no_padding_2_padding(v, data) for k, v in output["model_output"].items()}
    found["loss"] = torch.tensor(output["loss"])
    for name, p in engine.module.named_parameters():
        if p.requires_grad:
            found[name] = p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
    return found


def materialised(folder: Path, **settings) -> Run:
    engine = make_engine(folder, fused=False, **settings)
    return forward_backward(engine, fused=False, remove_padding=settings.get("remove_padding", True))


@pytest.mark.parametrize("remove_padding", [True, False])
@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_logprobs_entropy_loss_and_gradients_are_those_of_verls_logits(folders, name, remove_padding):
    if IS_0_8 and not remove_padding:
        pytest.skip("verl 0.8.0 fails there with each fused head, and the adapter refuses it")
    want = materialised(folders[name], remove_padding=remove_padding)
    engine = make_engine(folders[name], fused=True, remove_padding=remove_padding)
    use_linear_logprobs(engine)
    got = forward_backward(engine, fused=True, remove_padding=remove_padding)
    assert {"log_probs", "entropy", "loss"} < got.keys() and len(got["loss"]) == 2
    assert_close(got, want)


@pytest.mark.parametrize("name", ["qwen2", "gemma3"])
def test_verls_own_fused_head_agrees_but_for_the_cap_that_it_leaves_out(folders, name):
    """Why the adapter reads the model's configuration."""
    want = materialised(folders[name])
    options = {"fused_kernel_options": {"impl_backend": "torch"}}
    with _forward_of_class_kept(ARCHITECTURES[name][1]):
        got = forward_backward(make_engine(folders[name], fused=True, **options), fused=True)
    error = float((got["log_probs"] - want["log_probs"]).abs().max())
    assert error < 1e-4 if name == "qwen2" else error > 0.1


@pytest.mark.skipif(not IS_0_8, reason="verl 0.9 has mended it")
def test_padded_batches_fail_in_verl_0_8_itself_and_are_refused(folders):
    with _forward_of_class_kept(ARCHITECTURES["qwen2"][1]):
        engine = make_engine(
            folders["qwen2"], fused=True, remove_padding=False, fused_kernel_options={"impl_backend": "torch"}
        )
        with pytest.raises(AssertionError):
            forward_backward(engine, fused=True, remove_padding=False)
    with pytest.raises(ValueError, match="use_remove_padding=True"):
        use_linear_logprobs(engine)


@contextmanager
def _forward_of_class_kept(model_class: type) -> Iterator[None]:
    """verl replaces `forward` of the class, for the whole process."""
    before = model_class.forward
    yield
    model_class.forward = before


def test_every_backend_of_verl_is_replaced(folders):
    want = materialised(folders["qwen2"])
    with _forward_of_class_kept(ARCHITECTURES["qwen2"][1]):
        engine = make_engine(folders["qwen2"], fused=True, fused_kernel_options={"impl_backend": "torch"})
        use_linear_logprobs(engine)
        assert_close(forward_backward(engine, fused=True), want)


def test_a_forward_without_gradients_gives_the_same_logprobs(folders):
    """As for old and reference logprobs."""
    want = materialised(folders["qwen2"])
    engine = make_engine(folders["qwen2"], fused=True)
    use_linear_logprobs(engine)
    data = rl_batch(fused=True, remove_padding=True)
    output = engine.forward_backward_batch(data, None, forward_only=True)["model_output"]
    for name in ("log_probs", "entropy"):
        assert_close({name: no_padding_2_padding(output[name], data)}, {name: want[name]})


def test_lora_trains_as_on_verls_logits(folders):
    lora = {"lora_rank": 4, "lora_alpha": 8, "target_modules": "all-linear"}
    torch.manual_seed(1)
    want = materialised(folders["qwen2"], **lora)
    torch.manual_seed(1)
    engine = make_engine(folders["qwen2"], fused=True, **lora)
    use_linear_logprobs(engine)
    got = forward_backward(engine, fused=True)
    assert any("lora_A" in name for name in got)
    assert_close(got, want)


def test_lora_on_the_head_is_refused(folders):
    engine = make_engine(folders["cohere"], fused=True, lora_rank=4, target_modules=["lm_head"])
    with pytest.raises(ValueError, match=r"plain torch.nn.Linear, got Linear in CohereForCausalLM"):
        use_linear_logprobs(engine)


def test_a_module_named_by_external_lib_adapts_the_engines_of_its_process(folders, tmp_path, monkeypatch):
    (tmp_path / "our_actor.py").write_text(
        "from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead\n"
        "from fastgrpo_kernels.adapters.verl import use_linear_logprobs\n"
        "undo = use_linear_logprobs(FSDPEngineWithLMHead)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    want = materialised(folders["gemma3"])
    engine = make_engine(folders["gemma3"], fused=True, external_lib="our_actor")
    try:
        assert_close(forward_backward(engine, fused=True), want)
        with pytest.raises(ValueError, match="use_fused_kernels=True"):
            make_engine(folders["gemma3"], fused=False)
    finally:
        sys.modules["our_actor"].undo()
    make_engine(folders["gemma3"], fused=False)


def test_undoing_puts_the_models_forward_back(folders):
    engine = make_engine(folders["qwen2"], fused=True)
    undo = use_linear_logprobs(engine)
    assert "forward" in vars(engine.module)
    undo()
    assert "forward" not in vars(engine.module)


@pytest.mark.parametrize("installed", ["0.7.1", "0.10.0"])
def test_another_version_is_refused_by_name(monkeypatch, installed):
    monkeypatch.setattr(metadata, "version", lambda package: installed)
    with pytest.raises(ValueError, match=rf"0\.9\.0, 0\.9\.1, and {installed} is installed.*verl==0\.9\.1"):
        use_linear_logprobs(FSDPEngineWithLMHead)


def test_materialised_logits_are_refused(folders):
    with pytest.raises(ValueError, match=r"set actor_rollout_ref.model.use_fused_kernels=True"):
        use_linear_logprobs(make_engine(folders["qwen2"], fused=False))


def test_another_engine_is_refused():
    critic = FSDPEngineWithValueHead.__new__(FSDPEngineWithValueHead)
    for engine in (object(), critic, FSDPEngineWithValueHead):
        with pytest.raises(ValueError, match="Need verl's FSDPEngineWithLMHead"):
            use_linear_logprobs(engine)


def test_an_engine_without_a_model_is_refused():
    with pytest.raises(ValueError, match=r"call engine.initialize"):
        use_linear_logprobs(FSDPEngineWithLMHead.__new__(FSDPEngineWithLMHead))


def test_the_first_fsdp_and_sequence_parallelism_are_refused(folders):
    """verl builds neither on CPU, so that no test has run them."""
    engine = make_engine(folders["qwen2"], fused=True)
    engine.use_ulysses_sp = True
    with pytest.raises(ValueError, match="ulysses_sequence_parallel_size=1"):
        use_linear_logprobs(engine)
    engine.module = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"actor.strategy=fsdp2"):
        use_linear_logprobs(engine)


def test_the_lines_of_the_kernels_page_run(folders):
    namespace: dict[str, object] = {}
    own = FSDPEngineWithLMHead.initialize
    exec(block("From verl"), namespace)
    assert FSDPEngineWithLMHead.initialize is not own
    namespace["undo"]()
    assert FSDPEngineWithLMHead.initialize is own
