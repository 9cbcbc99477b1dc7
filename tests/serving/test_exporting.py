"""Export of a tiny trained run, and what the exported signatures answer and refuse."""

import dataclasses
import io
import subprocess
import sys
import types
from xml.etree import ElementTree

import documents
import keras
import markdown_it
import numpy as np
import pytest
import tensorflow as tf
import yaml
from documents import ROOT
from PIL import Image

from anpvs_tf.common.errors import TrainingError, UsageError
from anpvs_tf.data.loading import Split, load
from anpvs_tf.networks import architectures
from anpvs_tf.networks.gate import gates_of
from anpvs_tf.pruning import compact
from anpvs_tf.runs import directory, resolution
from anpvs_tf.runs.finished_run import open_run
from anpvs_tf.serving import (
    exporting,
    formats,
    isolated_process,
    keras_file,
    litert,
    model_card,
    names,
    verification,
    web_page,
)
from anpvs_tf.serving.signatures import SIGNATURES, write_saved_model
from anpvs_tf.training import trainer

pytest.importorskip("tensorflow_serving")  # Without it, nothing is exported.

TEST = load("digits").test
NAMES = [f"digit {i}" for i in range(10)]


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_lenet5):
    """A finished run of a few steps, then half of its features pruned by hand."""
    tiny = {
        "epochs": 1,
        "base_epochs": 1,
        "steps_per_epoch": 4,
        "eval_examples": 16,
        "eval_attack_steps": 2,
        "attack_steps": 2,
    }
    found = directory.RunDirectory(tmp_path_factory.mktemp("runs") / "run")
    trainer.train(resolution.resolve(tiny), found)
    network = open_run(found.path).network()
    for gate in gates_of(network):
        gate.close(np.arange(gate.features) % 2 == 1)
    found.write_weights(network)
    (found.path / "SHA256SUMS").unlink()  # It would say that the weights were changed.
    return open_run(found.path)


@pytest.fixture(scope="module")
def network(run):
    return run.network()


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    return exporting.export(run, tmp_path_factory.mktemp("exports") / "digits")


@pytest.fixture(scope="module")
def signatures(exported):
    return tf.saved_model.load(str(exported.path)).signatures


def gated_logits(network, images):
    return network(images.astype(np.float32) / 255.0, training=False)["logits"].numpy()


def png(image):
    return tf.io.encode_png(image).numpy()


# ---- What it writes ----


def test_layout(exported):
    base = exported.path.parent
    files = {"1", "batching.config", "inference_service.yaml", "models.config"}
    assert {path.name for path in base.iterdir()} == files
    held = {path.name for path in exported.path.iterdir()}
    assert held >= {"saved_model.pb", "variables", "assets.extra", "README.md"}
    assert exported.path.stat().st_mode & 0o777 == 0o755


def test_report_covers_every_test_image(exported, network):
    classes = gated_logits(network, TEST.images).argmax(axis=-1)
    report = exported.report
    assert report.examples == len(TEST)
    assert report.accuracy == np.mean(classes == TEST.labels)
    assert set(report.exported) == set(SIGNATURES)
    for agreement in report.exported.values():
        assert agreement.equal_classes == len(TEST)
        assert agreement.accuracy == report.accuracy
        assert agreement.difference < 1e-5


def test_warmup_requests_are_real(exported, signatures):
    from tensorflow_serving.apis import prediction_log_pb2

    path = exported.path / "assets.extra" / "tf_serving_warmup_requests"
    seen = []
    for record in tf.data.TFRecordDataset(str(path)):
        request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
        assert request.model_spec.name == "digits"
        name = request.model_spec.signature_name
        images = tf.make_ndarray(request.inputs["images"])
        # Bytes come back as objects.
        images = tf.constant(images.tolist() if images.dtype == object else images)
        assert signatures[name](images=images)["logits"].shape == (1, 10)
        seen.append(name)
    assert seen == list(SIGNATURES)


def test_model_card(exported, run):
    card = (exported.path / "README.md").read_text()
    record = run.trained
    assert f"{record['clean_accuracy']:.2%}" in card
    assert f"{record['robust_accuracy']:.2%}" in card
    assert f"linf {record['threat_model']['epsilon']:g}" in card
    assert f"{exported.compact_network.count_params():,} parameters" in card
    for heading in ("Data", "Method", "Threat model", "Measured", "Limits"):
        assert f"## {heading}\n" in card


