"""The schema of settings: bounds, defaults, what is printed of it, and that it orphans no run."""

import dataclasses
import json
import pathlib
import runpy

import pytest

from exit_jax import domains, settings
from exit_jax.config import default, listing, variants
from exit_jax.config.schema import Config
from exit_jax.domains import lookup
from exit_jax.settings import Setting, group, setting

ROOT = pathlib.Path(__file__).parents[1]
FIRST_FIELDS = json.loads((ROOT / "tests/first_fields.json").read_text())


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = setting(0.5, "a share", within="[0, 1)")
    kinds: tuple[str, ...] = setting(("a",), "kinds", choices=("a", "b"))


@dataclasses.dataclass(frozen=True)
class Outer:
    count: int = setting(1, "a number", within="[1, inf)", remedy="raise it")
    inner: Inner = group(Inner, "the rest", rate=0.25)
    plain: int = 3
    late: bool = setting(False, "added later", younger=True)


@pytest.mark.parametrize(
    ("within", "inside", "outside", "words"),
    [
        ("[0, 1]", (0.0, 1, 0.5), (-1e-9, 1.1, float("nan"), float("inf")), "x = {} is not in [0, 1]"),
        ("(0, 1]", (1e-9, 1.0), (0.0, -1.0), "x = {} is not in (0, 1]"),
        ("[0, 1)", (0.0, 0.999), (1.0,), "x = {} is not in [0, 1)"),
        ("[1, inf)", (1, 10**9, float("inf")), (0, 0.99, float("nan")), "x = {} is below 1"),
        ("(0, inf)", (1e-30, float("inf")), (0, -1, float("nan")), "x = {} is not above 0"),
    ],
)
def test_bounds(within, inside, outside, words):
    about = Setting("", within=within)
    assert not any(about.fault("x", value) for value in inside)
    assert [about.fault("x", value) for value in outside] == [words.format(value) for value in outside]


def test_items_of_tuples_are_checked_one_by_one():
    about = Setting("", within="[0, inf)")
    assert about.fault("x", (0, 3)) == ""
    assert about.fault("x", (3, -1)) == "x = (3, -1) is below 0"
    assert (
        Inner.__dataclass_fields__["kinds"].metadata["setting"].fault("k", ("a", "c"))
        == "k = 'c' is not one of ('a', 'b')"
    )


def test_a_table_of_functions_is_its_names_with_what_they_say():
    def first(x):
        """The first.

        More of it.
        """

    about = Setting("which", choices={"first": first, "second": lambda x: x})
    assert about.fault("x", "second") == ""
    assert about.fault("x", "third") == "x = 'third' is not one of ('first', 'second')"
    assert listing.meaning(about) == "which; one of 'first' (The first), 'second'"


def test_faults_of_a_tree_come_with_their_dotted_names():
    wrong = Outer(count=0, inner=Inner(rate=1.0, kinds=("z",)))
    assert settings.faults(wrong) == [
        "count = 0 is below 1; raise it",
        "inner.rate = 1.0 is not in [0, 1)",
        "inner.kinds = 'z' is not one of ('a', 'b')",
    ]
    assert settings.faults(Outer()) == []


def test_defaults_of_a_group_are_its_owners():
    assert settings.tree(Outer) == {"count": 1, "inner": {"rate": 0.25, "kinds": ("a",)}, "plain": 3, "late": False}


def test_a_plain_field_is_a_younger_one():
    assert settings.younger_defaults(Outer) == {"plain": 3, "late": False}


@pytest.mark.parametrize("name", domains.NAMES)
def test_defaults_are_locked_and_of_their_types(name):
    content = default(name)
    assert content.is_locked
    for row in listing.rows(content.to_dict()):
        assert row.value == (name if row.name == "domain_name" else row.default), row.name
        assert row.setting.meaning, row.name
        assert not row.setting.choices or not row.setting.fault(row.name, row.default), row.name


@pytest.mark.parametrize("name", ["", *domains.NAMES])
def test_a_field_that_the_first_runs_did_not_have_enters_no_hash(name):
    """All fields of FIRST_FIELDS have been hashed since the first runs; one that is not among them is ``younger=True``."""
    cls = domains.settings_of(name) if name else Config
    old, new = set(), set()

    def walk(cls, path):
        for field in dataclasses.fields(cls):
            below = field.default_factory() if field.default_factory is not dataclasses.MISSING else None
            if dataclasses.is_dataclass(below):
                walk(type(below), f"{path}{field.name}.")
            else:
                (new if settings.setting_of(field).younger else old).add(f"{path}{field.name}")

    walk(cls, "")
    assert old == set(FIRST_FIELDS[name]), "a field that is added is younger=True, and none is taken away"


def test_settings_that_are_known_before_their_domain_are_its_own():
    for name, path in lookup.SETTINGS.items():
        kind = lookup.annotated_settings(name, lookup.find(name))
        assert kind is domains.settings_of(name), path


def test_the_reference_is_up_to_date():
    assert (ROOT / "docs/settings.md").read_text() == listing.markdown(), (
        "python -m exit_jax.config.listing > docs/settings.md"
    )


def test_a_listing_shows_what_differs_from_the_default():
    text = listing.text(runpy.run_path(str(ROOT / "configs/smoke.py"))["get_config"]().to_dict())
    assert "algorithm.num_prompts = 16  (default 128)\n    prompts an iteration, B; in [1, inf)\n" in text
    assert "\nalgorithm.clip_low = 0.2\n" in text


def test_variants_are_the_papers():
    c = default("sudoku")
    variants.apply(c, "diverge-one")
    a = c.algorithm
    assert (c.variant, a.selection_prob, a.self_iteration, a.divergence_prob, a.diversity_bonus, a.children) == (
        *("diverge-one", 0.5, True, 0.2, False, "one"),
    )
    for wrong in ("expo", "exit-other"):
        with pytest.raises(ValueError, match=f"variant={wrong} is not one of"):
            variants.apply(c, wrong)
