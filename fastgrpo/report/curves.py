"""The charts that the page knows, in its order, and what each looks like in a healthy run."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One chart over the steps. `healthy` completes the sentence "Healthy: ..."."""

    metric: str  # the first metric; also the chart's name in the page and in run.json's published bands
    title: str
    unit: str
    healthy: str = ""
    about: str = ""
    series: Mapping[str, str] = field(default_factory=dict)  # metric -> name, if there are several
    percent: bool = False  # whether values are shares, to be written in percent
    averaged: bool = True
    stacked: bool = False
    small: bool = False
    optional: bool = False  # whether it is left out if the run did not record it
    rare: bool = False  # whether it is left out if it is 0 throughout

    @property
    def names(self) -> Mapping[str, str]:
        """Metric -> its name in the chart."""
        return self.series or {self.metric: self.title.lower()}


CURVES: Mapping[str, tuple[Curve, ...]] = {
    "Learning": (
        Curve(
            metric="reward",
            title="Mean reward",
            unit="reward per response",
            healthy="climbs steadily and flattens late, without a sudden fall.",
        ),
        Curve(
            metric="accuracy",
            title="Accuracy of the sampled responses",
            unit="share of responses correct",
            about="The verifier's verdicts, before any shaping of rewards.",
            percent=True,
            optional=True,
            healthy="climbs with the reward. If only the reward climbs, the model exploits the shaping of rewards.",
        ),
        Curve(
            metric="entropy",
            title="Entropy",
            unit="nats per token",
            about="Entropy is the mean over response tokens of the full-vocabulary entropy at the sampling "
            "temperature.",
            healthy="drifts slowly within a band. Near 0 the policy does not explore any more; a climb ends in noise.",
        ),
        Curve(
            metric="response_length",
            title="Response length",
            unit="tokens per response",
            healthy="becomes steady well below the limit. Responses that grow up to the limit ramble; very short ones "
            "are guesses.",
        ),
    ),
    "Accuracy and updates": (
        Curve(
            metric="held_out_accuracy",
            title="Held-out accuracy",
            unit="share of answers correct",
            series={"held_out_accuracy": "sampled", "held_out_greedy": "greedy"},
            percent=True,
            averaged=False,
            healthy="follows the reward. If only the reward climbs, the policy overfits or exploits the verifier.",
        ),
        Curve(
            metric="clip_frac",
            title="Clip fraction",
            unit="share of response tokens",
            percent=True,
            healthy="small and steady. Growth means that updates move far away from the policy that sampled.",
        ),
        Curve(
            metric="grad_norm",
            title="Gradient norm",
            unit="L2 norm before clipping",
            healthy="level, with rare and isolated spikes.",
        ),
    ),
    "Sampler and data": (
        Curve(
            metric="rollout_kl",
            title="Sampler to trainer KL",
            unit="nats per token",
            healthy="flat and close to 0. A rise means that sampler and trainer have different distributions.",
        ),
        Curve(
            metric="reference_kl",
            title="Divergence from the reference",
            unit="nats per token",
            optional=True,
            healthy="grows slowly, and falls to 0 when the reference is reset. A sharp rise comes before a collapse.",
        ),
        Curve(
            metric="logprob_diff_above_001_frac",
            title="Log-probabilities that differ",
            unit="share of response tokens",
            about="Tokens on which sampler and trainer differ by more than 0.01.",
            percent=True,
            healthy="constant. A jump points to a weight sync that went wrong.",
        ),
        Curve(
            metric="truncated_frac",
            title="Truncated and without signal",
            unit="share of responses",
            series={"truncated_frac": "cut at the limit", "zero_advantage_frac": "zero advantage"},
            percent=True,
            healthy="truncation falls early. Groups that are all right or all wrong teach nothing; their share grows "
            "only as the model improves.",
        ),
    ),
    "Sampling": (
        Curve(
            metric="verifier_failures",
            title="Failures",
            unit="per step",
            series={
                "verifier_failures": "verifier failed",
                "rewards_not_finite": "reward not finite",
                "responses_without_reward": "no reward",
                "skipped_updates": "update skipped",
            },
            rare=True,
            healthy="0. A response that could not be judged teaches nothing, or the wrong thing.",
        ),
        Curve(
            metric="staleness_mean",
            title="Staleness",
            unit="steps between sampling and training",
            series={"staleness_mean": "mean", "staleness_max": "most"},
            healthy="0 if sampling and training take turns; otherwise level, below --rollout.max_staleness.",
        ),
        Curve(
            metric="groups_kept",
            title="Groups of a step",
            unit="groups",
            series={
                "groups_kept": "trained on",
                "groups_dropped_all_right": "left out, all right",
                "groups_dropped_all_wrong": "left out, all wrong",
            },
            healthy="the groups left out change slowly. If many are all wrong, the problems are too hard; if many are "
            "all right, too easy.",
        ),
        Curve(
            metric="engine_busy_s",
            title="Engines at work",
            unit="seconds per step",
            series={"engine_busy_s": "an engine draws", "step_s": "the step"},
            healthy="engines with ranks of their own draw nearly all of the time. If they wait, the trainer needs more "
            "GPUs; if the trainer waits, the engines do.",
        ),
    ),
    "Speed": (
        Curve(
            metric="tokens_per_s",
            title="Throughput",
            unit="tokens/s, all ranks",
            healthy="level. It changes with the response length, and drops are short.",
        ),
        Curve(
            metric="total_tokens",
            title="Cumulative tokens",
            unit="tokens",
            averaged=False,
            healthy="a straight line that bends when the response length changes.",
        ),
        Curve(
            metric="step_s",
            title="Time per phase",
            unit="seconds per step",
            series={
                "rollout_s": "rollout",
                "update_s": "update",
                "old_logprobs_s": "old logprobs",
                "reward_s": "reward",
                "drain_s": "wait for engines",
                "sync_s": "weight sync",
                "rest_s": "rest",
            },
            stacked=True,
            healthy="rollout and update take most of the step. Sync, reward and the rest stay small.",
        ),
    ),
}