def metadata_of(card):
    """What Hugging Face reads of a card."""
    before, text, _ = card.split("---\n", 2)
    assert not before
    return yaml.safe_load(text)


@pytest.mark.parametrize("format", ["keras", "onnx", "saved_model"])
def test_the_metadata_of_the_model_card(exported, run, format):
    record = run.trained | {"sparsity": 0.5}
    doubted = record | {"reliable": False, "robust_accuracy": 0.99}
    attack = {"name": "autoattack", "steps": 100}
    other = record | {"attack": attack, "robust_accuracy": 0.125, "examples": 300}
    seen = dataclasses.replace(run, trained=record, evaluations=[doubted, other])
    arguments = (exported.compact_network, format, 1, exported.report)
    found = metadata_of(model_card.text(seen, *arguments, "MIT"))
    assert found["license"] == "mit" and found["pipeline_tag"] == "image-classification"
    assert found.get("library_name") == {"saved_model": None}.get(format, format)
    assert found["tags"] == ["adversarial-robustness", "pruning", "anpvs"]
    assert "datasets" not in found  # Hugging Face knows no digits of ours.
    (model,) = found["model-index"]
    (result,) = model["results"]
    assert result["dataset"] == {"name": "digits", "type": "digits", "split": "test"}
    clean, _, robust = result["metrics"]
    assert clean["value"] == pytest.approx(record["clean_accuracy"], abs=1e-4)
    name = "accuracy under autoattack (100 steps), linf 0.13, 300 images"
    assert robust == {"type": "accuracy", "name": name, "value": 0.125}
    assert "license" not in metadata_of(model_card.text(seen, *arguments))
    ensemble = record | {"posterior_draws": 3}  # It is not what is exported.
    seen = dataclasses.replace(run, trained=ensemble)
    assert "model-index" not in metadata_of(model_card.text(seen, *arguments))


