"""What each published loss is made of: one row a loss.

The parts are settings of `ObjectiveConfig`, which says what they mean. What a paper does besides its loss (which groups
it samples, how it shapes rewards, its learning rate) is not in here.
"""

from dataclasses import dataclass, fields
from typing import Literal

Loss = Literal[
    "grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce_pp", "reinforce_pp_baseline", "sapo", "gmpo",
    "luspo", "dppo",
]  # fmt: skip
Surrogate = Literal["clipped", "cispo", "sapo", "dppo_tv", "dppo_kl"]
Ratio = Literal["token", "sequence", "geometric_mean"]
Advantage = Literal["group_normalised", "group_centred", "leave_one_out", "batch_whitened", "batch_normalised"]
Aggregation = Literal["token_mean", "sequence_mean", "sequence_mean_constant", "sequence_sum", "microbatch_mean"]


@dataclass(frozen=True)
class Preset:
    """The parts of a loss. Those that a row leaves out are PPO's clip with one width, and no choice of tokens."""

    source: str
    surrogate: Surrogate = "clipped"
    ratio: Ratio = "token"
    advantage: Advantage = "group_normalised"
    aggregation: Aggregation = "token_mean"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 0.0
    sapo_positive: float = 1.0
    sapo_negative: float = 1.05
    top_entropy: float = 1.0
    clip_cov: float = 0.0
    kl_cov: float = 0.0


PARTS = tuple(f.name for f in fields(Preset) if f.name != "source")

NO_LOWER_BOUND = 1.0  # a ratio is never below 0

# fmt: off
PRESETS: dict[Loss, Preset] = {
    "grpo": Preset("JustRL, arXiv 2512.16649, table 2", clip_high=0.28, dual_clip=10.0),
    "dr_grpo": Preset("arXiv 2503.20783, section 3.2", advantage="group_centred", aggregation="sequence_mean_constant"),
    "dapo": Preset("arXiv 2503.14476, eq. 8 and section 4.1", clip_high=0.28),
    "gspo": Preset("arXiv 2507.18071, eq. 5 and section 5.1", ratio="sequence", aggregation="sequence_mean",
                   clip_low=3e-4, clip_high=4e-4),
    "cispo": Preset("arXiv 2506.13585, eq. 4; the bound of ScaleRL, arXiv 2510.13786", surrogate="cispo",
                    clip_low=NO_LOWER_BOUND, clip_high=4.0),
    "rloo": Preset("arXiv 2402.14740, section 3.3, clipped as verl does", advantage="leave_one_out"),
    "reinforce_pp": Preset("arXiv 2501.03262", advantage="batch_whitened"),
    "reinforce_pp_baseline": Preset("arXiv 2501.03262, with the group's mean off", advantage="batch_normalised"),
    "sapo": Preset("arXiv 2511.20347", surrogate="sapo", aggregation="sequence_mean"),
    "gmpo": Preset("arXiv 2507.20673, eq. 4", ratio="geometric_mean", aggregation="sequence_mean",
                   clip_low=0.4, clip_high=0.4),
    "luspo": Preset("arXiv 2602.05261, section 5.1", ratio="sequence", aggregation="sequence_sum",
                    clip_low=2e-3, clip_high=2.5e-3),
    "dppo": Preset("arXiv 2602.04879, with the authors' script in verl", surrogate="dppo_tv",
                   advantage="group_centred", aggregation="sequence_mean_constant", clip_low=0.15, clip_high=0.15),
}
# fmt: on
