"""A stand-in for a vLLM server: it serves our own model over the same protocol.

What it takes and gives is what vLLM 0.33.0 does, as far as minipost asks for it.  Where vLLM
answers with an error, so does this.
"""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch

from minipost import checkpoint
from minipost.rollout import generate

# The fields of a CompletionRequest that minipost sends; vLLM ignores others without a word.
FIELDS = {"model", "prompt", "n", "max_tokens", "temperature", "top_p", "top_k", "min_p",
          "repetition_penalty", "presence_penalty", "frequency_penalty", "seed", "ignore_eos",
          "stop_token_ids", "logprobs", "skip_special_tokens", "return_token_ids", "logit_bias"}


class Refusal(Exception):
    def __init__(self, code, said):
        super().__init__(said)
        self.code = code


class StandIn:
    """Its model and what it was asked.

    change(path, found) may change an answer, raise Refusal, or return bytes that are sent as they
    are.  stale: it answers that it has read new weights, and does not.
    """

    def __init__(self, directory, context=None):
        self.lock, self.asked, self.stale = threading.Lock(), [], False
        self.change = lambda path, found: found
        self.mode, self.development = "processed_logprobs", True
        self.load(directory)
        self.context = context or self.model.context

    def load(self, directory):
        self.model, self.vocabulary = checkpoint.load(directory)

    def paths(self):
        return [path for path, _ in self.asked]

    def answer(self, path, body):
        if not self.development and not path.startswith("/v1"):
            raise Refusal(404, "Not Found")
        if path == "/v1/models":
            return {"data": [{"id": "policy", "max_model_len": self.context}]}
        if path == "/server_info?config_format=json":
            return {"vllm_config": {"model_config": {"logprobs_mode": self.mode}}}
        if path == "/collective_rpc":
            assert body["method"] == "reload_weights" and set(body["kwargs"]) == {"weights_path"}
            if not self.stale:
                self.load(body["kwargs"]["weights_path"])
            return {"results": [None]}
        if path == "/reset_prefix_cache":
            return {"success": True}
        if path == "/v1/completions":
            return self.complete(body)
        raise Refusal(404, "Not Found")

    def complete(self, body):
        assert set(body) <= FIELDS, set(body) - FIELDS
        ids, n = body["prompt"], body["n"]
        if body["model"] != "policy":
            raise Refusal(404, f"The model `{body['model']}` does not exist.")
        if body["temperature"] == 0 and n > 1:
            raise Refusal(400, f"n must be 1 when using greedy sampling, got {n}.")
        if not 0 <= body["seed"] < 2**63:
            raise Refusal(400, "seed")
        ends = set(body["stop_token_ids"])
        rollout = generate(self.model, [ids], n, max_new_tokens=body["max_tokens"], eos=ends,
                           pad=self.vocabulary.pad, temperature=body["temperature"],
                           seed=(body["seed"],))
        choices = []
        for k, (targets, mask, logp, done) in enumerate(zip(rollout.targets, rollout.mask,
                                                            rollout.logp, rollout.finished)):
            choices.append({
                "index": k, "text": self.vocabulary.decode(targets[mask].tolist()),
                "logprobs": {"token_logprobs": logp[mask].tolist(), "tokens": []},
                "finish_reason": "stop" if done else "length",
                "stop_reason": int(targets[mask][-1]) if done else None,
                "token_ids": targets[mask].tolist(), "prompt_token_ids": ids})
        return {"object": "text_completion", "model": "policy", "choices": choices}


@contextmanager
def serving(standin):
    """The address at which a StandIn answers inside the block."""
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            length = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length) or "null")
            with standin.lock, torch.no_grad():
                standin.asked.append((self.path, body))
                try:
                    found, code = standin.change(self.path, standin.answer(self.path, body)), 200
                except Refusal as error:
                    found, code = {"error": {"message": str(error), "code": error.code}}, error.code
            data = found if isinstance(found, bytes) else json.dumps(found).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
