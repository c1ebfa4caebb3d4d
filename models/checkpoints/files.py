"""The files of a checkpoint that other wings and rooms read; those with tensors are named in checkpoint.py."""

CHECKPOINT_FILE = "checkpoint.json"
METRICS_FILE = "metrics.json"
PREDICTIONS_FILE = "predictions.parquet"
