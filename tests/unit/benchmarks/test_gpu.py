import pytest
import torch

from benchmarks import gpu


def test_the_same_code_runs_on_a_cpu(capsys):
    assert (
        gpu.main(["--device", "cpu", "--rows", "26000", "--batch", "64", "--steps", "2", "--precision", "float32"]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("CPU (figures mean nothing)")
    assert lines[2:4] == ["| | plain torch |", "|---|---:|"]
    names = [line.split("|")[1].strip() for line in lines[4:]]
    assert names[0] == "samples/s"
    assert {"gather, share of bandwidth", "update, µs", "utilisation", "peak memory, MiB"} < set(names)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_reports_a_missing_device(capsys):
    assert gpu.main([]) == 2
    assert "no CUDA device here; nothing was measured" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_shows_both(capsys):
    assert gpu.main(["--rows", "26000", "--batch", "1024", "--steps", "3"]) == 0
    assert "| | plain torch | fused |" in capsys.readouterr().out
