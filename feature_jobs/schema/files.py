"""The files of a day's samples: the join writes them, validation and models read them."""

SAMPLES_FILE = "samples.parquet"
JOIN_FILE = "join.json"
