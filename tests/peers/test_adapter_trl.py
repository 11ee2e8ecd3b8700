"""GRPOTrainer of TRL, executed with its own LM head and with ours: the runs must not differ."""

import re
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch
from fastgrpo_kernels.adapters.trl import use_linear_logprobs

from tests.kernels.readme import block
from tests.peers.tiny_peers import ARCHITECTURES, VOCABULARY, Run, assert_close, save, tokenizer

trl = pytest.importorskip("trl")

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")]

LOSSES = ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "vespo", "luspo"]
# beta, temperature, importance sampling: with every loss, each value of one meets each value of the others.
SETTINGS = [(0.0, 1.0, "token"), (0.0, 0.7, "sequence"), (0.1, 1.0, "sequence"), (0.1, 0.7, "token")]
NUM_STEPS = 20


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


def scored(trainer) -> Run:
    """Logprobs, entropy and their gradients of ragged rows, through the trainer's own method."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, VOCABULARY, (6, 9), generator=generator)
    lengths = torch.tensor([9, 7, 9, 8, 5, 6])
    mask = (torch.arange(9) < lengths[:, None]).long()
    trainer.model.zero_grad()
    logprobs, entropy, _ = trainer._get_per_token_logps_and_entropies(
        trainer.model, ids, mask, logits_to_keep=5, compute_entropy=True
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
    theirs = scored(trainer)["logprobs"]
    use_linear_logprobs(trainer)
    ours = scored(trainer)["logprobs"]
    assert float((ours - exact).norm()) <= 1.2 * float((theirs - exact).norm())


def test_trls_own_head_is_not_called_in_a_run_with_a_reference(folders, monkeypatch):
    trainer = grpo_trainer(folders["qwen2"], beta=0.1, max_steps=2)
    use_linear_logprobs(trainer)
    monkeypatch.setattr("trl.trainer.utils._ChunkedLogProbFunction", None)
    trainer.train()
    assert trainer.state.global_step == 2


def test_generation_reaches_the_models_own_forward(trainer):
    ids = torch.tensor([[5, 6, 7]])
    before = trainer.model(ids).logits
    use_linear_logprobs(trainer)
    torch.testing.assert_close(trainer.model(ids).logits, before, rtol=0, atol=0)


def test_undoing_puts_trls_head_back(folders, monkeypatch):
    trainer = grpo_trainer(folders["qwen2"], beta=0.1)
    before = [vars(m)["forward"] for m in (trainer.model, trainer.ref_model)]
    undo = use_linear_logprobs(trainer)
    assert all(vars(m)["forward"] is not b for m, b in zip((trainer.model, trainer.ref_model), before, strict=True))
    undo()
    assert [vars(m)["forward"] for m in (trainer.model, trainer.ref_model)] == before


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


@pytest.mark.parametrize("installed", ["1.15.0", "1.17.0"])
def test_another_version_is_refused_by_name(trainer, monkeypatch, installed):
    monkeypatch.setattr(metadata, "version", lambda package: installed)
    with pytest.raises(ValueError, match=rf"tested with trl 1\.16\.0, and {installed} is installed.*trl==1\.16\.0"):
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
