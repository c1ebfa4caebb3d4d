"""Step `quantize`: the checkpoint as the int8 graph that serving runs."""

from __future__ import annotations

from pathlib import Path

from tasks.contract import DayConfig, Input, Metrics, Resources, step


@step(
    reads={"samples": Input(), "checkpoint": Input()},
    writes="export",
    config=("quantize", "deploy.min_rows", "deploy.min_positives"),
    imports=("models.export.export", "onnx", "onnxruntime"),
    resources=Resources(cpus=2, memory_gib=8),
)
def quantize(config: DayConfig, *, samples: Path, checkpoint: Path, export: Path) -> Metrics:
    """Exports the checkpoint in int8 for serving. Dense layers have 8 bits, embeddings 8 or 4; the scores are compared
    with those of fp32.

    Says no where int8 loses more AUC or calibration than the scenario allows. A task with too few rows or positives
    (`deploy.min_rows`, `deploy.min_positives`) is not judged, and `deploy` counts it as unknown.
    """
    from models.export.export import export as write_export
    from models.metrics.judgement import Evidence

    rules = config.scenario.deploy
    needs = Evidence(min_rows=rules.min_rows, min_positives=rules.min_positives)
    return dict(write_export(checkpoint, samples, export, config.scenario.quantize, needs))
