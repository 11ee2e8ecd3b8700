"""Every setting of a run, its meaning, its default and its rules, once.

The defaults are JustRL's (arXiv 2512.16649, table 2, and the launch script released with it): one stage, fixed
hyper-parameters, plain GRPO. A recipe states what differs, the command line overrides a recipe.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from operator import attrgetter
from types import NoneType, UnionType
from typing import Any, Literal, TypedDict, TypeVar, Union, Unpack, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")


class Rules(TypedDict, total=False):
    """What holds for a setting besides its type. Bounds hold for each number of a tuple."""

    at_least: float
    above: float
    at_most: float
    below: float
    because: str
    """Reason for the bounds, where their message needs one."""
    free_on_resume: bool
    """May differ between a run and its continuation."""
    may_change: bool
    """A phase of a recipe may change it in the middle of a run."""


def setting(default: T, **rules: Unpack[Rules]) -> T:
    """A dataclass field with this default and its rules."""
    return cast(T, field(default=default, metadata=rules))


_DEADLINE: Rules = {"above": 0, "at_most": 10_000_000, "free_on_resume": True}
_AGREED = "where sampler and trainer agree, the weight is 1"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    path: str = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
    """Hub id or local folder of a causal language model."""
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """Compute dtype of the policy; auto is bfloat16 on CUDA and float32 on CPU. Master weights are float32 or wider."""
    attention: Literal["auto", "varlen", "flash_attn", "padded", "sdpa", "eager"] = setting("auto", free_on_resume=True)
    """Attention over packed rows; auto is flash_attn where it is installed, else varlen, on CUDA, and padded on CPU."""
    liger: bool = setting(True, free_on_resume=True)
    """Use liger-kernel's layers on CUDA where the architecture has them."""
    activation_checkpointing: bool | Literal["auto"] = setting(False, free_on_resume=True)
    """Recompute each layer in the backward pass: less memory, a third more time. auto: as few layers as a GPU's free
    memory asks for, none on a CPU."""
    compile: bool = setting(False, free_on_resume=True)
    """Compile the layers with torch.compile, once for all: on a GPU less memory and time, a minute at the start."""
    head_chunk_tokens: int = setting(0, at_least=0, free_on_resume=True)
    """Response tokens whose logits exist at one time; 0 chooses what is fast and small beside the head's gradient."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless asked for."""
    family: Literal["qwen2", "llama", "mistral"] = setting("qwen2", free_on_resume=True)
    """What --shrink makes a random model of; a real run goes by the model's own files."""


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    replicas: int = setting(1, at_least=1, free_on_resume=True)
    """Groups of ranks that each hold all weights (HSDP); 1 shards over all ranks. Several nodes: one per node."""
    timeout_s: float = setting(1800.0, above=0, at_most=10_000_000, free_on_resume=True)
    """Longest wait for another rank before the run stops with an error."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    train: str = setting("BytedTsinghua-SIA/DAPO-Math-17k", may_change=True)
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
    hint_percent: int = setting(0, at_least=0, at_most=100, may_change=True)
    """Share of the reference solution that a recipe with hints gives away in the prompt, in characters."""
    shuffle: bool = True
    """Every pass over the data in an order of its own; else always in the order of the file."""
    max_prompt_tokens: int = setting(1024, at_least=1)
    """Longer prompts are dropped and counted."""
    prompts_per_step: int = setting(256, at_least=1, may_change=True)
    """Problems in one step, over all ranks."""


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    engine: Literal["builtin", "vllm"] = "builtin"
    """What draws the responses: a decode loop over the transformers model, or vLLM."""
    gpus: int = setting(0, at_least=0, free_on_resume=True)
    """GPUs of every node that only sample, each a rank of the launch; on a CPU, ranks. 0: every rank does both."""
    tensor_parallel: int = setting(1, at_least=1, free_on_resume=True)
    """GPUs that share one engine's weights."""
    dtype: Literal["auto", "float32", "bfloat16", "fp8"] = "auto"
    """Dtype of the engine's weights; auto is the policy's compute dtype."""
    max_staleness: int = setting(0, at_least=0)
    """Steps by which the weights that sampled a token may be older than those that it trains: 0 samples, then trains; 1
    samples the next step while it trains; from 2 on weights are replaced while responses are drawn. Above 0 needs
    --rollout.gpus."""
    kv_on_sync: Literal["recompute", "keep"] = "recompute"
    """What responses that are being drawn do with their keys and values when weights are replaced."""
    oversample: float = setting(1.0, at_least=1)
    """Prompts started for every prompt that a step needs; the step goes on with the first that finish."""
    zero_signal_groups: Literal["keep", "drop", "replace"] = setting("keep", may_change=True)
    """Groups whose responses are all right or all wrong: trained on, left out, or replaced by further prompts."""
    max_rounds: int = setting(10, at_least=1)
    """Rounds of prompts in a step that replaces groups, at most; then it goes on with what it has."""
    group_size: int = setting(8, at_least=2, because="a response is compared with its group", may_change=True)
    """Responses per problem, compared with each other."""
    max_response_tokens: int = setting(15360, at_least=1, may_change=True)
    """A response is cut here and judged as it stands."""
    temperature: float = setting(1.0, above=0, may_change=True)
    """One value for sampler and trainer."""
    stop_token_ids: tuple[int, ...] = setting((), at_least=0)
    """Token ids that end a response, besides the end tokens of the model's generation settings."""
    ignore_eos: bool = False
    """Sample every response to its full length; for benchmarks."""
    max_sequences: int = setting(1024, at_least=1, free_on_resume=True)
    """Sequences that an engine decodes at the same time, at most; on a GPU as many as its free memory holds."""
    kv_cache_gib: float = setting(0.0, at_least=0, free_on_resume=True)
    """Memory of an engine's keys and values; 0 takes what is left on a GPU, and 1 on a CPU. vLLM only."""
    sleep_level: Literal[0, 1, 2] = setting(0, free_on_resume=True)
    """What an engine inside a trainer rank gives up while that trains: nothing, its cache (1), its weights too (2)."""
    enforce_eager: bool = setting(False, free_on_resume=True)
    """Spare vLLM the capture of CUDA graphs: starts sooner, samples slower."""
    max_engine_restarts: int = setting(3, at_least=0, free_on_resume=True)
    """Engines with GPUs of their own that may be restarted in a run; the next that dies ends it."""