def text_of(markdown):
    """(text, {tags}) of Markdown as a browser shows it."""
    html = markdown_it.MarkdownIt().enable("table").render(markdown)
    root = ElementTree.fromstring(f"<div>{html}</div>")
    return "".join(root.itertext()), {one.tag for one in root.iter()}


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a `b` **c** | [d](//e)", "f\n# g"])
def test_a_name_in_the_model_card_is_text_whatever_it_holds(name, exported, run):
    settings = dataclasses.replace(run.settings, dataset=f"folder:/{name}")
    renamed = dataclasses.replace(run, settings=settings)
    card = model_card.text(renamed, exported.compact_network, "tflite", 1, exported.report)
    assert metadata_of(card)["model-index"][0]["results"][0]["dataset"]["name"] == settings.dataset
    shown, tags = text_of(card.split("---\n", 2)[2])
    assert shown.count(f"folder:/{' '.join(name.split())}") == 2
    plain = (exported.path / "README.md").read_text().split("---\n", 2)[2]
    assert tags == text_of(plain)[1]


FUNCTION_LIBRARY = "library"  # The field of a GraphDef that holds its functions.


def test_no_custom_operations(exported):
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString((exported.path / "saved_model.pb").read_bytes())
    graph = saved.meta_graphs[0].graph_def
    defined = getattr(graph, FUNCTION_LIBRARY).function
    nodes = [*graph.node, *(node for f in defined for node in f.node_def)]
    functions = {f.signature.name for f in defined}
    known = set(dir(tf.raw_ops))
    assert {node.op for node in nodes} - functions - known <= {"_Arg", "_Retval"}
    assert not {"PyFunc", "EagerPyFunc"} & {node.op for node in nodes}


# ---- What the signatures answer ----


@pytest.mark.parametrize("signature", SIGNATURES)
@pytest.mark.parametrize("batch", [0, 1, 7])
def test_signatures(signatures, network, signature, batch):
    images = TEST.images[:batch]
    values = {
        "serving_default": tf.constant(images / 255.0, tf.float32),
        "serve_uint8": tf.constant(images),
        "serve_encoded": tf.constant([png(image) for image in images], tf.string),
    }
    found = signatures[signature](images=values[signature])
    assert set(found) == {"logits", "probabilities", "classes"}
    assert found["logits"].shape == found["probabilities"].shape == (batch, 10)
    assert found["classes"].shape == (batch,)
    if batch:
        expected = gated_logits(network, images)
        np.testing.assert_allclose(found["logits"], expected, atol=1e-5 * np.abs(expected).max())
        np.testing.assert_array_equal(found["classes"], expected.argmax(axis=-1))
        np.testing.assert_allclose(np.sum(found["probabilities"], axis=-1), 1.0, rtol=1e-5)


def test_jpeg(signatures, network):
    encoded = tf.io.encode_jpeg(TEST.images[0], quality=95)
    found = signatures["serve_encoded"](images=encoded[tf.newaxis])
    expected = gated_logits(network, tf.io.decode_jpeg(encoded).numpy()[np.newaxis])
    np.testing.assert_allclose(found["logits"], expected, atol=1e-4 * np.abs(expected).max())


def test_a_picture_is_classified_as_it_stands(signatures):
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # To be turned clockwise.
    Image.fromarray(TEST.images[0, ..., 0]).save(file, "jpeg", quality=95, exif=exif)
    (turned,) = signatures["serve_encoded"](images=tf.constant([file.getvalue()]))["logits"]
    stored = np.rot90(tf.io.decode_jpeg(file.getvalue()).numpy(), -1)[np.newaxis]
    (expected,) = signatures["serve_uint8"](images=tf.constant(stored))["logits"]
    np.testing.assert_allclose(turned, expected, rtol=1e-6)


@pytest.fixture
def checked_here(monkeypatch):
    """The check runs exports in this process; those of `exporting.export` have one of their own."""

    def run(command, **_):
        isolated_process.main(*map(str, command[3:]))
        return types.SimpleNamespace(returncode=0)

    monkeypatch.setattr(verification.subprocess, "run", run)


@pytest.mark.usefixtures("checked_here")
def test_labels(network, tmp_path):
    write_saved_model(compact.freeze(network), NAMES, tmp_path)
    loaded = tf.saved_model.load(str(tmp_path)).signatures["serve_uint8"]
    found = loaded(images=tf.constant(TEST.images[:5]))
    expected = [NAMES[i].encode() for i in found["classes"].numpy()]
    assert found["labels"].numpy().tolist() == expected
    verification.verify(network, TEST.take(3), NAMES, tmp_path)
    with pytest.raises(TrainingError, match="disagrees"):
        verification.verify(network, TEST.take(3), NAMES[::-1], tmp_path)


# ---- What the signatures refuse ----

IMAGE = TEST.images[:2]
FLOATS = IMAGE.astype(np.float32) / 255.0
SHAPE = r"must have shape \[batch, 28, 28, 1\]"


@pytest.mark.parametrize(
    ("signature", "value", "message"),
    [
        ("serving_default", FLOATS * 255.0, r"must lie in \[0, 1\]"),
        ("serving_default", FLOATS - 0.1, r"must lie in \[0, 1\]"),
        ("serving_default", FLOATS * np.nan, r"must lie in \[0, 1\]"),
        ("serving_default", FLOATS[0], SHAPE),
        ("serving_default", FLOATS[:, :27], SHAPE),
        ("serving_default", FLOATS[..., np.newaxis], SHAPE),
        ("serving_default", FLOATS.astype(np.float64), "expected to be a float tensor"),
        ("serve_uint8", IMAGE[0], SHAPE),
        ("serve_uint8", IMAGE.astype(np.int32), "expected to be a uint8 tensor"),
        ("serve_encoded", [b"no image", png(IMAGE[0])], "must be PNG or JPEG"),
        ("serve_encoded", [b""], "must be PNG or JPEG"),
        ("serve_encoded", [png(IMAGE[0])[:-30]], "Invalid PNG"),
        ("serve_encoded", [png(IMAGE[0, :27])], "must have 28 x 28 pixels"),
        ("serve_encoded", png(IMAGE[0]), r"must have shape \[batch\]"),
        ("serve_encoded", [[png(IMAGE[0])]], r"must have shape \[batch\]"),
    ],
)
def test_bad_images(signatures, signature, value, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        signatures[signature](images=tf.constant(value))


def test_bad_shapes_are_refused_by_the_graph_itself(exported):
    """A server feeds the graph without looking at the declared shapes."""
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString((exported.path / "saved_model.pb").read_bytes())
    meta = saved.meta_graphs[0]
    for node in meta.graph_def.node:
        if node.op == "Placeholder":
            node.attr["shape"].shape.unknown_rank = True
            del node.attr["shape"].shape.dim[:]
            node.attr.pop("_output_shapes", None)
    encoded = np.array([[png(IMAGE[0])]], object)
    v1 = tf.compat.v1
    with v1.Session(graph=tf.Graph()) as session:
        v1.train.import_meta_graph(meta)
        variables = str(exported.path / "variables" / "variables")
        session.run(
            meta.saver_def.restore_op_name, {meta.saver_def.filename_tensor_name: variables}
        )

        def serve(signature, value):
            definition = meta.signature_def[signature]
            feed = {definition.inputs["images"].name: value}
            return session.run(definition.outputs["classes"].name, feed)

        assert serve("serving_default", FLOATS).shape == (2,)
        for value in (FLOATS[0], FLOATS[:, :27], FLOATS.reshape(2, -1), FLOATS[..., np.newaxis]):
            with pytest.raises(tf.errors.InvalidArgumentError, match=SHAPE):
                serve("serving_default", value)
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"must have shape \[batch\]"):
            serve("serve_encoded", encoded)


# ---- LiteRT ----


def test_tflite(run, tmp_path):
    pytest.importorskip("ai_edge_litert")
    done = exporting.export(
        run, tmp_path / "lite", version=3, format="tflite", quantize=names.QUANTIZATIONS
    )
    assert done.path == tmp_path / "lite" / "3"
    quantised = [f"model_{name}.tflite" for name in ("float16", "dynamic", "int8")]
    held = {path.name for path in done.path.iterdir()}
    assert held == {"model.tflite", *quantised, "README.md"}
    found = done.report.exported
    assert found["model.tflite"].equal_classes == len(TEST)
    half, dynamic, integers = (found[name].difference for name in quantised)
    assert 0 < half < 2e-3 and half < dynamic < 0.2 and half < integers < 0.2
    sizes = [(done.path / name).stat().st_size for name in ("model.tflite", *quantised)]
    assert sizes[1] < sizes[0] * 0.7 and max(sizes[2:]) < sizes[0] / 2
    assert [found[name].size for name in ("model.tflite", *quantised)] == sizes
    check_integers(done, run)
    with pytest.raises(UsageError, match="another format"):
        exporting.export(run, tmp_path / "lite")


def check_integers(done, run):
    """Everything in the int8 file is an integer, and the report has its figures."""
    from ai_edge_litert.interpreter import Interpreter

    network = Interpreter(str(done.path / "model_int8.tflite"))
    network.resize_tensor_input(network.get_input_details()[0]["index"], [len(TEST), 28, 28, 1])
    network.allocate_tensors()
    tensors = network.get_tensor_details()
    assert {tensor["dtype"] for tensor in tensors} <= {np.int8, np.int32}
    scales = [len(tensor["quantization_parameters"]["scales"]) for tensor in tensors]
    # Weights and biases of both layers have a scale for each of 10 channels.
    assert scales.count(10) == 4 and set(scales) == {0, 1, 10}
    (given,) = network.get_input_details()
    assert given["quantization"] == (pytest.approx(1 / 255), -128)
    network.set_tensor(given["index"], (TEST.images.astype(int) - 128).astype(np.int8))
    network.invoke()
    ends = network.get_signature_runner().get_output_details()
    assert set(ends) == {"logits", "probabilities"}
    logits = network.get_tensor(ends["logits"]["index"])
    classes = logits.argmax(axis=1)
    agreement = done.report.exported["model_int8.tflite"]
    assert agreement.accuracy == np.mean(classes == TEST.labels)
    expected = gated_logits(run.network(), TEST.images)
    assert agreement.equal_classes == np.sum(classes == expected.argmax(axis=1))
    card = (done.path / "README.md").read_text()
    assert "those of 500 training images, drawn by seed 0" in card
    row = f"| model_int8.tflite | {agreement.accuracy:.2%} | {agreement.equal_classes} of 359 |"
    assert row in card and "`bin/evaluate.py --litert`" in card


def test_calibration_images_are_drawn_of_the_training_images_by_the_seed(run):
    train = load("digits").train.images

    def drawn(examples, seed=0):
        settings = dataclasses.replace(run.settings, seed=seed)
        return exporting.calibration_images(dataclasses.replace(run, settings=settings), examples)

    few = drawn(40)
    held = {image.tobytes() for image in train}
    assert few.shape == (40, 28, 28, 1) and {image.tobytes() for image in few} <= held
    np.testing.assert_array_equal(few, drawn(40))
    assert not np.array_equal(few, drawn(40, seed=1))
    assert not np.array_equal(few, train[:40])
    np.testing.assert_array_equal(drawn(10**6), train)


def test_an_int8_file_that_lost_its_accuracy_is_refused(network, tmp_path):
    pytest.importorskip("ai_edge_litert")
    # Calibrated on black images, it is blind to others.
    black = np.zeros([5, 28, 28, 1], np.uint8)
    litert.write(compact.freeze(network), tmp_path, ("int8",), black)
    right = Split(TEST.images, gated_logits(network, TEST.images).argmax(axis=1))
    with pytest.raises(
        TrainingError, match=r"model_int8.tflite classifies .* 100\.0%; .* 10 points"
    ):
        verification.verify(network, right, None, tmp_path)


@pytest.mark.parametrize(
    ("format", "quantize", "message"),
    [
        ("keras", ("int8",), "--quantize belongs to --format=tflite"),
        ("tflite", ("int4",), "unknown quantisation 'int4'; choose of float16, dynamic, int8"),
    ],
)
def test_quantisations_that_a_format_does_not_have(run, tmp_path, format, quantize, message):
    with pytest.raises(UsageError, match=message):
        exporting.export(run, tmp_path / "e", format=format, quantize=quantize)
    assert not (tmp_path / "e").exists()


# ---- Keras and ONNX ----


def check_published(version, network, monkeypatch):
    """Keras's own `hf://` loads the folder that is uploaded."""
    from keras.src.saving import saving_lib

    def downloaded(*, repo_id, **_):
        assert repo_id == "me/digits"
        return str(version / "hub")

    client = types.SimpleNamespace(snapshot_download=downloaded)
    monkeypatch.setattr(saving_lib, "huggingface_hub", client)
    found = keras.saving.load_model("hf://me/digits")
    images = TEST.images[:20].astype(np.float32) / 255.0
    np.testing.assert_array_equal(found(images), network(images))
    card = (version / "hub" / "README.md").read_text()
    assert card.startswith("---\n") and '`keras.saving.load_model("hf://me/digits")`' in card
    assert '`keras.saving.load_model("model.keras")`' in (version / "README.md").read_text()


def test_triton(run, tmp_path):
    for package in formats.FORMATS["triton"].packages:
        pytest.importorskip(package)
    done = exporting.export(run, tmp_path / "digits", format="triton")
    assert {path.name for path in done.path.iterdir()} == {"network.onnx", "model.py", "README.md"}
    files = {"1", "config.pbtxt", "configs", "inference_service.yaml"}
    assert {path.name for path in done.path.parent.iterdir()} == files
    (found,) = done.report.exported.values()
    assert found.equal_classes == len(TEST) and found.difference < 1e-5
    with pytest.raises(UsageError, match="another format"):
        exporting.export(run, tmp_path / "digits", format="onnx")


FILES = {"keras": ["model.keras"], "onnx": ["model.onnx"], "torch": ["model.pt", "model.py"]}


@pytest.mark.parametrize("format", FILES)
def test_a_file_for_another_runtime(run, format, tmp_path, monkeypatch):
    file, *others = FILES[format]
    for package in formats.FORMATS[format].packages:
        pytest.importorskip(package)
    hub = "me/digits" if format == "keras" else None
    done = exporting.export(run, tmp_path / "base", format=format, hub=hub)
    written = {path.name for path in done.path.iterdir()}
    assert written == {file, *others, "README.md"} | ({"hub"} if hub else set())
    ((name, found),) = done.report.exported.items()
    assert name == file
    assert found.equal_classes == len(TEST) and found.difference < 1e-5
    card = (done.path / "README.md").read_text()
    assert ("load_model" in card) == (format == "keras")
    assert ("torch.nn.Module" in card) == (format == "torch")
    # As docs/serving.md says.
    blocks = documents.blocks(ROOT / "docs" / "serving.md")
    place = f"exports/digits-{format}/1"
    (code,) = [text for language, text in blocks if language == "python" and place in text]
    documented = {}
    exec(code.replace(place, str(done.path)), documented)
    if format == "keras":
        assert documented["network"].output_shape == (None, 10)
        check_published(done.path, documented["network"], monkeypatch)
    else:
        images = np.asarray(documented["images"]).reshape(-1, 28, 28, 1)  # One channel.
        expected = gated_logits(run.network(), images)
        found = [documented[name] for name in ("logits", "classes")]
        logits, classes = [np.asarray(value.tolist()) for value in found]
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(classes, expected.argmax(axis=-1))
    with pytest.raises(UsageError, match="another format"):
        exporting.export(run, tmp_path / "base")


def pruned_resnet20():
    network = architectures.resnet20((32, 32, 3), 10, gate="beta_bernoulli", width=0.5)
    for gate in gates_of(network):
        gate.close(np.arange(gate.features) % 3 == 1)
    rng = np.random.default_rng(0)
    for weight in network.weights:  # Shifts too, which pruned features leave as constants.
        if not weight.name.startswith("gate_"):
            drawn = rng.normal(0.2, 0.1, weight.shape) ** 2 if "moving" in weight.name else None
            weight.assign(rng.normal(0, 0.2, weight.shape) if drawn is None else drawn + 0.1)
    return network, rng.random((6, 32, 32, 3), np.float32)


def test_a_keras_file_has_layers_of_keras_alone(tmp_path):
    network, images = pruned_resnet20()
    frozen = compact.freeze(network)
    own = [layer for layer in frozen.layers if type(layer).__module__.startswith("anpvs_tf")]
    assert {type(layer).__name__ for layer in own} == {"Affine", "Select"}
    keras_file.write(frozen, tmp_path)
    found = keras.saving.load_model(tmp_path / "model.keras")
    # As small as its numbers, nearly: HDF5 fills up what it stores.
    assert (tmp_path / "model.keras").stat().st_size < 4.2 * found.count_params()
    assert all(type(layer).__module__.startswith("keras.") for layer in found.layers)
    # Affine maps are settings there, not weights; nothing else is added or lost.
    shifts = sum(layer.count_params() for layer in own)
    assert found.count_params() == frozen.count_params() - shifts
    expected = network(images, training=False)["logits"].numpy()
    np.testing.assert_allclose(found(images), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("shape", [(7, 5), (7, 6, 5), (7, 6, 4, 5)])
def test_chosen_channels_and_constants_in_layers_of_keras(shape):
    chosen, shifted = compact.Select([6, 0, 4, 5], constants=2), compact.Affine(None, [4])
    values = keras.Input(shape[1:])
    network = keras.Model(values, shifted(chosen(values)))
    chosen.set_weights([np.array([10.0, 20.0])])
    shifted.set_weights([np.array([0.0, 1.0, 2.0, 3.0])])
    x = np.random.default_rng(0).random(shape, np.float32)
    expected = np.stack(
        [np.full(shape[:-1], 20.0), x[..., 0] + 1, x[..., 4] + 2, np.full(shape[:-1], 13.0)],
        axis=-1,
    )
    np.testing.assert_allclose(keras_file.of_keras(network)(x), expected, rtol=1e-6)


def test_a_layer_that_keras_does_not_have(tmp_path):
    values = keras.Input([4])
    frozen = keras.Model(values, compact.Constant([3], name="all_pruned")(values))
    with pytest.raises(UsageError, match="layer all_pruned has Constant, which no other code has"):
        keras_file.write(frozen, tmp_path)
    assert not list(tmp_path.iterdir())


def mine(x):
    return keras.ops.sin(x)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: keras.layers.Lambda(mine, name="odd"), "Lambda"),
        (lambda: keras.layers.Dense(3, activation=mine, name="odd"), "mine"),
    ],
)
def test_code_of_a_user_in_a_layer(make, name, tmp_path):
    values = keras.Input([4])
    frozen = keras.Model(values, make()(values))
    with pytest.raises(UsageError, match=f"layer odd has {name}, which no other code has"):
        keras_file.write(frozen, tmp_path)


