"""The lines that programs print of a run."""

import pytest

from anpvs_tf.runs import console, resolution

LATENCY = {"latency": {"1": 0.002, "64": 0.02}, "peak_memory": {"1": 2**20, "64": 3 * 2**20}}


def record(method, sparsity, parameters, reduction=1.0, memory=1.0, size=1_759_221):
    """Of a training run; the unpruned network has 431,080 parameters and 1,759,221 bytes."""
    return {
        **{"method": method, "dataset": "digits", "network": "lenet5", "seed": 0},
        **{"split": "test", "examples": 359, "clean_accuracy": 0.99, "robust_accuracy": 0.7},
        **{"vulnerability": 0.1, "sparsity": sparsity, "weight_sparsity": 1e-6},
        "attack": {"name": "pgd", "steps": 20, "step_size": 0.02, "restarts": 1},
        "threat_model": {"norm": "linf", "epsilon": 0.13},
        "active_features": {"conv1": [20 - round(20 * sparsity), 20]},
        "efficiency": {
            "parameters": [parameters, 431_080],
            "flops_reduction": reduction,
            "feature_map_memory": memory,
            "measured": {
                "compact": {"saved_model_bytes": size, **LATENCY},
                "dense": {"saved_model_bytes": 1_759_221, **LATENCY},
            },
        },
        "timing": {"training_seconds": 5.0, "evaluation_seconds": 1.0},
    }


def test_the_result_of_an_unpruned_network_says_nothing_of_pruning():
    lines = console.result_table(record("at", 0.0, 431_080)).splitlines()
    assert [line.split()[0] for line in lines[1:]] == [
        *("clean", "PGD-20", "vulnerability", "parameters", "SavedModel", "batch", "batch", "time")
    ]
    assert "  SavedModel        1,759,221 bytes" in lines
    assert "  batch of 64       20.00 ms, 3.00 MiB at the peak" in lines
    text = console.result_table(record("anpvs", 0.0, 431_080))
    assert "sparsity          nothing is pruned" in text  # It could have been.


def test_the_result_of_a_pruned_network_says_what_it_saves():
    text = console.result_table(record("anpvs", 0.5, 100_000, 4.0, 0.25, 400_000))
    for line in (
        "sparsity          50.00% of features\n",
        "active features   conv1 10/20\n",
        "FLOPs             1 / 4.00 of the unpruned network's\n",
        "feature maps      25.0% of the unpruned network's memory\n",
        "parameters        100,000 of 431,080\n",
        "SavedModel        400,000 of 1,759,221 bytes\n",
    ):
        assert line in text
    # One feature of the last layer: what it saves rounds to nothing.
    text = console.result_table(record("anpvs", 0.05, 430_000, 1.001, 0.9999, 1_759_000))
    assert "SavedModel        1,759,000 bytes" in text
    assert "FLOPs" not in text and "feature maps" not in text and "of weights" not in text


def test_the_plan_says_when_gates_are_held():
    wanted = {"dataset": "cifar10", "method": "anpvs"}
    line = "  gates held        from 80% of the training on"
    assert line in console.plan(resolution.resolve(wanted, "fast"), 45_000, "from scratch")
    assert "gates held" not in console.plan(resolution.resolve(wanted), 45_000, "from scratch")


@pytest.mark.parametrize(("method", "shown"), [("standard", False), ("anpvs", True)])
def test_an_epoch_has_a_sparsity_if_the_method_prunes(method, shown):
    row = {"epoch": 1, "loss": 1.0, "sparsity": 0.0, "validation_clean_accuracy": 0.9}
    row |= {"validation_robust_accuracy": 0.5, "validation_vulnerability": 0.1}
    timing = {"seconds": 2.0, "images_per_second": 100.0}
    line = console.epoch_summary(resolution.resolve({"method": method}), row, timing)
    assert ("sparsity" in line) == shown
    assert line.endswith("2.0 s  100 images/s")
