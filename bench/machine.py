"""This machine: its device, versions and tools, and the speed of its matmul and its copy."""

import argparse
import json
import subprocess
from collections.abc import Sequence
from shutil import which

import torch

from bench.harness import GIB, machine_facts, print_table, write_results
from bench.limits import measured_peak

TOOLS = (("nvidia-smi",), ("nvcc", "--version"), ("g++", "--version"), ("ncu", "--version"))


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench machine", description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    device = torch.device(parser.parse_args(argv).device)
    facts = machine_facts(device)
    print(json.dumps(facts, indent=1))
    for command in TOOLS:
        print(output_of(command))
    peak = measured_peak(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    rows = [
        (f"matmul, {peak.dtype}", f"{peak.flops_per_s / 1e12:.3g} TFLOP/s", "-"),
        ("copy, bytes read and written", f"{peak.bytes_per_s / 1e9:.4g} GB/s", "-"),
    ]
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        rows.append(("memory free to this process", f"{free / GIB:.2f} GiB", f"of {total / GIB:.2f} GiB"))
    print_table(facts["device"], ("what", "value", "of"), rows)
    print(write_results("machine", device, rows, {"facts": facts, "peak": peak.as_dict()}))
    return 0


def output_of(command: Sequence[str]) -> str:
    """What a tool prints, or that it is missing, which is no failure."""
    if which(command[0]) is None:
        return f"{command[0]}: not here"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return f"{command[0]}: no answer within 20 s"
    return f"$ {' '.join(command)}\n{(done.stdout + done.stderr).strip()}"
