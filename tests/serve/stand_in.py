"""Small servers that speak the interfaces of vLLM, LMDeploy and Ollama; each takes only what the real one documents.

`python stand_in.py` with the command line of a real one. Answers go on counting from the number of the prompt's tokens.
STAND_IN_LOG is a file that gets a JSON object for each start, request and connection that was given up; STAND_IN_FAULT
is one thing that is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from tokenizers import Tokenizer

FAULT = os.environ.get("STAND_IN_FAULT", "")
OF_VLLM = {
    "model", "prompt", "max_tokens", "temperature", "top_p", "top_k", "seed", "stop_token_ids", "stream",
    "return_token_ids", "logprobs", "return_tokens_as_token_ids", "response_format",
}  # fmt: skip
OF_LMDEPLOY = {"input_ids", "max_tokens", "temperature", "top_p", "top_k", "stop_token_ids", "stream"}
OF_OLLAMA = {"model", "prompt", "raw", "options", "format", "stream"}


def note(**event: Any) -> None:
    with Path(os.environ["STAND_IN_LOG"]).open("a", encoding="utf-8") as log:
        log.write(json.dumps(event) + "\n")


def counted(tokenizer: Tokenizer, prompt_tokens: int, limit: int) -> list[int]:
    """The answer: ` 7 8 9 ...` as tokens, and then the end token."""
    text = "".join(f" {number}" for number in range(prompt_tokens, prompt_tokens + 40))
    ids = [*tokenizer.encode(text, add_special_tokens=False).ids, tokenizer.token_to_id("<|im_end|>")]
    return ids[:limit]


async def paced(ids: list[int]) -> AsyncIterator[tuple[int, bool]]:
    """Yields each token and whether it is the last; says when nobody listens any more."""
    try:
        for index, token in enumerate(ids):
            await asyncio.sleep(0.005)
            if FAULT == "dies":
                os._exit(7)
            yield token, index == len(ids) - 1
    except (asyncio.CancelledError, GeneratorExit):
        note(given_up=True)
        raise


def refuse(message: str) -> Response:
    return JSONResponse({"error": {"message": message, "code": 400}}, 400)


def events(pieces: AsyncIterator[dict[str, Any]]) -> Response:
    async def lines() -> AsyncIterator[bytes]:
        async for piece in pieces:
            yield b"data: " + json.dumps(piece).encode() + b"\n\n"
        yield b"data: [DONE]\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream")


async def said(request: Request, known: set[str]) -> dict[str, Any]:
    body: dict[str, Any] = await request.json()
    note(path=request.url.path, body=body, key=request.headers.get("authorization"))
    assert set(body) <= known, set(body) - known
    return body


def vllm(line: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    for name in ("served-model-name", "uds", "uvicorn-log-level", "generation-config", "dtype", "tensor-parallel-size"):
        parser.add_argument(f"--{name}")
    for name in ("max-model-len", "max-lora-rank", "max-loras", "max-num-seqs"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("enable-tokenizer-info-endpoint", "enable-lora", "enable-auto-tool-choice"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--lora-modules", nargs="+", default=[])
    parser.add_argument("--chat-template")
    parser.add_argument("--structured-outputs-config", type=json.loads)
    parser.add_argument("--tool-call-parser")
    options = parser.parse_args(line)
    folder = Path(options.model)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    names = [options.served_model_name, *(json.loads(module)["name"] for module in options.lora_modules)]
    context = options.max_model_len or json.loads((folder / "config.json").read_text())["max_position_embeddings"]
    template = json.loads((folder / "tokenizer_config.json").read_text()).get("chat_template")
    if options.chat_template is not None:
        template = Path(options.chat_template).read_text(encoding="utf-8")

    async def models(_: Request) -> Response:
        length = context - 1 if FAULT == "context" else context
        return JSONResponse({"data": [{"id": name, "max_model_len": length} for name in names]})

    async def tokenize(request: Request) -> Response:
        body = await request.json()
        ids = tokenizer.encode(body["prompt"], add_special_tokens=body["add_special_tokens"]).ids
        return JSONResponse({"tokens": [0, *ids] if FAULT == "tokens" else ids})

    async def info(_: Request) -> Response:
        return JSONResponse({"chat_template": "another" if FAULT == "template" else template})

    async def complete(request: Request) -> Response:
        body = await said(request, OF_VLLM)
        if body["model"] not in names:
            return JSONResponse({"error": {"message": "no such model"}}, 404)
        if body.get("response_format", {}).get("json_schema", {}).get("schema", {}).get("type") == "bad":
            return refuse("Grammar error: type must be one of ...")
        answer = counted(tokenizer, len(body["prompt"]), body["max_tokens"])

        async def pieces() -> AsyncIterator[dict[str, Any]]:
            async for token, last in paced(answer):
                ended = token in body["stop_token_ids"]
                reason = "stop" if ended else "length" if last else None
                choice = {"index": 0, "text": "ignored", "token_ids": [token], "finish_reason": reason}
                if "logprobs" in body:
                    likely = {f"token_id:{token}": -2.0, "token_id:5": -0.5, "token_id:6": -1.0}
                    found = {"tokens": [f"token_id:{token}"], "token_logprobs": [-2.0], "top_logprobs": [likely]}
                    choice["logprobs"] = found
                yield {"choices": [choice]}

        return events(pieces())

    routes = [
        Route("/health", lambda _: Response()),
        Route("/v1/models", models),
        Route("/tokenize", tokenize, methods=["POST"]),
        Route("/tokenizer_info", info),
        Route("/v1/completions", complete, methods=["POST"]),
    ]
    note(started="vllm", line=line, key=os.environ["VLLM_API_KEY"], session=os.getsid(0), group=os.getpgrp())
    uvicorn.run(Starlette(routes=routes), uds=options.uds, log_level="warning")


def lmdeploy(line: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    for name in ("server-name", "api-keys", "model-name", "session-len", "tp", "cache-max-entry-count"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--server-port", type=int)
    options = parser.parse_args(line)
    tokenizer = Tokenizer.from_file(str(Path(options.model) / "tokenizer.json"))

    async def generate(request: Request) -> Response:
        body = await said(request, OF_LMDEPLOY)
        if request.headers.get("authorization") != f"Bearer {options.api_keys}":
            return JSONResponse({"message": "Please request with valid api key!"}, 401)
        answer = counted(tokenizer, len(body["input_ids"]), body["max_tokens"])

        async def pieces() -> AsyncIterator[dict[str, Any]]:
            async for token, last in paced(answer):
                kind = "stop" if token in body["stop_token_ids"] else "length" if last else None
                # The end token is not told.
                ids = [] if kind == "stop" else [token]
                reason = None if kind is None else {"type": kind}
                yield {"text": "ignored", "output_ids": ids, "meta_info": {"finish_reason": reason}}

        return events(pieces())

    routes = [
        Route("/health", lambda _: Response()),
        Route("/v1/models", lambda _: JSONResponse({"data": [{"id": options.model_name}]})),
        Route("/generate", generate, methods=["POST"]),
    ]
    note(started="lmdeploy", line=line)
    uvicorn.run(Starlette(routes=routes), host=options.server_name, port=options.server_port, log_level="warning")


def ollama(line: list[str]) -> None:
    if line[0] == "create":
        note(created=line[1], modelfile=Path(line[3]).read_text(encoding="utf-8"), host=os.environ["OLLAMA_HOST"])
        return
    tokenizer = Tokenizer.from_file(os.environ["STAND_IN_TOKENIZER"])
    host, _, port = os.environ["OLLAMA_HOST"].partition(":")

    async def generate(request: Request) -> Response:
        body = await said(request, OF_OLLAMA)
        prompt = len(tokenizer.encode(body["prompt"], add_special_tokens=True).ids) + (FAULT == "tokens")
        text = tokenizer.decode(counted(tokenizer, prompt, body["options"]["num_predict"]))
        words = re.findall(r" ?[^ ]+", text)
        closing = {"response": "", "done": True, "done_reason": "stop", "prompt_eval_count": prompt, "eval_count": 9}
        if not body.get("stream", True):
            return JSONResponse({**closing, "response": text})

        async def lines() -> AsyncIterator[bytes]:
            async for index, _ in paced(list(range(len(words)))):
                yield json.dumps({"response": words[index], "done": False}).encode() + b"\n"
            yield json.dumps(closing).encode() + b"\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    routes = [
        Route("/api/version", lambda _: JSONResponse({"version": "0.31.0"})),
        Route("/api/generate", generate, methods=["POST"]),
    ]
    note(started="ollama")
    uvicorn.run(Starlette(routes=routes), host=host, port=int(port), log_level="warning")


if __name__ == "__main__":
    line = sys.argv[1:]
    if line[:1] == ["-I"]:
        # Asked whether it has a package.
        sys.exit(0)
    elif line[:3] == ["-m", "vllm.entrypoints.cli.main", "serve"]:
        vllm(line[3:])
    elif line[:4] == ["-m", "lmdeploy", "serve", "api_server"]:
        lmdeploy(line[4:])
    else:
        ollama(line)
