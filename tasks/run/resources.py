"""Resources that a step's process uses while it runs: CPU, memory, and the GPU where there is one."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

SYSTEM_SAMPLE_S = 0.5


@contextlib.contextmanager
def sampled_resources() -> Iterator[dict[str, list[float]]]:
    """Samples this process twice a second into lists named as MLflow names its system metrics."""
    import psutil

    samples: dict[str, list[float]] = {"cpu_utilization_percentage": [], "system_memory_usage_megabytes": []}
    process, stop = psutil.Process(os.getpid()), threading.Event()
    # The first call returns 0 and begins the interval that the next one measures.
    process.cpu_percent()

    def sample() -> None:
        samples["cpu_utilization_percentage"].append(process.cpu_percent())
        samples["system_memory_usage_megabytes"].append(round(process.memory_info().rss / 2**20, 1))
        for index, utilization, memory_mib in _gpus():
            samples.setdefault(f"gpu_{index}_utilization_percentage", []).append(utilization)
            samples.setdefault(f"gpu_{index}_memory_usage_megabytes", []).append(memory_mib)

    def loop() -> None:
        while not stop.wait(SYSTEM_SAMPLE_S):
            sample()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()
        sample()


def _gpus() -> list[tuple[int, float, float]]:
    """(index, utilization %, memory MiB) of each CUDA device that this process has opened."""
    import sys

    # The step may be importing torch at this moment: ask for no attribute that is not there yet.
    cuda: Any = sys.modules.get("torch.cuda")
    is_initialized = getattr(cuda, "is_initialized", None)
    if is_initialized is None or not is_initialized():
        return []
    return [
        (index, float(cuda.utilization(index)), cuda.memory_allocated(index) / 2**20)
        for index in range(cuda.device_count())
    ]
