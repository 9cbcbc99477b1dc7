"""The type of a record names every key that its writers write."""

import fake_runs

from anpvs_tf.runs.finished_run import open_run
from anpvs_tf.runs.result_record import ResultRecord


def test_the_record_of_a_training_has_the_keys_of_its_type(tmp_path):
    run = fake_runs.make(tmp_path / "run", "anpvs", at_chance="it is")
    assert open_run(run.path).trained.keys() <= ResultRecord.__annotations__.keys()
