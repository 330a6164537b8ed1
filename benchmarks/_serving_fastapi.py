"""FastAPI + torch of the serving benchmark: `python -m benchmarks._serving_fastapi FOLDER PORT`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import Request


def torch_network(folder: Path) -> Any:
    """The network of an artefact as a torch module, weights and all."""
    import onnx
    import torch
    from onnx import numpy_helper

    model = onnx.load(folder / "policy.onnx")
    weights = {i.name: torch.from_numpy(numpy_helper.to_array(i).copy())
               for i in model.graph.initializer}  # fmt: skip

    class Network(torch.nn.Module):
        def forward(self, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x = observation.float() / 255
            for i, stride in enumerate((4, 2, 1)):
                x = torch.relu(torch.nn.functional.conv2d(
                    x, weights[f"conv{i}.weight"], weights[f"conv{i}.bias"], stride))  # fmt: skip
            x = torch.nn.functional.linear(
                x.flatten(1), weights["dense.weight"], weights["dense.bias"]
            )
            x = torch.relu(x)
            logits = torch.nn.functional.linear(x, weights["actor.weight"], weights["actor.bias"])
            value = torch.nn.functional.linear(x, weights["critic.weight"], weights["critic.bias"])
            return logits, value[:, 0]

    return Network().eval()


def serve_fastapi(folder: Path, port: int) -> None:
    """A plain FastAPI app around torch: raw bytes in, JSON out."""
    import torch
    import uvicorn
    from fastapi import FastAPI
    from fastapi.concurrency import run_in_threadpool

    torch.set_num_threads(1)
    network = torch_network(folder)
    app = FastAPI()

    def answer(body: bytes) -> dict[str, Any]:
        observations = np.frombuffer(body, np.uint8).reshape(-1, 4, 84, 84)
        with torch.inference_mode():
            logits, value = network(torch.from_numpy(observations.copy()))
            probabilities = torch.softmax(logits, 1)
        return {
            "action": logits.argmax(1).tolist(),
            "probabilities": probabilities.tolist(),
            "value": value.tolist(),
        }

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, Any]:
        return await run_in_threadpool(answer, await request.body())

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    serve_fastapi(Path(sys.argv[1]), int(sys.argv[2]))
