"""The files of a day's ingested events."""

EVENTS_FILE = "events.parquet"
COUNTS_FILE = "counts.json"
QUARANTINE_FILE = "quarantine.parquet"
LOGS = "logs"
"""The folder of further logs, a file NAME.parquet for each."""
LANDED_FILE = "entities/landed.json"


def log_file(source: str | None) -> str:
    """The file of a log: of the events, or of the further log of this name."""
    return EVENTS_FILE if source is None else f"{LOGS}/{source}.parquet"
