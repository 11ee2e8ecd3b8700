"""GRPOTrainer of TRL, executed with its own LM head and with ours: the runs must not differ."""

import re
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch
from fastgrpo_kernels.adapters.trl import use_linear_logprobs

from tests.kernels.readme import block
from tests.peers.tiny_peers import ARCHITECTURES, VOCABULARY, Run, assert_close, save, tiny_model, tokenizer

trl = pytest.importorskip("trl")

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")]

LOSSES = ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "vespo", "luspo"]
# beta, temperature, importance sampling: with every loss, each value of one meets each value of the others.
SETTINGS = [(0.0, 1.0, "token"), (0.0, 0.7, "sequence"), (0.1, 1.0, "sequence"), (0.1, 0.7, "token")]
# TRL 1.15's own head is a Triton kernel alone, and interpreted a run of 20 steps takes a minute.
NUM_STEPS = 3 if metadata.version("trl") == "1.15.0" else 20
IS_1_14 = metadata.version("trl").startswith("1.14.")  # which makes all logits


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {name: save(tmp_path_factory.mktemp(name), name) for name in ARCHITECTURES}


@pytest.fixture
def trainer(folders):
    return grpo_trainer(folders["qwen2"])


def odd_tokens(completion_ids: list[list[int]], **_: object) -> list[float]:
    return [sum(token % 2 for token in ids) / len(ids) for ids in completion_ids]


def grpo_trainer(folder: Path, **settings: object):
    """Plain SGD, whose steps are as large as the gradients, so that a wrong one shows; ratios drift, entropy counts."""
    from datasets import Dataset

    args = {
        "output_dir": str(folder / "run"),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "num_iterations": 2,
        "max_completion_length": 5,
        "max_steps": NUM_STEPS,
        "logging_steps": 1,
        "save_strategy": "no",
        "optim": "sgd",
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "entropy_coef": 0.01,
    }
    return trl.GRPOTrainer(
        model=str(folder),
        reward_funcs=odd_tokens,
        args=trl.GRPOConfig(**{**args, **settings}),
        train_dataset=Dataset.from_list([{"prompt": "w5 w6 w7"}, {"prompt": "w8"}] * 8),
        processing_class=tokenizer(),
    )


def train(folder: Path, adapt: bool, **settings: object) -> tuple[Run, list[str]]:
    """Losses and how far each weight has moved; the sampled text."""
    sampled: list[str] = []

    def reward(completions: list[str], **rest: object) -> list[float]:
        sampled.extend(completions)
        return odd_tokens(**rest)

    trainer = grpo_trainer(folder, **settings)
    trainer.reward_funcs = [reward]
    start = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    if adapt:
        use_linear_logprobs(trainer)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    moved = torch.cat([(p.detach() - start[name]).flatten() for name, p in trainer.model.named_parameters()])
    return {"losses": torch.tensor(losses), "moved": moved}, sampled


@pytest.mark.parametrize("beta, temperature, level", SETTINGS)
@pytest.mark.parametrize("loss_type", LOSSES)
def test_a_run_has_the_losses_and_weights_of_trls_own(folders, loss_type, beta, temperature, level):
    """Both runs draw with one seed. Logits differ by 1e-7, which changes a draw about once in a thousand runs."""
    settings = {
        "loss_type": loss_type,
        "beta": beta,
        "temperature": temperature,
        "importance_sampling_level": level,
    }
    theirs, their_text = train(folders["qwen2"], False, **settings)
    ours, our_text = train(folders["qwen2"], True, **settings)
    assert our_text == their_text, "a draw fell on the other side of a rounding error: take another seed"
    assert len(ours["losses"]) == NUM_STEPS
    assert_close(ours, theirs)


