"""Every setting of a run, its meaning, its default and its rules, once.

The defaults are JustRL's (arXiv 2512.16649, table 2, and the launch script released with it): one stage, fixed
hyper-parameters, plain GRPO. A recipe states what differs, the command line overrides a recipe.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from fastgrpo.command_line import did_you_mean
from fastgrpo.config.published_losses import PARTS, PRESETS, Advantage, Aggregation, Loss, Ratio, Surrogate
from fastgrpo.config.rules import OF_LOSS, Rules, part, setting

_DEADLINE: Rules = {"above": 0, "at_most": 10_000_000, "free_on_resume": True}
_AGREED = "where sampler and trainer agree, the weight is 1"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    path: str = setting("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", is_path=True)
    """Hub id or local folder of a causal language model."""
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """Dtype in which the policy computes; auto is bfloat16 on CUDA and float32 on CPU.
    Master weights are float32 or wider."""
    attention: Literal["auto", "varlen", "flash_attn", "padded", "sdpa", "eager"] = setting("auto", free_on_resume=True)
    """Implementation of attention over packed sequences.
    auto: on CUDA flash_attn if it is installed, else varlen; on CPU padded."""
    liger: bool = setting(True, free_on_resume=True)
    """On CUDA, use liger-kernel's layers where it has them for the model's architecture."""
    activation_checkpointing: bool | Literal["auto"] = setting(False, free_on_resume=True)
    """Recompute the activations of the layers in the backward pass: less memory, a third more time.
    auto: of as few layers as the GPU's free memory allows, and of none on a CPU."""
    compile: bool = setting(False, free_on_resume=True)
    """Compile the layers with torch.compile: on a GPU less memory and time per step, a minute more at the start."""
    head_chunk_tokens: int = setting(0, at_least=0, free_on_resume=True)
    """Response tokens whose logits are in memory at once; 0 chooses a number that is fast and needs little memory."""
    trust_remote_code: bool = False
    """Allow Python code that comes with the model to run."""
    skip_proof: bool = setting(False, free_on_resume=True)
    """Begin without comparing the trainer's and the sampler's logprobs with the model's own forward pass
    (docs/models.md). What fastgrpo does not know of a model then goes unseen."""
    family: Literal["qwen2", "llama", "mistral"] = setting("qwen2", free_on_resume=True)
    """Architecture of the random model that --shrink makes; other runs take it from the model's own files."""


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    replicas: int = setting(1, at_least=1, free_on_resume=True)
    """Groups of ranks that each hold all weights, sharded within the group (HSDP); 1 shards them over all ranks.
    On several nodes: one per node."""
    timeout_s: float = setting(1800.0, above=0, at_most=10_000_000, free_on_resume=True)
    """Longest wait for another rank, in seconds, before the run stops with an error."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    train: str = setting("BytedTsinghua-SIA/DAPO-Math-17k", is_path=True, may_change=True)
    """Training problems: a .parquet, .jsonl or .json file, a folder of them, or a hub data set."""
    held_out: str = setting("", is_path=True)
    """Problems on which the run measures its accuracy and never trains; empty: it measures none."""
    suffix: str = "\n\nPlease reason step by step, and put your final answer within \\boxed{}."
    """Text that is appended to every problem, unless the problem ends in it already."""
    chat_template: bool = True
    """Put the problem into the tokenizer's chat template, as one user message. Base models often have no template."""
    template: str = ""
    """Text of the prompt, with {problem} for the problem; replaces the suffix. Empty: the problem and the suffix."""
    special_tokens: bool = True
    """Without a chat template: let the tokenizer add its special tokens, such as BOS, to the prompt."""
    levels: tuple[int, ...] = ()
    """Difficulty levels to keep; problems without a level are kept too. Empty keeps all."""
    hint_percent: int = setting(0, at_least=0, at_most=100, may_change=True)
    """For recipes with hints: how much of the reference solution the prompt shows, in percent of its characters."""
    shuffle: bool = True
    """Shuffle the problems anew for every pass over the data; otherwise every pass has the order of the file."""
    max_prompt_tokens: int = setting(1024, at_least=1)
    """Longest prompt, in tokens; problems with a longer one are left out, and their number is printed."""
    prompts_per_step: int = setting(256, at_least=1, may_change=True)
    """Problems in one step, over all ranks."""


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    engine: str = "builtin"
    """What samples the responses: builtin, a decode loop over the transformers model, or vllm."""
    gpus: int = setting(0, at_least=0, free_on_resume=True)
    """GPUs of every node that only sample, one rank for each; without GPUs, ranks that only sample.
    0: every rank samples and trains."""
    servers: tuple[str, ...] = setting((), is_path=True, free_on_resume=True)
    """Addresses of vLLM servers that sample, as http://host:8000, or a file that has them and may change in the run.
    `fastgrpo serve` starts one. All ranks train."""
    server_key_file: str = setting("", is_path=True, free_on_resume=True)
    """File with the servers' key; empty: the environment's VLLM_API_KEY, if they have one."""
    tensor_parallel: int = setting(1, at_least=1, free_on_resume=True)
    """GPUs that share the weights of one engine."""
    dtype: Literal["auto", "float32", "bfloat16", "fp8"] = "auto"
    """Dtype of the engine's weights; auto is the policy's compute dtype."""
    max_staleness: int = setting(0, at_least=0)
    """How many steps older than the trained weights the sampling ones may be; above 0 needs --rollout.gpus or servers.
    0: sample, then train. 1: sample the next step while training. From 2 on: replace weights also during sampling."""
    kv_on_sync: Literal["recompute", "keep"] = "recompute"
    """When weights are replaced while responses are sampled: recompute their keys and values, or keep the old ones."""
    oversample: float = setting(1.0, at_least=1)
    """Prompts started for each prompt that a step needs; the step takes those that finish first.
    The others come first in the next step."""
    zero_signal_groups: Literal["keep", "drop", "replace"] = setting("keep", may_change=True)
    """Groups whose responses are all right or all wrong: keep them, drop them, or replace them by further prompts."""
    max_rounds: int = setting(10, at_least=1)
    """Where groups are replaced: most rounds of sampling in a step, which then trains on the groups that it has."""
    group_size: int = setting(8, at_least=1, may_change=True)
    """Responses sampled for each problem; advantages compare them with each other. 1 needs advantages without groups,
    --objective.advantage batch_whitened."""
    max_response_tokens: int = setting(15360, at_least=1, may_change=True)
    """Longest response, in tokens; a longer one is cut and judged as it is."""
    temperature: float = setting(1.0, above=0, may_change=True)
    """Sampling temperature; the trainer's logprobs are computed at the same one."""
    stop_token_ids: tuple[int, ...] = setting((), at_least=0)
    """Token ids that end a response, in addition to the end tokens of the model's generation settings."""
    ignore_eos: bool = False
    """Sample every response to its full length, past end tokens; for benchmarks."""
    max_sequences: int = setting(1024, at_least=1, free_on_resume=True)
    """Most responses that an engine samples at the same time; fewer where a GPU's free memory does not hold so many."""
    kv_cache_gib: float = setting(0.0, at_least=0, free_on_resume=True)
    """Memory of a vLLM engine's KV cache in GiB; 0: on a GPU what is left free, on a CPU 1 GiB."""
    sleep_level: Literal[0, 1, 2] = setting(0, free_on_resume=True)
    """What an engine in a trainer's rank frees while the rank trains: 0 nothing, 1 its KV cache, 2 its weights too."""
    enforce_eager: bool = setting(False, free_on_resume=True)
    """Run vLLM without CUDA graphs: it starts sooner and samples slower."""
    max_engine_restarts: int = setting(3, at_least=0, free_on_resume=True)
    """How often servers that the run has started may be started again; the next one that dies ends the run.
    Also how often a failed sync of weights is done again, whoever has started the servers."""

    @property
    def samples_apart(self) -> bool:
        """Whether engines are outside of the trainer ranks."""
        return self.gpus > 0 or bool(self.servers)


