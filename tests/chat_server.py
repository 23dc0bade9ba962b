"""A small OpenAI-compatible server on loopback with a scripted LLM: its answers depend on prompt and seed alone."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def scripted_answer(body: dict) -> tuple[str, str]:
    """(text, finish reason): in turn clean, quoted, labelled, thinking, in two lines, cut off, and empty."""
    number = hashlib.sha256(json.dumps([body["messages"], body["seed"]]).encode()).digest()
    sentence = f"He turns to number {number[1]} – é."
    forms = (
        (sentence, "stop"),
        (f"“{sentence}”", "stop"),
        (f"**Caption:** {sentence}", "stop"),
        (f"<think>\nHm.\n</think>\n\n{sentence}", "stop"),
        (f"{sentence}\nThis connects them.", "stop"),
        (f"{sentence} Then he goes to", "length"),
        ("", "stop"),
    )
    return forms[number[0] % len(forms)]


class ChatServer:
    """Counts requests in `bodies`; `answer` gets the body and gives (text, finish reason) or an HTTP status."""

    def __init__(self, answer: Callable = scripted_answer, delay: float = 0.0) -> None:
        self.bodies: list[dict] = []
        self.keys: set[str | None] = set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.bodies.append(body)
                outer.keys.add(self.headers["authorization"])
                time.sleep(delay)
                found = answer(body)
                if isinstance(found, int):
                    self.reply(found, {"error": {"message": "scripted fault"}})
                else:
                    message = {"role": "assistant", "content": found[0]}
                    choice = {"index": 0, "message": message, "finish_reason": found[1]}
                    about = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"]}
                    self.reply(200, {**about, "choices": [choice]})

            def reply(self, status: int, content: dict):
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


@contextmanager
def chat_server(answer: Callable = scripted_answer, delay: float = 0.0) -> Iterator[ChatServer]:
    served = ChatServer(answer, delay)
    threading.Thread(target=served.server.serve_forever, daemon=True).start()
    try:
        yield served
    finally:
        served.server.shutdown()
        served.server.server_close()
