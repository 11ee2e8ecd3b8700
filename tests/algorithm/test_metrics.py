import numpy as np
import pytest

from fastgrpo.algorithm import Algorithm
from fastgrpo.algorithm.metrics import recipe_metrics, reward_metrics
from fastgrpo.algorithm.scoring import RecipeError
from fastgrpo.config import Config, RolloutConfig
from fastgrpo.types import Prompt, Response, Sample

CONFIG = Config(rollout=RolloutConfig(group_size=2))


def samples(*parts):
    response = Response(np.zeros(3, np.int32), np.zeros(3, np.float32), "stop", 0)
    return [
        Sample(Prompt.of_ids(np.zeros(2, np.int32)), response, parts=p, reward=float(i)) for i, p in enumerate(parts)
    ]


def measured(*functions):
    return recipe_metrics(samples({}, {}), Algorithm(metrics=functions), CONFIG, step=4)


def test_metrics_see_the_rewards_and_the_outcomes_of_the_step():
    def best(rewards, outcomes):
        return {"best": rewards.max(), "step": outcomes.step, "length.mean": outcomes.lengths.mean()}

    assert measured(best, lambda rewards, outcomes: {}) == {
        "recipe/best": 1.0,
        "recipe/step": 4.0,
        "recipe/length.mean": 3.0,
    }
    assert recipe_metrics(samples({}, {}), Algorithm(metrics=best), CONFIG, 4)["recipe/best"] == 1.0


def test_a_rewards_parts_are_means_over_the_samples_that_have_them():
    parts = ({"style": 1.0, "tests": 0.5}, {"style": 0.0, "tests": float("inf")}, {}, {"none": float("nan")})
    found = {name: value for name, value in reward_metrics(samples(*parts)).items() if name.startswith("reward/")}
    assert found == {"reward/style": 0.5, "reward/tests": 0.5}


def test_nothing_is_made_where_nothing_is_measured(monkeypatch):
    monkeypatch.setattr("fastgrpo.algorithm.metrics.Outcomes.of", None)
    assert measured() == {}


def a_metric(value, name="mine"):
    def metric(rewards, outcomes):
        return {name: value}

    return metric


def broken(rewards, outcomes):
    raise KeyError("nothing")


@pytest.mark.parametrize(
    "functions, reason",
    [
        ([broken], r"broken, of the recipe's metrics, failed: KeyError: 'nothing'"),
        ([a_metric(float("nan"))], r"a_metric.*metrics, must give a finite number for mine, got nan"),
        ([a_metric("3")], "finite number for mine, got str"),
        ([a_metric(np.zeros(2))], "finite number for mine, got ndarray"),
        ([a_metric(1.0, "a/b")], "names of letters, digits, _, - and dots, got 'a/b'"),
        ([a_metric(1.0, 3)], "got 3"),
        ([lambda rewards, outcomes: 3.0], "must return names with their numbers, got float"),
        ([a_metric(1.0), a_metric(2.0)], "another function gives 'mine' too"),
    ],
)
def test_what_is_no_metric_stops_the_run_and_names_the_function(functions, reason):
    with pytest.raises(RecipeError, match=reason):
        measured(*functions)


@pytest.mark.parametrize("metrics", [3, [broken], (broken, 3), lambda rewards: {}])
def test_a_recipe_with_other_metrics_is_refused(metrics):
    with pytest.raises(ValueError, match="metrics must"):
        Algorithm(metrics=metrics)


def test_a_run_may_go_on_with_other_metrics():
    assert Algorithm(metrics=broken).describe() == Algorithm().describe()
