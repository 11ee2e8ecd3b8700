"""What every Triton kernel compiles to for sm_80, sm_90 and sm_100: registers, memory, instructions. Needs no GPU."""

import argparse
import re
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from fastgrpo_kernels.objective import Ratio, Surrogate

from bench.harness import Row, exit_code, print_table, reason, show_traceback, write_results

TARGETS = (80, 90, 100)
# The most that a block may have: CUDA programming guide, technical specifications per compute capability.
SHARED_BYTES_OF = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
MAX_REGISTERS = 255
# Triton's own spills on Blackwell, seen since 3.6.
MAX_SPILLED_BYTES_OF = {80: 0, 90: 0, 100: 128}
# Of `_linear_tiles` as a training step launches it.
MAX_EPILOGUE_OF = {80: 900, 90: 900, 100: 1010}
# Kernels that stream tensors, each with what its variant's name must not have in it.
WIDE = {"_row_stats": "", "_row_gradient": "", "_exponentials": "", "_token_objective": "BY_RESPONSE",
        "_equal_groups": "", "_linear_tiles": "", "_store_again": ""}  # fmt: skip
FIGURES = (
    "registers", "spilled_bytes", "shared_bytes", "matrix_instructions", "epilogue_instructions", "loads_of_128_bits",
    "stores_of_128_bits",
)  # fmt: skip

_F, _D, _H, _I, _B = "*fp32", "*fp64", "*bf16", "*i64", "*u8"


class Variant(NamedTuple):
    """A kernel as its launcher calls it: the types of its arguments by name, its constants, and the launch."""

    module: str
    kernel: str
    pointers: dict[str, str]
    constants: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    note: str = ""  # what its constants do not say by their names
    least_sm: int = 80  # the oldest target that it is launched on


def variants() -> list[Variant]:
    """Every kernel at a 1.5B model's head: as every step uses it, and with the switches that make it largest."""
    return [*_of_rows(), *_of_tokens(), *_of_groups(), *_of_tiles()]


def _floats(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, _F)


def _of_rows() -> list[Variant]:
    row = {"target_ids": _I, **_floats("logprobs", "lse")}
    gradient = {**row, "grad_logprobs": _F}
    switches = {"PER_ROW": False, "SOFTCAP": False, "BLOCK_V": 4096, "inverse_temperatures": None}
    bare = {**switches, "ENTROPY": False, "entropy": None}
    return [
        Variant("rows", "_row_stats", {**row, "logits": _H}, bare, 8),
        Variant("rows", "_row_stats", {**row, "logits": _F, "entropy": _F}, {**switches, "ENTROPY": True}, 8),
        Variant("rows", "_row_gradient", {**gradient, "logits": _F, "out": _H},
                {**bare, "grad_entropy": None, "NARROW": True}, 8),
        Variant("rows", "_row_gradient", {**gradient, "logits": _F, "out": _F, **_floats("entropy", "grad_entropy")},
                {**switches, "SOFTCAP": True, "ENTROPY": True, "NARROW": False}, 8),
        Variant("rows", "_exponentials", {"logits": _F, "target_ids": _I, "offsets": _F, "totals": _D, "targets": _D,
                "out": _H}, {"PER_ROW": False, "inverse_temperatures": None, "weighteds": None, "NARROW": True,
                "BLOCK_V": 4096}, 8),
    ]  # fmt: skip