def scored(trainer, batch_size: int | None = None) -> Run:
    """Logprobs, entropy and their gradients of ragged rows, through the trainer's own method."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, VOCABULARY, (6, 9), generator=generator)
    lengths = torch.tensor([9, 7, 9, 8, 5, 6])
    mask = (torch.arange(9) < lengths[:, None]).long()
    trainer.model.zero_grad()
    logprobs, entropy, _ = trainer._get_per_token_logps_and_entropies(
        trainer.model, ids, mask, logits_to_keep=5, compute_entropy=True, batch_size=batch_size
    )
    weights = torch.rand(logprobs.shape, generator=generator)
    ((logprobs + 0.3 * entropy) * weights).sum().backward()
    found = {"logprobs": logprobs.detach(), "entropy": entropy.detach()}
    return found | {name: p.grad.float() for name, p in trainer.model.named_parameters()}


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_caps_and_scales_of_the_logits_are_trls(folders, name):
    trainer = grpo_trainer(folders[name], temperature=0.7)
    theirs = scored(trainer)
    use_linear_logprobs(trainer)
    assert_close(scored(trainer), theirs)


def test_rows_go_through_the_model_in_trls_portions(folders):
    trainer = grpo_trainer(folders["qwen2"])
    theirs, sizes = scored(trainer), []
    use_linear_logprobs(trainer)
    trainer.model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    assert_close(scored(trainer, batch_size=4), theirs)
    assert sizes == [4, 2]


def test_an_lm_head_in_float32_of_a_bfloat16_model_is_trls(folders):
    trainer = grpo_trainer(
        folders["qwen2"], cast_lm_head_to_fp32=True, model_init_kwargs={"dtype": "bfloat16"}, bf16=True
    )
    theirs = scored(trainer)
    use_linear_logprobs(trainer)
    ours = scored(trainer)
    for name in ("logprobs", "entropy"):
        assert_close({name: ours[name]}, {name: theirs[name]})


def test_under_autocast_logprobs_are_as_close_to_float32_as_trls(folders):
    exact = scored(grpo_trainer(folders["qwen2"]))["logprobs"]
    trainer = grpo_trainer(folders["qwen2"], bf16=True)
    with trainer.accelerator.autocast():  # TRL 1.14 enters it in a run alone
        theirs = scored(trainer)["logprobs"]
        use_linear_logprobs(trainer)
        ours = scored(trainer)["logprobs"]
    assert float((ours - exact).norm()) <= 1.2 * float((theirs - exact).norm())


def off_policy_batch(seed: int, model) -> dict[str, torch.Tensor]:
    """What `_compute_loss` reads: ragged responses to prompts of 4 tokens, ratios near 1 that are not clipped."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCABULARY, (8, 16), generator=generator)
    mask = (torch.arange(12) < torch.randint(3, 13, (8, 1), generator=generator)).long()
    with torch.no_grad():
        logprobs = model(ids).logits[:, 3:-1].log_softmax(-1).gather(2, ids[:, 4:, None]).squeeze(2)
    return {
        "prompt_ids": ids[:, :4],
        "prompt_mask": torch.ones(8, 4, dtype=torch.int64),
        "completion_ids": ids[:, 4:],
        "completion_mask": mask,
        "num_items_in_batch": mask.sum(),
        "advantages": torch.randn(8, generator=generator),
        "old_per_token_logps": logprobs.float() + 0.05 * torch.randn(8, 12, generator=generator),
    }


def loss_and_gradient(trainer, batch: dict[str, torch.Tensor], exact_model=None) -> Run:
    """TRL's own loss under bfloat16 autocast; with an exact model, in float64 from that model's logits."""

    def exact_scoring(model, input_ids, attention_mask, logits_to_keep, **_: object):
        logits = exact_model(input_ids, attention_mask=attention_mask).logits[:, -logits_to_keep - 1 : -1]
        logprobs = logits.double().log_softmax(-1).gather(2, input_ids[:, -logits_to_keep:, None]).squeeze(2)
        return logprobs * attention_mask[:, -logits_to_keep:], torch.zeros_like(logprobs), None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "current_gradient_accumulation_steps", 1, raising=False)
        if exact_model is not None:
            patch.setattr(trainer, "_get_per_token_logps_and_entropies", exact_scoring)
            batch = {name: t.double() if t.is_floating_point() else t for name, t in batch.items()}
        model = trainer.model.train() if exact_model is None else exact_model
        model.zero_grad()
        with trainer.accelerator.autocast():
            loss = trainer._compute_loss(trainer.model, batch)
        loss.backward()
    return {
        "loss": loss.detach().double(),
        "gradient": torch.cat([p.grad.double().flatten() for p in model.parameters()]),
    }


