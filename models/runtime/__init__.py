"""Parts of a model for serving: the mapped embedding table, the ONNX model and deltas between exports. No torch."""
