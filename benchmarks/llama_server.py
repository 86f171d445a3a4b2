"""llama.cpp writing many texts at once, behind the thinnest server there is: a peer of `benchmarks.serve`. It imports
nothing of ours: whichever interpreter has llama_cpp may run it.

    PYTHON benchmarks/llama_server.py FILE.gguf PORT STREAMS THREADS

It does what llama.cpp's own server does with its slots: the newest token of each running text, and prompts beside them,
up to 2,048 tokens, in one call of llama_decode; each text has a sampler of its own (top_k, top_p, temperature). The
server that llama-cpp-python has itself answers one request after another. POST /v1/completions streams, and takes
prompt, max_tokens, temperature, top_p, top_k, seed; texts do not end before max_tokens. GET /v1/models.
"""

from __future__ import annotations

import ctypes
import json
import queue
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import llama_cpp

BATCH, CONTEXT = 2048, 1024  # tokens of a call, and of a text


class Text:
    """One that is asked for. pieces: what was written, None behind the last. read: tokens in the cache."""

    def __init__(self, tokens: list[int], new: int, sampler):
        self.tokens, self.left, self.sampler = tokens, new, sampler
        self.pieces: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.read, self.slot = 0, -1


class Engine:
    """One thread runs `work`; the others hand in texts."""

    def __init__(self, file: str, streams: int, threads: int):
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(file.encode(), llama_cpp.llama_model_default_params())
        self.vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        given = llama_cpp.llama_context_default_params()
        given.n_ctx, given.n_seq_max, given.n_batch, given.n_ubatch = streams * CONTEXT, streams, BATCH, 512
        given.n_threads = given.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, given)
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        self.free, self.running, self.waiting = list(range(streams)), [], []
        self.change = threading.Condition()

    def ask(self, request: dict) -> Text:
        raw = request["prompt"].encode()
        tokens = (llama_cpp.llama_token * (len(raw) + 8))()
        count = llama_cpp.llama_tokenize(self.vocabulary, raw, len(raw), tokens, len(tokens), True, True)
        chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        for sampler in (
            llama_cpp.llama_sampler_init_top_k(request.get("top_k", 40)),
            llama_cpp.llama_sampler_init_top_p(request.get("top_p", 0.95), 1),
            llama_cpp.llama_sampler_init_temp(request.get("temperature", 0.8)),
            llama_cpp.llama_sampler_init_dist(request.get("seed", 0)),
        ):
            llama_cpp.llama_sampler_chain_add(chain, sampler)
        text = Text(list(tokens[:count]), request["max_tokens"], chain)
        with self.change:
            self.waiting.append(text)
            self.change.notify()
        return text

    def work(self) -> None:
        while True:
            with self.change:
                while not self.running and not self.waiting:
                    self.change.wait()
                while self.waiting and self.free:
                    text = self.waiting.pop(0)
                    text.slot = self.free.pop()
                    self.running.append(text)
            self.step()

    def step(self) -> None:
        self.batch.n_tokens = 0
        ready = []
        for text in sorted(self.running, key=lambda text: len(text.tokens) - text.read):  # prompts behind single tokens
            for token in text.tokens[text.read : text.read + BATCH - self.batch.n_tokens]:
                text.read += 1
                last = text.read == len(text.tokens)
                if last:
                    ready.append((text, self.batch.n_tokens))
                self.add(token, text.read - 1, text.slot, last)
        if (code := llama_cpp.llama_decode(self.context, self.batch)) != 0:
            raise RuntimeError(f"llama_decode: {code}")
        for text, place in ready:
            token = llama_cpp.llama_sampler_sample(text.sampler, self.context, place)
            text.tokens.append(token)
            text.left -= 1
            text.pieces.put(self.piece(token))
            if not text.left:
                self.end(text)

    def add(self, token: int, position: int, slot: int, wanted: bool) -> None:
        batch, i = self.batch, self.batch.n_tokens
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted
        batch.seq_id[i][0] = slot
        batch.n_tokens += 1

    def piece(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(256)
        size = llama_cpp.llama_token_to_piece(self.vocabulary, token, buffer, len(buffer), 0, True)
        return buffer.raw[: max(size, 0)]

    def end(self, text: Text) -> None:
        llama_cpp.llama_memory_seq_rm(self.memory, text.slot, -1, -1)
        llama_cpp.llama_sampler_free(text.sampler)
        self.running.remove(text)
        self.free.append(text.slot)
        text.pieces.put(None)


class Handler(BaseHTTPRequestHandler):
    engine: Engine

    def do_GET(self) -> None:
        self.begin("application/json")
        self.wfile.write(json.dumps({"data": [{"id": "llama.cpp"}]}).encode())

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text, count = self.engine.ask(request), 0
        self.begin("text/event-stream")
        while (piece := text.pieces.get()) is not None:
            count += 1
            self.event({"choices": [{"index": 0, "text": piece.decode(errors="replace")}], "usage": None})
        self.event({"choices": [], "usage": {"completion_tokens": count}})
        self.wfile.write(b"data: [DONE]\n\n")

    def begin(self, kind: str) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("connection", "close")
        self.end_headers()

    def event(self, chunk: dict) -> None:
        self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")

    def log_message(self, *_: object) -> None:
        """Nothing."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def main() -> None:
    file, port, streams, threads = sys.argv[1], *map(int, sys.argv[2:5])
    Handler.engine = Engine(file, streams, threads)
    threading.Thread(target=Handler.engine.work, daemon=True).start()
    Server(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main()
