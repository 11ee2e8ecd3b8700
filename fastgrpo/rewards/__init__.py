"""Responses -> rewards.

A reward is a function of response text and answer, and of what else its signature asks for, that returns a
`Judgement` (docs/rewards.md). A verifier is one that says right or wrong; docs/verifiers.md describes those that are
here. Another one is a file here with ``@known_answers``, its name below, a row and a column there, and a test.
``VerifierPool`` calls a reward in processes of its own: a response on which it hangs, dies or uses all memory costs one
verdict and never the run. Nothing here imports torch, and nothing evaluates a response as code.
"""

from fastgrpo.rewards.compass import compass_accepts, compass_prompt
from fastgrpo.rewards.dapo_minerva import dapo_minerva
from fastgrpo.rewards.deepscaler import deepscaler, mathd_or_sympy
from fastgrpo.rewards.format_penalty import format_penalty
from fastgrpo.rewards.from_trl import from_trl
from fastgrpo.rewards.grading.boxes import last_boxed
from fastgrpo.rewards.hf_math_verify import math_verify
from fastgrpo.rewards.judgement import Judgement, KnownAnswer, RewardError, Verdict
from fastgrpo.rewards.known_answers import SELF_TEST, known_answers, self_test_of
from fastgrpo.rewards.pool.verifier_pool import MADE_UP, VerifierPool
from fastgrpo.rewards.pool.wire import Item
from fastgrpo.rewards.prime_union import prime_union
from fastgrpo.rewards.reward_model import reward_model
from fastgrpo.rewards.signature import Signature
from fastgrpo.rewards.simplerl_mix import simplerl_mix
from fastgrpo.rewards.strict_boxed import strict_boxed
from fastgrpo.rewards.weighted import weighted

__all__ = [
    "MADE_UP",
    "SELF_TEST",
    "Item",
    "Judgement",
    "KnownAnswer",
    "RewardError",
    "Signature",
    "Verdict",
    "VerifierPool",
    "compass_accepts",
    "compass_prompt",
    "dapo_minerva",
    "deepscaler",
    "format_penalty",
    "from_trl",
    "known_answers",
    "last_boxed",
    "math_verify",
    "mathd_or_sympy",
    "prime_union",
    "reward_model",
    "self_test_of",
    "simplerl_mix",
    "strict_boxed",
    "weighted",
]
