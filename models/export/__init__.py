"""The serving form of a checkpoint: a quantized table and an int8 ONNX model, compared with float32."""
