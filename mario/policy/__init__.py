"""The policy: its artefact on disk, and its ONNX network at run time."""
