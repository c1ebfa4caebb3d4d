"""What serving needs of a model: the mapped embedding table, the ONNX model and deltas between exports. No torch."""
