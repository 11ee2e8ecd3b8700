"""``python kernels/check_wheel.py DIST 2.10 2.11 ...`` checks DIST's wheel of the kernels with each torch.

In a fresh environment each: that the native library runs and is right, and that nothing but torch is needed. Returns 1
if a check failed or none was made. A torch that pip finds only as a build for CUDA is left out: it is gigabytes that
the check does not use.
"""

import json
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

CHECK = """
import sys, torch
from fastgrpo_kernels import linear_grpo, reference, Objective
from fastgrpo_kernels.dispatch import backend_for

loaded = {"transformers", "triton", "fastgrpo"} & {m.split(".")[0] for m in sys.modules}
assert not loaded, f"the import loaded {loaded}"
assert backend_for(torch.device("cpu")) == "native", "the native library is not in the wheel"

torch.manual_seed(0)
hidden, weight = torch.randn(50, 16), torch.randn(300, 16)
targets, old, advantages = torch.randint(300, (50,)), -torch.rand(50) * 9, torch.randn(50)

def gradients(loss, dtype, *arguments):
    leaves = [x.to(dtype, copy=True).requires_grad_() for x in (hidden, weight)]
    value = loss(*leaves, targets, old.to(dtype), advantages.to(dtype), *arguments)
    getattr(value, "loss", value).backward()
    return [getattr(value, "loss", value).detach(), *(x.grad for x in leaves)]

ours = gradients(linear_grpo, torch.float32, None, 50, Objective())
truth = gradients(reference.linear_grpo, torch.float64, 50, Objective())
for name, got, right in zip(("loss", "gradient of hidden", "gradient of weight"), ours, truth):
    torch.testing.assert_close(got.double(), right, rtol=1e-4, atol=1e-6, msg=lambda m: f"{name}: {m}")
"""


def main(dist: Path, torches: list[str]) -> int:
    (wheel,) = dist.glob("fastgrpo_kernels-*.whl")
    failed, checked = [], 0
    for version in torches:
        if not _is_cpu_build(version):
            print(f"torch {version}: left out, pip finds no CPU build of it: PIP_EXTRA_INDEX_URL may name their index")
        elif reason := _failure(version, wheel):
            failed.append(version)
            print(f"torch {version}: FAILED\n{reason}")
        else:
            checked += 1
    print(f"{wheel.name}: right with {checked} of {len(torches)} versions of torch")
    return 1 if failed or not checked else 0


def _is_cpu_build(version: str) -> bool:
    """Whether pip would install this torch (``2.11``) without CUDA, by what the build requires. Downloads nothing."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--no-deps", "--ignore-installed"]
    done = subprocess.run([*command, "--report", "-", f"torch=={version}.*"], capture_output=True, text=True)
    if done.returncode:
        return False
    (found,) = json.loads(done.stdout)["install"]
    needed = [r for r in found["metadata"].get("requires_dist", ()) if re.match(r"nvidia|cuda|triton", r)]
    return not any("platform_machine" not in r or platform.machine() in r for r in needed)


def _failure(version: str, wheel: Path) -> str:
    """What went wrong, or ''."""
    with tempfile.TemporaryDirectory() as folder:
        python = f"{folder}/bin/python"
        for command in (
            [sys.executable, "-m", "venv", folder],
            [python, "-m", "pip", "install", "-q", f"torch=={version}.*", str(wheel)],
            [python, "-W", "ignore", "-c", CHECK],
            [python, "-W", "ignore", "-m", "fastgrpo_kernels"],
        ):
            done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
            if done.returncode:
                return (done.stdout + done.stderr)[-2000:]
        print(done.stdout, end="")
    return ""


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), sys.argv[2:]))
