"""Every setting of a run, its meaning and its default, once.

The defaults are JustRL's (arXiv 2512.16649, table 2, and the launch script released with it): one stage, fixed
hyper-parameters, plain GRPO. A recipe states what differs, the command line overrides a recipe.
"""

import dataclasses
import json
import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    path: str = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
    """Hub id or local folder of a causal language model."""
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """Compute dtype of the policy; auto is bfloat16 on CUDA and float32 on CPU. Master weights are float32 or wider."""
    attention: Literal["auto", "varlen", "flash_attn", "padded", "sdpa", "eager"] = "auto"
    """Attention over packed rows; auto is flash_attn where it is installed, else varlen, on CUDA, and padded on CPU."""
    liger: bool = True
    """Use liger-kernel's layers on CUDA where the architecture has them."""
    activation_checkpointing: bool = False
    """Recompute each layer in the backward pass: less memory, a third more time."""
    head_chunk_tokens: int = 0
    """Response tokens whose logits exist at one time; 0 chooses what is fast and small beside the head's gradient."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless asked for."""


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    replicas: int = 1
    """Groups of ranks that each hold all weights (HSDP); 1 shards over all ranks. Several nodes: one per node."""
    timeout_s: float = 1800.0
    """Longest wait for another rank before the run stops with an error."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    train: str = "BytedTsinghua-SIA/DAPO-Math-17k"
    """Training problems: a .parquet, .jsonl or .json file, a folder of them, or a hub data set."""
    held_out: str = ""
    """Problems for the accuracy that a run reports, never trained on; empty evaluates nothing."""
    suffix: str = "\n\nPlease reason step by step, and put your final answer within \\boxed{}."
    """Appended to every problem that does not end in it."""
    chat_template: bool = True
    """Wrap the problem as one user message in the tokenizer's chat template."""
    max_prompt_tokens: int = 1024
    """Longer prompts are dropped and counted."""
    prompts_per_step: int = 256
    """Problems in one step, over all ranks."""


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    engine: Literal["builtin", "vllm"] = "builtin"
    """What draws the responses: a decode loop over the transformers model, or vLLM."""
    gpus: int = 0
    """GPUs of every node that only sample, each a rank of the launch; on a CPU, ranks. 0: every rank does both."""
    tensor_parallel: int = 1
    """GPUs that share one engine's weights."""
    dtype: Literal["auto", "float32", "bfloat16", "fp8"] = "auto"
    """Dtype of the engine's weights; auto is the policy's compute dtype."""
    max_staleness: int = 0
    """Steps that a sampled token may be behind the weights it trains: 0 samples, then trains; 1 samples the next step
    while it trains; from 2 on weights are replaced while responses are being drawn. Above 0 needs --rollout.gpus."""
    running: Literal["recompute", "keep"] = "recompute"
    """What responses that are being drawn do with their keys and values when weights are replaced."""
    oversample: float = 1.0
    """Prompts started for every prompt that a step needs; the step goes on with the first that finish."""
    no_signal: Literal["keep", "drop", "replace"] = "keep"
    """Groups whose responses are all right or all wrong: trained on, left out, or replaced by further prompts."""
    max_rounds: int = 10
    """With no_signal replace: times that a step may ask for further prompts before it goes on with what it has."""
    group_size: int = 8
    """Responses per problem, compared with each other."""
    max_response_tokens: int = 15360
    """A response is cut here and judged as it stands."""
    temperature: float = 1.0
    """One value for sampler and trainer."""
    stop_token_ids: tuple[int, ...] = ()
    """Token ids that end a response; empty takes the end token of the model's generation settings."""
    ignore_eos: bool = False
    """Sample every response to its full length; for benchmarks."""
    max_sequences: int = 1024
    """Sequences that an engine decodes at the same time, at most; on a GPU as many as its free memory holds."""
    kv_cache_gib: float = 0.0
    """Memory of an engine's keys and values; 0 takes what is left on a GPU, and 1 on a CPU. vLLM only."""
    sleep_level: Literal[0, 1, 2] = 0
    """What an engine inside a trainer rank gives up while that trains: nothing, its cache (1), its weights too (2)."""
    enforce_eager: bool = False
    """Spare vLLM the capture of CUDA graphs: starts sooner, samples slower."""
    max_engine_restarts: int = 3
    """Engines with GPUs of their own that may be restarted in a run; the next that dies ends it."""


