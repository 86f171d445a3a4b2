"""Runs in an interpreter that has llama-cpp-python, which need not have anything of ours: imports only that.

A process of its own, because llama.cpp ends the process at what it takes for impossible. One JSON object comes by stdin
(file, context, texts, prompts, tokens), one goes to stdout: the token ids of the texts, the greedy tokens after each
prompt, and the chat template.
"""

import json
import sys


def main() -> None:
    import llama_cpp  # type: ignore[import-not-found, unused-ignore]
    import numpy as np

    asked = json.load(sys.stdin)
    options = {"lora_path": asked["adapter"]} if asked.get("adapter") else {}
    model = llama_cpp.Llama(asked["file"], n_ctx=asked["context"], n_threads=1, n_batch=64, verbose=False, **options)
    written = []
    for prompt in asked["prompts"]:
        model.reset()
        model.eval(prompt)
        tokens: list[int] = []
        for _ in range(asked["tokens"]):
            logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(model.ctx, -1), shape=(model.n_vocab(),))
            tokens.append(int(logits.argmax()))
            model.eval(tokens[-1:])
        written.append(tokens)
    answer = {
        "ids": [
            model.tokenize(text.encode(), add_bos=False, special=specials)
            for text in asked["texts"]
            for specials in (False, True)
        ],
        "opening": model.tokenize(b"", add_bos=True, special=False),
        "greedy": written,
        "template": model.metadata.get("tokenizer.chat_template"),
        "version": llama_cpp.__version__,
    }
    print("\n" + json.dumps(answer))


if __name__ == "__main__":
    main()
