"""A loss by its name, from the command line to what runs; what has no meaning is refused with its reason."""

import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from fastgrpo.algorithm import Algorithm, Phase, Tokens, group_normalised, leave_one_out
from fastgrpo.algorithm.objective_settings import objective_of
from fastgrpo.config import PARTS, PRESETS, Config, ObjectiveConfig, check_types, with_settings
from fastgrpo.policy.losses import LOSSES, loss_of
from fastgrpo.policy.token_choice import choose
from fastgrpo.recipe import find_recipe, load_recipe
from fastgrpo.recipe.arguments import resolve
from fastgrpo.recipe.validate import validate, validate_phases
from fastgrpo.train import main
from tests.recipes.shrunk import run_shrunk

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "losses.md").read_text()


def objective(recipe: str, *settings: str) -> ObjectiveConfig:
    return resolve(load_recipe(find_recipe(recipe)), settings, is_first=False)[1].objective


def parts(settings: ObjectiveConfig) -> dict[str, object]:
    return {name: getattr(settings, name) for name in PARTS}


@pytest.mark.parametrize("recipe, loss", [("quickstart", "grpo"), *(("prorl_v2_1_5b", loss) for loss in PRESETS)])
def test_a_loss_on_the_command_line_brings_all_its_parts_whatever_the_recipe_has(recipe, loss):
    expected = {name: value for name, value in asdict(PRESETS[loss]).items() if name != "source"}
    assert parts(objective(recipe, "--objective.loss", loss)) == expected
    assert parts(ObjectiveConfig(loss=loss)) == expected
    assert objective(recipe, "--objective.loss", loss).kl_coef == objective(recipe).kl_coef, "no part of it"


def test_parts_that_are_given_beside_it_win_wherever_they_stand():
    for settings in (
        ["--objective.clip_high", "0.1", "--objective.loss", "gspo"],
        ["--objective.loss=gspo", "--objective.clip-high=0.1"],
        ["--objective.loss", "dapo", "--objective.clip_high", "0.1", "--objective.loss", "gspo"],
    ):
        found = objective("quickstart", *settings)
        assert (found.loss, found.ratio, found.clip_low, found.clip_high) == ("gspo", "sequence", 3e-4, 0.1)
    config = with_settings(Config(), {"objective.clip_high": 0.1, "objective.loss": "gspo"})
    assert parts(config.objective) == parts(found) == parts(ObjectiveConfig(loss="gspo", clip_high=0.1))
    assert with_settings(config, {"objective.loss": "gspo"}).objective.clip_high == 4e-4