def test_in_bfloat16_the_loss_is_as_close_to_float64_as_trls(folders):
    """Tokens are given: in a run a draw falls on the other side of a rounding error sooner or later, and then the
    rest is another run."""
    theirs, ours = (grpo_trainer(folders["qwen2"], loss_type="bnpo", bf16=True, entropy_coef=0.0) for _ in range(2))
    use_linear_logprobs(ours)
    exact_model = tiny_model().double()
    errors: dict[str, list[float]] = {}
    for seed in range(40):
        batch = off_policy_batch(seed, exact_model)
        exact = loss_and_gradient(theirs, batch, exact_model)
        for head, trainer in (("ours", ours), ("TRL's", theirs)):
            for name, value in loss_and_gradient(trainer, batch).items():
                errors.setdefault(f"{name}, {head}", []).append(float((value - exact[name]).norm()))
    rms = {name: float(torch.tensor(values).square().mean().sqrt()) for name, values in errors.items()}
    print({name: f"{value:.3g}" for name, value in rms.items()})
    for name in ("loss", "gradient"):
        assert rms[f"{name}, ours"] <= 1.25 * rms[f"{name}, TRL's"]


def test_trls_own_head_is_not_called_in_a_run_with_a_reference(folders, monkeypatch):
    trainer = grpo_trainer(folders["qwen2"], beta=0.1, max_steps=2)
    use_linear_logprobs(trainer)
    monkeypatch.setattr("trl.trainer.utils._ChunkedLogProbFunction", None)
    for name in ("selective_log_softmax", "selective_log_softmax_and_entropy"):  # of TRL 1.14
        monkeypatch.setattr(f"trl.trainer.grpo_trainer.{name}", None, raising=False)
    trainer.train()
    assert trainer.state.global_step == 2


def test_generation_reaches_the_models_own_forward(trainer):
    ids = torch.tensor([[5, 6, 7]])
    before = trainer.model(ids).logits
    use_linear_logprobs(trainer)
    torch.testing.assert_close(trainer.model(ids).logits, before, rtol=0, atol=0)


def replaceable(trainer) -> list:
    owners = [o for o in (trainer.model, trainer.ref_model, trainer) if o is not None]
    return [vars(o).get(name) for o in owners for name in ("forward", "_get_per_token_logps_and_entropies")]


def test_undoing_puts_trls_head_back(folders):
    trainer = grpo_trainer(folders["qwen2"], beta=0.1)
    before = replaceable(trainer)
    undo = use_linear_logprobs(trainer)
    changed = [now is not b for now, b in zip(replaceable(trainer), before, strict=True)]
    assert sum(changed) == (3 if IS_1_14 else 2)
    undo()
    assert replaceable(trainer) == before


def test_a_refused_reference_model_leaves_all_as_it_was(folders):
    trainer = grpo_trainer(folders["qwen2"], beta=0.1)
    before = replaceable(trainer)
    trainer.ref_model.config.logit_scale = -1.0
    with pytest.raises(ValueError, match=r"above 0, got -1\.0"):
        use_linear_logprobs(trainer)
    assert replaceable(trainer) == before


def test_undoing_holds_where_another_has_wrapped_the_forward_since(trainer, monkeypatch):
    """As accelerate does for mixed precision when training begins."""
    undo = use_linear_logprobs(trainer)
    ours = trainer.model.forward
    trainer.model.forward = lambda *args, **kwargs: ours(*args, **kwargs)
    undo()
    monkeypatch.setattr("fastgrpo_kernels.adapters.linear_logprobs", None)
    scored(trainer)


