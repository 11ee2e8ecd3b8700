"""OpenRLHF's Actor and PolicyLoss, executed as published on CPU, on float32 logits and on our op."""

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from fastgrpo_kernels.adapters.openrlhf import use_linear_logprobs
from torch import Tensor

from tests.kernels.readme import block
from tests.peers.flash_attn_rows import stand_in_for_flash_attn
from tests.peers.off_policy import make_batch
from tests.peers.tiny_peers import ARCHITECTURES, Run, assert_close, save

pytest.importorskip("openrlhf")
deepspeed = pytest.importorskip("deepspeed")

pytestmark = pytest.mark.peers


stand_in_for_flash_attn()

from openrlhf.models import Actor, PolicyLoss  # noqa: E402

TEMPERATURE = 0.7
# 0.11.0 takes the entropy before it divides the logits in place, so that no gradient of the entropy comes back.
ENTROPY_UNSCALED = metadata.version("openrlhf") == "0.11.0"


@pytest.fixture(scope="module", autouse=True)
def without_compiler() -> Iterator[None]:
    """Upstream compiles its entropy, which takes half a minute and changes nothing."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {name: save(tmp_path_factory.mktemp(name), name) for name in ARCHITECTURES}


def make_actor(folder: Path, **settings: object) -> Actor:
    torch.manual_seed(0)  # of LoRA's weights
    actor = Actor(str(folder), **{"attn_implementation": "sdpa", "temperature": TEMPERATURE, **settings})
    return actor.float().train()


def rl_batch() -> dict[str, Tensor]:
    """The off-policy batch in OpenRLHF's layout: sequences padded on the right, the mask of actions over their end."""
    batch = make_batch()
    pairs = zip(batch.prompts, batch.responses, strict=True)
    whole = [torch.from_numpy(np.concatenate(pair)).long() for pair in pairs]
    length = max(len(ids) for ids in whole)
    positions, lengths = torch.arange(length), torch.tensor([len(ids) for ids in whole])[:, None]
    attention_mask = positions < lengths
    is_action = attention_mask & (positions >= torch.tensor([len(p) for p in batch.prompts])[:, None])
    return {
        "sequences": torch.nn.utils.rnn.pad_sequence(whole, batch_first=True),
        "attention_mask": attention_mask.long(),
        "action_mask": is_action[:, 1:],
    }


