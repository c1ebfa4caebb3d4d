"""Step `quantize`: the checkpoint as the int8 graph that serving runs."""

from __future__ import annotations

from pathlib import Path

from tasks.contract import DayConfig, Input, Metrics, Resources, step


@step(
    reads={"samples": Input(), "checkpoint": Input()},
    writes="export",
    config=("quantize",),
    imports=("models.export.export", "onnx", "onnxruntime"),
    resources=Resources(cpus=2, memory_gib=8),
)
def quantize(config: DayConfig, *, samples: Path, checkpoint: Path, export: Path) -> Metrics:
    """Exports the checkpoint with int8 dense layers and embeddings of 8 or 4 bits, and compares it
    with its fp32 counterpart.

    Says no where int8 loses more AUC or calibration than the scenario allows.
    """
    from models.export.export import export as write_export

    return dict(write_export(checkpoint, samples, export, config.scenario.quantize))