def _of_tokens() -> list[Variant]:
    always = _floats(
        "logprobs", "old_logprobs", "advantages", "num_loss_tokens", "grad_logprobs", "ratios", "partial_sums"
    )
    more = _floats("ref_logprobs", "rollout_logprobs", "token_weights", "entropy", "grad_entropy")
    masks = {"response_mask": _B, "cu_seqlens": _I}
    switches = {"DUAL": True, "BLOCK": 1024}
    bare = {"CAP": False, "KL": -1, "CORRECTION": 0, "BY_RESPONSE": False, **dict.fromkeys((*more, *masks))}
    full = {"CAP": True, "KL": 2, "CORRECTION": 3, "BY_RESPONSE": True}
    every = {**always, **more, **masks}
    surrogates, ratios = get_args(Surrogate), get_args(Ratio)

    def variant(given: dict[str, str], surrogate: Surrogate, ratio: Ratio, constants: dict[str, Any]) -> Variant:
        named = {"SURROGATE": surrogates.index(surrogate), "RATIO": ratios.index(ratio)}
        note = ", ".join(name for name in (surrogate, ratio) if name not in ("clipped", "token"))
        return Variant("token_objective", "_token_objective", given, {**switches, **constants, **named}, note=note)

    return [
        variant(always, "clipped", "token", bare),
        variant(every, "clipped", "sequence", full),
        variant(every, "clipped", "geometric_mean", {**full, "DUAL": False}),
        variant(always, "sapo", "token", {**bare, "DUAL": False}),
        variant(always, "dppo_kl", "token", bare),
    ]


def _of_groups() -> list[Variant]:
    values = _floats("rewards", "advantages")
    switches = {"LEAVE_ONE_OUT": False, "SCALE": True}
    return [
        Variant("groups", "_equal_groups", values, {**switches, "BLOCK_GROUPS": 512, "BLOCK_SIZE": 8, "DENSE": True}),
        Variant("groups", "_ragged_groups", {**values, "cu_groups": _I}, {**switches, "RAGGED": True, "BLOCK": 1024}),
    ]


def _of_tiles() -> list[Variant]:
    from fastgrpo_kernels.gpu.again import SPLITS, blocks_of
    from fastgrpo_kernels.gpu.tiles import TileShape

    tile = TileShape()
    launch = (tile.num_warps, tile.num_stages)
    switches = {"PER_ROW": False, "inverse_temperatures": None, "bias": None, "EVEN_WIDTH": True}
    matmul = {**switches, "BLOCK_R": tile.rows, "BLOCK_V": tile.vocabulary, "BLOCK_D": tile.width}
    matmul |= {"GROUP": tile.group, "EVEN_VOCABULARY": False}
    largest = {k: v for k, v in matmul.items() if k not in ("bias", "inverse_temperatures")} | {"PER_ROW": True}
    inputs = {"hidden": _H, "weight": _H, "target_ids": _I}
    sums = _floats("offsets", "totals", "targets")
    again = {**inputs, "asked": _B, **_floats("tops", "totals", "weighteds", "targets", "lse")}
    few = {**switches, **blocks_of(1536), "SPLITS": SPLITS}
    return [
        Variant("tiles", "_linear_tiles", {**inputs, **sums, "out": _H}, {**matmul, "weighteds": None}, *launch,
                note="stored"),
        Variant("tiles", "_linear_tiles", {**inputs, **sums, "weighteds": _F}, {**matmul, "out": None}, *launch,
                note="entropy"),
        Variant("tiles", "_linear_tiles", {**inputs, **sums, "out": _H, "bias": _H, "inverse_temperatures": _F,
                "weighteds": _F}, largest, *launch, note="stored, bias, entropy"),
        *(_persistent(tile, stages, matmul, {**inputs, **sums}) for stages in (3, 4)),
        Variant("again", "_stats_again", again, few),
        Variant("again", "_combine", {"asked": _B, **_floats("tops", "totals", "weighteds", "targets", "logprobs",
                "lse", "entropy"), "kept_totals": _D}, {"BLOCK_R": 32, "SPLITS": SPLITS}),
        Variant("again", "_store_again", {**again, "kept": _H}, few),
        Variant("again", "_clear", {"values": _H, "rows": _B}, {"BLOCK_V": 1024}),
    ]  # fmt: skip


