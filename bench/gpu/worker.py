"""The process that all subjects share: torch is imported once, and each is a call of its ``main``.

A line of JSON with arguments comes in, a line with the exit code and the rows that failed goes out; what subjects print
goes to the log. Not to be started by hand.
"""

import gc
import json
import os
import sys
import traceback
from pathlib import Path
from typing import IO, Any


def main(results: str) -> None:
    """Serves until its input ends. Results go to a folder by the device's name in ``results``."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what subjects and their children print is the log's
    requests = os.fdopen(os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # no child may read them
    from bench import harness

    harness.RESULTS = Path(results)
    _reply(replies, {"ready": True})
    for line in requests:
        _reply(replies, _call(json.loads(line)))


def _call(arguments: list[str]) -> dict[str, Any]:
    import torch

    from bench import __main__, harness

    harness.last_failed.clear()
    try:
        code = __main__.main(arguments)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            harness.last_failed["the subject"] = error.code
    except Exception:
        traceback.print_exc()
        code = 1
        harness.last_failed["the subject"] = traceback.format_exc().splitlines()[-1][:300]
    sys.stdout.flush()
    gc.collect()
    try:
        torch.cuda.empty_cache()
    except RuntimeError as error:  # after a broken launch; the parent starts another process
        print(f"the device is lost to this process: {error}", flush=True)
    return {"code": code, "failed": dict(harness.last_failed)}


def _reply(replies: IO[str], content: dict[str, Any]) -> None:
    replies.write(json.dumps(content) + "\n")
    replies.flush()


if __name__ == "__main__":
    main(sys.argv[1])
