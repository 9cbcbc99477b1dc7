import gc
import os
import sys

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

# The files that train, compile large networks or start processes: not part of `-m fast`.
# The longest stand first and are run first, so that no worker is left with one at the end.
LONG = (
    "training/test_strategies.py",
    "methods/test_every_method.py",
    "docs/test_docs.py",
    "training/test_resume.py",
    "methods/test_robust_classifier.py",
    "methods/test_compiled_crafting.py",
    "evaluation/test_assessment.py",
    "serving/test_exporting.py",
    "serving/test_servers.py",
    "serving/test_torch_file.py",
    "serving/test_web_page.py",
    "serving/test_web_network.py",
    "training/test_faults.py",
    "networks/test_layer_options.py",
    "tuning/test_search.py",
    "training/test_shrinking.py",
    "programs/test_evaluate.py",
    "data/test_loading.py",
    "data/test_pictures.py",
    "programs/test_train.py",
    "data/test_tfds.py",
    "reporting/test_page.py",
    "programs/test_tune.py",
    "pruning/test_compact.py",
    "evaluation/test_attack_run.py",
    "networks/test_any_network.py",
    "methods/test_keras_interface.py",
    "attacks/test_every_attack.py",
    "pruning/test_admm.py",
    "methods/test_sparsity_target.py",
    "attacks/test_stages.py",
    "pruning/test_frozen.py",
    "networks/test_architectures.py",
    "attacks/test_search_attacks.py",
    "attacks/test_linear_margins.py",
    "networks/test_bayesian.py",
    "programs/test_fine_tuning.py",
    "networks/test_own_network.py",
    "evaluation/test_attack_curves.py",
    "evaluation/test_integer_network.py",
    "tracking/test_clients.py",
    "training/test_tracking.py",
    "zoo/test_shelf.py",
    "networks/test_applications.py",
    "pruning/test_efficiency.py",
    "serving/test_inexpressible.py",
    "programs/test_matching.py",
    "pruning/test_posterior.py",
    "networks/test_gates.py",
    "pruning/test_zero_weights.py",
    "programs/test_own_data.py",
    "data/test_folders.py",
    "networks/test_models_of_users.py",
    "methods/test_methods.py",
    "networks/test_gating.py",
    "training/test_overfitting.py",
    "reporting/test_tables.py",
)


def pytest_configure(config):
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return  # The process that hands out the tests runs none.
    import tensorflow as tf

    # A process that runs tests has a core to itself: more threads would wait for each other, for
    # an eighth of its time. The programs that tests start have the usual number.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    # Functions here are traced, called a few times and left: rewriting their graphs costs an
    # eighth of the time. The programs that tests start have their graphs rewritten.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    # Tracing makes objects by the hundred thousand, few of them garbage; modules never are.
    gc.set_threshold(50_000)


def pytest_collection_finish():
    gc.freeze()


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(LONG)}

    def place(item):
        return places.get("/".join(item.path.parts[-2:]), len(LONG))

    items.sort(key=place)
    for item in items:
        if place(item) == len(LONG):
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
