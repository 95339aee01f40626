"""Sampling by a vLLM server that the user has started, over HTTP.

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL_DIR --logprobs-mode processed_logprobs

The protocol was read from the source of vLLM 0.33.0.

    GET  /v1/models                            the name to ask by, and the longest sequence
    GET  /server_info?config_format=json       which log-probs it gives
    POST /v1/completions                       answers to a prompt of ids: their ids and log-probs
    POST /collective_rpc  reload_weights       read the weights of a directory
    POST /reset_prefix_cache                   forget keys and values of the weights before

The last two and /server_info are development endpoints, hence VLLM_SERVER_DEV_MODE: such a server
is for this machine alone.  Processed log-probs are those of the distribution that tokens are drawn
from, which the temperature is a part of.

The server's sampling parameters are all stated: otherwise those of generation_config.json would
hold, such as a top_p, and the log-probs would be of another distribution.  Each prompt is a request
of its own with a seed of its own, and the server batches them.  Its arithmetic depends on that
batch, so the same seed does not give the same answers in every run.

Only rank 0 talks to the server.
"""

import hashlib
import http.client
import json
import math
import os
import shutil
import tempfile
import threading
import urllib.error
import urllib.request
import weakref

from minipost.errors import MinipostError

START = "VLLM_SERVER_DEV_MODE=1 vllm serve MODEL_DIR --logprobs-mode processed_logprobs"
AT_ONCE = 64      # requests that are under way at once
TIMEOUT = 1800.0  # seconds that one answer may take
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy in between


