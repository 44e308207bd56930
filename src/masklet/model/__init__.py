"""The networks, every part once, as `onnxscript.nn` modules that record ONNX graphs."""
