"""A model folder as an ONNX graph with a key-value cache, for onnxruntime, onnxruntime-genai and transformers.js."""
