import os

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk():
    """No test cuts the power, and a sweep that dies at every write would wait for minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="module")
def tiny_lenet5():
    """Makes `--network=lenet5` a network of one gate while the tests of a module run."""
    import tiny_network

    from anpvs_tf.networks import architectures

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(architectures.NETWORKS, "lenet5", tiny_network.tiny)
        yield
