"""llama.cpp's judgement is asked for where a Python has it; elsewhere those tests are not there."""

from shoestring.export.gguf.in_llama_cpp import interpreter

collect_ignore = [] if interpreter() else ["test_export_in_llama_cpp.py"]
