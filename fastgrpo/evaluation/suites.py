"""The protocols that papers evaluated with, as data: each constant with its source."""

from dataclasses import dataclass, field, replace


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How one benchmark's responses are asked for and drawn."""

    samples_per_problem: int
    temperature: float
    top_p: float
    max_response_tokens: int
    template: str = ""  # text with {problem}
    chat_template: bool = True  # whether the template's text is one user message; if not, it is all that is read


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Benchmarks with their protocols, and the rule that judges them."""

    source: str
    rule: str  # as `VerifierPool` imports it
    protocols: dict[str, Protocol]  # by benchmark, in the order of the paper's table
    other: Protocol  # for a benchmark that the paper does not have: our choice
    verifier_model: str = ""  # that the paper asked about the responses that the rule rejected
    notes: tuple[str, ...] = field(default=())


# One space, where JustRL's training has a blank line (thunlp/JustRL: evals/gen_vllm.py, PROMPT_TEMPLATE).
JUSTRL_TEMPLATE = "{problem} Please reason step by step, and put your final answer within \\boxed{}."

# thunlp/JustRL: evals/gen_vllm.py (TEMPERATURE, TOP_P, MAX_TOKENS, and N of each task).
_JUSTRL = Protocol(
    samples_per_problem=32, temperature=0.7, top_p=0.9, max_response_tokens=31744, template=JUSTRL_TEMPLATE
)
_JUSTRL_4 = replace(_JUSTRL, samples_per_problem=4)
# arXiv 2503.18892, caption of table 1: temperature 1.0, top-p 0.95, at most 16k tokens, one sample.
_SIMPLERL = Protocol(samples_per_problem=1, temperature=1.0, top_p=0.95, max_response_tokens=16384, chat_template=False)
# ProRL, arXiv 2505.24864, and BroRL, arXiv 2510.01180: temperature 0.6, top-p 0.95, 32k context, 16 samples. They do
# not give their prompt. We take JustRL's, because JustRL measured ProRL-V2's row of its table with it.
_PRORL = Protocol(
    samples_per_problem=16, temperature=0.6, top_p=0.95, max_response_tokens=32768, template=JUSTRL_TEMPLATE
)

SUITES = {
    "justrl": Suite(
        other=_JUSTRL_4,
        source="JustRL, arXiv 2512.16649, section 4.1; thunlp/JustRL: evals/",
        rule="fastgrpo.rewards:mathd_or_sympy",  # evals/utils.py, grade_answer_verl
        protocols={
            "AIME24": _JUSTRL, "AIME25": _JUSTRL, "AMC23": _JUSTRL,
            "MATH-500": _JUSTRL_4, "Minerva": _JUSTRL_4, "Olympiad-Bench": _JUSTRL_4,
            "HMMT25": _JUSTRL, "BRUMO25": _JUSTRL, "CMIMC25": _JUSTRL,
        },
        verifier_model="opencompass/CompassVerifier-3B",  # evals/grade.py
    ),
    "simplerl": Suite(
        other=_SIMPLERL,
        source="SimpleRL-Zoo, arXiv 2503.18892, table 1; hkust-nlp/simpleRL-reason: examples/simplelr_math_eval",
        rule="fastgrpo.evaluation.simplerl_rule:simplerl_evaluated",
        protocols={
            "GSM8K": _SIMPLERL, "MATH-500": _SIMPLERL, "Minerva": _SIMPLERL, "Olympiad-Bench": _SIMPLERL,
            "AIME24": replace(_SIMPLERL, samples_per_problem=32),  # its avg@32 column
            "AMC23": _SIMPLERL,
        },
        notes=(
            "the published grader also accepts 100 times and a hundredth of the answer, and numbers that are close",
            "the published OlympiadBench has 675 problems, this one 674",
            "base models were evaluated greedily: --temperature 0",
        ),
    ),
    "prorl": Suite(
        other=_PRORL,
        source="ProRL, arXiv 2505.24864, section 4; BroRL, arXiv 2510.01180",
        rule="fastgrpo.rewards:prime_union",
        protocols=dict.fromkeys(("AIME24", "AIME25", "AMC23", "MATH-500", "Minerva", "Olympiad-Bench"), _PRORL),
        notes=("the mathematics part; its prompt is not published, JustRL's is taken",),
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class KnownBenchmark:
    """Where the problems of a benchmark are."""

    file: str  # in a folder laid out as thunlp/JustRL's data/
    num_problems: int
    repository: str  # on GitHub: the file that the paper used
    hub: str = ""  # a hub data set with as many problems, in columns that we read; its wording may differ


_FROM_JUSTRL = "thunlp/JustRL: data/{}/test.parquet"


def _of_justrl(name: str, num_problems: int, hub: str = "") -> KnownBenchmark:
    return KnownBenchmark(
        file=f"{name}/test.parquet", num_problems=num_problems, repository=_FROM_JUSTRL.format(name), hub=hub
    )


BENCHMARKS = {
    "AIME24": _of_justrl("AIME24", 30),
    "AIME25": _of_justrl("AIME25", 30, "MathArena/aime_2025"),
    "AMC23": _of_justrl("AMC23", 40),
    "MATH-500": _of_justrl("MATH-500", 500, "HuggingFaceH4/MATH-500:test.jsonl"),
    "Minerva": _of_justrl("Minerva", 272),
    "Olympiad-Bench": _of_justrl("Olympiad-Bench", 674),
    "HMMT25": _of_justrl("HMMT25", 30, "MathArena/hmmt_feb_2025"),
    "BRUMO25": _of_justrl("BRUMO25", 30, "MathArena/brumo_2025"),
    "CMIMC25": _of_justrl("CMIMC25", 40, "MathArena/cmimc_2025"),
    "GSM8K": KnownBenchmark(
        file="GSM8K/test.jsonl",
        num_problems=1319,
        repository="hkust-nlp/simpleRL-reason: examples/simplelr_math_eval/data/gsm8k/test.jsonl",
        hub="openai/gsm8k:main/test-00000-of-00001.parquet",
    ),
}
