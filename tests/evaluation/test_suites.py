"""The papers' protocols and benchmarks, against constants typed from the sources and against the real files."""

import pytest

from fastgrpo.data.instructions import SIMPLERL_TEMPLATES
from fastgrpo.evaluation.benchmarks import count_note, find_benchmark, load_benchmark
from fastgrpo.evaluation.plan import make_plan
from fastgrpo.evaluation.settings import Settings
from fastgrpo.evaluation.simplerl_rule import simplerl_evaluated
from fastgrpo.evaluation.suites import BENCHMARKS, SUITES
from fastgrpo.evaluation.verdicts import start_pool
from fastgrpo.rewards import mathd_or_sympy, prime_union, simplerl_mix
from tests.evaluation.rewritten import rewritten, seen_in_no_way
from tests.evaluation.running import NINE, REAL, ROOT

# Problems of each file, as its repository has them.
ROWS = {
    "AIME24": 30, "AIME25": 30, "AMC23": 40, "MATH-500": 500, "Minerva": 272, "Olympiad-Bench": 674,
    "BRUMO25": 30, "CMIMC25": 40, "HMMT25": 30, "GSM8K": 1319,
}  # fmt: skip

CONTESTS, LARGE = ("AIME24", "AIME25", "AMC23"), ("MATH-500", "Minerva", "Olympiad-Bench")
# Suite and benchmark: samples, temperature, top-p, tokens.
PUBLISHED = {
    # thunlp/JustRL: evals/gen_vllm.py, TASKS and the constants above its functions.
    **{("justrl", name): (32, 0.7, 0.9, 31744) for name in (*CONTESTS, "HMMT25", "BRUMO25", "CMIMC25")},
    **{("justrl", name): (4, 0.7, 0.9, 31744) for name in LARGE},
    # arXiv 2503.18892, caption of table 1.
    **{("simplerl", name): (1, 1.0, 0.95, 16384) for name in ("GSM8K", "AMC23", *LARGE)},
    ("simplerl", "AIME24"): (32, 1.0, 0.95, 16384),
    # arXiv 2505.24864, evaluation settings; arXiv 2510.01180 the same.
    **{("prorl", name): (16, 0.6, 0.95, 32768) for name in (*CONTESTS, *LARGE)},
}


@pytest.fixture
def real() -> str:
    if not REAL.exists():
        pytest.skip(f"needs the real data in {REAL}")
    return str(REAL)


def test_protocols_are_those_of_the_papers():
    ours = {
        (suite, name): (p.samples_per_problem, p.temperature, p.top_p, p.max_response_tokens)
        for suite, s in SUITES.items()
        for name, p in s.protocols.items()
    }
    assert ours == PUBLISHED


def test_justrl_asks_with_one_space_in_one_user_message_and_judges_by_its_grader_and_then_its_model():
    suite = SUITES["justrl"]
    words = {(p.template, p.chat_template) for p in suite.protocols.values()}
    assert words == {("{problem} Please reason step by step, and put your final answer within \\boxed{}.", True)}
    assert (suite.rule, suite.verifier_model) == ("fastgrpo.rewards:mathd_or_sympy", "opencompass/CompassVerifier-3B")


def test_simplerl_asks_with_its_training_templates_as_plain_text():
    assert SIMPLERL_TEMPLATES["simple"] == "Question:\n{problem}\nAnswer:\nLet's think step by step.\n"
    assert SIMPLERL_TEMPLATES["boxed"] == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{problem}\n"
        "Please reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert not any(p.chat_template for p in SUITES["simplerl"].protocols.values())


def test_all_ten_files_load_with_every_row(real):
    assert BENCHMARKS.keys() == ROWS.keys()
    for name, count in ROWS.items():
        benchmark = load_benchmark(*find_benchmark(name, real))
        assert len(benchmark.problems) == BENCHMARKS[name].num_problems == count, name
        assert [p.problem for p in benchmark.problems] == list(range(count))
        assert all(
            p.text.strip() and p.answer.strip() and "reason step by step" not in p.text for p in benchmark.problems
        )
        assert count_note(benchmark, 0) == ""


def test_justrls_nine_are_12184_responses(real):
    plan = make_plan(Settings(model="m", data=real))
    assert tuple(b.name for b in plan.benchmarks) == NINE
    assert plan.num_responses == 12184


