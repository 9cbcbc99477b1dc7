"""The lines that end an export."""

import types

import pytest

from anpvs_tf.programs import export


@pytest.mark.parametrize("left", [431_080, 27_984])
def test_a_network_that_is_not_smaller_has_one_column(left, tmp_path):
    agreement = types.SimpleNamespace(accuracy=0.9, equal_classes=100, difference=1e-7)
    exported = {"model.tflite": agreement}
    report = types.SimpleNamespace(examples=100, accuracy=0.9, exported=exported, unchecked="")
    (tmp_path / "model.tflite").write_bytes(b"1234")
    measured = {
        name: {
            "parameters": parameters,
            "saved_model_bytes": 4 * parameters,
            "latency": {1: 0.001},
            "peak_memory": {1: 2**20},
        }
        for name, parameters in {"training network": 431_080, "exported": left}.items()
    }
    done = types.SimpleNamespace(report=report, path=tmp_path)
    head, *rows = [line.split() for line in export.table(done, measured).splitlines()[3:]]
    if left == 431_080:
        rows.insert(0, head)
        assert rows[0] == ["parameters", "431,080"]
        assert rows[2] == ["ms", "a", "batch", "of", "1", "1.00"]
    else:
        assert head == ["before", "after"]
        assert rows[0] == ["parameters", "431,080", "27,984"]
        assert rows[1] == ["SavedModel,", "bytes", "1,724,320", "111,936"]
    assert rows[-1] == ["model.tflite,", "bytes", "4"]
