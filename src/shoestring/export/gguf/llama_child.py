"""Runs in an interpreter that has llama-cpp-python, which need not have anything of ours: imports only that.

A process of its own, because llama.cpp ends the process at what it takes for impossible. One JSON object comes by stdin
(file, context, texts, prompts, tokens), one goes to stdout: the token ids of the texts, the logits (float32, in base64)
and the greedy tokens after each prompt, and the chat template; or why there is no llama-cpp-python.
"""

import base64
import json
import sys


class NoChat:
    """In place of what reads chat templates: one that it cannot read is no fault of the file."""

    def __init__(self, **_: object):
        pass

    def to_chat_handler(self) -> None:
        return None


def main() -> None:
    asked = json.load(sys.stdin)
    try:
        import llama_cpp  # type: ignore[import-not-found, unused-ignore]
        import numpy as np
    except Exception as error:
        print("\n" + json.dumps({"missing": str(error) or type(error).__name__}))
        return
    llama_cpp.llama_chat_format.Jinja2ChatFormatter = NoChat
    options = {"lora_path": asked["adapter"]} if asked.get("adapter") else {}
    exact = llama_cpp.GGML_TYPE_F32  # of keys and values
    model = llama_cpp.Llama(
        asked["file"], n_ctx=asked["context"], n_threads=1, n_batch=64, type_k=exact, type_v=exact,
        verbose=False, **options,
    )  # fmt: skip
    written, first = [], []
    for prompt in asked["prompts"]:
        model.reset()
        model.eval(prompt)
        tokens: list[int] = []
        for step in range(asked["tokens"]):
            logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(model.ctx, -1), shape=(model.n_vocab(),))
            if not step:
                first.append(base64.b64encode(logits.tobytes()).decode())
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
        "logits": first,
        "template": model.metadata.get("tokenizer.chat_template"),
        "version": llama_cpp.__version__,
    }
    print("\n" + json.dumps(answer))


if __name__ == "__main__":
    main()
