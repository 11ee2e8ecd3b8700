"""What travels between the parts of a step: a `Prompt`, then a `Sample` that grows until it is packed.

``Prompt -> (rollout) Sample -> (rewards, advantages) the same Sample -> (packing) PackedBatch -> (policy, objective)``
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import numpy as np

FinishReason = Literal["stop", "length"]

_NO_TOKENS = np.zeros(0, dtype=np.int32)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A problem as it is asked: a row of a data set, then its tokens, then one visit of a run to it.

    ``position`` counts visits: it is the prompt's place in the endless, seeded order of the data, and with the seed
    and the sample's index it keys the sampling noise, so that two visits to a row draw different responses.
    """

    row: int  # 0-based; in a folder, counted through its files in their order
    text: str  # with the instruction that a run gives
    answer: str
    level: int | None = None  # difficulty, where the data set has it
    solution: str = ""  # how the answer is found, where the data set has it
    prompt_ids: np.ndarray = field(default_factory=lambda: _NO_TOKENS)  # [num_prompt_tokens] int32, once encoded
    position: int = 0
    columns: Mapping[str, Any] | None = None  # all of its row, where the reward asks for it
    history: tuple[tuple[str, str], ...] = ()  # (role, text) of the messages before it, as a system's

    @classmethod
    def of_ids(cls, prompt_ids: np.ndarray, position: int = 0) -> Self:
        """A prompt of which only the tokens are known."""
        return cls(row=position, text="", answer="", prompt_ids=prompt_ids, position=position)

    def without_columns(self) -> Self:
        """The prompt for processes that do not judge: a row may be large."""
        return self if self.columns is None else replace(self, columns=None)


@dataclass(frozen=True, slots=True)
class Response:
    """What the sampler drew for one prompt, as token ids; text is derived from it and never fed back."""

    response_ids: np.ndarray  # [num_response_tokens] int32, the end token included if it was sampled
    rollout_logprobs: np.ndarray  # [num_response_tokens] float32, log-softmax(logits / temperature) of the sampled ids
    finish_reason: FinishReason
    policy_version: int  # trainer steps that made the weights which sampled its first token
    mean_entropy: float | None = None  # of the full vocabulary at the sampling temperature, nats a token; engines may
    # not know it
    version_changes: tuple[tuple[int, int], ...] = ()  # (place, policy_version): from this token on, newer weights
    response_mask: np.ndarray | None = None  # [num_response_tokens] bool, the tokens that the policy sampled; None: all

    def __len__(self) -> int:
        return len(self.response_ids)

    @property
    def num_sampled_tokens(self) -> int:
        """Tokens that the policy sampled, and that are trained on."""
        return len(self) if self.response_mask is None else int(self.response_mask.sum())

    def token_versions(self) -> np.ndarray:  # [num_sampled_tokens] int64
        """The policy version of every token that was sampled."""
        versions = np.full(len(self), self.policy_version)
        for place, version in self.version_changes:
            versions[place:] = version
        return versions if self.response_mask is None else versions[self.response_mask]

    @property
    def sampled_by(self) -> tuple[tuple[int, int], ...]:
        """(policy version, number of tokens that it sampled), in the order of the tokens."""
        if not self.version_changes and self.response_mask is None:
            return ((self.policy_version, len(self)),)
        versions = self.token_versions()
        starts = np.flatnonzero(np.diff(versions, prepend=-1))
        counts = np.diff(starts, append=len(versions))
        return tuple(zip(versions[starts].tolist(), counts.tolist(), strict=True))

    def elsewhere(self) -> "ResponseElsewhere":
        """What other ranks know of it."""
        return ResponseElsewhere(
            len(self), self.num_sampled_tokens, self.finish_reason, self.sampled_by, self.mean_entropy
        )


@dataclass(frozen=True, slots=True)
class ResponseElsewhere:
    """What every rank knows of a response whose tokens another rank has; named as in `Response`."""

    num_tokens: int
    num_sampled_tokens: int
    finish_reason: FinishReason
    sampled_by: tuple[tuple[int, int], ...]
    mean_entropy: float | None = None

    def __len__(self) -> int:
        return self.num_tokens


@dataclass(frozen=True, slots=True)
class Sample:
    """One response to one prompt and what is known of it: the verdict, then the reward, then the advantage."""

    prompt: Prompt
    response: Response | ResponseElsewhere
    home: int | None = None  # the rank that has the tokens; None: they are wherever the sample is
    text: str | None = None  # of the response, on the rank that judged it: it is only looked at
    correct: bool = False  # the verifier's verdict
    score: float = 0.0  # what the verifier gave before any settings: 1 or 0 for a yes or no
    graded: bool = False  # whether the score is the reward itself; what a yes or no is worth the settings say
    teaches: bool = True  # whether it has a reward at all; one that has none is in no mean and in no pass
    parts: Mapping[str, float] = field(default_factory=dict)  # what the reward was made of, by its own names
    unformatted: bool = False  # wrong, and without an answer in the demanded form
    boxed: bool = False  # whether the text has a \boxed{...} that closes
    failure: str = ""  # why there was no verdict, in which case the response counts as wrong
    reward: float = 0.0
    advantage: float = 0.0

    @property
    def num_input_tokens(self) -> int:
        """Tokens that the model reads: the last token is only ever a target."""
        return len(self.prompt.prompt_ids) + len(self.response) - 1

    @property
    def tokens(self) -> Response:
        """The response, whose tokens must be here."""
        assert isinstance(self.response, Response), "the tokens of this response are on another rank"
        return self.response

    def without_texts(self) -> Self:
        """The sample for other ranks, which do not look at its text nor at the row that its prompt is from."""
        return replace(self, text=None, prompt=self.prompt.without_columns())


Group = list[Sample]
"""The samples of one prompt, which are compared with each other."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How responses are drawn. The temperature is the one that the trainer's logprobs use too."""

    group_size: int
    max_response_tokens: int
    temperature: float = 1.0  # 0 takes the most probable token
    stop_token_ids: tuple[int, ...] = ()
    seed: int = 0
    top_p: float = 1.0  # draws from the smallest set of most probable tokens that has this share; training never cuts


@dataclass(frozen=True, slots=True)
class Request:
    """One response to be drawn. ``id`` is its owner's, unique among what an engine holds."""

    id: int
    prompt: Prompt
    index: int  # of the sample in its group; with the prompt's position and the seed it keys the noise
    sampling: Sampling
