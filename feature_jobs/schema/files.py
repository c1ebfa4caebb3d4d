"""The file of a day's samples: the join writes it, validation and models read it."""

SAMPLES_FILE = "samples.parquet"
