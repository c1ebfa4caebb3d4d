"""The files that other rooms read of a validation."""

VERDICT_FILE = "verdict.json"
