"""The files that other rooms read of an export."""

QUANTIZATION_FILE = "quantization.json"