@dataclass(frozen=True, kw_only=True)
class SyncConfig:
    bucket_mib: int = 256
    """Weights that are gathered at one time: the memory that a sync takes."""
    verify_every: int = 50
    """Syncs between comparisons of every weight on both sides, the first included; 0 compares only the first."""
    cpu_layers: Literal["auto", "live", "repack"] = "auto"
    """How vLLM's linear layers on a CPU follow a write: they read the parameter (live: fast to write), or a packed copy
    is made anew (repack: fast to sample). auto is live below 100 million parameters."""


@dataclass(frozen=True, kw_only=True)
class DeadlineConfig:
    start_s: float = 1800.0
    """For an engine to be ready, weights and CUDA graphs included."""
    stall_s: float = 300.0
    """An engine that says nothing for so long counts as dead."""
    generate_s: float = 14400.0
    """For the responses of a step."""
    verify_s: float = 3600.0
    """For the verdicts of a step."""
    update_s: float = 14400.0
    """For the passes and the updates of a step."""
    sync_s: float = 300.0
    """For the weights to reach the engines."""
    checkpoint_s: float = 3600.0
    """For a checkpoint to be written."""


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    correct: float = 1.0
    """Reward of a response that the verifier accepts."""
    wrong: float = -1.0
    """Reward of any other response, also of one whose verifier hung or died."""
    workers: int = 1
    """Verifier processes per rank."""
    timeout_s: float = 10.0
    """Time that one response may take to judge before its process is killed."""
    memory_limit_gib: float = 4.0
    """Address space of one verifier process."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    clip_low: float = 0.2
    """The ratio counts down to 1 - clip_low."""
    clip_high: float = 0.28
    """The ratio counts up to 1 + clip_high."""
    dual_clip: float = 10.0
    """With a negative advantage, the loss of a token is at most this times the advantage."""
    head: Literal["fused", "logprobs", "reference"] = "fused"
    """How the loss is computed, the same loss each time: fused forms its gradient in the LM head's op (three matmuls);
    logprobs makes logprobs first (four); reference has all logits of a micro-batch at once, to check the others."""
    old_logprobs: Literal["recomputed", "rollout"] = "recomputed"
    """Denominator of the ratio: a forward pass before the first update, or what the sampler returned (cheaper)."""
    correction: Literal["none", "truncate", "icepop", "sequence_mask"] = "none"
    """Weight of a token for what the sampler is not, old over rollout probability: cut above correction_high
    (truncate); tokens (icepop) or whole responses (sequence_mask) outside both bounds dropped."""
    correction_low: float = 0.0
    """Lower bound of the correction."""
    correction_high: float = 2.0
    """Upper bound of the correction."""
    rollout_kl_alarm: float = 0.02
    """A step whose rollout_kl is beyond this, in either sign, is warned about with the usual causes; 0 never."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    learning_rate: float = 1e-6
    """Constant after the warm-up."""
    warmup_steps: int = 10
    """Steps over which the learning rate rises linearly."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's averaging."""
    eps: float = 1e-8
    """AdamW's denominator floor."""
    weight_decay: float = 0.1
    """AdamW's decoupled decay."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    updates_per_step: int = 4
    """Optimizer updates on the responses of one step, each on its own share of the problems."""
    tokens_per_microbatch: int = 32768
    """Tokens that one forward and backward pass may hold on a rank."""
    skip_zero_advantage: bool = True
    """Leave responses without advantage out of the passes: they count in the token mean, and have no gradient."""
    share_prompts: bool = True
    """Compute a prompt once for the responses of its group where they fit into one micro-batch: the same gradient."""
    max_skipped_updates: int = 3
    """Non-finite updates in a row after which the run stops."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    every_steps: int = 50
    """Steps between evaluations on the held-out problems; 0 evaluates only before and after."""
    samples_per_prompt: int = 8
    """Responses per problem for the sampled accuracy (avg@k)."""
    temperature: float = 1.0
    """Of the sampled accuracy; the greedy accuracy is reported besides."""
    max_problems: int = 512
    """Held-out problems that are used, from the first."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    every_steps: int = 50
    """Steps between checkpoints; 0 writes only the last one."""
    keep_last: int = 2
    """Older checkpoints are removed."""
    rollouts_per_step: int = 16
    """Rollouts of a step that are kept for the report."""


@dataclass(frozen=True, kw_only=True)
class Config:
    name: str = "run"
    """Folder of the run inside runs_dir."""
    runs_dir: str = "runs"
    """Where run folders are made."""
    steps: int = 4380
    """Rollout steps of the whole run."""
    seed: int = 1
    """Data order and sampling noise are functions of it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto is cuda where a GPU is visible."""
    resume: bool = False
    """Go on from the newest intact checkpoint of this run."""
    overwrite: bool = False
    """Start anew although the run folder holds a run; its base model is kept."""
    dry_run: bool = False
    """Print the resolved configuration and the arithmetic of a step, and stop."""
    model: ModelConfig = field(default_factory=ModelConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    sync: SyncConfig = field(default_factory=SyncConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    deadline: DeadlineConfig = field(default_factory=DeadlineConfig)

    @property
    def responses_per_step(self) -> int:
        return self.data.prompts_per_step * self.rollout.group_size

    @property
    def prompts_per_update(self) -> int:
        return self.data.prompts_per_step // self.optimizer.updates_per_step

    @property
    def longest_sync_s(self) -> float:
        """With engines that are lost in it and started again, each within its own deadlines."""
        if self.rollout.gpus == 0:
            return self.deadline.sync_s
        return (self.rollout.max_engine_restarts + 1) * (self.deadline.start_s + self.deadline.sync_s)

    @property
    def run_dir(self) -> str:
        return f"{self.runs_dir}/{self.name}"


def with_run_dir(config: Config) -> Config:
    """The configuration with ``{run_dir}`` in its paths filled in: a recipe can start from what it makes itself."""

    def fill(path: str) -> str:
        return path.replace("{run_dir}", config.run_dir)

    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, path=fill(config.model.path)),
        data=dataclasses.replace(config.data, train=fill(config.data.train), held_out=fill(config.data.held_out)),
    )


# Settings that may differ between a run and its continuation.
_FREE_ON_RESUME = {
    "steps", "resume", "overwrite", "dry_run", "runs_dir", "name", "device",
    "parallel.timeout_s", "parallel.replicas", "optimizer.tokens_per_microbatch", "rollout.max_sequences",
    "reward.workers", "reward.timeout_s", "reward.memory_limit_gib", "model.attention", "model.liger",
    "model.activation_checkpointing", "model.head_chunk_tokens", "objective.head", "checkpoint.every_steps",
    "checkpoint.keep_last", "evaluation.every_steps", "rollout.kv_cache_gib", "rollout.sleep_level",
    "rollout.enforce_eager", "rollout.max_engine_restarts", "rollout.gpus", "rollout.tensor_parallel",
    "sync.bucket_mib", "sync.verify_every", "objective.rollout_kl_alarm",
    "deadline.start_s", "deadline.stall_s", "deadline.generate_s", "deadline.verify_s", "deadline.update_s",
    "deadline.sync_s", "deadline.checkpoint_s",
}  # fmt: skip


def flatten(config: Config) -> dict[str, Any]:
    """Every setting by its command-line name, as JSON holds it."""
    tree = json.loads(json.dumps(dataclasses.asdict(config)))

    def walk(prefix: str, node: Any) -> dict[str, Any]:
        if not isinstance(node, dict):
            return {prefix: node}
        return {
            k: v for name, child in node.items() for k, v in walk(f"{prefix}.{name}" if prefix else name, child).items()
        }

    return walk("", tree)


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What keeps `new` from continuing a run that was started as `old`; both as `flatten` gives them."""
    names = sorted((old.keys() | new.keys()) - _FREE_ON_RESUME)
    return [f"--{n}: {old.get(n)!r} there, {new.get(n)!r} now" for n in names if old.get(n) != new.get(n)]