def test_the_page_has_the_parts_of_every_loss():
    rows = [
        [cell.strip(" `") for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if line.startswith("| `")
    ]
    shown = {row[0]: row[1:7] for row in rows if len(row) == 9}
    assert shown.keys() == PRESETS.keys()
    for loss, cells in shown.items():
        own = PRESETS[loss]
        clip = "none" if loss == "sapo" else f"{own.clip_low:g}, {own.clip_high:g}"
        dual = f"{own.dual_clip:g}" if own.dual_clip else "-"
        assert cells == [own.surrogate, own.ratio, own.advantage, own.aggregation, clip, dual], loss


def test_without_a_word_the_loss_is_justrl_s():
    assert parts(Config().objective) == parts(ObjectiveConfig(loss="grpo"))
    kernels = objective_of(ObjectiveConfig())
    assert (kernels.clip_low, kernels.clip_high, kernels.dual_clip) == (0.2, 0.28, 10.0)


def test_the_dry_run_and_the_help_show_what_a_loss_resolves_to(capfd):
    assert main(["quickstart", "--dry_run", "--objective.loss", "gmpo"]) == 0
    shown = capfd.readouterr().out
    assert '--objective.ratio "geometric_mean"' in shown and "--objective.clip_low 0.4" in shown
    with pytest.raises(SystemExit):
        main(["quickstart", "--help"])
    shown = " ".join(capfd.readouterr().out.replace("│", " ").split())
    assert "--objective.surrogate clipped|cispo|sapo|dppo_tv|dppo_kl" in shown and "(default: clipped)" in shown


REFUSED = {
    "--objective.loss gpso": "--objective.loss cannot be 'gpso': .*, did you mean gspo",
    "--objective.surrogate=cipso": "--objective.surrogate cannot be 'cipso': .*, did you mean cispo",
    "--objective.loss cispo --objective.dual_clip 3": "--objective.dual_clip 3 bounds a ratio that .*surrogate cispo",
    "--objective.loss sapo --objective.dual_clip 3": "--objective.dual_clip 3 bounds a ratio that .*surrogate sapo",
    "--objective.loss gmpo --objective.dual_clip 3": "--objective.dual_clip 3 bounds a ratio that .*geometric_mean",
    "--objective.loss gspo --objective.surrogate cispo": "cispo looks at every token's own ratio, and .*ratio sequence",
    "--objective.loss dppo --objective.ratio geometric_mean": "dppo_tv looks at every token's own ratio",
    "--objective.loss gspo --objective.top_entropy 0.2": "top_entropy 0.2 chooses tokens, and .*sequence",
    "--objective.ratio sequence --objective.kl_cov 0.001": "kl_cov 0.001 chooses tokens, and .*sequence",
    "--objective.clip_cov 0.001 --objective.kl_cov 0.001": "clip_cov 0.001 and .*kl_cov 0.001 are two answers",
    "--objective.loss cispo --objective.kl_cov 0.001": "kl_cov 0.001 stands in the place of clipping",
    "--objective.kl_cov 0.001 --objective.loss_path fused": "adds a penalty that .* fused loss does not have",
    "--objective.clip_cov 0.001 --objective.clip_cov_low 5": "clip_cov_low must be below .*clip_cov_high, got 5 and 5",
    "--objective.top_entropy 0.2 --objective.old_logprobs rollout": "rollout nothing is computed before",
    "--objective.top_entropy 0": "--objective.top_entropy must be above 0 and at most 1, got 0",
    "--rollout.group_size 1": "group_size must be at least 2, got 1: .*reinforce_pp, needs none",
    "--rollout.group_size 1 --objective.loss reinforce_pp_baseline": "group_size must be at least 2, got 1",
    "--rollout.group_size 1 --objective.loss reinforce_pp --rollout.zero_signal_groups drop": "would leave nothing",
}


@pytest.mark.parametrize("settings", REFUSED)
def test_what_has_no_meaning_is_refused_with_the_reason_and_no_setting_alone_is(settings, capfd):
    command = ["quickstart", "--dry_run", *settings.split()]
    assert main(command) == 2
    said = capfd.readouterr().err
    assert re.search(REFUSED[settings], said), said
    assert "Traceback" not in said


def test_another_loss_does_not_undo_what_the_code_of_a_recipe_did_unsaid(capfd):
    command = ["justrl_deepseek_1_5b", "--dry_run", "--fidelity", "verl"]
    assert main([*command, "--objective.loss", "grpo"]) == 2
    assert "--fidelity verl changes --objective.aggregation of the recipe's" in capfd.readouterr().err
    assert main([*command, "--objective.clip_high", "0.3"]) == 0
    assert '--objective.aggregation "microbatch_mean"' in capfd.readouterr().out


@pytest.mark.parametrize("loss", ["grop", 7])
def test_an_unknown_loss_in_a_recipe_is_refused_with_the_near_ones(loss):
    with pytest.raises(ValueError, match=f"there is no loss {loss!r}, there are grpo, .*dppo"):
        ObjectiveConfig(loss=loss)
    with pytest.raises(ValueError, match="did you mean token"):
        check_types(Config(objective=ObjectiveConfig(ratio="tokens")))


@pytest.mark.parametrize("part", ["loss", "surrogate", "ratio", "advantage", "aggregation", "top_entropy"])
def test_a_phase_cannot_change_the_loss(part):
    with pytest.raises(ValueError, match=rf"a phase cannot change objective\.{part}"):
        Phase(3, {f"objective.{part}": "gspo"})


def test_a_later_phase_is_looked_at_too():
    algorithm = Algorithm(phases=(Phase(3, {"objective.dual_clip": 4.0}),))
    config = Config(objective=ObjectiveConfig(loss="cispo"))
    validate(config, 1, algorithm)
    with pytest.raises(ValueError, match=r"phase from step 3 on: --objective\.dual_clip 4 bounds"):
        validate_phases(algorithm, config, 1)


def clip(tokens: Tokens) -> torch.Tensor:
    ratio, advantages = (tokens.logprobs - tokens.old_logprobs).exp(), tokens.advantages
    worth = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.28) * advantages)
    return -torch.where(advantages < 0, worth.maximum(10 * advantages), worth)


