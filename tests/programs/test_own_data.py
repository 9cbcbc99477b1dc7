"""A run on the user's own images: what it keeps of them, and what it needs them for."""

import dataclasses

import pytest
from image_files import noise_image, write

from anpvs_tf.common.errors import UsageError
from anpvs_tf.data import loading, sources
from anpvs_tf.evaluation import attacked_model
from anpvs_tf.runs import directory, resolution
from anpvs_tf.runs.finished_run import open_run
from anpvs_tf.training import trainer, warm_start

WANTED = {"method": "standard", "image_size": [16], "stream": True}
WANTED |= {"epochs": 1, "batch_size": 8, "eval_attack_steps": 1}


@pytest.fixture
def chosen(tmp_path):
    for i in range(60):
        place = (
            tmp_path / "shapes" / ("test" if i % 5 == 0 else "train") / ("round", "square")[i % 2]
        )
        write(place / f"{i}.png", noise_image(16, 16, 1) // 2 + 127 * (i % 2))
    return resolution.resolve({"dataset": f"folder:{tmp_path}/shapes"} | WANTED)


def test_a_finished_run_needs_no_data_to_be_loaded(chosen, tmp_path):
    run = directory.RunDirectory(tmp_path / "run")
    (record,) = trainer.train(chosen, run)
    assert record["examples"] == 12
    assert run.settings() == chosen
    (tmp_path / "shapes").rename(tmp_path / "away")
    subject = attacked_model.of_run(open_run(run.path))
    assert (subject.classes, subject.source.class_names) == (2, ("round", "square"))
    assert subject.network.output["logits"].shape == (None, 2)
    assert resolution.defaults(subject.source)["epsilon"] == chosen.epsilon
    with pytest.raises(UsageError, match=r"shapes cannot be read: No such file"):
        loading.load_evaluated(subject.source, stream=True)


def test_a_run_does_not_go_on_with_other_data(chosen, tmp_path):
    run = directory.RunDirectory(tmp_path / "run")
    run.begin(chosen, [])
    write(tmp_path / "shapes" / "train" / "round" / "more.png", noise_image(16, 16, 1))
    with pytest.raises(UsageError, match=r"holds a run of other settings: data_version="):
        run.check(resolution.resolve({"dataset": chosen.dataset} | WANTED))
    # Not even if it takes its settings from the run itself.
    with pytest.raises(UsageError, match=r"has other files now"):
        loading.load(run.settings().source)


def test_the_base_run_is_of_the_same_data(chosen):
    anpvs = dataclasses.replace(chosen, method="anpvs", augment=True)
    base = warm_start.base_settings(anpvs)
    assert base.source == anpvs.source
    assert (base.method, base.stream, base.augment) == ("standard", True, True)


def test_run_directories_are_named_after_the_data(chosen):
    assert directory.default_name(chosen) == "folder-shapes-lenet5-standard-seed0"
    assert sources.file_name("tfds:imagenette/160px") == "tfds-imagenette-160px"
    assert sources.file_name("mnist") == "mnist"


def test_the_shape_of_a_named_dataset_is_not_to_be_chosen():
    with pytest.raises(UsageError, match=r"images of mnist are 28 x 28 x 1; --image_size and"):
        resolution.resolve({"dataset": "mnist", "image_size": ["32"]})
    assert resolution.resolve({"dataset": "mnist", "image_size": ["28"]}).image_size == (28, 28)