@dataclass(frozen=True, kw_only=True)
class SyncConfig:
    bucket_mib: int = setting(256, at_least=1, free_on_resume=True)
    """Memory that a sync takes, in MiB: it gathers weights bucket by bucket, not all at one time."""
    compare_every: int = setting(50, at_least=0, free_on_resume=True)
    """Compare all weights of trainer and engines at the first sync, and then once in so many syncs (0: never again)."""
    vllm_cpu_layers: Literal["auto", "live", "repack"] = "auto"
    """How the linear layers of vLLM on a CPU get new weights; auto is live below 100 million parameters.
    live: they read the parameter itself, so syncs are fast. repack: a packed copy is made, so sampling is fast."""


@dataclass(frozen=True, kw_only=True)
class DeadlineConfig:
    start_s: float = setting(1800.0, **_DEADLINE)
    """Longest start, in seconds: models are loaded, engines become ready, CUDA graphs are captured."""
    stall_s: float = setting(300.0, **_DEADLINE)
    """Seconds without a sign of life after which an engine counts as dead."""
    generate_s: float = setting(14400.0, **_DEADLINE)
    """Longest time to sample the responses of a step, in seconds."""
    judge_s: float = setting(3600.0, **_DEADLINE)
    """Longest time to judge the responses of a step, in seconds."""
    update_s: float = setting(14400.0, **_DEADLINE)
    """Longest time for the forward and backward passes and the updates of a step, in seconds."""
    sync_s: float = setting(300.0, **_DEADLINE)
    """Longest time until new weights have reached the engines, in seconds."""
    checkpoint_s: float = setting(3600.0, **_DEADLINE)
    """Longest time to write a checkpoint, in seconds."""


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    correct: float = setting(1.0, may_change=True)
    """Reward of a response that is right. A reward function that returns numbers gives the reward itself, and then a
    response counts as right if it gets at least this."""
    wrong: float = setting(-1.0, may_change=True)
    """Reward of a response that is wrong, also of one on which the reward function hung, died or raised an error."""
    unformatted: float | None = None
    """Reward of a response whose answer lacks the required form, where the verifier checks the form; None: as wrong."""
    workers: int = setting(1, at_least=1, free_on_resume=True)
    """Processes per rank that judge."""
    concurrency: int = setting(32, at_least=1, at_most=100_000, free_on_resume=True)
    """Responses that an async reward function judges at once in each process."""
    timeout_s: float = setting(10.0, above=0, at_most=1_000_000, free_on_resume=True)
    """Longest time to judge one response, in seconds; then the process is killed, or an async call cancelled.
    A reward function that takes whole groups may take it for each group."""
    memory_limit_gib: float = setting(4.0, above=0, at_most=1_000_000, free_on_resume=True)
    """Address space that one of these processes may use, in GiB."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """A part of the loss that is not given is that of ``loss``; one that is given wins.

    To change the loss of one that is there, use `with_settings`: `dataclasses.replace` gives all the parts it has.
    """

    loss: Loss = "grpo"
    """Published loss that the parts below come from, unless they are given too: grpo (JustRL's), dr_grpo, dapo, gspo,
    cispo, rloo, reinforce_pp, reinforce_pp_baseline, sapo, gmpo, luspo or dppo. docs/losses.md has their parts."""
    surrogate: Surrogate = OF_LOSS
    """What a token's ratio and advantage are worth. clipped: PPO's bound. cispo: the clipped ratio, without gradient,
    times the logprob. sapo: a sigmoid of the ratio, no clipping. dppo_tv, dppo_kl: the ratio, without gradient, times
    the logprob, where the divergence of the token's probability from its old one is within clip_low and clip_high."""
    ratio: Ratio = OF_LOSS
    """Whose probability ratio. token: each token's own. sequence: the geometric mean of a response's.
    geometric_mean: the same of ratios that were clipped before the mean, each in log space, and not after it."""
    advantage: Advantage = OF_LOSS
    """How rewards become advantages. group_normalised: less the group's mean, over its standard deviation.
    group_centred: less its mean. leave_one_out: less the mean of the others in the group.
    batch_whitened: without groups, over all response tokens. batch_normalised: group_centred, then the same."""
    aggregation: Aggregation = OF_LOSS
    """How an update's loss is made of its tokens' losses. token_mean: their mean over all response tokens.
    sequence_mean: the mean of the responses' means. sequence_mean_constant: the mean of the responses' sums, over
    max_response_tokens. sequence_sum: the mean of their sums.
    microbatch_mean, as verl 0.4: means of micro-batches, by their shares of the responses; depends on the packing."""
    clip_low: float = part(at_least=0, at_most=1, may_change=True)
    """The probability ratio is clipped below at 1 - clip_low; 1: not at all. With ratio geometric_mean the log-ratio is
    clipped at -clip_low; with the surrogates of dppo this is the largest divergence of a token whose probability falls.
    sapo clips nothing."""
    clip_high: float = part(at_least=0, may_change=True)
    """The same above, at 1 + clip_high. With ratio geometric_mean the log-ratio is clipped at clip_high; with the
    surrogates of dppo this is the largest divergence of a token whose probability rises."""
    dual_clip: float = part(at_least=0, may_change=True)
    """For a negative advantage: the loss of a token is at most this many times the advantage's size; 0: no limit.
    With the surrogates of dppo: the largest ratio of any token."""
    sapo_positive: float = part(above=0)
    """Temperature of sapo's sigmoid where the advantage is positive: the higher, the narrower."""
    sapo_negative: float = part(above=0)
    """Temperature of sapo's sigmoid elsewhere."""
    top_entropy: float = part(above=0, at_most=1)
    """Share of an update's response tokens whose advantages act, those of the highest entropy; 1: all of them."""
    clip_cov: float = part(at_least=0, below=1)
    """Share of an update's response tokens whose advantages do not act, drawn from those whose logprob and advantage
    deviate from their means by a product within clip_cov_low and clip_cov_high; 0: none. The paper takes 0.0002."""
    clip_cov_low: float = setting(1.0, at_least=0)
    """Lower bound of that product."""
    clip_cov_high: float = setting(5.0, at_least=0)
    """Upper bound of that product."""
    kl_cov: float = part(at_least=0, below=1)
    """Share of an update's response tokens, those of the highest such product, whose log-ratios are penalised in the
    place of clipping; 0: none. The paper takes 0.0002 to 0.002."""
    kl_cov_coef: float = setting(1.0, at_least=0)
    """Weight of that penalty, the size of the token's log-ratio."""
    kl: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of the KL divergence from the reference model in the loss.
    k1: the log-ratio of policy to reference. k2: half its square. k3: unbiased as k1, and never negative."""
    kl_coef: float = setting(0.0, at_least=0, may_change=True)
    """Weight of the KL divergence in the loss; at 0 no reference model is loaded."""
    kl_cap: float = setting(0.0, at_least=0)
    """Largest KL divergence that counts for a token, in either sign; 0: no limit."""
    entropy_coef: float = setting(0.0, at_least=0, may_change=True)
    """Weight of the entropy bonus in the loss, per nat."""
    router_aux_coef: float = setting(0.0, at_least=0)
    """Weight of the loss that balances the experts of a mixture over an update's response tokens; above 0 an update
    takes one forward pass more."""
    loss_path: Literal["auto", "fused", "logprobs", "definition"] = setting("auto", free_on_resume=True)
    """How the loss is computed; the loss is the same each time. auto: fused, or logprobs where that cannot be.
    fused: with its gradient in the LM head, in three matmuls. logprobs: from logprobs that are made first, in four.
    definition: from all logits of a micro-batch at one time, to check the others."""
    old_logprobs: Literal["recomputed", "rollout"] = "recomputed"
    """Old logprobs of the probability ratio.
    recomputed: in a forward pass before the first update of a step. rollout: as the sampler returned them (cheaper)."""
    correction: Literal["none", "truncate", "icepop", "sequence_mask"] = "none"
    """Importance weight that corrects for the difference between sampler and trainer: old over rollout probability.
    truncate: a token's weight is at most correction_high. icepop: tokens with a weight outside the bounds are dropped.
    sequence_mask: responses are dropped if the geometric mean of their tokens' weights is outside the bounds."""
    correction_low: float = setting(0.0, at_least=0, at_most=1, because=_AGREED)
    """Lower bound of the correction's weight."""
    correction_high: float = setting(2.0, at_least=1, because=_AGREED)
    """Upper bound of the correction's weight."""
    rollout_kl_alarm: float = setting(0.02, at_least=0, free_on_resume=True)
    """Warn, with the usual causes, about a step whose rollout_kl is further from 0 than this; 0: never."""

    def __post_init__(self) -> None:
        if self.loss not in PRESETS:
            near = did_you_mean(str(self.loss), list(PRESETS))
            raise ValueError(f"there is no loss {self.loss!r}, there are {', '.join(PRESETS)}{near}")
        for name in PARTS:
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(PRESETS[self.loss], name))


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    learning_rate: float = setting(1e-6, above=0, may_change=True)
    """Learning rate; constant after the warm-up."""
    warmup_steps: int = setting(10, at_least=0)
    """Steps over which the learning rate rises linearly."""
    betas: tuple[float, float] = setting((0.9, 0.999), at_least=0, below=1)
    """AdamW's decay rates of the first and the second moment."""
    eps: float = setting(1e-8, above=0)
    """AdamW's epsilon, which is added to the denominator."""
    weight_decay: float = setting(0.1, at_least=0)
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = setting(1.0, above=0)
    """Gradients with a larger norm are scaled down to this one."""
    updates_per_step: int = setting(4, at_least=1, may_change=True)
    """Optimizer updates on the responses of one step, each on its own share of the problems."""
    tokens_per_microbatch: int = setting(32768, at_least=1, free_on_resume=True)
    """Most tokens in one forward and backward pass on a rank."""
    skip_zero_advantage: bool = True
    """Leave responses whose advantage is 0 out of the passes: they have no gradient, but count in the token mean."""
    reduce_every_microbatch: bool = setting(False, free_on_resume=True)
    """Sum gradients over ranks after every micro-batch, so that a rank holds its part of them, not the whole.
    The same gradient with more communication, for models whose whole gradient does not fit (from 7B on 80 GB)."""
    share_prompts: bool = True
    """Compute a prompt only once for the responses of its group that are in one micro-batch: the same gradient."""
    max_skipped_updates: int = setting(3, at_least=1)
    """The run stops after this many updates in a row whose gradient is not finite; each of them is skipped."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    every_steps: int = setting(50, at_least=0, free_on_resume=True)
    """Steps between evaluations on the held-out problems; 0: only before the first step and after the last."""
    samples_per_prompt: int = setting(8, at_least=1, at_most=65_536)
    """Responses per problem for the sampled accuracy (avg@k)."""
    temperature: float = setting(1.0, at_least=0)
    """Sampling temperature of the sampled accuracy; the greedy accuracy is measured too."""
    max_problems: int = setting(512, at_least=1)
    """Most held-out problems that are used, from the first on."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    every_steps: int = setting(50, at_least=0, free_on_resume=True)
    """Steps between checkpoints; 0: only after the last step."""
    keep_last: int = setting(2, at_least=1, free_on_resume=True)
    """Checkpoints to keep; older ones are deleted."""
    rollouts_per_step: int = setting(16, at_least=0)
    """Responses of each step that are saved for the report."""


