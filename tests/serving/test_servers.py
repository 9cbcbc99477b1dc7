"""Servers that are given an export: TensorFlow Serving's protocol, Triton, KServe."""

import importlib.machinery
import importlib.metadata
import json
import pathlib
import re
import runpy
import shutil
import socket
import subprocess
import sys
import types
import urllib.error
import urllib.request

import documents
import numpy as np
import pytest
import tensorflow as tf
import tiny_network
import yaml
from documents import ROOT
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,
)

from anpvs_tf.common.errors import TrainingError, UsageError
from anpvs_tf.data.splits import Split
from anpvs_tf.networks.gate import gates_of
from anpvs_tf.pruning import compact
from anpvs_tf.serving import formats, server_files, triton_server
from anpvs_tf.serving.signatures import SIGNATURES

pytest.importorskip("tensorflow_serving")

DOCS = ROOT / "docs" / "serving.md"
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 1), np.uint8)


def block(language, part):
    """The documented code that has a part."""
    (found,) = [text for name, text in documents.blocks(DOCS) if name == language and part in text]
    return found


@pytest.fixture(scope="module")
def frozen():
    network = tiny_network.tiny((28, 28, 1), 10, "beta_bernoulli")
    for gate in gates_of(network):
        gate.close(np.arange(gate.features) % 2 == 1)
    return compact.freeze(network)


def write(frozen, format, base, version=1):
    """A version as `exporting.export` writes it, without a run and its check."""
    (base / str(version)).mkdir(parents=True)
    content = formats.Content(frozen, None, base.name, Split(IMAGES[:1], np.zeros(1)))
    formats.FORMATS[format].write(content, base / str(version))
    server_files.write(base, formats.FORMATS[format].server_files(frozen, base.name))
    return base


def logits_of(frozen, images):
    return frozen(images.astype(np.float32) / 255.0).numpy()


# ---- TensorFlow Serving ----


@pytest.fixture(scope="module")
def served(frozen, tmp_path_factory):
    import model_server

    base = write(frozen, "saved_model", tmp_path_factory.mktemp("exports") / "digits", 7)
    with model_server.serving(base) as serving:
        yield serving


def test_warm_up_requests_are_answered_before_the_first_client(served):
    assert served.model.warmed == list(SIGNATURES)


def test_the_documented_grpc_client(served, frozen):
    names = {}
    exec(block("python", "grpc").replace("localhost:8500", f"127.0.0.1:{served.grpc_port}"), names)
    expected = logits_of(frozen, names["images"])
    np.testing.assert_array_equal(names["classes"], expected.argmax(axis=-1))
    np.testing.assert_allclose(names["probabilities"], tf.nn.softmax(expected), rtol=1e-5)
    assert names["answer"].model_spec.version.value == 7