_AT_LEAST_ONE = (
    "steps", "parallel.replicas", "data.max_prompt_tokens", "data.prompts_per_step",
    "rollout.max_response_tokens", "rollout.max_sequences", "reward.workers", "optimizer.updates_per_step",
    "optimizer.tokens_per_microbatch", "optimizer.max_skipped_updates", "evaluation.samples_per_prompt",
    "evaluation.max_problems", "checkpoint.keep_last", "rollout.tensor_parallel", "rollout.oversample",
    "rollout.max_rounds", "sync.bucket_mib",
)  # fmt: skip
_NOT_NEGATIVE = (
    "seed", "model.head_chunk_tokens", "optimizer.warmup_steps", "optimizer.weight_decay", "evaluation.every_steps",
    "evaluation.temperature",
    "checkpoint.every_steps", "checkpoint.rollouts_per_step", "objective.clip_high", "objective.correction_low",
    "objective.rollout_kl_alarm", "rollout.gpus", "rollout.max_staleness", "rollout.kv_cache_gib",
    "rollout.max_engine_restarts", "sync.verify_every",
)  # fmt: skip
_POSITIVE = (
    "rollout.temperature", "parallel.timeout_s", "reward.timeout_s", "reward.memory_limit_gib", "optimizer.eps",
    "optimizer.learning_rate", "optimizer.max_grad_norm", "deadline.start_s", "deadline.stall_s",
    "deadline.generate_s", "deadline.verify_s", "deadline.update_s", "deadline.sync_s", "deadline.checkpoint_s",
)  # fmt: skip


