import os
import sys

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

# The files that train, compile large networks or start processes: not part of `-m fast`.
LONG = {
    "attacks/test_every_attack.py",
    "attacks/test_linear_margins.py",
    "attacks/test_search_attacks.py",
    "attacks/test_stages.py",
    "data/test_folders.py",
    "data/test_loading.py",
    "data/test_pictures.py",
    "data/test_tfds.py",
    "docs/test_docs.py",
    "evaluation/test_assessment.py",
    "evaluation/test_attack_curves.py",
    "evaluation/test_attack_run.py",
    "methods/test_every_method.py",
    "methods/test_keras_interface.py",
    "methods/test_methods.py",
    "methods/test_robust_classifier.py",
    "methods/test_sparsity_target.py",
    "networks/test_any_network.py",
    "networks/test_applications.py",
    "networks/test_architectures.py",
    "networks/test_bayesian.py",
    "networks/test_gates.py",
    "networks/test_layer_options.py",
    "networks/test_models_of_users.py",
    "networks/test_gating.py",
    "programs/test_evaluate.py",
    "programs/test_matching.py",
    "programs/test_own_data.py",
    "programs/test_train.py",
    "programs/test_tune.py",
    "pruning/test_admm.py",
    "pruning/test_compact.py",
    "pruning/test_efficiency.py",
    "pruning/test_frozen.py",
    "pruning/test_posterior.py",
    "pruning/test_zero_weights.py",
    "reporting/test_page.py",
    "reporting/test_tables.py",
    "serving/test_exporting.py",
    "tracking/test_clients.py",
    "training/test_faults.py",
    "training/test_overfitting.py",
    "training/test_resume.py",
    "training/test_shrinking.py",
    "training/test_strategies.py",
    "training/test_tracking.py",
    "tuning/test_search.py",
    "zoo/test_shelf.py",
}


def pytest_collection_modifyitems(items):
    for item in items:
        if "/".join(item.path.parts[-2:]) not in LONG:
            item.add_marker(pytest.mark.fast)


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk():
    """No test cuts the power, and a sweep that dies at every write would wait for minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(autouse=True)
def _no_seed_is_left_behind():
    """The global seed of one test would make other tests' draws depend on their order."""
    yield
    if "tensorflow" in sys.modules:
        from tensorflow.python.eager import context

        if context.global_seed() is not None:
            sys.modules["tensorflow"].random.set_seed(None)


@pytest.fixture(scope="module")
def tiny_lenet5():
    """Makes `--network=lenet5` a network of one gate while the tests of a module run."""
    import tiny_network

    from anpvs_tf.networks import architectures

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(architectures.NETWORKS, "lenet5", tiny_network.tiny)
        yield
