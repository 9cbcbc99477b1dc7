"""The formats of an export: the files that each writes, and the packages that it needs."""

import dataclasses
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import numpy as np

from anpvs_tf.data.splits import Split
from anpvs_tf.serving import (
    keras_file,
    litert,
    onnx_file,
    server_files,
    signatures,
    torch_file,
    web_page,
)


class Content(NamedTuple):
    """The content of an export.

    Attributes:
        network: a network from `compact.freeze`.
        classes: their names; None where the dataset has none.
        name: of the model: that of the export base.
        test: test images, of which formats hold some.
        shown: in a page: the network itself, and its rival if there is one.
        quantize: the quantisations of LiteRT to write besides float32.
        calibration: uint8 [examples, H, W, C], training images, for "int8" among them.
    """

    network: keras.Model
    classes: list[str] | None
    name: str
    test: Split
    shown: Sequence[web_page.Shown] = ()
    quantize: Sequence[str] = ()
    calibration: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Format:
    """How one format is written.

    Attributes:
        write: writes the content into a directory.
        file: stands in a version of this format, and in no version of another.
        packages: imported by writing or checking.
        extra: of this package, which installs them; None where all installations have them.
        server_files: {file: text} for a server, beside the versions of a network and a name.
        program: that runs the check; the export goes unchecked where it is not installed.
        examples: how many test images the check takes, of those that there are; None for all.
    """

    write: Callable[[Content, pathlib.Path], None]
    file: str
    packages: tuple[str, ...] = ()
    extra: str | None = None
    server_files: Callable[[keras.Model, str], dict[str, str]] = lambda network, name: {}
    program: str | None = None
    examples: Callable[[list[web_page.Shown], int], int] | None = None


def _saved_model(content: Content, path: pathlib.Path) -> None:
    signatures.write_saved_model(content.network, content.classes, path)
    signatures.write_warmup(path, content.name, content.test.images[:1])


def _tflite(content: Content, path: pathlib.Path) -> None:
    litert.write(content.network, path, content.quantize, content.calibration)


def _keras(content: Content, path: pathlib.Path) -> None:
    keras_file.write(content.network, path)


def _onnx(content: Content, path: pathlib.Path) -> None:
    onnx_file.write(content.network, path / "model.onnx")


def _triton(content: Content, path: pathlib.Path) -> None:
    onnx_file.write(content.network, path / "network.onnx")
    answering = pathlib.Path(__file__).parent / "templates" / "triton_model.py"
    shutil.copyfile(answering, path / "model.py")


def _torch(content: Content, path: pathlib.Path) -> None:
    torch_file.write(content.network, content.name, path)


def _web(content: Content, path: pathlib.Path) -> None:
    web_page.write(content.shown, content.test, path)


FORMATS = {
    "saved_model": Format(
        _saved_model,
        "saved_model.pb",
        ("tensorflow_serving.apis",),
        "serving",
        server_files.of_saved_model,
    ),
    "tflite": Format(_tflite, litert.FLOAT, ("ai_edge_litert",), "serving"),
    "keras": Format(_keras, "model.keras"),
    "onnx": Format(_onnx, "model.onnx", ("tf2onnx", "onnxruntime"), "onnx"),
    "triton": Format(
        _triton, "network.onnx", ("tf2onnx", "onnxruntime"), "onnx", server_files.of_triton
    ),
    "torch": Format(_torch, torch_file.WEIGHTS, ("torch",), "torch"),
    "web": Format(_web, web_page.FILE, program="node", examples=web_page.examples_of_check),
}
