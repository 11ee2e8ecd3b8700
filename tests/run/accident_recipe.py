"""The tiny recipe, in which accidents happen: at the beginning of a phase of a step the first rank kills or stops a
process of its launch.

``ACCIDENTS`` in the environment is a JSON list of [step, phase, signal, whom], where whom is "trainer 1", "sampler 0",
"server 0" (the processes that this sampler has started) or "verifiers". Every step's prompts and versions are noted in
``watched.jsonl`` of the run folder.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from tests import tiny_recipe

config, reward, prepare = tiny_recipe.config, tiny_recipe.reward, tiny_recipe.prepare


def processes(whom: str) -> list[Any]:
    import psutil

    kind, _, index = whom.partition(" ")
    ranks = {int(p.environ()["RANK"]): p for p in psutil.Process(os.getppid()).children()}
    if kind == "trainer":
        return [ranks[int(index)]]
    if kind == "verifiers":
        workers = psutil.Process().children()
        return [p for p in workers if any("rewards.pool.worker" in part for part in p.cmdline())]
    sampler = ranks[int(os.environ["NUM_TRAINERS"]) + int(index)]
    return [sampler] if kind == "sampler" else sampler.children(recursive=True)


def watch() -> None:
    from fastgrpo import trainer

    accidents = [tuple(a) for a in json.loads(os.environ.get("ACCIDENTS", "[]"))]
    now = {"step": 0}
    enter, step, sample = trainer.Clock.__call__, trainer.Trainer.step, trainer.Trainer.sample

    def noted_step(self: Any) -> Any:
        now["step"] = self.progress.step + 1
        return step(self)

    def noted_phase(self: Any, phase: str) -> Any:
        for accident in [a for a in accidents if a[:2] == (now["step"], phase)]:
            accidents.remove(accident)
            victims = processes(accident[3])
            assert victims, f"no process is {accident[3]}"
            for process in victims:
                process.send_signal(signal.Signals[accident[2]])
        return enter(self, phase)

    def noted_sample(self: Any, clock: Any) -> Any:
        result = sample(self, clock)
        responses = [s.response for s in (*result.kept, *result.dropped)]
        versions = [[version for version, _ in r.sampled_by] for r in responses]
        line = {
            "step": now["step"],
            "kept": list(dict.fromkeys(s.prompt.position for s in result.kept)),
            "dropped": list(dict.fromkeys(s.prompt.position for s in result.dropped)),
            "oldest": min(map(min, versions)),
            "newest": max(map(max, versions)),
            "num_changed": sum(len(v) > 1 for v in versions),
        }
        with (Path(self.run_dir) / "watched.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        return result

    trainer.Trainer.step, trainer.Trainer.sample = noted_step, noted_sample  # type: ignore[method-assign]
    trainer.Clock.__call__ = noted_phase  # type: ignore[method-assign,assignment]


is_training = getattr(sys.modules["__main__"].__spec__, "name", "") == "fastgrpo.train"  # not judging
if is_training and os.environ.get("RANK") == "0":
    watch()
