"""Checkpoints and snapshots as folders of JSON and safetensors, written and restored by name."""
