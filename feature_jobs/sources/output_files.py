"""The files of a day's ingested events."""

EVENTS_FILE = "events.parquet"
COUNTS_FILE = "counts.json"
QUARANTINE_FILE = "quarantine.parquet"
