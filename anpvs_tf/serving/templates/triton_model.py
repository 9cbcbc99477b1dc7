"""Answers requests to Triton's Python backend by ONNX Runtime; needs numpy and onnxruntime."""

import pathlib

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

OUTPUTS = ("logits", "probabilities", "classes")


class TritonPythonModel:
    """Runs network.onnx, which lies beside this file."""

    def initialize(self, args: dict) -> None:
        path = pathlib.Path(args["model_repository"], args["model_version"], "network.onnx")
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def execute(self, requests: list) -> list:
        """Computes the requests as one batch; a refused one does not fail the others."""
        images = [pb_utils.get_input_tensor_by_name(one, "images").as_numpy() for one in requests]
        # A NaN is not in [0, 1].
        right = [bool(np.all((one >= 0.0) & (one <= 1.0))) for one in images]
        accepted = [one for one, good in zip(images, right, strict=True) if good]
        parts = iter(self._parts(accepted))
        return [self._answer(next(parts) if good else None) for good in right]

    def _parts(self, images):
        """Computes one tuple of outputs for each array of images."""
        if not images:
            return []
        values = self.session.run(OUTPUTS, {"images": np.concatenate(images)})
        ends = np.cumsum([len(one) for one in images])[:-1]
        return zip(*(np.split(value, ends) for value in values), strict=True)

    def _answer(self, values):
        if values is None:
            error = pb_utils.TritonError(
                "images must lie in [0, 1]", pb_utils.TritonError.INVALID_ARG
            )
            return pb_utils.InferenceResponse([], error)
        named = zip(OUTPUTS, values, strict=True)
        return pb_utils.InferenceResponse([pb_utils.Tensor(*one) for one in named])