@dataclass(frozen=True, kw_only=True)
class SyncConfig:
    bucket_mib: int = setting(256, at_least=1, free_on_resume=True)
    """Weights that are gathered at one time: the memory that a sync takes."""
    compare_every: int = setting(50, at_least=0, free_on_resume=True)
    """Syncs between comparisons of every weight on both sides, the first included; 0 compares only the first."""
    vllm_cpu_layers: Literal["auto", "live", "repack"] = "auto"
    """How vLLM's linear layers on a CPU follow a write: they read the parameter (live: fast to write), or a packed copy
    is made anew (repack: fast to sample). auto is live below 100 million parameters."""


@dataclass(frozen=True, kw_only=True)
class DeadlineConfig:
    start_s: float = setting(1800.0, **_DEADLINE)
    """For an engine to be ready, weights and CUDA graphs included."""
    stall_s: float = setting(300.0, **_DEADLINE)
    """An engine that says nothing for so long counts as dead."""
    generate_s: float = setting(14400.0, **_DEADLINE)
    """For the responses of a step."""
    judge_s: float = setting(3600.0, **_DEADLINE)
    """For the verdicts of a step."""
    update_s: float = setting(14400.0, **_DEADLINE)
    """For the passes and the updates of a step."""
    sync_s: float = setting(300.0, **_DEADLINE)
    """For the weights to reach the engines."""
    checkpoint_s: float = setting(3600.0, **_DEADLINE)
    """For a checkpoint to be written."""


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    correct: float = setting(1.0, may_change=True)
    """Reward of a response that the verifier accepts."""
    wrong: float = setting(-1.0, may_change=True)
    """Reward of any other response, also of one whose verifier hung or died."""
    unformatted: float | None = None
    """Reward of a response in which a verifier that looks for it finds no answer in the demanded form; None: wrong."""
    workers: int = setting(1, at_least=1, free_on_resume=True)
    """Verifier processes per rank."""
    timeout_s: float = setting(10.0, above=0, at_most=1_000_000, free_on_resume=True)
    """Time that one response may take to judge before its process is killed."""
    memory_limit_gib: float = setting(4.0, above=0, at_most=1_000_000, free_on_resume=True)
    """Address space of one verifier process."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    clip_low: float = setting(0.2, at_least=0, below=1, may_change=True)
    """The ratio counts down to 1 - clip_low."""
    clip_high: float = setting(0.28, at_least=0, may_change=True)
    """The ratio counts up to 1 + clip_high."""
    dual_clip: float = setting(10.0, at_least=0, may_change=True)
    """With a negative advantage, the loss of a token is at most this times the advantage; 0: unbounded."""
    kl: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of the divergence from the reference, in the loss: log-ratio, half its square, or the unbiased one."""
    kl_coef: float = setting(0.0, at_least=0, may_change=True)
    """Weight of that divergence; 0 loads no reference model."""
    kl_cap: float = setting(0.0, at_least=0)
    """A token's divergence counts up to this, in either sign; 0: all of it."""
    entropy_coef: float = setting(0.0, at_least=0, may_change=True)
    """Bonus for a nat of entropy."""
    aggregation: Literal["token_mean", "microbatch_mean"] = "token_mean"
    """token_mean: one mean over the response tokens of an update. microbatch_mean: the mean of each micro-batch, by its
    share of the responses, which is what verl 0.4 does; it depends on the packing."""
    loss_path: Literal["fused", "logprobs", "definition"] = setting("fused", free_on_resume=True)
    """How the loss is computed, the same loss each time: fused forms its gradient in the LM head's op (three matmuls);
    logprobs makes logprobs first (four); definition has all logits of a micro-batch at once, to check the others."""
    old_logprobs: Literal["recomputed", "rollout"] = "recomputed"
    """Denominator of the ratio: a forward pass before the first update, or what the sampler returned (cheaper)."""
    correction: Literal["none", "truncate", "icepop", "sequence_mask"] = "none"
    """Weight of a token for what the sampler is not, old over rollout probability: cut above correction_high
    (truncate); tokens (icepop) or whole responses (sequence_mask) outside both bounds dropped."""
    correction_low: float = setting(0.0, at_least=0, at_most=1, because=_AGREED)
    """Lower bound of the correction."""
    correction_high: float = setting(2.0, at_least=1, because=_AGREED)
    """Upper bound of the correction."""
    rollout_kl_alarm: float = setting(0.02, at_least=0, free_on_resume=True)
    """A step whose rollout_kl is beyond this, in either sign, is warned about with the usual causes; 0 never."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    learning_rate: float = setting(1e-6, above=0, may_change=True)
    """Constant after the warm-up."""
    warmup_steps: int = setting(10, at_least=0)
    """Steps over which the learning rate rises linearly."""
    betas: tuple[float, float] = setting((0.9, 0.999), at_least=0, below=1)
    """AdamW's averaging."""
    eps: float = setting(1e-8, above=0)
    """AdamW's denominator floor."""
    weight_decay: float = setting(0.1, at_least=0)
    """AdamW's decoupled decay."""
    max_grad_norm: float = setting(1.0, above=0)
    """Gradients are scaled down to this norm."""
    updates_per_step: int = setting(4, at_least=1, may_change=True)
    """Optimizer updates on the responses of one step, each on its own share of the problems."""
    tokens_per_microbatch: int = setting(32768, at_least=1, free_on_resume=True)
    """Tokens that one forward and backward pass may hold on a rank."""
    skip_zero_advantage: bool = True
    """Leave responses without advantage out of the passes: they count in the token mean, and have no gradient."""
    reduce_every_microbatch: bool = setting(False, free_on_resume=True)
    """Sum gradients over ranks after every micro-batch and keep a rank's part alone, not the whole until the last: the
    same gradient, for models whose whole does not fit (from 7B on 80 GB), for more communication."""
    share_prompts: bool = True
    """Compute a prompt once for the responses of its group where they fit into one micro-batch: the same gradient."""
    max_skipped_updates: int = setting(3, at_least=1)
    """Non-finite updates in a row after which the run stops."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    every_steps: int = setting(50, at_least=0, free_on_resume=True)
    """Steps between evaluations on the held-out problems; 0 evaluates only before and after."""
    samples_per_prompt: int = setting(8, at_least=1)
    """Responses per problem for the sampled accuracy (avg@k)."""
    temperature: float = setting(1.0, at_least=0)
    """Of the sampled accuracy; the greedy accuracy is reported besides."""
    max_problems: int = setting(512, at_least=1)
    """Held-out problems that are used, from the first."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    every_steps: int = setting(50, at_least=0, free_on_resume=True)
    """Steps between checkpoints; 0 writes only the last one."""
    keep_last: int = setting(2, at_least=1, free_on_resume=True)
    """Older checkpoints are removed."""
    rollouts_per_step: int = setting(16, at_least=0)
    """Rollouts of a step that are kept for the report."""


