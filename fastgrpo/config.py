"""Every setting of a run, its meaning and its default, once.

The defaults are JustRL's (arXiv 2512.16649, table 2, and the launch script released with it): one stage, fixed
hyper-parameters, plain GRPO. A recipe states what differs, the command line overrides a recipe.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


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
    activation_checkpointing: bool | Literal["auto"] = False
    """Recompute each layer in the backward pass: less memory, a third more time. auto: as few layers as a GPU's free
    memory asks for, none on a CPU."""
    compile: bool = False
    """Compile the layers with torch.compile, once for all: on a GPU less memory and time, a minute at the start."""
    head_chunk_tokens: int = 0
    """Response tokens whose logits exist at one time; 0 chooses what is fast and small beside the head's gradient."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless asked for."""
    family: Literal["qwen2", "llama", "mistral"] = "qwen2"
    """What --shrink makes a random model of; a real run goes by the model's own files."""


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
    """Wrap it as one user message in the tokenizer's chat template, which base models lack."""
    template: str = ""
    """What is asked, with {problem} in it, in place of the suffix."""
    special_tokens: bool = True
    """Without a chat template: the tokenizer's own special tokens, as a BOS, before the prompt."""
    levels: tuple[int, ...] = ()
    """Difficulties to keep, of rows that have one; empty keeps all."""
    hint_percent: int = 0
    """Share of the reference solution that a recipe with hints gives away in the prompt, in characters."""
    shuffle: bool = True
    """Every pass over the data in an order of its own; else always in the order of the file."""
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
    """Steps by which the weights that sampled a token may be older than those that it trains: 0 samples, then trains; 1
    samples the next step while it trains; from 2 on weights are replaced while responses are drawn. Above 0 needs
    --rollout.gpus."""
    kv_on_sync: Literal["recompute", "keep"] = "recompute"
    """What responses that are being drawn do with their keys and values when weights are replaced."""
    oversample: float = 1.0
    """Prompts started for every prompt that a step needs; the step goes on with the first that finish."""
    zero_signal_groups: Literal["keep", "drop", "replace"] = "keep"
    """Groups whose responses are all right or all wrong: trained on, left out, or replaced by further prompts."""
    max_rounds: int = 10
    """Rounds of prompts in a step that replaces groups, at most; then it goes on with what it has."""
    group_size: int = 8
    """Responses per problem, compared with each other."""
    max_response_tokens: int = 15360
    """A response is cut here and judged as it stands."""
    temperature: float = 1.0
    """One value for sampler and trainer."""
    stop_token_ids: tuple[int, ...] = ()
    """Token ids that end a response, besides the end tokens of the model's generation settings."""
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
    compare_every: int = 50
    """Syncs between comparisons of every weight on both sides, the first included; 0 compares only the first."""
    vllm_cpu_layers: Literal["auto", "live", "repack"] = "auto"
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
    judge_s: float = 3600.0
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
    unformatted: float | None = None
    """Reward of a response in which a verifier that looks for it finds no answer in the demanded form; None: wrong."""
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
    """With a negative advantage, the loss of a token is at most this times the advantage; 0: unbounded."""
    kl: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of the divergence from the reference, in the loss: log-ratio, half its square, or the unbiased one."""
    kl_coef: float = 0.0
    """Weight of that divergence; 0 loads no reference model."""
    kl_cap: float = 0.0
    """A token's divergence counts up to this, in either sign; 0: all of it."""
    entropy_coef: float = 0.0
    """Bonus for a nat of entropy."""
    aggregation: Literal["token_mean", "microbatch_mean"] = "token_mean"
    """token_mean: one mean over the response tokens of an update. microbatch_mean: the mean of each micro-batch, by its
    share of the responses, which is what verl 0.4 does; it depends on the packing."""
    loss_path: Literal["fused", "logprobs", "definition"] = "fused"
    """How the loss is computed, the same loss each time: fused forms its gradient in the LM head's op (three matmuls);
    logprobs makes logprobs first (four); definition has all logits of a micro-batch at once, to check the others."""
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
    reduce_every_microbatch: bool = False
    """Sum gradients over ranks after every micro-batch and keep a rank's part alone, not the whole until the last: the
    same gradient, for models whose whole does not fit (from 7B on 80 GB), for more communication."""
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
    fidelity: Literal["paper", "verl"] = "paper"
    """verl: where the code that the paper was run with differs from its text, do as the code does."""
    shrink: bool = False
    """Make it a smoke run: three short steps of a tiny random model, on any machine, with all that the recipe names."""
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
    "steps", "resume", "overwrite", "dry_run", "fidelity", "shrink", "model.family", "runs_dir", "name", "device",
    "parallel.timeout_s", "parallel.replicas", "optimizer.tokens_per_microbatch", "optimizer.reduce_every_microbatch",
    "rollout.max_sequences", "reward.workers", "reward.timeout_s", "reward.memory_limit_gib", "model.attention",
    "model.liger", "model.compile", "model.activation_checkpointing", "model.head_chunk_tokens", "objective.loss_path",
    "checkpoint.every_steps", "checkpoint.keep_last", "evaluation.every_steps", "rollout.kv_cache_gib",
    "rollout.sleep_level", "rollout.enforce_eager", "rollout.max_engine_restarts", "rollout.gpus",
    "rollout.tensor_parallel", "sync.bucket_mib", "sync.compare_every", "objective.rollout_kl_alarm",
    "deadline.start_s", "deadline.stall_s", "deadline.generate_s", "deadline.judge_s", "deadline.update_s",
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


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """The configuration with some settings changed, by their command-line names: ``{"rollout.group_size": 16}``.

    Raises ValueError for a name that there is not, and for a value of another type.
    """
    for name, value in settings.items():
        section, _, field_name = name.rpartition(".")
        owner: Any = getattr(config, section, None) if section else config
        if field_name not in getattr(owner, "__dataclass_fields__", ()):
            raise ValueError(f"there is no setting --{name}")
        hint = get_type_hints(type(owner))[field_name]
        if not _fits(value, hint):
            raise ValueError(f"--{name} cannot be {value!r}: it is {_said(hint)}")
        changed: Any = dataclasses.replace(owner, **{field_name: value})
        config = dataclasses.replace(config, **{section: changed}) if section else changed
    return config


def check_types(config: Config) -> None:
    """Raises ValueError for a setting of another type than it should be: nobody type-checks a recipe."""
    for section in dataclasses.fields(config):
        owner: Any = getattr(config, section.name)
        if not dataclasses.is_dataclass(section.type):
            with_settings(config, {section.name: owner})
        elif type(owner) is not section.type:
            wanted = str(getattr(section.type, "__name__", section.type))
            raise ValueError(f"{section.name} must be a {wanted}, got {type(owner).__name__}")
        else:
            with_settings(
                config, {f"{section.name}.{f.name}": getattr(owner, f.name) for f in dataclasses.fields(owner)}
            )


def _said(hint: Any) -> str:
    """A setting's type in words."""
    if get_origin(hint) in (UnionType, Union):
        return " or ".join(_said(h) for h in get_args(hint))
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    return getattr(hint, "__name__", None) or str(hint)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the type that a setting has; a whole number is a float too."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) in (UnionType, Union):
        return any(_fits(value, h) for h in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, tuple)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float if hint is float else hint)
