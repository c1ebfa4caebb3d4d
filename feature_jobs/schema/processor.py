"""Fast number formats of this processor, from Linux's description of it, so that `recloop check` needs no torch."""

from __future__ import annotations

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def bfloat16_is_fast(cpuinfo: Path = CPUINFO) -> bool | None:
    """True where products in bfloat16 are faster than in float32 on this processor; None where that is not known.

    On x86 only AMX makes them faster: training was measured at 1.8 times float32's rate with `amx_bf16`, at 0.8 times
    with `avx512_bf16` alone, and at a third without either. ARM processors that have `bf16` were not measured.
    """
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:  # not Linux
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return "amx_bf16" in value.split()
        if name.strip() == "Features":  # ARM
            return None if "bf16" in value.split() else False
    return None


def slow_precision(precision: str, device: str, cpuinfo: Path = CPUINFO) -> str | None:
    """A warning where `train.precision` is slower than float32 on this processor; GPUs (`device` cuda) are fast."""
    if precision != "bfloat16" or device == "cuda" or bfloat16_is_fast(cpuinfo) is not False:
        return None
    return (
        "train.precision: bfloat16: this processor computes it slower than float32 (by a quarter with avx512_bf16, 3 to"
        " 4 times without); write float32, or auto to take the fastest one where the day is trained"
    )
