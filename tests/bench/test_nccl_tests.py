"""What is read from the table of nccl-tests, and what is refused.

broadcast_perf.txt is no recorded run: it is composed after the formats of NVIDIA/nccl-tests 2.19.6, src/util.cu
(writeDeviceReport, writeResultHeader, writeBenchmarkLinePreamble, writeBenchmarkLineBody, writeResultFooter), and its
values are invented. The older and other tables below are after src/common.cu and src/broadcast.cu of 2.9.0 and 2.13.0,
and util.cu with -I 1 and -S 1.
"""

import stat
from pathlib import Path

import pytest

from bench.nccl_tests import Run, Side, binary, parse, run

PRINTED = (Path(__file__).parent / "broadcast_perf.txt").read_text(encoding="utf-8")
END = "# Out of bounds values : 0 OK\n# Avg bus bandwidth    : 6.66 \n#\n"
OLD = """\
# nThread 1 nGpus 2 minBytes 8 maxBytes 1024 step: 2(factor) warmup iters: 5 iters: 20 validation: 1
#
# Using devices
#   Rank  0 Pid   4242 on      node0 device  0 [0x18] NVIDIA A100-SXM4-80GB
NCCL version 2.9.6+cuda11.2
#
#                                                     out-of-place                       in-place
#       size         count    type    root     time   algbw   busbw  error     time   algbw   busbw  error
#        (B)    (elements)                     (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)
        1024           256   float       0    10.00    0.10    0.10  0e+00     9.00    0.11    0.11    N/A
"""
FROM_2_13 = """\
#                                                              out-of-place                       in-place
#       size         count      type   redop    root     time   algbw   busbw #wrong     time   algbw   busbw #wrong
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)
node0:4242:4250 [0] NCCL INFO comm 0x55d0 rank 0 nranks 2 cudaDev 0 - Init COMPLETE
        1024           256     float    none       0    10.00    0.10    0.10      0     9.00    0.11    0.11      0
"""
PER_ITERATION = """\
#       size  count type redop root cputime algbw busbw #wrong i_min i_max i_p99 i_cv% \
cputime algbw busbw #wrong i_min i_max i_p99 i_cv%           timestamp
#        (B) (elements) (us) (GB/s) (GB/s) (us) (us) (us) (%) (us) (GB/s) (GB/s) (us) (us) (us) (%) %Y-%m-%d %H:%M:%S
   1024 256 float none 0 10.00 0.10 0.10 0 8.0 12.0 12.0 3.0 9.00 0.11 0.11 0 7.0 11.0 11.0 2.0  2026-01-31 12:00:00
"""


def test_the_rows_and_the_average_are_those_printed():
    found = parse(PRINTED)
    assert [row.size_bytes for row in found.rows] == [64 * 2**20, 256 * 2**20, 2**30]
    assert found.largest.in_place == Side(3282.25, 327.14, 327.14, 0.0)
    assert found.largest.out_of_place == Side(3310.5, 324.34, 324.34, 0.0)
    assert found.average_busbw_gb_per_s == 291.248


@pytest.mark.parametrize("table", [OLD, FROM_2_13, PER_ITERATION], ids=["2.9", "2.13", "per iteration and timestamp"])
def test_other_formats_are_read_by_their_header(table):
    found = parse(table + END)
    (row,) = found.rows
    assert row.out_of_place == Side(10.0, 0.1, 0.1, 0.0)
    assert row.in_place == Side(9.0, 0.11, 0.11, None if "N/A" in table else 0.0)


def without(start: str) -> str:
    return "".join(line for line in PRINTED.splitlines(keepends=True) if not line.strip().startswith(start))


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("", "no table"),
        ("broadcast_perf: error while loading shared libraries: libnccl.so.2\n", "no table"),
        ("\x00\xff 12 size count\n", "no table"),
        ("".join(PRINTED.partition("(elements)")[:2]), "no rows"),
        (without("1073741824").replace("   67108864  ", "   x  ").replace("  268435456  ", "  x  "), "no rows"),
        (PRINTED.replace("247.18       0", "247.18       3"), "3 wrong values"),
        (PRINTED.replace("247.18       0", "247.18   1e+06"), r"1e\+06 wrong values"),
        (PRINTED.replace("243.81       0", "243.81       3"), "3 wrong values"),
        (
            PRINTED.replace("values : 0 OK", "values : 2 FAILED").replace("  values", " values"),
            "2 values out of bounds",
        ),
        (PRINTED.replace("247.18       0", "247.18"), "12 values for the columns"),
        (PRINTED.replace("247.18       0", "247.18       0    9"), "14 values for the columns"),
        (PRINTED.replace("271.50", "fast"), "no number"),
        (PRINTED.replace("271.50", "nan"), "cannot be"),
        (PRINTED.replace("271.50", "-1.0"), "cannot be"),
        (PRINTED.replace("algbw", "speed"), "unknown columns"),
        (without("# Avg bus"), "'Avg bus bandwidth'"),
        (without("# Out of"), "'Out of bounds values'"),
        (PRINTED.replace(": 291.248", ": what"), "'Avg bus bandwidth'"),
    ],
)
def test_what_is_no_good_run_is_refused_with_the_reason(output, reason):
    with pytest.raises(ValueError, match=reason):
        parse(output)


@pytest.mark.parametrize("cut", range(0, len(PRINTED), 97))
def test_a_run_that_was_cut_off_is_refused(cut):
    if "Avg bus bandwidth    : 2" not in PRINTED[:cut]:
        with pytest.raises(ValueError, match="nccl-tests"):
            parse(PRINTED[:cut])


def stub(folder: Path, script: str) -> Path:
    program = folder / "build" / "broadcast_perf"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


def test_the_program_is_given_one_size_and_its_output_is_read(tmp_path):
    program = stub(tmp_path, f"echo $* > {tmp_path}/arguments; cat {Path(__file__).parent}/broadcast_perf.txt")
    assert binary(tmp_path) == program and binary(program) == program
    assert isinstance(run(program, 2**30, num_gpus=4, iterations=10, warmup=3), Run)
    assert (tmp_path / "arguments").read_text() == "-b 1073741824 -e 1073741824 -g 4 -n 10 -w 3\n"


def test_a_program_that_fails_is_refused_with_its_words(tmp_path):
    with pytest.raises(ValueError, match="exit 3: Test NCCL failure"):
        run(stub(tmp_path, "echo Test NCCL failure; exit 3"), 8, num_gpus=2, iterations=1, warmup=0)


def test_a_missing_program_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no broadcast_perf"):
        binary(tmp_path)
