"""The published result tables as data, in percent, each value with the protocol by which it was measured.

``python -m fastgrpo.evaluation.published_page > docs/published.md`` writes them as a page.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from fastgrpo.evaluation.suites import SUITES


@dataclass(frozen=True)
class Protocol:
    """How a paper drew and judged responses; None where its sources do not say."""

    temperature: float | None
    top_p: float | None
    max_response_tokens: int | None
    judged_by: str


@dataclass(frozen=True)
class Column:
    """One benchmark of a table, under the suites' name for it; `samples` is the number of responses to a problem."""

    benchmark: str
    samples: int | None
    protocol: str
    num_problems: int | None = None  # None: as in the suites

    @property
    def label(self) -> str:
        return f"{self.benchmark} @{self.samples}" if self.samples else self.benchmark


@dataclass(frozen=True)
class Row:
    """One model: a value for each column, None where the table has none, and the average as printed."""

    model: str
    values: tuple[float | None, ...]
    average: float | None = None
    protocol: str = ""  # empty: the column's
    note: str = ""


@dataclass(frozen=True)
class Table:
    title: str
    source: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    averaged: tuple[int, ...] = ()  # the columns of which the printed average is the mean
    digits: int = 2  # after the point, as printed
    note: str = ""


def _of_suite(name: str, judged_by: str, **greedy: float) -> Protocol:
    drawn = SUITES[name].protocols["AIME24"]
    settings = {"temperature": drawn.temperature, "top_p": drawn.top_p, **greedy}
    return Protocol(**settings, max_response_tokens=drawn.max_response_tokens, judged_by=judged_by)


PROTOCOLS: Mapping[str, Protocol] = {
    "justrl": _of_suite("justrl", "mathd or sympy, then CompassVerifier-3B"),
    "simplerl": _of_suite("simplerl", "Qwen2.5-Math's evaluation code"),
    "simplerl, greedy": _of_suite("simplerl", "Qwen2.5-Math's evaluation code", temperature=0.0, top_p=1.0),
    "simplerl, other": Protocol(None, None, None, "each benchmark's own evaluation"),
    "simplerl, figure 3": Protocol(None, None, None, "not given"),
    "prorl": _of_suite("prorl", "DeepScaleR's verifier or math-verify"),
    "questa": Protocol(0.7, 0.95, None, "not given"),
    "dapo": Protocol(1.0, 0.7, 20_480, "DAPO's Minerva-style answer match"),
}


def _columns(protocol: str, samples: int | None, *benchmarks: str) -> tuple[Column, ...]:
    return tuple(Column(benchmark, samples, protocol) for benchmark in benchmarks)


_NINE = (
    *_columns("justrl", 32, "AIME24", "AIME25", "AMC23"),
    *_columns("justrl", 4, "MATH-500", "Minerva", "Olympiad-Bench"),
    *_columns("justrl", 32, "HMMT25", "BRUMO25", "CMIMC25"),
)
_JUSTRL = "JustRL, arXiv 2512.16649"
_SIMPLERL = "SimpleRL-Zoo, arXiv 2503.18892"
_SIX = ("AIME24", "AIME25", "AMC", "MATH-500", "Minerva", "Olympiad-Bench")
_JUSTRL_AT = "JustRL-DeepSeek-1.5B, "
_AMC = "AMC is not the AMC23 file of JustRL's suite, and MATH-500 stands for what the paper calls MATH."


def _simplerl_columns(protocol: str) -> tuple[Column, ...]:
    return (
        *_columns(protocol, 1, "GSM8K", "MATH-500", "Minerva"),
        Column("Olympiad-Bench", 1, protocol, num_problems=675),
        *_columns(protocol, 1, "AIME24"),
        *_columns("simplerl", 32, "AIME24"),
        *_columns(protocol, 1, "AMC23"),
    )


