"""The networks of the zoo are what is said of them."""

import json
import shutil
import subprocess
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from documents import ROOT

from anpvs_tf import zoo
from anpvs_tf.attacks import pgd, threat_model
from anpvs_tf.common.errors import UsageError
from anpvs_tf.data import loading, pipelines
from anpvs_tf.data.sources import SOURCES
from anpvs_tf.evaluation.assessment import wilson
from anpvs_tf.programs import evaluate
from anpvs_tf.zoo import shelf


@pytest.mark.parametrize("name", zoo.names())
def test_an_entry_fits_its_network(name):
    entry, network = zoo.entry(name), zoo.load(name)
    assert shelf.file_of(name).stat().st_size < 200_000
    source = SOURCES[entry.dataset]
    assert network.input_shape == (None, *source.image_shape)
    assert network.output_shape == (None, source.classes)
    # A bias that differs from place to place is a setting of a layer of Keras, no weight.
    maps = [layer for layer in network.layers if isinstance(layer, keras.layers.Rescaling)]
    shifts = sum(np.size(layer.offset) for layer in maps)
    assert network.count_params() + shifts == entry.parameters
    assert all(type(layer).__module__.startswith("keras.") for layer in network.layers)
    card = zoo.card(name)
    assert f"{entry.parameters:,} parameters" in card and f"{entry.clean_accuracy:.2%}" in card
    assert f"{entry.autoattack_accuracy:.2%}" in card and f"{entry.pruned:.2%}" in card


def test_the_digits_are_classified_and_withstand_as_it_says():
    entry, network = zoo.entry("digits-anpvs_vib"), zoo.load("digits-anpvs_vib")
    test = loading.load("digits").test
    assert entry.examples == len(test)
    images, labels = pipelines.to_float(test.images), tf.constant(test.labels)

    def accuracy(images):
        return np.mean(np.argmax(network(images), axis=1) == labels)

    assert accuracy(images) == pytest.approx(entry.clean_accuracy, abs=1.1 / len(test))
    attacked = pgd(network, images, labels, [0, 1], epsilon=0.13, step_size=0.02, steps=20)
    threat_model.assert_in_threat_model(images.numpy(), attacked.numpy(), 0.13, "linf")
    # What AutoAttack leaves, PGD leaves; and it is not weak.
    low = wilson(round(entry.autoattack_accuracy * len(test)), len(test))[0]
    assert low < accuracy(attacked) < 0.8


@pytest.mark.parametrize("name", zoo.names())
def test_an_evaluation_attacks_within_its_threat_model(name):
    entry = zoo.entry(name)
    _, usual = evaluate._examined(types.SimpleNamespace(litert=None, zoo=name), None)
    assert (usual["norm"], usual["epsilon"]) == (entry.norm, entry.epsilon)
    steps = {"digits": 0.02, "mnist": 0.01, "cifar10": 2.5 * 8 / 255 / 40}
    assert usual["eval_step_size"] == pytest.approx(steps[entry.dataset])


def test_a_file_of_another_network_is_refused(tmp_path, monkeypatch):
    shutil.copy(shelf.HERE / "networks.json", tmp_path)
    monkeypatch.setattr(shelf, "HERE", tmp_path)
    with pytest.raises(UsageError, match=r"cannot be read .*; install the package again"):
        zoo.load("digits-anpvs_vib")
    (tmp_path / "digits-anpvs_vib.keras").write_bytes(b"another")
    with pytest.raises(UsageError, match="is not the file of this package"):
        zoo.load("digits-anpvs_vib")
    with pytest.raises(UsageError, match="no network 'none' in the zoo; choose one of digits"):
        zoo.card("none")


def test_the_program_attacks_a_network_of_the_zoo(tmp_path):
    given = ("--zoo=digits-anpvs_vib", "--attack=pgd", "--examples=60", "--check_examples=0")
    # A new interpreter, as a user starts it: here a module that is not imported shows.
    command = [sys.executable, ROOT / "bin/evaluate.py", *given]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    (record,) = json.loads((tmp_path / "digits-anpvs_vib-evaluation/results.json").read_text())
    assert record["threat_model"] == {"norm": "linf", "epsilon": 0.13}
    assert record["dataset"] == "digits" and record["examples"] == 60
    assert 0.5 < record["robust_accuracy"] < 0.9 < record["clean_accuracy"]