@pytest.mark.parametrize(
    "settings, reason",
    [
        ({"loss": "gspo"}, r"--objective\.loss gspo has no effect: .* brings a loss of its own, clip"),
        ({"surrogate": "cispo", "dual_clip": 0.0}, r"--objective\.surrogate cispo has no effect"),
        ({"clip_high": 0.3}, r"--objective\.clip_high 0\.3 has no effect"),
        ({"top_entropy": 0.2}, "changes what a token counts in a published loss"),
        ({"correction": "truncate"}, r"--objective\.correction truncate changes what a token counts"),
        ({"loss_path": "fused"}, r"--objective\.loss_path fused knows the published losses alone"),
        ({"loss_path": "definition"}, r"--objective\.loss_path definition knows the published losses alone"),
    ],
)
def test_settings_that_a_loss_of_one_s_own_takes_the_place_of_are_refused(settings, reason):
    with pytest.raises(ValueError, match=reason):
        validate(Config(objective=ObjectiveConfig(**settings)), 1, Algorithm(loss=clip))


@pytest.mark.parametrize(
    "settings", [{}, {"aggregation": "sequence_sum", "advantage": "leave_one_out", "kl_coef": 0.1}]
)
def test_settings_that_it_works_with_are_not(settings):
    validate(Config(objective=ObjectiveConfig(**settings)), 1, Algorithm(loss=clip))


def test_stale_tokens_need_a_correction_or_a_loss_of_one_s_own():
    config = with_settings(Config(), {"rollout.engine": "vllm", "rollout.gpus": 1, "rollout.max_staleness": 2})
    validate(config, 1, Algorithm(loss=clip))
    with pytest.raises(ValueError, match=r"add --objective\.correction truncate, or take"):
        validate(config, 1)
    of_sampler = with_settings(config, {"objective.loss": "dppo", "objective.old_logprobs": "rollout"})
    with pytest.raises(ValueError, match=r"correction truncate with --objective\.old_logprobs recomputed, or take"):
        validate(of_sampler, 1)


def test_advantages_of_one_s_own_and_by_a_setting_are_refused_together():
    own = Algorithm(advantages=group_normalised)
    for settings in (
        {"advantage": "group_centred"},
        {"loss": "rloo"},
        {"loss": "dr_grpo", "advantage": "leave_one_out"},
    ):
        with pytest.raises(ValueError, match=r"--objective\.advantage \w+ has no effect"):
            validate(Config(objective=ObjectiveConfig(**settings)), 1, own)
    validate(Config(objective=ObjectiveConfig(loss="dr_grpo")), 1, own)
    assert own.advantages_of(ObjectiveConfig()) is group_normalised
    assert Algorithm().advantages_of(ObjectiveConfig(loss="rloo")) is leave_one_out


def test_a_loss_takes_three_matmuls_wherever_it_can():
    def path(**settings: object) -> object:
        return loss_of(ObjectiveConfig(**settings), None)

    assert {path(loss=loss) for loss in PRESETS} == {LOSSES["fused"]}
    assert path(kl_cov=0.01) is LOSSES["logprobs"] and path(top_entropy=0.2) is LOSSES["fused"]
    assert path(loss_path="definition") is LOSSES["definition"]


FAST = ["--optimizer.learning_rate", "1e-3", "--optimizer.warmup_steps", "0"]


def test_the_clip_of_the_docs_trains_as_the_fused_one(tmp_path):
    example: dict[str, Any] = {}
    exec(PAGE.split("```python\n")[1].split("```")[0], example)
    fused = run_shrunk("justrl_deepseek_1_5b", tmp_path / "fused", *FAST, "--objective.dual_clip", "0")
    own = run_shrunk("justrl_deepseek_1_5b", tmp_path / "own", *FAST, loss=example["algorithm"].loss)
    norms = [[r["grad_norm"] for r in records] for records in (fused, own)]
    assert len(norms[0]) == 3 and min(norms[0]) > 0 and max(r["clip_frac"] for r in fused) > 0
    assert norms[1] == pytest.approx(norms[0], rel=1e-6)
    run = json.loads(next((tmp_path / "own").glob("*/run.json")).read_text())
    assert run["algorithm"]["loss"] == "clip" and run["config"]["objective.loss"] == "grpo"


