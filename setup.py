"""The package; see BUILD.md."""

import pathlib
import re

from setuptools import find_packages, setup

here = pathlib.Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (here / "anpvs_tf/__init__.py").read_text()).group(1)

onnx = ["tf2onnx>=1.17", "onnxruntime>=1.20"]
# numpy: of nvidia-pytriton, which has wheels for Linux with glibc 2.35 or newer.
triton = ["nvidia-pytriton>=0.7,<0.8", "numpy<2", *onnx]
hf = ["huggingface_hub>=1.0"]
serving = ["tensorflow-serving-api>=2.19", "ai-edge-litert>=2.0"]

setup(
    name="anpvs_tf",
    version=version,
    description="Adversarial neural pruning with vulnerability suppression for TensorFlow",
    long_description=(here / "README.md").read_text(),
    long_description_content_type="text/markdown",
    packages=find_packages(include=["anpvs_tf", "anpvs_tf.*"]),
    license="MIT",
    license_files=["LICENSE"],
    package_data={
        "anpvs_tf": ["py.typed", "*.pyi", "*/*.pyi"],
        "anpvs_tf.reporting": ["templates/*"],
        "anpvs_tf.serving": ["templates/*", "web/*"],
        "anpvs_tf.zoo": ["*.json", "*.keras", "*.md"],
    },
    python_requires=">=3.10",
    install_requires=[
        "tensorflow>=2.21,<2.22",
        "keras>=3.12,<4",
        "tensorflow-probability>=0.25,<0.26",
        # Imported by tensorflow-probability, even for distributions alone.
        "tf_keras>=2.21,<2.22",
        "tensorflow-datasets>=4.9.9,<5",
        # Imported by tensorflow-datasets when it prepares a dataset, but not declared by it.
        "importlib_resources",
        "keras-tuner>=1.4.7,<1.5",
        "absl-py>=2.1",
        "jinja2>=3.1,<4",
        "lazy_loader>=0.4",
        "numpy>=1.26",
        # TensorFlow no longer brings it; tf.summary needs it.
        "tensorboard>=2.20,<2.22",
        "matplotlib>=3.9",
        # The embedded dataset: `digits`.
        "scikit-learn>=1.4",
        "scipy>=1.11",
        "tqdm>=4.66",
    ],
    entry_points={
        "console_scripts": [
            f"anpvs-{name} = anpvs_tf.programs.{name}:run"
            for name in ("train", "evaluate", "export", "report", "tune")
        ]
    },
    extras_require={
        "gpu": ["tensorflow[and-cuda]>=2.21,<2.22"],
        "serving": serving,
        "onnx": onnx,
        "triton": triton,
        "hf": hf,
        # Trackers of experiments: --track. Not in "test": 100 MB and 830 MB.
        "wandb": ["wandb>=0.31,<1"],
        "mlflow": ["mlflow>=3.17,<4"],
        "torch": ["torch>=2.4"],
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.12",
            "markdown-it-py>=3",
            "pyyaml>=6",
            "pillow",
            *serving,
            *onnx,
            *hf,
        ],
        "benchmark": ["torch>=2.4", "jax>=0.10.2,<0.11", "pillow"],
        # AutoAttack by its authors, repackaged; see tests/attacks/test_reference.py.
        "reference": ["torch>=2.4", "pyautoattack==0.2.0"],
    },
)
