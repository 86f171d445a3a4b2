"""Models for other tools: GGUF for llama.cpp and Ollama, ONNX for onnxruntime and what stands on it."""
