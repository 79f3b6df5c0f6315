"""The table of mutations is true to the code, and every one of them is killed."""

import pytest
from mutations import MUTATIONS, ROOT, survives


def name_of(mutation) -> str:
    return f"{mutation.file}: {mutation.name}"


@pytest.mark.parametrize("mutation", MUTATIONS, ids=name_of)
def test_a_mutation_changes_one_place_and_its_tests_exist(mutation):
    code = (ROOT / "exit_jax" / mutation.file).read_text()
    assert code.count(mutation.old) == 1
    compile(code.replace(mutation.old, mutation.new), mutation.file, "exec")
    for test in mutation.tests:
        file, _, name = test.partition("::")
        source = (ROOT / "tests" / file).read_text()
        assert f"def {name}(" in source if name else "def test_" in source
        before, _, _ = source.partition(f"def {name}(")
        assert not before.rstrip().endswith("@pytest.mark.slow"), "a fast test is wanted"


def test_names_are_unique():
    assert len({name_of(mutation) for mutation in MUTATIONS}) == len(MUTATIONS) >= 60


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("mutation", MUTATIONS, ids=name_of)
def test_a_mutation_is_killed(mutation, tmp_path):
    assert not survives(mutation, tmp_path)