@dataclass(frozen=True, kw_only=True)
class Config:
    name: str = setting("run", free_on_resume=True)
    """Folder of the run inside runs_dir."""
    runs_dir: str = setting("runs", free_on_resume=True)
    """Where run folders are made."""
    steps: int = setting(4380, at_least=1, free_on_resume=True)
    """Rollout steps of the whole run."""
    seed: int = setting(1, at_least=0, below=2**62)
    """Data order and sampling noise are functions of it."""
    device: Literal["auto", "cpu", "cuda"] = setting("auto", free_on_resume=True)
    """auto is cuda where a GPU is visible."""
    resume: bool = setting(False, free_on_resume=True)
    """Go on from the newest intact checkpoint of this run."""
    overwrite: bool = setting(False, free_on_resume=True)
    """Start anew although the run folder holds a run; its base model is kept."""
    dry_run: bool = setting(False, free_on_resume=True)
    """Print the resolved configuration and the arithmetic of a step, and stop."""
    fidelity: Literal["paper", "verl"] = setting("paper", free_on_resume=True)
    """verl: where the code that the paper was run with differs from its text, do as the code does."""
    shrink: bool = setting(False, free_on_resume=True)
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


_SECTIONS: dict[str, Any] = {f.name: f.type for f in dataclasses.fields(Config) if dataclasses.is_dataclass(f.type)}