def test_a_file_with_another_number_of_problems_is_said_to_be_another_benchmark(real, tmp_path):
    (tmp_path / "AIME24").mkdir()
    (tmp_path / "AIME24" / "test.parquet").write_bytes((REAL / "AMC23" / "test.parquet").read_bytes())
    plan = make_plan(Settings(model="m", data=str(tmp_path), benchmarks=("AIME24",)))
    assert any("AIME24 has 30 problems" in note and "not the published benchmark" in note for note in plan.notes)


def test_a_known_name_comes_from_the_folder_else_from_the_hub_where_that_has_it(real):
    assert find_benchmark("HMMT25", real) == ("HMMT25", f"{real}/HMMT25/test.parquet")
    assert find_benchmark("HMMT25", "") == ("HMMT25", "MathArena/hmmt_feb_2025")
    assert find_benchmark("owner/set:data/x.parquet", real) == ("set", "owner/set:data/x.parquet")
    assert find_benchmark("MathArena/aime_2025", "") == ("aime_2025", "MathArena/aime_2025")
    with pytest.raises(ValueError, match="thunlp/JustRL: data/AMC23"):
        find_benchmark("AMC23", "")


RULES = {"justrl": mathd_or_sympy, "simplerl": simplerl_evaluated, "prorl": prime_union}


GOLDS = ROOT / "docs" / "evaluation_golds.md"


def listed(suite: str) -> dict[str, tuple[int, int, list[int]]]:
    """Rows of the table in the docs: golds, those that can be written differently, and the problems that are missed."""
    found = {}
    for line in GOLDS.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == suite:
            _, name, golds, rewritable, missed, problems = cells
            numbers = [int(n) for n in problems.split(",")] if problems else []
            assert len(numbers) == int(missed)
            found[name] = (int(golds), int(rewritable), numbers)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("suite", SUITES)
def test_golds_as_responses_are_right_and_those_that_a_rule_knows_in_one_writing_only_are_listed(suite, real):
    """Word for word every gold is right by its suite's rule; written as a model might, those in the docs are not."""
    settings = Settings(model="m", suite=suite, data=real, template="{problem}", verifier_workers=2)
    plan = make_plan(settings)
    rejected, missed = [], {}
    with start_pool(settings, plan.suite.rule) as pool:
        for planned in plan.benchmarks:
            problems = planned.benchmark.problems
            verdicts = pool.score([(f"So it is \\boxed{{{p.answer}}}.", p.answer) for p in problems])
            rejected += [(planned.name, p.problem) for p, v in zip(problems, verdicts, strict=True) if not v.correct]
            missed[planned.name] = (len(problems), *seen_in_no_way(problems, pool))
    assert rejected == []
    assert missed == listed(suite)


@pytest.mark.parametrize(
    "gold, ways",
    [
        ("42", []),
        ("1,234", []),
        ("\\frac{3}{4}", []),
        ("(3,4]", []),
        ("90^\\circ", []),
        ("\\text{east}", []),
        ("4.5e33", ["4.5 \\times 10^{33}", "4.5 \\cdot 10^{33}"]),
        ("3.89e-10", ["3.89 \\times 10^{-10}", "3.89 \\cdot 10^{-10}"]),
        ("np.arcsin(10/13)", ["\\arcsin(10/13)", "\\arcsin\\left(10/13\\right)"]),
        ("$13$,$84$", ["84, 13", "84,13"]),
        ("$k=3$", ["3"]),
        ("17.5%", ["17.5\\%"]),
        ("2\\sqrt{2}", ["0+2\\sqrt{2}", "2\\sqrt{2}+0", "1 \\cdot (2\\sqrt{2})"]),
    ],
)
def test_a_gold_is_rewritten_as_a_model_would(gold, ways):
    assert rewritten(gold) == ways


@pytest.mark.parametrize("suite", SUITES)
def test_a_wrong_answer_is_wrong_by_every_rule(suite):
    rule = RULES[suite]
    assert SUITES[suite].rule.endswith(f":{rule.__name__}")
    assert rule("So it is \\boxed{42}.", "42") and not rule("So it is \\boxed{41}.", "42")
    assert not rule("", "42") and not rule("So it is \\boxed{\\frac{1}{3}}.", "\\frac{1}{2}")


def test_simplerls_rule_keeps_formulas_that_its_training_verifier_strips_of_units():
    assert not simplerl_mix("It is \\boxed{e^{t} / 3}.", "e^{t} / 3")
    assert simplerl_evaluated("It is \\boxed{e^{t} / 3}.", "e^{t} / 3")
    assert simplerl_evaluated("The answer is 42", "42") and simplerl_mix("The answer is 42", "42")
