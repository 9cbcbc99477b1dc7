"""A small server that speaks TensorFlow Serving's protocol, for one model, on loopback.

It knows what the real one is given and nothing else: models.config, and the files below the
export base. It takes the newest version, runs its warm-up requests, and answers gRPC
(PredictionService, ModelService) and REST (:predict, status, metadata).
"""

import base64
import concurrent.futures
import contextlib
import dataclasses
import http.server
import json
import pathlib
import threading

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import json_format, text_format
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)
from tensorflow_serving.config import model_server_config_pb2

AVAILABLE = get_model_status_pb2.ModelVersionStatus.AVAILABLE


class Refused(Exception):
    """A request that cannot be answered: a gRPC status, an HTTP status, a message."""

    def __init__(self, code, status, message):
        super().__init__(message)
        self.code, self.status = code, status


class Model:
    """The newest version of a model."""

    def __init__(self, base: pathlib.Path):
        config = model_server_config_pb2.ModelServerConfig()
        text_format.Parse((base / "models.config").read_text(), config)
        (found,) = config.model_config_list.config
        # The volume that docs/serving.md gives to the container.
        assert found.base_path == f"/models/{base.name}"
        assert found.model_platform == "tensorflow"
        self.name = found.name
        self.version = max(int(path.name) for path in base.iterdir() if path.name.isdigit())
        path = base / str(self.version)
        saved = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
        (graph,) = saved.meta_graphs
        self.definitions = {
            name: definition
            for name, definition in graph.signature_def.items()
            if not name.startswith("__")
        }
        self.signatures = tf.saved_model.load(str(path)).signatures
        self.warmed = []
        warmup = path / "assets.extra" / "tf_serving_warmup_requests"
        for record in tf.data.TFRecordDataset(str(warmup)):
            log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
            self.predict(log.predict_log.request)
            self.warmed.append(log.predict_log.request.model_spec.signature_name)

    def check(self, spec):
        version = spec.version.value if spec.HasField("version") else self.version
        if spec.name != self.name or version != self.version:
            message = f"Servable not found for request: Specific({spec.name}, {version})"
            raise Refused(grpc.StatusCode.NOT_FOUND, 404, message)

    def predict(self, request):
        self.check(request.model_spec)
        signature = request.model_spec.signature_name or "serving_default"
        if signature not in self.signatures:
            message = f"signature {signature} not found"
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, 400, message)
        inputs = {}
        for name, proto in request.inputs.items():
            value = tf.make_ndarray(proto)
            # Bytes come as objects.
            inputs[name] = tf.constant(value.tolist() if value.dtype == object else value)
        try:
            outputs = self.signatures[signature](**inputs)
        except (tf.errors.InvalidArgumentError, TypeError) as error:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, 400, str(error)) from error
        answer = predict_pb2.PredictResponse()
        answer.model_spec.CopyFrom(self.spec(signature))
        for name, value in outputs.items():
            answer.outputs[name].CopyFrom(tf.make_tensor_proto(value))
        return answer

    def metadata(self, request):
        self.check(request.model_spec)
        answer = get_model_metadata_pb2.GetModelMetadataResponse()
        answer.model_spec.CopyFrom(self.spec(""))
        held = get_model_metadata_pb2.SignatureDefMap()
        for name, definition in self.definitions.items():
            held.signature_def[name].CopyFrom(definition)
        answer.metadata["signature_def"].Pack(held)
        return answer

    def status(self, request):
        self.check(request.model_spec)
        answer = get_model_status_pb2.GetModelStatusResponse()
        answer.model_version_status.add(version=self.version, state=AVAILABLE)
        return answer

    def spec(self, signature):
        request = predict_pb2.PredictRequest()
        request.model_spec.name = self.name
        request.model_spec.version.value = self.version
        request.model_spec.signature_name = signature
        return request.model_spec


def answered(call):
    """A gRPC method of a function from requests to answers."""

    def method(self, request, context):
        try:
            return call(request)
        except Refused as error:
            context.abort(error.code, str(error))

    return method


# ---- REST, which the real server turns into the same messages ----


def of_rest(model, body):
    """The request of a JSON body, and whether it has rows ("instances")."""
    rows = "instances" in body
    if rows == ("inputs" in body):
        raise Refused(None, 400, "JSON must have one of: instances, inputs")
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model.name
    request.model_spec.signature_name = body.get("signature_name", "serving_default")
    definition = model.definitions.get(request.model_spec.signature_name)
    if definition is None:
        raise Refused(None, 400, f"signature {request.model_spec.signature_name} not found")
    given = body["instances"] if rows else body["inputs"]
    named = {}
    if rows and isinstance(given[0], dict) and "b64" not in given[0]:
        named = {name: [one[name] for one in given] for name in given[0]}
    elif not rows and isinstance(given, dict) and "b64" not in given:
        named = given
    else:
        (name,) = definition.inputs
        named[name] = given
    for name, value in named.items():
        kind = tf.dtypes.as_dtype(definition.inputs[name].dtype)
        request.inputs[name].CopyFrom(tf.make_tensor_proto(decoded(value), kind))
    return request, rows


def decoded(value):
    if isinstance(value, dict):
        return base64.b64decode(value["b64"])
    return [decoded(one) for one in value] if isinstance(value, list) else value


def to_rest(answer, rows):
    found = {}
    for name, proto in answer.outputs.items():
        value = tf.make_ndarray(proto)
        text = np.vectorize(bytes.decode, otypes=[object])
        found[name] = (text(value) if value.dtype == object else value).tolist()
    if rows:
        listed = [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]
        return {"predictions": listed}
    return {"outputs": found}


def handler(model):
    """The class of a server of REST requests."""
    place = f"/v1/models/{model.name}"

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            request = get_model_metadata_pb2.GetModelMetadataRequest()
            request.model_spec.name = model.name
            calls = {place: model.status, f"{place}/metadata": model.metadata}
            self.answer(lambda: json_format.MessageToDict(self.known(calls)(request)))

        def do_POST(self):
            text = self.rfile.read(int(self.headers["Content-Length"]))

            def predict():
                request, rows = of_rest(model, json.loads(text))
                return to_rest(model.predict(request), rows)

            self.answer(lambda: self.known({f"{place}:predict": predict})())

        def known(self, calls):
            if self.path not in calls:
                raise Refused(None, 404, f"Malformed request: {self.command} {self.path}")
            return calls[self.path]

        def answer(self, call):
            try:
                status, found = 200, call()
            except Refused as error:
                status, found = error.status, {"error": str(error)}
            text = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *arguments):
            pass

    return Handler


@dataclasses.dataclass
class Serving:
    model: Model
    grpc_port: int
    rest_port: int


@contextlib.contextmanager
def serving(base: pathlib.Path):
    """Serves the newest version of an export base."""
    model = Model(base)
    servicer = type(
        "Servicer",
        (prediction_service_pb2_grpc.PredictionServiceServicer,),
        {"Predict": answered(model.predict), "GetModelMetadata": answered(model.metadata)},
    )
    states = type(
        "States",
        (model_service_pb2_grpc.ModelServiceServicer,),
        {"GetModelStatus": answered(model.status)},
    )
    rpc = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(servicer(), rpc)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(states(), rpc)
    port = rpc.add_insecure_port("127.0.0.1:0")
    rpc.start()
    rest = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(model))
    thread = threading.Thread(target=rest.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield Serving(model, port, rest.server_address[1])
    finally:
        rest.shutdown()
        thread.join()
        rest.server_close()
        rpc.stop(None)
