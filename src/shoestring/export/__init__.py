"""Models for other tools: GGUF for llama.cpp and Ollama."""
