"""LitServe of the serving benchmark: `python -m benchmarks._serving_litserve FOLDER PORT`."""

from __future__ import annotations

import base64
import os
import sys
from pathlib import Path
from typing import Any

import litserve
import numpy as np

FOLDER = "MARIO_BENCHMARK_FOLDER"


class Api(litserve.LitAPI):
    """The same ONNX session behind LitServe's dynamic batching."""

    def setup(self, device: str) -> None:
        """Open the session; runs in LitServe's own worker process."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            str(Path(os.environ[FOLDER]) / "policy.onnx"), options
        )

    def decode_request(self, request):  # type: ignore[no-untyped-def]
        """Read one observation; LitServe would take an annotation for a schema."""
        data = base64.b64decode(request["observation"])
        return np.frombuffer(data, np.uint8).reshape(4, 84, 84)

    def predict(self, observations: np.ndarray) -> np.ndarray:
        """Answer a batch."""
        logits, values = self.session.run(None, {"observation": np.asarray(observations)})
        return np.concatenate([logits, values[:, None]], axis=1)

    def encode_response(self, output: np.ndarray) -> dict[str, Any]:
        """Write one answer."""
        logits = output[:-1] - output[:-1].max()
        shares = np.exp(logits) / np.exp(logits).sum()
        return {
            "action": int(logits.argmax()),
            "probabilities": shares.tolist(),
            "value": float(output[-1]),
        }


if __name__ == "__main__":
    os.environ[FOLDER] = sys.argv[1]
    # Without a time-out above zero its worker spins on an empty queue.
    api = Api(max_batch_size=32, batch_timeout=0.002)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False,
               log_level="warning")  # fmt: skip