TABLES: tuple[Table, ...] = (
    Table(
        "JustRL, DeepSeek-R1-Distill-Qwen-1.5B",
        f"{_JUSTRL}, table 3",
        _NINE,
        (
            Row(
                "DeepSeek-R1-Distill-Qwen-1.5B", (29.90, 22.40, 63.82, 84.90, 34.65, 45.95, 13.44, 30.94, 12.89), 37.65
            ),
            Row(
                "DeepScaleR-1.5B-Preview",
                (40.21, 28.65, 73.83, 89.30, 39.34, 52.79, 18.96, 40.00, 21.00),
                44.88,
                note="the printed average is not the mean of its nine columns, which is 44.90",
            ),
            Row("ProRL-V2", (51.87, 35.73, 88.75, 92.00, 49.03, 67.84, 19.38, 47.29, 25.86), 53.08),
            Row(
                "BroRL",
                (57.50, 36.88, None, 92.14, 49.08, 61.54, None, None, None),
                protocol="prorl",
                note="as its authors report it, by their protocol (prorl)",
            ),
            Row("JustRL-DeepSeek-1.5B", (52.60, 38.75, 91.02, 91.65, 51.47, 67.99, 21.98, 52.71, 25.63), 54.87),
            Row(_JUSTRL_AT + "step 4,520", (51.15, 37.71, 90.78, 91.20, 50.55, 68.40, 21.77, 53.54, 24.77), 54.43),
            Row(_JUSTRL_AT + "step 4,720", (52.45, 38.02, 91.09, 91.80, 48.62, 66.95, 21.04, 53.33, 25.16), 54.27),
            Row(_JUSTRL_AT + "step 4,860", (54.06, 38.44, 90.16, 91.40, 49.63, 66.62, 21.88, 53.54, 25.86), 54.62),
        ),
        averaged=tuple(range(9)),
        note="JustRL-DeepSeek-1.5B is step 4,380; only the blog has the later steps. Validation during training gave "
        "higher values: up to 58.59 on AIME24.",
    ),
    Table(
        "JustRL, OpenMath-Nemotron-1.5B",
        f"{_JUSTRL}, table 5",
        _NINE,
        (
            Row("OpenMath-Nemotron-1.5B", (58.75, 48.44, 90.55, 92.40, 26.93, 71.70, 30.10, 61.67, 30.08), 56.74),
            Row("QuestA-Nemotron-1.5B", (71.56, 62.08, 93.44, 92.95, 32.08, 72.28, 40.94, 67.50, 41.48), 63.81),
            Row("JustRL-Nemotron-1.5B", (69.69, 62.92, 96.02, 94.15, 30.24, 76.59, 40.63, 66.88, 41.72), 64.32),
        ),
        averaged=tuple(range(9)),
        note="JustRL-Nemotron-1.5B is step 3,440. Validation during training gave higher values: up to 73.33 on "
        "AIME24.",
    ),
    Table(
        "SimpleRL-Zoo, base models",
        f"{_SIMPLERL}, table 1",
        _simplerl_columns("simplerl, greedy"),
        (
            Row("Mistral-7B-v0.1", (21.2, 4.2, 4.0, 2.4, 0.0, 0.0, 0.0), 5.3),
            Row("Llama-3.1-8B", (39.7, 13.6, 4.8, 3.1, 0.0, 0.2, 2.5), 10.6),
            Row("DeepSeek-Math-7B", (28.4, 19.4, 5.5, 4.7, 0.0, 0.0, 10.0), 11.3),
            Row("Mistral-Small-24B", (78.6, 43.6, 10.7, 11.6, 3.3, 0.5, 17.5), 27.6),
            Row("Qwen2.5-0.5B", (36.7, 15.8, 4.8, 2.8, 0.0, 0.3, 12.5), 12.1),
            Row("Qwen2.5-1.5B", (55.7, 29.6, 6.6, 6.5, 0.0, 0.1, 12.5), 18.5),
            Row("Qwen2.5-7B", (88.2, 64.6, 25.7, 30.1, 3.3, 0.3, 30.0), 40.3),
            Row("Qwen2.5-Math-7B", (65.5, 63.6, 12.5, 25.8, 13.3, 8.6, 42.5), 37.2),
            Row("Qwen2.5-14B", (91.6, 65.4, 24.3, 33.5, 6.7, 3.4, 37.5), 43.2),
            Row("Qwen2.5-32B", (92.9, 68.6, 27.9, 31.1, 10.0, 4.5, 45.0), 45.9),
        ),
        averaged=(0, 1, 2, 3, 4, 6),
        note="Base models answer greedily except for AIME24 @32, which is not in the average.",
        digits=1,
    ),
    Table(
        "SimpleRL-Zoo, after training",
        f"{_SIMPLERL}, table 1",
        _simplerl_columns("simplerl"),
        (
            Row("Mistral-7B-v0.1, SimpleRL-Zoo", (75.0, 15.8, 6.6, 4.1, 0.0, 0.2, 10.0), 18.6),
            Row("Llama-3.1-8B, SimpleRL-Zoo", (79.2, 23.0, 9.6, 5.3, 0.0, 0.2, 15.0), 22.0),
            Row("DeepSeek-Math-7B, SimpleRL-Zoo", (78.5, 39.6, 21.0, 12.6, 3.3, 0.6, 20.0), 29.2),
            Row("Mistral-Small-24B, SimpleRL-Zoo", (92.0, 70.6, 36.8, 36.6, 16.7, 13.1, 45.0), 49.6),
            Row("Qwen2.5-0.5B, SimpleRL-Zoo", (49.5, 34.4, 10.3, 8.9, 0.0, 0.7, 22.5), 20.9),
            Row("Qwen2.5-1.5B, SimpleRL-Zoo", (74.4, 59.0, 20.2, 21.0, 6.7, 4.2, 35.0), 36.1),
            Row("Qwen2.5-7B, SimpleRL-Zoo", (91.7, 78.2, 38.6, 40.4, 20.0, 15.6, 62.5), 55.2),
            Row("Qwen2.5-Math-7B, SimpleRL-Zoo", (90.2, 80.2, 37.5, 39.0, 40.0, 24.0, 70.0), 59.5),
            Row("Qwen2.5-14B, SimpleRL-Zoo", (94.4, 80.2, 40.4, 44.9, 23.3, 14.2, 57.6), 56.8),
            Row("Qwen2.5-32B, SimpleRL-Zoo", (95.9, 82.4, 42.6, 46.4, 36.7, 27.2, 67.5), 61.9),
        ),
        averaged=(0, 1, 2, 3, 4, 6),
        note="AIME24 @32 is not in the average. Qwen2.5-14B's 57.6 on AMC23 is printed so: 23 of 40 would be 57.5.",
        digits=1,
    ),
    Table(
        "SimpleRL-Zoo, averages over IFEval, MMLU-STEM, MMLU and GPQA",
        f"{_SIMPLERL}, table 2",
        _columns("simplerl, other", None, "before", "after"),
        (
            Row("Mistral-7B-v0.1", (22.7, 28.7)),
            Row("Llama-3.1-8B", (23.6, 32.6)),
            Row("DeepSeek-Math-7B", (18.7, 34.1)),
            Row("Mistral-Small-24B", (25.0, 55.3)),
            Row("Qwen2.5-0.5B", (20.6, 26.8)),
            Row("Qwen2.5-1.5B", (27.1, 34.1)),
            Row("Qwen2.5-7B", (30.8, 38.1)),
            Row("Qwen2.5-Math-7B", (30.1, 41.1)),
            Row("Qwen2.5-14B", (42.7, 58.7)),
            Row("Qwen2.5-32B", (46.7, 60.6)),
        ),
        digits=1,
    ),
    Table(
        "SimpleRL-Zoo, pass@k of Mistral-Small-24B",
        f"{_SIMPLERL}, figure 3",
        _columns("simplerl, figure 3", None, *(f"pass@{2**i}" for i in range(8))),
        (
            Row("iteration 0", (4.6, 8.0, 12.9, 19.4, 27.3, 36.4, 45.9, 54.6)),
            Row("iteration 100", (26.4, 34.1, 42.7, 50.9, 57.4, 62.1, 65.7, 68.3)),
        ),
        note="The figure's labels do not name their curves: which eight belong to which is inferred from their order.",
        digits=1,
    ),
    Table(
        "ProRL",
        "ProRL, arXiv 2505.24864",
        _columns("prorl", 16, *_SIX),
        (Row("Nemotron-Research-Reasoning-Qwen-1.5B", (48.13, 33.33, 79.29, 91.89, 47.98, 60.22), 60.14),),
        averaged=tuple(range(6)),
        note=_AMC,
    ),
    Table(
        "BroRL, mathematics",
        "BroRL, arXiv 2510.01180",
        _columns("prorl", 16, *_SIX),
        (Row("BroRL, +191 steps", (57.50, 36.88, 81.02, 92.14, 49.08, 61.54), 63.03),),
        averaged=tuple(range(6)),
        note=_AMC,
    ),
    Table(
        "BroRL, averages by domain",
        "BroRL, arXiv 2510.01180, table 1",
        _columns("prorl", None, "math", "code", "gym"),
        (
            Row("ProRL-V2, 3,000 steps, N = 16", (61.69, 52.00, 61.29)),
            Row("ProRL, +225 steps, 56.3 h, N = 16", (62.08, 52.26, 62.10)),
            Row("ProRL, +535 steps, 133.8 h, N = 16", (62.02, 52.74, 61.45)),
            Row("BroRL, +107 steps, 98.1 h, N = 512", (62.62, 53.31, 62.71)),
            Row("BroRL, +134 steps, 122.8 h, N = 512", (62.85, 53.48, 62.82)),
            Row("BroRL, +191 steps, 173.8 h, N = 512", (63.03, 54.20, 63.09)),
        ),
    ),
    Table(
        "QuestA",
        "foreverlasting1202/QuestA, README",
        _columns("questa", 32, "AIME24", "AIME25", "HMMT25", "Olympiad-Bench", "BRUMO25"),
        (
            Row("QuestA-Nemotron-1.5B", (72.5, 62.3, 41.7, 70.4, 69.5), 63.3),
            Row("hints of 50 % only", (None, None, None, None, None), 60.26),
        ),
        averaged=tuple(range(5)),
        digits=1,
    ),
    Table(
        "DAPO",
        "verl-project/verl-recipe, dapo/README.md",
        _columns("dapo", 32, "AIME24"),
        (
            Row("Qwen2.5-32B, DAPO", (52.0,)),
            Row("Qwen2.5-32B, DAPO without dynamic sampling", (50.0,)),
            Row("Qwen2.5-32B, DAPO, early version", (44.0,)),
        ),
        note="As verl's recipe reports them; the paper was not read for this table.",
        digits=1,
    ),
)
