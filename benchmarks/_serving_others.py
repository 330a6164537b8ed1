"""The other servers of the serving benchmark: `python -m benchmarks._serving_others NAME …`."""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import Any

import numpy as np


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
    from fastapi import FastAPI, Request
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

    # Annotations are strings here; FastAPI looks the class up in the module.
    globals()["Request"] = Request
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


def serve_litserve(folder: Path, port: int) -> None:
    """LitServe around the same ONNX session, with its dynamic batching."""
    import litserve
    import onnxruntime

    class Api(litserve.LitAPI):
        def setup(self, device: str) -> None:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            self.session = onnxruntime.InferenceSession(str(folder / "policy.onnx"), options)

        def decode_request(self, request: dict[str, Any]) -> np.ndarray:
            data = base64.b64decode(request["observation"])
            return np.frombuffer(data, np.uint8).reshape(4, 84, 84)

        def predict(self, observations: np.ndarray) -> np.ndarray:
            logits, values = self.session.run(None, {"observation": np.asarray(observations)})
            return np.concatenate([logits, values[:, None]], axis=1)

        def encode_response(self, output: np.ndarray) -> dict[str, Any]:
            logits = output[:-1] - output[:-1].max()
            shares = np.exp(logits) / np.exp(logits).sum()
            return {
                "action": int(logits.argmax()),
                "probabilities": shares.tolist(),
                "value": float(output[-1]),
            }

    server = litserve.LitServer(
        Api(max_batch_size=32, batch_timeout=0.0), accelerator="cpu", workers_per_device=1
    )
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    SERVERS = {"fastapi": serve_fastapi, "litserve": serve_litserve}
    SERVERS[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