def _persistent(tile: Any, stages: int, matmul: dict[str, Any], pointers: dict[str, str]) -> Variant:
    rows, width, columns = tile.rows, tile.width, tile.vocabulary
    descriptors = {
        "hidden": f"tensordesc<bf16[{rows}, {width}]>", "weight": f"tensordesc<bf16[{columns}, {width}]>",
        "out": f"tensordesc<bf16[{rows}, {columns // 2}]>",
    }  # fmt: skip
    constants = {k: v for k, v in matmul.items() if k != "EVEN_WIDTH"} | {"weighteds": None, "PROGRAMS": 132}
    return Variant("tiles", "_persistent_tiles", {**pointers, **descriptors}, constants, tile.num_warps, stages,
                   note=f"{stages} stages", least_sm=90)  # fmt: skip


_SCALARS = dict.fromkeys(
    (
        "inverse_temperature", "softcap", "eps", "clip_low", "clip_high", "dual_clip", "sapo_positive", "sapo_negative",
        "kl_coef", "kl_cap", "entropy_coef", "correction_low", "correction_high",
    ),
    "fp32",
)  # fmt: skip


def compiled(variant: Variant, capability: int) -> dict[str, Any]:
    """ptxas's figures for a kernel: registers and spilled bytes of a thread, shared memory of a block."""
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(importlib.import_module(f"fastgrpo_kernels.gpu.{variant.module}"), variant.kernel)
    known = {**_SCALARS, **variant.pointers, **dict.fromkeys(variant.constants, "constexpr")}
    signature = {name: known.get(name, "i32") for name in function.arg_names}
    # In a launch Triton finds that pointers and strides are multiples of 16.
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or name.endswith("stride") or name in ("width", "vocabulary", "num_rows")
    }
    source = ASTSource(fn=function, signature=signature, constexprs=variant.constants, attrs=aligned)
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    figures: Row = instructions(_disassembled(kernel.asm["cubin"]))
    if variant.kernel != "_linear_tiles":  # where a program goes on to other tiles, one's code is mixed with the next's
        figures["epilogue_instructions"] = None
    return {
        "kernel": variant.kernel,
        "variant": ", ".join([*(k for k, v in variant.constants.items() if v is True), variant.note]).strip(", ")
        or "plain",
        "sm": capability,
        **_ptxas(kernel.asm["ptx"]),
        "shared_bytes": kernel.metadata.shared,
        **figures,
    }


def _tools() -> Path:
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def _ptxas(ptx: str) -> dict[str, int]:
    target = re.search(r"\.target (\w+)", ptx)
    assert target is not None
    # Triton has two assemblers; which of them knows this PTX depends on Triton's version.
    printed = ""
    for assembler in sorted(_tools().glob("ptxas*")):
        done, printed = _assemble(assembler, target[1], ptx)
        spills, registers = (re.search(p, printed) for p in (r"(\d+) bytes spill stores", r"Used (\d+) registers"))
        if done and spills and registers:
            return {"registers": int(registers[1]), "spilled_bytes": int(spills[1])}
    raise RuntimeError(f"no assembler of {_tools()} takes {target[1]}: {printed[-2000:]}")


def _assemble(assembler: Path, target: str, ptx: str) -> tuple[bool, str]:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [str(assembler), "-v", f"--gpu-name={target}", str(source), "-o", str(Path(folder) / "kernel.cubin")]
        done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode == 0, done.stdout + done.stderr


class Instruction(NamedTuple):
    address: int
    name: str  # with its condition before it, and its modifiers
    jump: int | None  # address that it may go on at


