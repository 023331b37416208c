"""What ``serve.py`` is measured against: two servers as an engineer would write them. Run by it, not by hand.

    python benchmarks/rivals.py pipeline|onnx FOLDER PORT

``pipeline``: FastAPI and a transformers pipeline, as its documentation shows. ``onnx``: FastAPI, ONNX Runtime with
8-bit weights, and batches of up to 32 texts that are collected for up to 5 ms.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI

BATCH, WINDOW_S, MAX_TOKENS = 32, 0.005, 128


def pipeline_app(folder: str) -> FastAPI:
    """One text after the other, each request in a thread of the server's pool."""
    from transformers import pipeline

    classify = pipeline("text-classification", model=folder, top_k=1)
    app = FastAPI()

    @app.post("/classify")
    def answer(body: dict[str, Any]) -> list[Any]:
        found: list[Any] = classify(body["inputs"], truncation=True, max_length=MAX_TOKENS)
        return found

    return app


def onnx_app(folder: str) -> FastAPI:
    """Requests are collected and run together."""
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    sys.path.insert(0, str(Path(__file__).parent.parent))
    from serve.engine import onnx_file

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager")
    labels = model.config.id2label
    with tempfile.TemporaryDirectory() as temporary:
        plain, small = Path(temporary, "plain.onnx"), Path(temporary, "int8.onnx")
        onnx_file.write(model.eval(), plain)
        quantize_dynamic(plain, small, weight_type=QuantType.QInt8)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = os.cpu_count() or 1
        session = onnxruntime.InferenceSession(str(small), options, providers=["CPUExecutionProvider"])

    def run(texts: list[str]) -> list[list[dict[str, Any]]]:
        batch = tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="np")
        inputs = {i.name: batch[i.name].astype(np.int64) for i in session.get_inputs()}
        logits = session.run(None, inputs)[0]
        scores = np.exp(logits - logits.max(1, keepdims=True))
        scores /= scores.sum(1, keepdims=True)
        return [[{"label": labels[int(row.argmax())], "score": float(row.max())}] for row in scores]

    waiting: asyncio.Queue[tuple[str, asyncio.Future[Any]]] = asyncio.Queue()
    thread = ThreadPoolExecutor(1)

    async def work() -> None:
        loop = asyncio.get_running_loop()
        while True:
            taken = [await waiting.get()]
            until = loop.time() + WINDOW_S
            while len(taken) < BATCH and (left := until - loop.time()) > 0:
                try:
                    taken.append(await asyncio.wait_for(waiting.get(), left))
                except asyncio.TimeoutError:
                    break
            answers = await loop.run_in_executor(thread, run, [text for text, _ in taken])
            for (_, future), answer in zip(taken, answers, strict=True):
                if not future.done():
                    future.set_result(answer)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(work())
        yield
        task.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.post("/classify")
    async def answer(body: dict[str, Any]) -> list[Any]:
        texts = body["inputs"] if isinstance(body["inputs"], list) else [body["inputs"]]
        futures = [asyncio.get_running_loop().create_future() for _ in texts]
        for pair in zip(texts, futures, strict=True):
            waiting.put_nowait(pair)
        return list(await asyncio.gather(*futures))

    return app


if __name__ == "__main__":
    kind, where, port = sys.argv[1:]
    if not json.loads(Path(where, "config.json").read_text())["id2label"]:
        sys.exit(f"{where} is no classifier")
    app = {"pipeline": pipeline_app, "onnx": onnx_app}[kind](where)
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="error")