def validate(config: Config, num_ranks: int) -> None:
    """Refuses what cannot run, before anything is loaded. Raises ValueError with the range or the numbers."""
    values = flatten(config)

    def require(name: str, ok: bool, wanted: str) -> None:
        if not ok:
            raise ValueError(f"--{name} must be {wanted}, got {values[name]!r}")

    for name, value in values.items():
        require(name, not isinstance(value, float) or math.isfinite(value), "a finite number")
    for name in _AT_LEAST_ONE:
        require(name, values[name] >= 1, "at least 1")
    for name in _NOT_NEGATIVE:
        require(name, values[name] >= 0, "0 or more")
    for name in _POSITIVE:
        require(name, values[name] > 0, "above 0")
    require("seed", config.seed < 2**62, "below 2**62")
    require("name", re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", config.name) is not None, "one folder's name")
    require("rollout.group_size", config.rollout.group_size >= 2, "at least 2: a response is compared with its group")
    require("reward.correct", config.reward.correct > config.reward.wrong, "above --reward.wrong")
    require("rollout.stop_token_ids", all(i >= 0 for i in config.rollout.stop_token_ids), "token ids of at least 0")
    require("parallel.timeout_s", config.parallel.timeout_s <= 1e7, "at most 1e7")
    require("reward.timeout_s", config.reward.timeout_s <= 1e6, "at most 1e6")
    require("objective.clip_low", 0 <= config.objective.clip_low < 1, "in [0, 1)")
    require("objective.dual_clip", config.objective.dual_clip > 1, "above 1")
    require("optimizer.betas", all(0 <= b < 1 for b in config.optimizer.betas), "two numbers in [0, 1)")
    _validate_arithmetic(config, num_ranks)
    _validate_rollouts(config, num_ranks)


def _validate_arithmetic(config: Config, num_ranks: int) -> None:
    prompts, updates = config.data.prompts_per_step, config.optimizer.updates_per_step
    if prompts % updates:
        more = prompts - prompts % updates + updates
        raise ValueError(
            f"--data.prompts_per_step {prompts} cannot be split into --optimizer.updates_per_step {updates} equal "
            f"updates: {prompts} / {updates} = {prompts / updates:g}. Take {more} prompts, or a number of updates that "
            f"divides {prompts}."
        )
    longest = config.data.max_prompt_tokens + config.rollout.max_response_tokens
    if config.optimizer.tokens_per_microbatch < longest:
        raise ValueError(
            f"--optimizer.tokens_per_microbatch {config.optimizer.tokens_per_microbatch} cannot hold one longest "
            f"sequence of {config.data.max_prompt_tokens} prompt + {config.rollout.max_response_tokens} response "
            f"= {longest} tokens. Raise it, or lower --rollout.max_response_tokens."
        )
    if num_ranks % config.parallel.replicas:
        raise ValueError(
            f"--parallel.replicas {config.parallel.replicas} does not divide the {num_ranks} ranks of this launch."
        )


def _validate_rollouts(config: Config, num_trainers: int) -> None:
    rollout = config.rollout
    if rollout.max_staleness > 0 and rollout.gpus == 0:
        raise ValueError(
            f"--rollout.max_staleness {rollout.max_staleness} needs engines that sample while the trainer trains: give "
            f"them ranks of their own with --rollout.gpus, or take staleness 0"
        )
    if rollout.max_staleness > 1 and config.objective.correction == "none":
        raise ValueError(
            f"--rollout.max_staleness {rollout.max_staleness} with a plain objective trains on tokens of other weights "
            f"as if they were the policy's own (AReaL, arXiv 2505.24298, table 3: 42.0 falls to 23.3 on AIME24): add "
            f"--objective.correction truncate, or take staleness 1 at most"
        )
    if rollout.oversample > 1 and rollout.max_staleness > 0:
        raise ValueError(
            "--rollout.oversample cuts the tail that a step waits for; with --rollout.max_staleness above 0 a step "
            "does not wait for it: leave one of them"
        )
    if rollout.gpus == 0 and num_trainers % rollout.tensor_parallel:
        raise ValueError(
            f"--rollout.tensor_parallel {rollout.tensor_parallel} does not divide the {num_trainers} ranks that share "
            f"engines"
        )
    if rollout.gpus % rollout.tensor_parallel:
        raise ValueError(
            f"--rollout.tensor_parallel {rollout.tensor_parallel} does not divide --rollout.gpus {rollout.gpus}"
        )


def arithmetic(config: Config, num_ranks: int) -> dict[str, str]:
    """The derived numbers of a step, as the dry run prints them."""
    group, updates = config.rollout.group_size, config.optimizer.updates_per_step
    prompts, longest_response = config.prompts_per_update, config.rollout.max_response_tokens
    shards = num_ranks // config.parallel.replicas
    return {
        "ranks": f"{num_ranks} ({config.parallel.replicas} x {shards} shards)",
        "prompts per step": f"{config.data.prompts_per_step}",
        "responses per step": f"{config.data.prompts_per_step} prompts x {group} = {config.responses_per_step}",
        "updates per step": f"{updates}, each on {prompts} prompts x {group} = {prompts * group} responses",
        "tokens a micro-batch": f"at most {config.optimizer.tokens_per_microbatch} on each rank",
        "longest sequence": f"{config.data.max_prompt_tokens} prompt + {longest_response} response tokens",
        "tokens a step": f"at most {config.responses_per_step * longest_response:,} sampled",
        "updates in all": f"{config.steps} steps x {updates} = {config.steps * updates:,}",
    }