class Server:
    """A vLLM server.  `folder` is where the weights are written for it, made when it is needed."""

    def __init__(self, url, timeout=TIMEOUT):
        if not url.startswith(("http://", "https://")):
            raise MinipostError(f"--sampler-url is {url[:80]!r}; expected http://HOST:PORT")
        self.url, self.timeout = url.rstrip("/"), timeout
        self.name, self.context = "", 0     # of its model
        self.folder, self.version = None, None

    # ---- what a run asks for

    def connect(self):
        """Ask what the server serves.  MinipostError unless it can sample for a run."""
        found = self.ask("/v1/models")
        try:
            model = found["data"][0]
            self.name, self.context = model["id"], int(model["max_model_len"])
        except (KeyError, IndexError, TypeError, ValueError):
            raise self.error(f"lists no model: {json.dumps(found):.80}") from None
        found = self.ask("/server_info?config_format=json")
        try:
            mode = found["vllm_config"]["model_config"]["logprobs_mode"]
        except (KeyError, TypeError):
            raise self.error("does not say its logprobs_mode; vLLM 0.33 does") from None
        if mode != "processed_logprobs":
            raise self.error(f"gives {mode}, which do not know the temperature; start it with "
                             "--logprobs-mode processed_logprobs")

    def follow(self, version, save):
        """Give the server the weights that save(directory) writes, unless it has this version."""
        if not self.name:
            self.connect()
        if version == self.version:
            return
        if self.folder is None:
            self.folder = tempfile.mkdtemp(prefix=f"minipost-{os.getpid()}-")
            weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
            os.chmod(self.folder, 0o755)  # the server may be another user's
        self.version = None
        save(self.folder)
        self.ask("/collective_rpc", {"method": "reload_weights",
                                     "kwargs": {"weights_path": self.folder}})
        if not isinstance(done := self.ask("/reset_prefix_cache", {}), dict) or \
                done.get("success") is not True:
            raise self.error("could not forget the keys and values of the weights before; does "
                             "somebody else use it?")
        self.version = version

    def complete(self, prompts, group_size, *, max_new_tokens, ends, unused, vocab_size,
                 temperature, seed, repeat):
        """`group_size` answers to each prompt: [(ids, log-probs), ...], those of a prompt in a row.

        prompts: lists of ids.  ends: ids that end an answer.  unused: ids that no token has.
        seed, repeat: as in rollout.generate.
        """
        longest = max(map(len, prompts)) + max_new_tokens
        if longest > self.context:
            raise self.error(f"takes {self.context} tokens at most, and a prompt with its answer "
                             f"may have {longest}; start it with --max-model-len {longest}")
        n = group_size if temperature > 0 else 1    # it refuses more where all would be the same

        def sample(row):
            ids, earlier = prompts[row], repeat[row]
            name = json.dumps([*seed, ids, earlier]).encode()
            found = self.ask("/v1/completions", {
                "model": self.name, "prompt": ids, "n": n, "max_tokens": max_new_tokens,
                "temperature": temperature, "top_p": 1.0, "top_k": 0, "min_p": 0.0,
                "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
                "seed": int.from_bytes(hashlib.sha256(name).digest()[:7], "little"),
                "ignore_eos": True, "stop_token_ids": sorted(ends), "logprobs": 0,
                "skip_special_tokens": False, "return_token_ids": True,
                **({"logit_bias": {str(i): -100.0 for i in unused}} if unused else {})})
            return [self.read(choice, ids, vocab_size, max_new_tokens, ends)
                    for choice in self.choices(found, n)] * (group_size // n)

        return [answer for part in together(sample, range(len(prompts))) for answer in part]

    # ---- what it says

    def choices(self, found, n):
        try:
            choices = sorted(found["choices"], key=lambda choice: choice["index"])
        except (KeyError, TypeError):
            raise self.error(f"gives no choices: {json.dumps(found):.80}") from None
        if len(choices) != n:
            raise self.error(f"gives {len(choices)} answers where {n} were asked for")
        return choices

    def read(self, choice, prompt, vocab_size, max_new_tokens, ends):
        """(ids, log-probs) of an answer.  MinipostError where it is not whole."""
        ids, logp = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
        if choice.get("finish_reason") not in ("stop", "length"):
            raise self.error(f"broke an answer off ({choice.get('finish_reason')!r:.40})")
        if not isinstance(ids, list) or not ids or not all(type(i) is int for i in ids):
            raise self.error("gives no token_ids; vLLM 0.33 does")
        if choice.get("prompt_token_ids") != prompt:
            raise self.error("read another prompt than it was sent")
        if not 0 <= min(ids) <= max(ids) < vocab_size:
            raise self.error(f"drew the id {max(ids)}; the policy's vocabulary has {vocab_size}, "
                             "so it serves another model")
        if len(ids) > max_new_tokens or ends & set(ids[:-1]) or not (
                len(ids) == max_new_tokens or ids[-1] in ends):
            raise self.error(f"did not end an answer where it should ({len(ids)} tokens)")
        if not isinstance(logp, list) or len(logp) != len(ids) or not all(
                isinstance(x, float | int) and math.isfinite(x) for x in logp):
            raise self.error("gives no log-prob of each token; was it started with another "
                             "--logprobs-mode?")
        return ids, logp

    def ask(self, path, body=None):
        """What the server answers, from JSON.  MinipostError where it does not."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data,
                                         {"Content-Type": "application/json"})
        try:
            with DIRECT.open(request, timeout=self.timeout) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                said = message(error.read(2**16))
            if error.code == 404 and not path.startswith("/v1"):
                raise self.error("has no development endpoints, over which it gets weights; start "
                                 "it with VLLM_SERVER_DEV_MODE=1") from None
            raise self.error(f"answers {path.partition('?')[0]} with {error.code}: "
                             f"{said}") from None
        except (OSError, http.client.HTTPException) as error:
            why = getattr(error, "reason", None) or error or type(error).__name__
            raise MinipostError(f"--sampler-url {self.url}: no answer from there ({why!s:.60}); "
                                f"start the server with {START}") from None
        try:
            return json.loads(text) if text.strip() else {}
        except ValueError:
            raise self.error(f"answers {path.partition('?')[0]} with what is not JSON") from None

    def error(self, what):
        return MinipostError(f"the vLLM server at {self.url} {what}")


def message(text):
    """The sentence in the body of an error, in vLLM's form or whatever it is."""
    try:
        found = json.loads(text)
        found = found.get("error", found.get("detail", found))
        return f"{found.get('message', found) if isinstance(found, dict) else found!s:.120}"
    except (ValueError, AttributeError):
        return text.decode(errors="replace")[:120] or "nothing more"


def together(f, items):
    """[f(item), ...], AT_ONCE at once.  The first error is raised, and ends the waiting.

    The threads do not keep the process alive, so Ctrl-C need not wait for the server.
    """
    found, failed, left = {}, [], list(reversed(items))

    def work():
        while not failed:
            try:
                item = left.pop()
            except IndexError:
                return
            try:
                found[item] = f(item)
            except Exception as error:  # it is raised again below, in the main thread
                failed.append(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(AT_ONCE, len(left)))]
    for thread in threads:
        thread.start()
    while not failed and any(thread.is_alive() for thread in threads):
        for thread in threads:
            thread.join(0.05)
            if failed or thread.is_alive():
                break
    if failed:
        raise failed[0]
    return [found[item] for item in items]
