"""The environment of programs that tests start."""

import os


def inherited(*prefixes: str) -> dict[str, str]:
    """Ours, without settings of Recloop and MLflow and those whose names begin with `prefixes`."""
    others = ("RECLOOP_", "MLFLOW_", *prefixes)
    return {name: value for name, value in os.environ.items() if not name.startswith(others)}
