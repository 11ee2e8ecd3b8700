"""The process that all subjects share: it imports torch once, and runs each subject by calling its ``main``.

It reads lines of JSON with arguments, and writes a line with the exit code and the failed rows for each. The output of
subjects goes to the log. Only the runner starts this process.
"""

import gc
import json
import os
import sys
import traceback
from pathlib import Path
from typing import IO, Any


def main(results: str) -> None:
    """Runs subjects until the input ends. Results go to a folder with the device's name in ``results``."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the output of subjects and their children goes to the log
    requests = os.fdopen(os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # so that no child reads the requests
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
    except RuntimeError as error:  # after a CUDA error; the parent starts another process
        print(f"the device is lost to this process: {error}", flush=True)
    return {"code": code, "failed": dict(harness.last_failed)}


def _reply(replies: IO[str], content: dict[str, Any]) -> None:
    replies.write(json.dumps(content) + "\n")
    replies.flush()


if __name__ == "__main__":
    main(sys.argv[1])