def test_operations_go_into_a_keras_file(tmp_path):
    values = keras.Input([4])
    frozen = keras.Model(values, keras.layers.Dense(3, activation="gelu")(values * 2.0 + 1.0))
    keras_file.write(frozen, tmp_path)
    x = np.random.default_rng(0).random((5, 4), np.float32)
    found = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(found(x), frozen(x), rtol=1e-6)


def test_a_package_that_is_not_installed(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    message = r"--format=onnx needs the package tf2onnx: pip install 'anpvs_tf\[onnx\]'"
    with pytest.raises(UsageError, match=message):
        exporting.export(run, tmp_path / "base", format="onnx")
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_of_a_network_that_a_format_cannot_express(run, tmp_path, monkeypatch):
    images = keras.Input([28, 28, 1])
    features = keras.layers.Activation("gelu", name="bend")(keras.layers.Flatten()(images))
    other = keras.Model(images, keras.layers.Dense(10)(features))
    shown = dataclasses.replace(web_page.prepare(run), compact=other)
    monkeypatch.setattr(web_page, "prepare", lambda run: shown)
    for package in formats.FORMATS["onnx"].packages:
        pytest.importorskip(package)
    with pytest.raises(UsageError, match=r"ONNX has no operation Erfc .layer bend, Activation."):
        exporting.export(run, tmp_path / "base", format="onnx")
    assert not list(tmp_path.iterdir())


# ---- Versions, and what is refused before anything is written ----


def test_every_format_has_a_flag():
    assert tuple(formats.FORMATS) == names.FORMATS


def test_versions(tmp_path):
    def choose(version=None):
        return exporting.choose_version(tmp_path / "base", version, "saved_model")

    assert choose() == 1
    for name in ("2", "10", "notes"):
        (tmp_path / "base" / name).mkdir(parents=True)
    for name in ("2", "10"):
        (tmp_path / "base" / name / "saved_model.pb").touch()
    assert choose() == 11
    assert choose(3) == 3
    with pytest.raises(UsageError, match="10 exists"):
        choose(10)
    with pytest.raises(UsageError, match="at least 1"):
        choose(0)
    (tmp_path / "base" / "3").mkdir()
    for format in formats.FORMATS:
        with pytest.raises(UsageError, match=f"another format than {format}, "):
            exporting.choose_version(tmp_path / "base", None, format)


def test_base_is_a_file(run, tmp_path):
    (tmp_path / "file").write_text("")
    for base in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match="export base"):
            exporting.export(run, base)


