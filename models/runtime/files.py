"""The files of an export's folder."""

MODEL_FILE = "model.onnx"
TABLE_FILE = "embeddings.safetensors"
SERVING_FILE = "serving.json"
REFERENCE_FILE = "reference.parquet"