OWN = """
import torch
from fastgrpo_recipes.justrl_deepseek_1_5b import *
from fastgrpo.algorithm import Algorithm

def clip(t):
    ratio, a = (t.logprobs - t.old_logprobs).exp(), t.advantages
    worth = torch.minimum(ratio * a, ratio.clamp(0.8, 1.28) * a)
    return -torch.where(a < 0, worth.maximum(10 * a), worth)

algorithm = Algorithm(loss=clip)
"""


@pytest.mark.slow
def test_so_it_does_on_two_ranks(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    norms = []
    for name in ("justrl_deepseek_1_5b", str(tmp_path / "own.py")):
        runs = tmp_path / f"of_{len(norms)}"
        command = [sys.executable, "-m", "fastgrpo", "train", "--ranks", "2", name, "--shrink", "--runs_dir", str(runs)]
        done = subprocess.run([*command, *FAST], cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        lines = next(runs.glob("*/metrics.jsonl")).read_text().splitlines()
        norms.append([r["grad_norm"] for r in map(json.loads, lines) if r["step"] > 0])
    assert len(norms[0]) == 3 and norms[1] == pytest.approx(norms[0], rel=1e-6)


def test_a_loss_that_breaks_ends_the_run_with_its_name(tmp_path):
    def broken(tokens: Tokens) -> torch.Tensor:
        return tokens.logprobs.mean()

    with pytest.raises(RuntimeError, match=r"broken, the recipe's loss, must return a loss for each of \d+ tokens"):
        run_shrunk("justrl_deepseek_1_5b", tmp_path, loss=broken)


@pytest.mark.parametrize(
    "settings",
    ["--objective.loss dr_grpo --objective.top_entropy 0.2",
     "--objective.loss reinforce_pp --rollout.group_size 1 --objective.kl_cov 0.01"],
)  # fmt: skip
def test_a_run_takes_the_loss_that_it_is_given(tmp_path, settings):
    records = run_shrunk("justrl_deepseek_1_5b", tmp_path, *FAST, *settings.split())
    assert len(records) == 3 and all(0 < r["grad_norm"] < 1e4 for r in records)


def test_a_constant_divisor_is_the_longest_response_of_the_phase(tmp_path):
    """At a learning rate that moves nothing: both runs have the same samples."""
    still = ["--optimizer.learning_rate", "1e-12", "--objective.aggregation"]
    phases = (Phase(1, {"rollout.max_response_tokens": 24}),)
    sums, constants = (
        run_shrunk("justrl_deepseek_1_5b", tmp_path / name, *still, name, phases=phases)
        for name in ("sequence_sum", "sequence_mean_constant")
    )
    ratios = [a["grad_norm"] / b["grad_norm"] for a, b in zip(sums, constants, strict=True)]
    assert ratios == pytest.approx([48, 24, 24], rel=1e-4)


def test_a_run_trains_on_the_tokens_that_it_chooses(tmp_path):
    first = [
        run_shrunk("justrl_deepseek_1_5b", tmp_path / share, "--steps", "1", "--objective.top_entropy", share)[0]
        for share in ("1", "0.05")
    ]
    assert first[1]["reward"] == first[0]["reward"] and 0 < first[1]["grad_norm"] < 0.7 * first[0]["grad_norm"]


def test_a_choice_of_all_tokens_changes_nothing_and_is_asked_for_by_seed_and_step(tmp_path, monkeypatch):
    """Later updates of a step have the old logprobs that they have without a choice."""
    asked = []

    def noted(everyone, settings, seed, step):
        asked.append((seed, step))
        return choose(everyone, settings, seed, step)

    monkeypatch.setattr("fastgrpo.policy.learner.choose", noted)
    plain = run_shrunk("justrl_deepseek_1_5b", tmp_path / "plain", *FAST, "--seed", "7")
    nowhere = ["--objective.clip_cov", "0.1", "--objective.clip_cov_low", "1e6", "--objective.clip_cov_high", "2e6"]
    chosen = run_shrunk("justrl_deepseek_1_5b", tmp_path / "chosen", *FAST, "--seed", "7", *nowhere)
    assert asked == [(7, step) for step in range(3) for _ in range(4)]
    assert max(r["clip_frac"] for r in plain) > 0
    for name in ("grad_norm", "clip_frac", "reward"):
        assert [r[name] for r in chosen] == pytest.approx([r[name] for r in plain], rel=1e-4), name