def test_a_second_call_is_refused(trainer):
    use_linear_logprobs(trainer)
    with pytest.raises(ValueError, match="already uses linear_logprobs"):
        use_linear_logprobs(trainer)


@pytest.mark.parametrize("installed", ["1.14.1", "1.17.0"])
def test_another_version_is_refused_by_name(trainer, monkeypatch, installed):
    monkeypatch.setattr(metadata, "version", lambda package: installed)
    with pytest.raises(ValueError, match=rf"1\.15\.0, 1\.16\.0, and {installed} is installed.*trl==1\.16\.0"):
        use_linear_logprobs(trainer)


def test_another_class_is_refused():
    with pytest.raises(ValueError, match=r"Need a trl\.GRPOTrainer, got object"):
        use_linear_logprobs(object())


class AdaptedHead(torch.nn.Module):
    """As PEFT wraps a layer."""

    def __init__(self, base_layer: torch.nn.Linear):
        super().__init__()
        self.base_layer = base_layer


def _quantise(model) -> None:
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.to(torch.int8), requires_grad=False)


UNSUPPORTED: dict[str, Callable] = {
    "PEFT models are not supported": lambda t: setattr(t.model, "peft_config", {}),
    "plain torch.nn.Linear, got AdaptedHead": lambda t: t.model.set_output_embeddings(AdaptedHead(t.model.lm_head)),
    "floating point weights, got torch.int8": lambda t: _quantise(t.model),
    "ZeRO stage 3": lambda t: setattr(t.model.lm_head.weight, "ds_id", 0),
    "images are not supported": lambda t: setattr(t.model.config, "get_text_config", lambda: None),
    "router's loss": lambda t: setattr(t, "aux_loss_enabled", True),
    "set output_router_logits off": lambda t: setattr(t.model.config, "output_router_logits", True),
    "not known here: {'output_multiplier': 2.0}": lambda t: setattr(t.model.config, "output_multiplier", 2.0),
    "above 0, got -1.0": lambda t: setattr(t.model.config, "logit_scale", -1.0),
    "a model class of transformers": lambda t: setattr(t, "model", torch.nn.Linear(1, 1)),
}


@pytest.mark.parametrize("words", UNSUPPORTED)
def test_what_is_not_supported_is_refused_in_words(trainer, words):
    UNSUPPORTED[words](trainer)
    with pytest.raises(ValueError, match=re.escape(words)):
        use_linear_logprobs(trainer)


def test_shifted_labels_of_context_parallelism_are_refused_when_they_come(trainer):
    use_linear_logprobs(trainer)
    with pytest.raises(ValueError, match=r"does not support .'shift_labels'."):
        trainer.model(torch.ones(1, 3, dtype=torch.int64), shift_labels=torch.ones(1, 3), fused_lm_head=True)


@pytest.mark.skipif(not IS_1_14, reason="later versions pass them on to the model")
def test_under_1_14_images_and_its_own_chunked_head_are_refused(trainer):
    undo = use_linear_logprobs(trainer)
    ids = torch.ones(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"does not support .'pixel_values'."):
        trainer._get_per_token_logps_and_entropies(trainer.model, ids, ids, 2, pixel_values=ids, image_sizes=None)
    undo()
    trainer.use_liger_kernel = True
    with pytest.raises(ValueError, match="set use_liger_kernel=False"):
        use_linear_logprobs(trainer)
    assert "forward" not in vars(trainer.model)


def test_the_lines_of_the_kernels_page_run(folders, tmp_path):
    from datasets import Dataset

    settings = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": "none", "max_steps": 2}
    settings |= {"max_completion_length": 5, "num_generations": 4, "per_device_train_batch_size": 8}
    namespace = {
        "model_name": str(folders["qwen2"]),
        "reward": odd_tokens,
        "settings": settings,
        "dataset": Dataset.from_list([{"prompt": "w5 w6 w7"}, {"prompt": "w8"}] * 8),
        "tokenizer": tokenizer(),
    }
    exec(block("From TRL"), namespace)
    assert namespace["trainer"].state.global_step == 2