def forward_backward(actor: Actor) -> Run:
    """What `ppo_actor.py` does with an actor: logprobs and entropy of the actions, loss, gradients."""
    batch = rl_batch()
    mask = batch["action_mask"]
    logprobs, output = actor(**batch, return_output=True, return_entropy=True)
    old_logprobs = -4 - torch.rand(mask.shape, generator=torch.Generator().manual_seed(0))
    advantages = make_batch().advantages.float()[:, None].expand(mask.shape)
    loss, *_ = PolicyLoss(0.2, 0.28, dual_clip=10.0)(logprobs, old_logprobs, advantages, mask)
    entropy = output.entropy[:, -mask.shape[1] :] * mask
    if ENTROPY_UNSCALED:
        entropy = entropy.detach()
    (loss - 0.1 * entropy.sum() / mask.sum()).backward()
    found = {"logprobs": logprobs.detach(), "entropy": entropy.detach(), "loss": loss.detach()}
    return found | {name: p.grad for name, p in actor.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("packing_samples", [False, True])
@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_logprobs_entropy_loss_and_gradients_are_upstreams(folders, name, packing_samples):
    want = forward_backward(make_actor(folders[name], packing_samples=packing_samples))
    actor = make_actor(folders[name], packing_samples=packing_samples)
    use_linear_logprobs(actor)
    got = forward_backward(actor)
    assert len(got) > 20
    assert_close(got, want)


def test_without_a_temperature_the_entropys_gradient_is_upstreams(folders):
    """In every version, 0.11.0 too."""
    batch, found = rl_batch(), []
    for adapt in (False, True):
        actor = make_actor(folders["qwen2"], temperature=1.0)
        if adapt:
            use_linear_logprobs(actor)
        _, output = actor(**batch, return_output=True, return_entropy=True)
        mask = batch["action_mask"]
        (output.entropy[:, -mask.shape[1] :] * mask).sum().backward()
        found.append({name: p.grad for name, p in actor.named_parameters()})
    assert_close(found[1], found[0])


def test_lora_trains_as_upstream(folders):
    lora = {"lora_rank": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    want = forward_backward(make_actor(folders["qwen2"], **lora))
    actor = make_actor(folders["qwen2"], **lora)
    use_linear_logprobs(actor)
    got = forward_backward(actor)
    assert got.keys() == want.keys() and any("lora_B" in name for name in got)
    assert_close(got, want)


@pytest.mark.parametrize("packing_samples", [False, True])
def test_logprobs_of_whole_sequences_are_upstreams(folders, packing_samples):
    """As SFT and DPO ask for them, without an action mask."""
    batch = rl_batch()
    del batch["action_mask"]
    actor = make_actor(folders["qwen2"], packing_samples=packing_samples)
    want = actor(**batch, return_logprobs=True).detach()
    use_linear_logprobs(actor)
    got = actor(**batch, return_logprobs=True).detach()
    read = batch["attention_mask"][:, 1:].bool()
    assert_close({"logprobs": got[read]}, {"logprobs": want[read]})


@torch.no_grad()
def test_in_bfloat16_logprobs_are_closer_to_float32_than_upstreams(folders):
    """Upstream widens logits that were rounded to bfloat16; the hidden states are the same here."""
    batch, actor = rl_batch(), make_actor(folders["qwen2"]).bfloat16()
    hidden = actor.model.model(batch["sequences"], attention_mask=batch["attention_mask"]).last_hidden_state.float()
    logits = hidden @ actor.model.lm_head.weight.float().T / TEMPERATURE
    exact = logits[:, :-1].log_softmax(-1).gather(2, batch["sequences"][:, 1:, None]).squeeze(2) * batch["action_mask"]
    theirs = actor(**batch)
    use_linear_logprobs(actor)
    ours = actor(**batch)
    assert float((ours - exact).abs().max()) < 0.1 * float((theirs - exact).abs().max())


def step_of_deepspeed(folder: Path, adapt: bool) -> Run:
    """How far the weights move in one step of ZeRO stage 2, OpenRLHF's default, over one rank."""
    actor = make_actor(folder)
    start = {name: p.detach().clone() for name, p in actor.model.named_parameters()}
    optimizer = torch.optim.SGD(actor.parameters(), lr=1.0)
    config = {
        "train_batch_size": 8,
        "zero_optimization": {"stage": 2},
        "zero_allow_untested_optimizer": True,
    }
    actor.model, *_ = deepspeed.initialize(model=actor.model, optimizer=optimizer, config=config)
    if adapt:
        use_linear_logprobs(actor)
    logprobs = actor(**rl_batch())
    actor.model.backward((logprobs * torch.linspace(-1, 1, logprobs.shape[1])).mean())
    actor.model.step()
    moved = {name: p.detach() - start[name] for name, p in actor.model.module.named_parameters()}
    return {"logprobs": logprobs.detach(), "moved": torch.cat([m.flatten() for m in moved.values()])}


def test_a_step_inside_a_deepspeed_engine_is_upstreams(folders, monkeypatch):
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
        want = step_of_deepspeed(folders["qwen2"], adapt=False)
        assert_close(step_of_deepspeed(folders["qwen2"], adapt=True), want)
    finally:
        torch.distributed.destroy_process_group()


def test_undoing_puts_both_methods_back(folders):
    actor = make_actor(folders["qwen2"])
    use_linear_logprobs(actor)()
    assert "forward" not in vars(actor) and "forward" not in vars(actor.model)


def test_generation_reaches_the_models_own_forward(folders):
    actor = make_actor(folders["qwen2"])
    ids = torch.tensor([[5, 6, 7]])
    before = actor.model(ids).logits
    use_linear_logprobs(actor)
    torch.testing.assert_close(actor.model(ids).logits, before, rtol=0, atol=0)


@pytest.mark.parametrize("installed", ["0.10.4", "0.12.0"])
def test_another_version_is_refused_by_name(folders, monkeypatch, installed):
    actor = make_actor(folders["qwen2"])
    monkeypatch.setattr(metadata, "version", lambda package: installed)
    with pytest.raises(ValueError, match=rf"0\.11\.1, 0\.11\.2, and {installed} is installed.*openrlhf==0\.11\.2"):
        use_linear_logprobs(actor)


def test_a_partitioned_head_images_and_another_class_are_refused(folders):
    actor = make_actor(folders["qwen2"])
    actor.model.lm_head.weight.ds_id = 0  # as ZeRO stage 3 marks a parameter
    with pytest.raises(ValueError, match="use stage 2"):
        use_linear_logprobs(actor)
    actor.is_vlm = True
    with pytest.raises(ValueError, match="images are not supported"):
        use_linear_logprobs(actor)
    with pytest.raises(ValueError, match=r"Need an openrlhf\.models\.Actor, got Linear"):
        use_linear_logprobs(torch.nn.Linear(1, 1))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"action_mask": None, "return_output": True}, "asked for logits"),
        ({"ring_attn_group": object()}, "ring_attn_size=1"),
        ({"pixel_values": torch.zeros(1)}, "got .'pixel_values'."),
        ({"attention_mask": None}, "Need attention_mask"),
    ],
)
def test_calls_that_cannot_be_served_are_refused_in_words(folders, change, words):
    actor = make_actor(folders["qwen2"])
    use_linear_logprobs(actor)
    with pytest.raises(ValueError, match=words):
        actor(**{**rl_batch(), **change})


def test_the_lines_of_the_kernels_page_run(folders):
    namespace = {"model_name": str(folders["qwen2"]), **rl_batch()}
    exec(block("From OpenRLHF"), namespace)
    assert any(p.grad is not None and p.grad.norm() > 0 for p in namespace["actor"].parameters())