def test_metadata_and_status_by_grpc(served):
    import grpc
    from tensorflow_serving.apis import (
        get_model_metadata_pb2,
        get_model_status_pb2,
        model_service_pb2_grpc,
        predict_pb2,
        prediction_service_pb2_grpc,
    )

    with grpc.insecure_channel(f"127.0.0.1:{served.grpc_port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = "digits"
        held = get_model_metadata_pb2.SignatureDefMap()
        assert stub.GetModelMetadata(request).metadata["signature_def"].Unpack(held)
        kinds = {name: one.inputs["images"].dtype for name, one in held.signature_def.items()}
        assert kinds == dict(zip(SIGNATURES, (tf.float32, tf.uint8, tf.string), strict=True))

        status = get_model_status_pb2.GetModelStatusRequest()
        status.model_spec.name = "digits"
        answer = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(status)
        (version,) = answer.model_version_status
        assert (version.version, version.state) == (7, 30)  # AVAILABLE.

        request = predict_pb2.PredictRequest()
        request.model_spec.name = "digits"
        request.inputs["images"].CopyFrom(tf.make_tensor_proto(np.full([2, 28, 28, 1], 2.0, "f")))
        with pytest.raises(grpc.RpcError, match="INVALID_ARGUMENT") as error:
            stub.Predict(request)
        assert "images must lie in [0, 1]" in error.value.details()


@pytest.mark.skipif(not shutil.which("curl"), reason="the documented client is curl")
def test_the_documented_rest_client(served, frozen, tmp_path):
    (tmp_path / "seven.png").write_bytes(tf.io.encode_png(IMAGES[0]).numpy())
    commands = block("sh", ":predict").replace("localhost:8501", f"127.0.0.1:{served.rest_port}")
    found = subprocess.run(
        ["bash", "-c", "set -e\n" + commands.replace("curl ", "curl -sS --fail-with-body ")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    metadata, end = json.JSONDecoder().raw_decode(found.stdout)
    assert set(metadata["metadata"]["signature_def"]["signatureDef"]) == set(SIGNATURES)
    outputs = json.loads(found.stdout[end:])["outputs"]
    np.testing.assert_allclose(outputs["logits"], logits_of(frozen, IMAGES[:1]), atol=1e-5)
    assert outputs["classes"] == [np.argmax(outputs["logits"])]


def rest(served, path, body=None):
    """(HTTP status, JSON) of a request."""
    url = f"http://127.0.0.1:{served.rest_port}/v1/models/{path}"
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(url, data, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_rows_by_rest(served, frozen):
    body = {"instances": IMAGES.tolist(), "signature_name": "serve_uint8"}
    status, found = rest(served, "digits:predict", body)
    assert status == 200
    logits = [row["logits"] for row in found["predictions"]]
    np.testing.assert_allclose(logits, logits_of(frozen, IMAGES), atol=1e-5)
    assert [row["classes"] for row in found["predictions"]] == list(np.argmax(logits, axis=-1))
    status, found = rest(served, "digits")
    assert found["model_version_status"][0]["state"] == "AVAILABLE"


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("digits:predict", {"inputs": (IMAGES / 1.0).tolist()}, 400, "must lie in [0, 1]"),
        ("digits:predict", {"inputs": IMAGES[0].tolist()}, 400, "must have shape [batch, 28, 28"),
        (
            "digits:predict",
            {"signature_name": "serve_encoded", "instances": [{"b64": "bm9uZQ=="}]},
            400,
            "images must be PNG or JPEG",
        ),
        ("digits:predict", {}, 400, "must have one of"),
        ("other:predict", {"inputs": []}, 404, "other"),
    ],
)
def test_what_is_refused_by_rest(served, path, body, status, message):
    found = rest(served, path, body)
    assert found[0] == status and message in found[1]["error"]


def test_server_files_are_read_and_kept(frozen, tmp_path):
    from tensorflow_serving.config import model_server_config_pb2

    base = tmp_path / 'di"gits'
    base.mkdir()
    files = server_files.of_saved_model(frozen, base.name)
    server_files.write(base, files)
    text = (base / "models.config").read_text()
    parsed = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    (config,) = parsed.model_config_list.config
    assert (config.name, config.base_path) == (base.name, f"/models/{base.name}")
    assert config.model_platform == "tensorflow"
    (base / "batching.config").write_text("mine")
    server_files.write(base, files)
    assert (base / "batching.config").read_text() == "mine"


def test_the_batching_file_is_one_of_tensorflow_serving():
    # The message is in no package; these are its published fields.
    file = descriptor_pb2.FileDescriptorProto(name="batching.proto", package="batching")
    file.dependency.append("google/protobuf/wrappers.proto")
    message = file.message_type.add(name="BatchingParameters")
    fields = ("max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads")
    for number, name in enumerate(fields, start=1):
        message.field.add(
            name=name, number=number, type=11, label=1, type_name=".google.protobuf.Int64Value"
        )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    made = message_factory.GetMessageClass(
        pool.FindMessageTypeByName("batching.BatchingParameters")
    )
    parsed = text_format.Parse(server_files.BATCHING_CONFIG, made())
    assert parsed.max_batch_size.value == 64
    assert parsed.batch_timeout_micros.value == 2000
    assert parsed.max_enqueued_batches.value == 100


def test_server_files_that_cannot_be_written_are_not_left(frozen, tmp_path, monkeypatch):
    real = server_files.write_atomically

    def fail(path, text):
        if path.name == "inference_service.yaml":
            raise TrainingError("the disk is full")
        real(path, text)

    monkeypatch.setattr(server_files, "write_atomically", fail)
    (tmp_path / "config.pbtxt").write_text("mine")
    with pytest.raises(TrainingError, match="full"):
        server_files.write(tmp_path, server_files.of_triton(frozen, "digits"))
    assert [path.name for path in tmp_path.iterdir()] == ["config.pbtxt"]


# ---- KServe ----

# Of its CustomResourceDefinition inferenceservices.serving.kserve.io, v1beta1: the fields that
# we use, what they hold and which are required.
SCHEMA = {
    "": (dict, ["spec"]),
    "apiVersion": (str, []),
    "kind": (str, []),
    "metadata": (dict, ["name"]),
    "metadata.name": (str, []),
    "spec": (dict, ["predictor"]),
    "spec.predictor": (dict, []),
    "spec.predictor.model": (dict, []),
    "spec.predictor.model.args": (list, []),
    "spec.predictor.model.modelFormat": (dict, ["name"]),
    "spec.predictor.model.modelFormat.name": (str, []),
    "spec.predictor.model.modelFormat.version": (str, []),
    "spec.predictor.model.protocolVersion": (str, []),
    "spec.predictor.model.runtimeVersion": (str, []),
    "spec.predictor.model.storageUri": (str, []),
}
# Of its admission webhook.
SERVICE_NAME = r"[a-z]([-a-z0-9]*[a-z0-9])?"
# (format, version, protocol) that the runtimes that come with KServe choose by themselves.
RUNTIMES = {("tensorflow", "2", "v1"), ("triton", "2", "v2")}
# Tags of the servers' images must be this new: Triton's --model-config-name is of 24.05.
OLDEST = {"triton": (24, 5), "tensorflow": (2, 19)}


def check_schema(value, path=""):
    kind, required = SCHEMA[path]
    assert isinstance(value, kind), path
    if kind is dict:
        assert set(required) <= set(value), path
        for name, held in value.items():
            check_schema(held, f"{path}.{name}".strip("."))


@pytest.mark.parametrize("name", ["digits", "My Model_1", "7", 'a"b: {', "x" * 80, "-"])
@pytest.mark.parametrize("of", [server_files.of_saved_model, server_files.of_triton])
def test_inference_service(frozen, of, name):
    service = yaml.safe_load(of(frozen, name)["inference_service.yaml"])
    check_schema(service)
    assert (service["apiVersion"], service["kind"]) == (
        "serving.kserve.io/v1beta1",
        "InferenceService",
    )
    assert re.fullmatch(SERVICE_NAME, service["metadata"]["name"])
    assert len(service["metadata"]["name"]) <= 50
    model = service["spec"]["predictor"]["model"]
    key = (*model["modelFormat"].values(), model["protocolVersion"])
    assert key in RUNTIMES
    numbers = re.match(r"(\d+)\.(\d+)", model["runtimeVersion"]).groups()
    assert tuple(map(int, numbers)) >= OLDEST[model["modelFormat"]["name"]]
    if of is server_files.of_triton:
        assert model["storageUri"] == "pvc://models"
        (config,) = [path for path in of(frozen, name) if path.startswith("configs/")]
        assert model["args"] == [f"--model-config-name={pathlib.Path(config).stem}"]
    else:
        assert model["storageUri"] == f"pvc://models/{name}"


# ---- Triton ----


class Tensor:
    def __init__(self, name, value):
        self.name, self.value = name, value

    def as_numpy(self):
        return self.value


@pytest.fixture(scope="module")
def models(frozen, tmp_path_factory):
    """A model repository with one model, `digits`."""
    pytest.importorskip("tf2onnx")
    pytest.importorskip("onnxruntime")
    return write(frozen, "triton", tmp_path_factory.mktemp("models") / "digits").parent


def test_the_triton_model_answers_a_batch_of_requests(models, frozen, monkeypatch):
    """The file that the server runs, with the names that the server gives it."""
    error = type("TritonError", (Exception,), {"INVALID_ARG": 3})
    utils = types.SimpleNamespace(
        Tensor=Tensor,
        TritonError=error,
        InferenceResponse=lambda tensors, error=None: (tensors, error),
        get_input_tensor_by_name=lambda request, name: request[name],
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)
    made = runpy.run_path(str(models / "digits" / "1" / "model.py"))["TritonPythonModel"]()
    made.initialize({"model_repository": str(models / "digits"), "model_version": "1"})
    floats = IMAGES.astype(np.float32) / 255.0
    given = [floats[:2], floats[:1] + 1.0, floats[2:], floats[:1] * np.nan]
    answers = made.execute([{"images": Tensor("images", one)} for one in given])
    expected = logits_of(frozen, IMAGES)
    for (tensors, refused), rows in zip(answers[::2], (slice(0, 2), slice(2, 5)), strict=True):
        found = {one.name: one.value for one in tensors}
        assert refused is None
        np.testing.assert_allclose(found["logits"], expected[rows], atol=1e-5)
        np.testing.assert_array_equal(found["classes"], expected[rows].argmax(axis=-1))
    for tensors, refused in answers[1::2]:
        assert not tensors and refused.args == ("images must lie in [0, 1]", 3)
    answers = made.execute([{"images": Tensor("images", given[1])}])
    assert answers[0][1] is not None


@pytest.fixture
def installed():
    """Skips where the real server is not."""
    pytest.importorskip("tritonclient.http", reason="the extra `triton` is not installed")
    if importlib.metadata.version("numpy").startswith("2."):
        pytest.skip("nvidia-pytriton needs numpy below 2")


def start(*arguments, **settings):
    with triton_server.running(*arguments, **settings):
        pass


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_real_triton_server(installed, models, frozen):
    """The documented server and client, then 1,000 requests in 8 threads and some bad ones."""
    from tritonclient import http
    from tritonclient.grpc import model_config_pb2

    from benchmarks import serving

    for path, (backend, _) in server_files.TRITON_BACKENDS.items():
        text = (models / "digits" / path).read_text()
        assert text_format.Parse(text, model_config_pb2.ModelConfig()).backend == backend
    port = free_port()

    def use(process):
        names = {}
        exec(block("python", "tritonclient").replace("localhost:8000", url), names)
        expected = logits_of(frozen, names["images"] * 255.0)
        np.testing.assert_allclose(names["logits"], expected, atol=1e-5)
        np.testing.assert_array_equal(names["classes"][:, 0], expected.argmax(axis=-1))
        images = np.random.default_rng(1).random((50, 2, 28, 28, 1), np.float32)
        answers = serving.ask(url, "digits", [images[i % 50] for i in range(1000)], 8)
        assert not [answer.error for answer in answers if answer.error]
        expected = frozen(images.reshape(-1, 28, 28, 1)).numpy().reshape(50, 2, 10)
        assert serving.right(answers, expected[np.arange(1000) % 50]) == 1000
        # A request that is refused does not hurt those that it came with.
        bad = [images[i] * (2.0 if i % 2 else 1.0) for i in range(40)]
        answers = serving.ask(url, "digits", [one.astype(np.float32) for one in bad], 8)
        assert serving.right(answers[::2], expected[:40:2]) == 20
        assert {str(answer.error) for answer in answers[1::2]} == {
            "[400] images must lie in [0, 1]"
        }
        with http.InferenceServerClient(url) as client:
            assert client.get_model_metadata("digits")["inputs"] == [
                {"name": "images", "datatype": "FP32", "shape": [-1, 28, 28, 1]}
            ]
        with pytest.raises(UsageError, match=f"port {port} of 127.0.0.1 is in use"):
            start(models, port)
        used.append(process.poll())

    url, used = f"127.0.0.1:{port}", []
    code = block("python", "triton_server").replace("8000", str(port))
    exec(
        code.replace('"models"', repr(str(models))).replace("server.wait()", "use(server)"),
        {"use": use},
    )
    assert used == [None]
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port))


