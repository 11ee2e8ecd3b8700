"""One measurement of TRL's GRPOTrainer on the quickstart's task: run by ``bench.vs_trl`` in TRL's own environment.

Reads a JSON object from the file of the first argument, and writes one to the file of the second. A step is one
generation, its scoring, the old logprobs and all updates. It is timed from the trainer's ``on_step_begin`` of the first
update to ``on_step_end`` of the last, without the loading of the first batch.
"""

import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch  # noqa: E402
import transformers  # noqa: E402
import trl  # noqa: E402
from datasets import Dataset  # noqa: E402

from fastgrpo.rewards import strict_boxed  # noqa: E402


class StepClock(transformers.TrainerCallback):
    def __init__(self, updates_per_step: int) -> None:
        self.updates = updates_per_step
        self.begun = 0.0
        self.step_s: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.updates == 0:
            self.begun = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.updates == 0:
            self.step_s.append(time.perf_counter() - self.begun)


def reward(prompts: list[str], completions: list[str], answer: list[str], **_: Any) -> list[float]:
    return [1.0 if strict_boxed(c, a) else -1.0 for c, a in zip(completions, answer, strict=True)]


def load_prompts(path: str, suffix: str, tokenizer: Any) -> Dataset:
    """The prompts with the chat template applied, so that no step spends time on it."""
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    messages = [[{"role": "user", "content": row["prompt"][0]["content"] + suffix}] for row in rows]
    texts = [tokenizer.apply_chat_template(m, tokenize=False, add_generation_prompt=True) for m in messages]
    answers = [row["reward_model"]["ground_truth"] for row in rows]
    return Dataset.from_dict({"prompt": texts, "answer": answers})


def arguments(task: dict[str, Any], settings: dict[str, Any]) -> trl.GRPOConfig:
    accumulation = settings["gradient_accumulation_steps"]
    per_device, rest = divmod(
        task["responses_per_step"], settings["processes"] * task["updates_per_step"] * accumulation
    )  # fmt: skip
    assert rest == 0, "the responses of a step must fill its micro-batches"
    return trl.GRPOConfig(
        output_dir=task["scratch"],
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        eval_strategy="no",
        disable_tqdm=True,
        gradient_checkpointing=False,
        seed=task["seed"],
        max_steps=task["num_steps"] * task["updates_per_step"],
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        steps_per_generation=accumulation * task["updates_per_step"],
        num_iterations=1,
        num_generations=task["group_size"],
        max_completion_length=task["response_tokens"],
        # The end token cannot be sampled: every response has its full length, as with our rollout.ignore_eos.
        generation_kwargs={"min_new_tokens": task["response_tokens"]},
        cache_implementation=settings["cache_implementation"],
        use_transformers_continuous_batching=settings["continuous_batching"],
        transformers_continuous_batching_config={"block_size": 64, "num_blocks": 1024, "max_batch_tokens": 1024}
        if settings["continuous_batching"]
        else None,
        torch_compile=settings["torch_compile"],
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        loss_type="dapo",
        beta=0.0,
        epsilon=0.2,
        epsilon_high=0.28,
        delta=10.0,
        learning_rate=task["learning_rate"],
        lr_scheduler_type="constant",
        weight_decay=0.1,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
    )


def watch_lengths(trainer: trl.GRPOTrainer, seen: list[tuple[int, int, bool]]) -> None:
    """Notes for each generation the responses and tokens of this process, and whether old logprobs were recomputed."""
    generate = trainer._generate_and_score_completions

    def noted(inputs: Any) -> Any:
        output = generate(inputs)
        mask = output["completion_mask"]
        seen.append((len(mask), int(mask.sum()), "old_per_token_logps" in output))
        return output

    trainer._generate_and_score_completions = noted


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text())
    settings = task["settings"]
    torch.set_num_threads(settings["threads"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(task["model"])
    model = transformers.AutoModelForCausalLM.from_pretrained(
        task["model"], dtype=torch.float32, attn_implementation=settings["attention"]
    )
    dataset = load_prompts(task["train"], task["suffix"], tokenizer)
    args = arguments(task, settings)
    clock = StepClock(task["updates_per_step"])
    trainer = trl.GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=args,
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=[clock],
    )
    seen: list[tuple[int, int, bool]] = []
    watch_lengths(trainer, seen)
    started = time.perf_counter()
    trainer.train()
    wall_s = time.perf_counter() - started
    assert not model.is_gradient_checkpointing
    if trainer.accelerator.process_index == 0:
        result = {
            "step_s": clock.step_s,
            "wall_s": wall_s,
            "responses_per_step": [n * settings["processes"] for n, _, _ in seen],
            "tokens_per_step": [t * settings["processes"] for _, t, _ in seen],
            "updates": trainer.state.global_step,
            "old_logprobs_recomputed": all(recomputed for _, _, recomputed in seen),
            "prompt_tokens": sum(len(ids) for ids in tokenizer(list(dataset["prompt"]))["input_ids"]),
            "versions": {m.__name__: m.__version__ for m in (trl, torch, transformers)},
        }
        Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
