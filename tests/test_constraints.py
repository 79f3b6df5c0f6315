"""constraints.txt has a version that setup.py takes of everything that setup.py asks for."""

import runpy

import setuptools
from mutations import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def test_each_requirement_has_a_version_that_it_takes(monkeypatch):
    asked = {}
    monkeypatch.setattr(setuptools, "setup", asked.update)
    runpy.run_path(str(ROOT / "setup.py"))
    # trackio takes no pillow from 13 on, so the versions that the tests were run with have none of the trackers
    left_out = ("map", "benchmark", "trackers")
    extras = [texts for name, texts in asked["extras_require"].items() if name not in left_out]
    requirements = [Requirement(text) for group in (asked["install_requires"], *extras) for text in group]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    versions = {canonicalize_name(name): version for name, version in pinned.items()}
    assert len(versions) == len(pinned) > 100
    for requirement in requirements:
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement
