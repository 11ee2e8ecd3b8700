"""Groups without signal: kept, left out, or replaced, and what becomes of every prompt."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastgrpo.algorithm.selection import Selection, SuccessBetween, scores_differ
from fastgrpo.json_lines import JsonLines
from fastgrpo.rollout.local_rollouts import LocalRollouts
from fastgrpo.train import main
from fastgrpo.trainer import Trainer
from fastgrpo.types import Group, Prompt, Response, Sample
from tests.conftest import TINY
from tests.run.test_run import results, weights_of

RIGHT, WRONG, MIXED = [True] * 4, [False] * 4, [False, True, False, False]
verdicts = st.lists(st.sampled_from([RIGHT, WRONG, MIXED]), min_size=8, max_size=8)


NOTHING = Response(np.zeros(0, np.int32), np.zeros(0, np.float32), "stop", 0)


def judged(all_correct: Iterable[list[bool]]) -> list[Group]:
    prompts = (Prompt.of_ids(np.zeros(1, np.int32), i) for i in count())
    groups = zip(prompts, all_correct, strict=False)
    return [[Sample(p, NOTHING, correct=c, score=float(c)) for c in correct] for p, correct in groups]


def signal(group: Group) -> bool:
    return scores_differ(np.array([sample.score for sample in group]))


def test_a_success_rate_between_bounds_is_signal_and_the_bounds_are_within():
    rule = SuccessBetween(0.25, 0.75)
    assert [rule(np.arange(4) < right) for right in range(5)] == [False, True, True, True, False]


def test_a_selection_follows_the_rule_that_it_is_given():
    selection = Selection("drop", 3, 1, SuccessBetween(0.5, 1.0))
    selection.add(judged([RIGHT, WRONG, MIXED]))
    assert [group[0].prompt.position for group in selection.kept] == [0]
    assert selection.metrics()["groups_dropped_all_wrong"] == 2


def test_a_group_has_signal_if_some_responses_are_right_and_some_wrong():
    assert [signal(group) for group in judged([RIGHT, WRONG, MIXED])] == [False, False, True]


def test_scores_that_are_numbers_have_signal_where_they_differ_and_those_that_teach_nothing_have_none():
    (group,) = judged([RIGHT])
    graded = [replace(s, score=0.1 * i, graded=True) for i, s in enumerate(group)]
    silent = [replace(s, teaches=False) for s in graded[1:]]
    selection = Selection("drop", 4, 1)
    selection.add([graded, [graded[0], *silent], [replace(s, teaches=False) for s in graded], group])
    assert selection.kept == [graded] and len(selection.dropped) == 3


def test_keep_trains_on_all_and_drop_on_those_with_signal_in_one_round():
    for rule, kept in (("keep", 3), ("drop", 1)):
        selection = Selection(rule, wanted=3, max_rounds=10)
        assert selection.num_missing == 3
        selection.add(judged([RIGHT, WRONG, MIXED]))
        assert selection.num_missing == 0 and len(selection.kept) == kept
    assert selection.metrics() == {
        "groups_kept": 1,
        "groups_dropped_all_right": 1,
        "groups_dropped_all_wrong": 1,
        "sampling_rounds": 1,
    }


@given(st.integers(1, 8), st.integers(1, 5), st.lists(verdicts, min_size=5, max_size=5))
def test_replace_asks_for_what_is_missing_until_it_has_all_or_its_rounds_are_used_up(wanted, max_rounds, rounds):
    selection, asked = Selection("replace", wanted, max_rounds), 0
    for number, found in enumerate(rounds):
        if not selection.num_missing:
            break
        assert selection.num_missing == wanted - len(selection.kept) and number < max_rounds
        asked += selection.num_missing
        selection.add(judged(found[: selection.num_missing]))
    assert all(signal(one) for one in selection.kept) and not any(signal(one) for one in selection.dropped)
    assert len(selection.kept) + len(selection.dropped) == asked
    assert len(selection.kept) == wanted or selection.num_rounds == max_rounds


def records(folder) -> list[dict]:
    return [r for r in JsonLines(folder / "metrics.jsonl").read() if r["step"] > 0]


def dropped(record: dict) -> int:
    return record["groups_dropped_all_right"] + record["groups_dropped_all_wrong"]


@pytest.fixture
def trained_on(monkeypatch):
    """Positions that each step trained on and dropped, as the step saw them."""
    steps: list[tuple[list[int], list[int]]] = []
    sample = Trainer.sample

    def noted(self, clock):
        samples = sample(self, clock)
        groups = [samples.kept[i : i + 4] for i in range(0, len(samples.kept), 4)]
        assert all(signal(group) and any(s.advantage != 0 for s in group) for group in groups)
        steps.append(tuple([s.prompt.position for s in part[::4]] for part in (samples.kept, samples.dropped)))
        return samples

    monkeypatch.setattr(Trainer, "sample", noted)
    return steps


@pytest.mark.parametrize("oversample", ["1", "1.5"])
def test_replace_trains_on_groups_with_signal_only_and_its_counts_add_up(train, trained_on, oversample):
    settings = ["--rollout.zero_signal_groups", "replace", "--data.held_out", "", "--rollout.oversample", oversample]
    assert train(*settings, "--steps", "5") == 0
    for record in records(train.folder):
        assert record["groups_kept"] == 8 and record["sampling_rounds"] <= 10
        assert record["zero_advantage_frac"] == 0
        assert record["prompts_started"] == 8 + dropped(record) + record["prompts_put_back"]
    assert sum(map(dropped, records(train.folder))) > 0
    used = [p for kept, left in trained_on for p in (*kept, *left)]
    assert len(used) == len(set(used))
    if oversample == "1":
        assert sorted(used) == list(range(len(used)))


def test_a_step_goes_on_with_what_it_has_once_its_rounds_are_used_up(train, trained_on):
    settings = ["--rollout.zero_signal_groups", "replace", "--rollout.max_rounds", "1", "--data.held_out", ""]
    assert train(*settings, "--steps", "4") == 0
    assert all(r["sampling_rounds"] == 1 and r["groups_kept"] + dropped(r) == 8 for r in records(train.folder))
    assert [len(kept) for kept, _ in trained_on] == [r["groups_kept"] for r in records(train.folder)]
    assert any(r["groups_kept"] < 8 for r in records(train.folder))


def test_dropped_groups_change_no_gradient(train):
    """Their advantages are zero; only the mean over tokens differs, which counts those that stay."""
    assert train("--rollout.zero_signal_groups", "drop", "--data.held_out", "", "--steps", "3") == 0
    kept = [r["groups_kept"] for r in records(train.folder)]
    assert any(k < 8 for k in kept) and all(0 < r["grad_norm"] < 100 for r in records(train.folder))


@pytest.mark.parametrize("rule", ["drop", "replace"])
def test_a_step_without_any_signal_is_a_step_without_update(train, tmp_path, rule):
    recipe = tmp_path / "hopeless.py"
    recipe.write_text(TINY.read_text() + "\ndef reward(response: str, answer: str) -> bool:\n    return False\n")
    settings = [
        "--rollout.zero_signal_groups",
        rule,
        "--rollout.max_rounds",
        "2",
        "--steps",
        "2",
        "--data.held_out",
        "",
    ]
    assert main([str(recipe), "--runs_dir", str(train.folder.parent), *settings]) == 0
    for record in records(train.folder):
        assert record["groups_kept"] == 0 and record["updates"] == 0 and record["reward"] == -1
        assert record["groups_dropped_all_wrong"] == (8 if rule == "drop" else 16)
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(train.folder / "base" / "model").state_dict()
    assert all(torch.equal(w, base[n]) for n, w in weights_of(train.folder, 2).items())


def test_a_run_with_replacement_is_continued_exactly(train, monkeypatch):
    positions: list[int] = []
    take = LocalRollouts.take

    def noted(self, num_groups):
        groups = take(self, num_groups)
        positions.extend(g[0].prompt.position for g in groups)
        return groups

    monkeypatch.setattr(LocalRollouts, "take", noted)
    settings = ["--rollout.zero_signal_groups", "replace"]
    assert train(*settings) == 0
    whole, weights, all_positions = results(train.folder), weights_of(train.folder, 4), list(positions)
    positions.clear()
    assert train(*settings, "--overwrite", "--steps", "2") == 0
    assert train(*settings, "--resume") == 0
    assert positions == all_positions == list(range(len(positions)))
    assert results(train.folder) == whole
    assert all(torch.equal(w, weights[n]) for n, w in weights_of(train.folder, 4).items())