RULES = {f.name: f.metadata for f in dataclasses.fields(Config) if f.name not in _SECTIONS} | {
    f"{name}.{f.name}": f.metadata for name, section in _SECTIONS.items() for f in dataclasses.fields(section)
}
"""The rules of every setting, by its command-line name."""

RENAMED = {
    "deadline.verify_s": "deadline.judge_s",
    "objective.head reference": "objective.loss_path definition",
    "objective.head": "objective.loss_path",
    "objective.loss_path reference": "objective.loss_path definition",
    "rollout.no_signal": "rollout.zero_signal_groups",
    "rollout.running": "rollout.kv_on_sync",
    "sync.cpu_layers": "sync.vllm_cpu_layers",
    "sync.verify_every": "sync.compare_every",
}
"""What a setting, or one of its values, was called in earlier versions, and what it is called now."""


def refuse_old_names(given: Iterable[tuple[str, Any]]) -> None:
    """Raises ValueError with the new name where a setting or its value is given by an old one."""
    for name, value in given:
        for old in (f"{name} {value}", name):
            if old in RENAMED:
                raise ValueError(f"--{old} is now called --{RENAMED[old]}")


def refuse_old_arguments(arguments: Sequence[str]) -> None:
    """`refuse_old_names` for a command line, in each of its spellings: ``--a.b_c x``, ``--a.b-c=x``."""
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        name, is_whole, value = argument.partition("=")
        if name.startswith("--"):
            refuse_old_names([(name[2:].replace("-", "_"), value if is_whole else following)])


def _refusing_old_names(init: Callable[..., None], prefix: str) -> Callable[..., None]:
    @functools.wraps(init)
    def checked(self: Any, **settings: Any) -> None:
        refuse_old_names((prefix + name, value) for name, value in settings.items())
        init(self, **settings)

    return checked


for _name, _section in _SECTIONS.items():
    _section.__init__ = _refusing_old_names(_section.__init__, f"{_name}.")


def flatten(config: Config) -> dict[str, Any]:
    """Every setting by its command-line name, as JSON holds it."""
    return dict(json.loads(json.dumps({name: attrgetter(name)(config) for name in RULES})))


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What keeps `new` from continuing a run that was started as `old`; both as `flatten` gives them."""
    free = {name for name, rules in RULES.items() if rules.get("free_on_resume")}
    names = sorted((old.keys() | new.keys()) - free)
    return [f"--{n}: {old.get(n)!r} there, {new.get(n)!r} now" for n in names if old.get(n) != new.get(n)]


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """The configuration with some settings changed, by their command-line names: ``{"rollout.group_size": 16}``.

    Raises ValueError for a name that there is not, and for a value of another type.
    """
    refuse_old_names(settings.items())
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
    for name, section in _SECTIONS.items():
        if type(found := getattr(config, name)) is not section:
            raise ValueError(f"{name} must be a {section.__name__}, got {type(found).__name__}")
    with_settings(config, {name: attrgetter(name)(config) for name in RULES})


def _said(hint: Any) -> str:
    """A setting's type in words."""
    if get_origin(hint) in (UnionType, Union):
        return " or ".join(_said(h) for h in get_args(hint))
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    return str(hint) if get_origin(hint) is tuple else "None" if hint is NoneType else str(hint.__name__)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the type that a setting has; a whole number is a float too."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) in (UnionType, Union):
        return any(_fits(value, h) for h in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and _all_fit(value, get_args(hint))
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float if hint is float else hint)


def _all_fit(values: tuple[Any, ...], hints: tuple[Any, ...]) -> bool:
    """Whether the members of a tuple are of the types that it states; ``int, ...`` is any number of them."""
    if hints[-1] is ...:
        hints = hints[:1] * len(values)
    return len(values) == len(hints) and all(map(_fits, values, hints))