def test_a_triton_server_that_does_not_come_up(installed, models, tmp_path):
    broken = shutil.copytree(models, tmp_path / "models")
    (broken / "digits" / "1" / "network.onnx").write_bytes(b"nothing")
    with pytest.raises(TrainingError, match=r"tritonserver ended: .*failed to load.*digits"):
        start(broken, free_port())


@pytest.fixture
def pretended(monkeypatch, tmp_path):
    """An installation of nvidia-pytriton whose server is a script."""
    package = tmp_path / "pytriton"
    for file in ("__init__.py", "tritonserver/bin/tritonserver"):
        (package / file).parent.mkdir(parents=True, exist_ok=True)
        (package / file).touch()
    version = ".".join(map(str, sys.version_info[:2]))
    stub = package / f"tritonserver/python_backend_stubs/{version}/triton_python_backend_stub"
    stub.parent.mkdir(parents=True)
    stub.touch()
    program = package / "tritonserver/bin/tritonserver"
    program.chmod(0o755)
    spec = importlib.machinery.ModuleSpec("pytriton", None, origin=str(package / "__init__.py"))
    monkeypatch.setattr(triton_server.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(triton_server.importlib.metadata, "version", lambda name: "1.26.4")
    return program


def test_a_server_that_ends_or_never_answers(pretended, tmp_path):
    pretended.write_text('#!/bin/sh\necho "I loading"\necho "error: no such backend"\nexit 1\n')
    with pytest.raises(TrainingError, match=r"^tritonserver ended: error: no such backend$"):
        start(tmp_path, free_port())
    pretended.write_text("#!/bin/sh\ntrap 'exit 0' INT\nwhile :; do sleep 0.05; done\n")
    # gRPC of this process may write into the new one that it was forked.
    with pytest.raises(TrainingError, match=r"was not ready in 0\.2 s: "):
        start(tmp_path, free_port(), patience=0.2)


def test_a_server_that_cannot_be_started(pretended, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"no directory .*absent; give that of the models"):
        start(tmp_path / "absent")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} of 127.0.0.1 is in use; choose another"):
            start(tmp_path, port)
    with pytest.raises(UsageError, match=r"port 70000 of 127\.0\.0\.1 cannot be used"):
        start(tmp_path, 70000)
    monkeypatch.setattr(triton_server.importlib.metadata, "version", lambda name: "2.4.6")
    with pytest.raises(UsageError, match=r"needs numpy below 2, and here is 2\.4\.6"):
        start(tmp_path)
    shutil.rmtree(pretended.parent.parent / "python_backend_stubs")
    with pytest.raises(UsageError, match="serves no Python"):
        start(tmp_path)
    monkeypatch.setattr(triton_server.importlib.util, "find_spec", lambda name: None)
    message = r"needs the package nvidia-pytriton: pip install 'anpvs_tf\[triton\]'"
    with pytest.raises(UsageError, match=message):
        start(tmp_path)
