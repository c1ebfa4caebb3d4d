import pytest

from feature_jobs.schema.processor import bfloat16_is_fast, slow_precision

INTEL = "processor\t: 0\nmodel name\t: a processor\nflags\t\t: fpu avx512f {}\n\nprocessor\t: 1\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd {}\n"


@pytest.mark.parametrize(
    ("text", "fast"),
    [
        (INTEL.format("avx512_bf16 amx_bf16 amx_tile"), True),
        (INTEL.format("avx512_bf16"), False),
        (INTEL.format(""), False),
        (ARM.format("bf16"), None),
        (ARM.format(""), False),
        ("", None),
    ],
)
def test_what_is_fast_and_what_is_warned_of(tmp_path, text, fast):
    (tmp_path / "cpuinfo").write_text(text)
    assert bfloat16_is_fast(tmp_path / "cpuinfo") is fast
    warning = slow_precision("bfloat16", "auto", tmp_path / "cpuinfo")
    assert (warning is not None) == (fast is False)
    if warning:
        assert warning.startswith("train.precision: bfloat16: ")
    for precision, device in (("float32", "cpu"), ("auto", "cpu"), ("bfloat16", "cuda")):
        assert slow_precision(precision, device, tmp_path / "cpuinfo") is None


def test_a_system_that_does_not_describe_its_processor(tmp_path):
    assert bfloat16_is_fast(tmp_path / "nothing") is None
