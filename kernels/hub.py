"""``python kernels/hub.py OUT`` writes OUT/build as Hugging Face's `kernels` loads it: to publish is to upload OUT.

Three variants: Python and Triton for CUDA and for CPU, as kernel-builder makes them from build.toml, and for this
machine's kind of CPU one with the native library, which every torch from 2.10 on prefers. Ops of each have a namespace
of their own, so that any number of builds can be loaded in one process.
"""

import hashlib
import json
import platform
import runpy
import shutil
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

KERNELS = Path(__file__).resolve().parent
PACKAGE = KERNELS / "fastgrpo_kernels"
OF_A_CHECKOUT = ("__pycache__", "csrc", "build.py", "__main__.py", "*.so")


def main(out: Path) -> int:
    general = tomllib.loads((KERNELS / "build.toml").read_text(encoding="utf-8"))["general"]
    for backend in general["backends"]:
        _write(out / "build" / f"torch-{backend}", general, backend)
    native = out / "build" / f"torch-stable-abi210-cpu-{platform.machine()}-linux"
    namespace = _write(native, general, "cpu")
    torch = find_spec("torch")
    torch_dir = Path(torch.origin).parent if torch and torch.origin else None
    runpy.run_path(str(PACKAGE / "build.py"))["build"](native, torch_dir, f"{namespace}_native")
    return 0


def _write(variant: Path, general: dict[str, object], backend: str) -> str:
    """Writes one variant and returns the namespace of its ops."""
    shutil.rmtree(variant, ignore_errors=True)
    shutil.copytree(PACKAGE, variant, ignore=shutil.ignore_patterns(*OF_A_CHECKOUT))
    digest = hashlib.sha256((variant.name + _content()).encode()).hexdigest()[:7]
    namespace = f"_{str(general['name']).replace('-', '_')}_{backend}_{digest}"
    ops = variant / "_ops.py"
    text = ops.read_text(encoding="utf-8")
    text = text.replace("torch.ops.fastgrpo", f"torch.ops.{namespace}").replace('f"fastgrpo::', f'f"{namespace}::')
    ops.write_text(text, encoding="utf-8")
    facts = {key: general[key] for key in ("name", "version", "license")}
    facts |= {"id": namespace, "python-depends": [], "backend": {"type": backend}}
    (variant / "metadata.json").write_text(json.dumps(facts, indent=2), encoding="utf-8")
    return namespace


def _content() -> str:
    files = sorted(p for p in PACKAGE.rglob("*") if p.suffix in (".py", ".h", ".cpp"))
    return "".join(hashlib.sha256(p.read_bytes()).hexdigest() for p in files)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
