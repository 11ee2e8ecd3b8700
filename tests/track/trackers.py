"""Trackers of one's own, for tests: one that writes what it gets into the run's folder, and some that do not work."""

import json
import os
import time


class Recording:
    """Goes on where its file ends, as a server's curve would."""

    def start(self, run):
        self.path = run.folder / f"{type(self).__name__.lower()}.jsonl"
        self._write({"start": run.id, "settings": run.settings})
        steps = [entry["log"] for entry in read(self.path) if "log" in entry]
        return steps[-1] if steps else -1

    def rollouts(self, step, rows):
        self._write({"rollouts": step, "rows": rows})

    def log(self, step, metrics, unix_s):
        self._write({"log": step, "metrics": metrics, "unix_s": unix_s})

    def close(self):
        self._write({"close": True})

    def _write(self, entry):
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")


class Raising(Recording):
    def log(self, step, metrics, unix_s):
        raise ConnectionError(f"no route to step {step}")


class Sleeping(Recording):
    """As a library that waits for a server for ever."""

    def log(self, step, metrics, unix_s):
        time.sleep(10**6)


class Dying(Recording):
    """As a library that takes its process with it."""

    def log(self, step, metrics, unix_s):
        os._exit(3)


class Printing(Recording):
    def log(self, step, metrics, unix_s):
        print("a library speaks")


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]
