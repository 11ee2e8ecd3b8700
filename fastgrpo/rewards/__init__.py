"""Responses -> rewards.

A reward is a function of response text and answer, and of what else its signature asks for, that returns a
`Judgement` (docs/rewards.md). A verifier is one that says right or wrong; docs/verifiers.md describes those that are
here. Another one is a file here with ``@known_answers``, its name below, a row and a column there, and a test.
``VerifierPool`` calls a reward in processes of its own: a response on which it hangs, dies or uses all memory costs one
verdict and never the run. Nothing here imports torch, and nothing but ``run_python`` runs a response as code, in a
sandbox.
"""

from fastgrpo.rewards.compass import compass_accepts, compass_prompt
from fastgrpo.rewards.dapo_minerva import dapo_minerva
from fastgrpo.rewards.deepscaler import deepscaler, mathd_or_sympy
from fastgrpo.rewards.format_penalty import format_penalty
from fastgrpo.rewards.from_trl import from_trl
from fastgrpo.rewards.grading.boxes import last_boxed
from fastgrpo.rewards.hf_math_verify import math_verify
from fastgrpo.rewards.judgement import Judgement, KnownAnswer, RewardError, Verdict
from fastgrpo.rewards.known_answers import SELF_TEST, demands_box, known_answers, self_test_of
from fastgrpo.rewards.math_verify_strict import math_verify_strict
from fastgrpo.rewards.pool.verifier_pool import MADE_UP, VerifierPool
from fastgrpo.rewards.pool.wire import Item
from fastgrpo.rewards.prime_union import prime_union
from fastgrpo.rewards.reward_model import reward_model
from fastgrpo.rewards.run_python import CodeResult, last_code_block, run_python
from fastgrpo.rewards.sandbox.cases import AssertTest, CallTest, StdinTest, ValueTest, tests_of
from fastgrpo.rewards.sandbox.command import SandboxError
from fastgrpo.rewards.signature import Signature
from fastgrpo.rewards.simplerl_mix import simplerl_mix
from fastgrpo.rewards.strict_boxed import strict_boxed
from fastgrpo.rewards.weighted import weighted

__all__ = [
    "MADE_UP",
    "SELF_TEST",
    "AssertTest",
    "CallTest",
    "CodeResult",
    "Item",
    "Judgement",
    "KnownAnswer",
    "RewardError",
    "SandboxError",
    "Signature",
    "StdinTest",
    "ValueTest",
    "Verdict",
    "VerifierPool",
    "compass_accepts",
    "compass_prompt",
    "dapo_minerva",
    "deepscaler",
    "demands_box",
    "format_penalty",
    "from_trl",
    "known_answers",
    "last_boxed",
    "last_code_block",
    "math_verify",
    "math_verify_strict",
    "mathd_or_sympy",
    "prime_union",
    "reward_model",
    "run_python",
    "self_test_of",
    "simplerl_mix",
    "strict_boxed",
    "tests_of",
    "weighted",
]