def _disassembled(cubin: bytes) -> list[Instruction]:
    """The kernel's SASS, by Triton's own cuobjdump."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        printed = subprocess.run([str(_tools() / "cuobjdump"), "-sass", file.name], capture_output=True, text=True)
    if printed.returncode:
        raise RuntimeError(f"cuobjdump failed: {printed.stderr[-2000:]}")
    lines = re.findall(r"/\*([0-9a-f]{4,})\*/ +((?:@\S+ +)?)([A-Z0-9_.]+)([^;/]*)", printed.stdout)
    found = []
    for address, condition, name, operands in lines:
        target = re.search(r"0x([0-9a-f]+)", operands) if name == "BRA" and condition else None
        found.append(Instruction(int(address, 16), condition.strip() + name, int(target[1], 16) if target else None))
    return found


def instructions(sass: Sequence[Instruction]) -> dict[str, int]:
    """How many of the matrix and the 128-bit instructions, and how many follow the last matmul of a tile.

    What a condition jumps over after it is not counted: a tile that has no row's target and is not the last skips it.
    """
    names = [i.name for i in sass]
    matrix = [k for k, name in enumerate(names) if re.match(r"(@\S+)?(HGMMA|HMMA|UTCHMMA)", name)]
    k = matrix[-1] + 1 if matrix else len(sass)
    end = next((j for j in range(k, len(sass)) if names[j] == "EXIT"), len(sass))  # behind it loops wait for memory
    epilogue = 0
    while k < end:
        epilogue += 1
        jumped = [j for j in range(k + 1, end) if sass[j].address == sass[k].jump]
        k = jumped[0] if jumped else k + 1
    wide = [name for name in names if ".128" in name]
    return {
        "matrix_instructions": len(matrix),
        "epilogue_instructions": epilogue,
        "loads_of_128_bits": sum("LDG" in name for name in wide),
        "stores_of_128_bits": sum("STG" in name for name in wide),
    }


def beyond_limits(row: Row) -> str:
    """What of a kernel's figures is beyond what the chip has or what was reached before; empty if nothing is."""
    sm, kernel, variant = row["sm"], row["kernel"], row["variant"]
    limits = {
        "registers": MAX_REGISTERS,
        "shared_bytes": SHARED_BYTES_OF[sm],
        "spilled_bytes": MAX_SPILLED_BYTES_OF[sm],
    }
    if (kernel, variant) == ("_linear_tiles", "EVEN_WIDTH, stored"):
        limits |= {"epilogue_instructions": MAX_EPILOGUE_OF[sm], "spilled_bytes": 0}
    found = [f"{name} {row[name]}, at most {limit}" for name, limit in limits.items() if (row[name] or 0) > limit]
    if kernel in WIDE and (not WIDE[kernel] or WIDE[kernel] not in variant) and not row["loads_of_128_bits"]:
        found.append("no load of 128 bits")
    if "tiles" in kernel and not row["matrix_instructions"]:
        found.append("no matrix instruction")
    return "; ".join(found)


def main(arguments: Sequence[str]) -> int:
    """Compiles all. Returns 1 if a kernel does not, or is beyond a limit. Without Triton nothing is measured."""
    argparse.ArgumentParser(prog="python -m bench compiled_kernels", description=__doc__).parse_args(arguments)
    if find_spec("triton") is None:
        print("compiled_kernels is not measured: it needs Triton, which is not installed")
        return 0
    failed: dict[str, str] = {}
    results = [
        row for v in variants() for sm in TARGETS if sm >= v.least_sm and (row := _compiled_or_failed(v, sm, failed))
    ]
    for row in results:
        if beyond := beyond_limits(row):
            failed[f"{row['kernel']} ({row['variant']}) for sm_{row['sm']}"] = beyond
    columns = ("kernel", "variant", "sm", *FIGURES)
    print_table("Triton kernels as compiled", columns, [[row[c] for c in columns] for row in results])
    worst = max((row["spilled_bytes"] for row in results), default="nothing compiled")
    headline = [["most bytes spilled by a thread of any kernel", worst, 0]]
    write_results("compiled_kernels", torch.device("cpu"), headline, results)
    print(f"{len(results)} kernels compiled, at most {worst} bytes spilled")
    return exit_code("compiled_kernels", failed)


def _compiled_or_failed(variant: Variant, capability: int, failed: dict[str, str]) -> Row | None:
    try:
        return compiled(variant, capability)
    except Exception as error:
        show_traceback(error)
        failed[f"{variant.kernel} for sm_{capability}"] = reason(error)
        return None