def test_a_failure_leaves_nothing(run, tmp_path, monkeypatch):
    def fail(*args):
        raise TrainingError("it disagrees")

    monkeypatch.setattr(verification, "verify", fail)
    with pytest.raises(TrainingError, match="it disagrees"):
        exporting.export(run, tmp_path / "new" / "base")
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    with pytest.raises(TrainingError, match="it disagrees"):
        exporting.export(run, tmp_path / "old")
    assert list((tmp_path / "old").iterdir()) == []


# ---- The check itself ----


@pytest.mark.usefixtures("checked_here")
def test_a_disagreement_is_found(exported, run):
    other = run.network()
    bias = other.get_layer("logits").bias
    bias.assign_add(np.linspace(0, 1e-2, 10))
    with pytest.raises(TrainingError, match="disagrees"):
        verification.verify(other, Split(TEST.images[:8], TEST.labels[:8]), None, exported.path)


def test_an_export_that_cannot_be_loaded_is_found(network, tmp_path):
    with pytest.raises(TrainingError, match=r"new process: none of saved_model\.pb, model\.tfl"):
        verification.verify(network, TEST.take(2), None, tmp_path)
    for name in ("model.tflite", "saved_model.pb"):
        directory = tmp_path / f"of {name}"
        directory.mkdir()
        (directory / name).write_bytes(b"nothing")
        with pytest.raises(TrainingError, match="cannot be run in a new process"):
            verification.verify(network, TEST.take(2), None, directory)


def test_the_other_process_cannot_import_the_package():
    program = ROOT / "anpvs_tf" / "serving" / "isolated_process.py"
    code = f"import runpy; runpy.run_path({str(program)!r}); import anpvs_tf"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 1
    assert "import of anpvs_tf halted" in found.stderr


def test_program_ends_with_one_line(tmp_path):
    found = subprocess.run(
        [sys.executable, ROOT / "bin" / "export.py", f"--run_dir={tmp_path}/absent"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 2
    (line,) = found.stderr.strip().splitlines()
    assert line.startswith("error: --export_base is missing: ")
