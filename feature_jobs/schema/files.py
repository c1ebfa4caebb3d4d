"""The files of a day's samples: the join writes them, validation and models read them."""

SAMPLES_FILE = "samples.parquet"
JOIN_FILE = "join.json"
NEGATIVE = "key.negative"
"""Column of the samples: true for a row that negative sampling added."""
