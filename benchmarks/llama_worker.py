"""llama.cpp through llama-cpp-python, as a worker of `benchmarks.decode`. It imports nothing of ours: whichever
interpreter has llama_cpp may run it.

    PYTHON benchmarks/llama_worker.py FILE.gguf THREADS

Reads requests from stdin, a JSON object a line, and answers each with one: {"prompt": ids, "tokens": N} with seconds
until the first token, seconds of the N − 1 after it, and the tokens.
"""

from __future__ import annotations

import json
import os
import sys
import time


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the library prints is not an answer

    import llama_cpp
    import numpy as np

    path, threads = sys.argv[1], int(sys.argv[2])
    model = llama_cpp.Llama(
        path, n_ctx=1024, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False, logits_all=False
    )

    def likeliest() -> int:
        return int(np.ctypeslib.as_array(model._ctx.get_logits(), shape=(model.n_vocab(),)).argmax())

    def answer(result: dict) -> None:
        print(json.dumps(result), file=answers, flush=True)

    answer({"version": llama_cpp.__version__, "system": str(llama_cpp.llama_print_system_info())})
    for line in sys.stdin:
        request = json.loads(line)
        model.reset()
        started = time.perf_counter()
        model.eval(request["prompt"])
        tokens = [likeliest()]
        read = time.perf_counter()
        while len(tokens) < request["tokens"]:
            model.eval(tokens[-1:])
            tokens.append(likeliest())
        answer({"read": read - started, "written": time.perf_counter() - read, "tokens": tokens})


if __name__ == "__main__":
    main()