@dataclass(frozen=True, kw_only=True)
class Config:
    name: str = setting("run", free_on_resume=True)
    """Name of the run, and of its folder in runs_dir."""
    runs_dir: str = setting("runs", is_path=True, free_on_resume=True)
    """Folder that holds the folders of runs."""
    steps: int = setting(4380, at_least=1, free_on_resume=True)
    """Steps of the whole run, each with responses of its own."""
    max_barren_steps: int = setting(20, at_least=0, free_on_resume=True)
    """The run stops after so many first steps in which there was nothing to learn; one in which there was ends the
    count. 0: never."""
    seed: int = setting(1, at_least=0, below=2**62)
    """Seed of the data order and of the sampling noise."""
    device: Literal["auto", "cpu", "cuda"] = setting("auto", free_on_resume=True)
    """Where to compute; auto is cuda if a GPU is visible, else cpu."""
    resume: bool = setting(False, free_on_resume=True)
    """Continue the run in the folder from its newest intact checkpoint."""
    overwrite: bool = setting(False, free_on_resume=True)
    """Delete the run in the folder and start anew; what its recipe prepared (base/) is kept."""
    dry_run: bool = setting(False, free_on_resume=True)
    """Print all settings and the sizes of a step that follow from them, and stop."""
    fidelity: Literal["paper", "verl"] = setting("paper", free_on_resume=True)
    """What to do where the paper and the code that it was run with differ. paper: as the paper says.
    verl: as the code does."""
    track: tuple[str, ...] = setting((), is_path=True, free_on_resume=True)
    """Trackers that show the run too: wandb, tensorboard, trackio, mlflow, or FILE.py:CLASS; several at once."""
    shrink: bool = setting(False, free_on_resume=True)
    """Run the recipe in small, on any machine: three short steps of a tiny random model, all else as in the recipe."""
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
        """The longest sync, with servers that are lost in it and come back, each within its own deadlines."""
        if not self.rollout.samples_apart:
            return self.deadline.sync_s
        return (self.rollout.max_engine_restarts + 1) * (self.deadline.start_s + self.deadline.sync_s)

    @property
    def run_dir(self) -> str:
        return f"{self.runs_dir}/{self.name}"


SECTIONS: dict[str, Any] = {f.name: f.type for f in dataclasses.fields(Config) if dataclasses.is_dataclass(f.type)}

RULES = {f.name: f.metadata for f in dataclasses.fields(Config) if f.name not in SECTIONS} | {
    f"{name}.{f.name}": f.metadata for name, section in SECTIONS.items() for f in dataclasses.fields(section)
}
"""The rules of every setting, by its command-line name."""
