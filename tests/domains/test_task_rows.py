"""Test rows of every kind of source on small files: what is read, split, kept apart, weighted and left out."""

import collections
import datetime
import decimal
import itertools
import json
import pathlib
import random
import subprocess
import sys

import huggingface_hub
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from exit_jax import settings
from exit_jax.domains.task import left_out, sources
from exit_jax.domains.task import rows as task_rows
from exit_jax.domains.task.rows import clean, load, shares
from exit_jax.domains.task.settings import TaskConfig
from exit_jax.errors import UserError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Work in a folder of one's own, whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("made_rows", "told", "bad_rows"):
        sys.modules.pop(name, None)


def config(*tasks, **fields):
    return TaskConfig(tasks=tasks or ("tasks.jsonl",), **{"num_test": 1, **fields})


def write(name, rows):
    """Write rows, or as JSONL raw bytes, as the suffix says; returns the name."""
    path = pathlib.Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".arrow":
        table = pyarrow.Table.from_pylist(rows)
        with pyarrow.ipc.new_stream(name, table.schema) as stream:
            stream.write_table(table)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_bytes(b"".join((r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n" for r in rows))
    return name


def numbered(count, name="task", **columns):
    return [{"prompt": f"{name} {i}", "answer": i, **columns} for i in range(count)]


def prompts(rows):
    return [row.prompt for row in rows]


def fault(*tasks, **fields):
    with pytest.raises(UserError) as raised:
        load(config(*tasks, **fields))
    return str(raised.value)


def chat(*turns):
    return [{"role": role, "content": content} for role, content in turns]


# One row


@pytest.mark.parametrize(
    ("value", "prompt", "messages", "conversational"),
    [
        ("Two words", "Two words", (), False),
        (chat(("user", "Hi")), "Hi", (), True),
        (chat(("system", "Be brief"), ("user", "Hi")), "Hi", (("system", "Be brief"),), True),
        (
            chat(("user", "1+1"), ("assistant", "2"), ("user", "2+2")),
            "2+2",
            (("user", "1+1"), ("assistant", "2")),
            True,
        ),
        ([{"role": "user", "content": "Hi", "name": None}], "Hi", (), True),
    ],
)
def test_prompts_are_text_or_messages(value, prompt, messages, conversational):
    row = clean("f:1", {"prompt": value, "gold": [1], "x": {"y": None}}, config(), "f")
    assert row == task_rows.Row(prompt, messages, {"gold": [1], "x": {"y": None}}, "f", "f:1", conversational)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (["prompt"], "not an object"),
        (None, "not an object"),
        ({}, "no prompt"),
        ({"prompt": None}, "no prompt"),
        ({"prompt": " \n"}, "empty prompt"),
        ({"prompt": 7}, "neither text nor messages"),
        ({"prompt": []}, "empty prompt"),
        ({"prompt": ["Hi"]}, "a message without role or content"),
        ({"prompt": [{"role": "user"}]}, "a message without role or content"),
        ({"prompt": [{"role": "user", "content": ["Hi"]}]}, "content of a message is no text"),
        ({"prompt": chat(("system", "a"))}, "empty prompt"),
        ({"prompt": chat(("user", " "))}, "empty prompt"),
        ({"prompt": chat(("user", "a"), ("assistant", "b"))}, "roles other than"),
        ({"prompt": chat(("user", "a"), ("user", "b"))}, "roles other than"),
        ({"prompt": chat(("user", "a"), ("system", "b"), ("user", "c"))}, "roles other than"),
        ({"prompt": chat(("assistant", "a"), ("user", "b"))}, "roles other than"),
        ({"prompt": chat(("human", "a"))}, "roles other than"),
        ({"prompt": "\ud800"}, "column 'prompt': half of a surrogate pair"),
        ({"prompt": "a", "gold": ["\udfff"]}, "column 'gold': half of a surrogate pair"),
        ({"prompt": "a", "image": b"\xff\xd8"}, "column 'image': no JSON value"),
        ({"prompt": "a", "call": print}, "column 'call': no JSON value"),
    ],
)
def test_malformed_rows(value, reason):
    assert reason in clean("f:1", value, config(), "f")


def test_columns_of_numpy_and_arrow_are_json_values():
    given = {"n": np.int64(3), "a": np.array([[1.5]]), "b": b"text", "d": datetime.date(2026, 1, 2), "t": (1, 2)}
    row = clean("f:1", {"prompt": "a", **given, "c": decimal.Decimal("2.5")}, config(), "f")
    assert row.columns == {"n": 3, "a": [[1.5]], "b": "text", "d": "2026-01-02", "t": [1, 2], "c": 2.5}  # pyright: ignore
    assert type(row.columns["n"]) is int  # pyright: ignore


# A file


def test_ten_thousand_rows_with_fifty_malformed(folder):
    rng = random.Random(0)
    faults = [
        b"{cut",
        b"[1]",
        b'{"prompt": "\xff"}',
        b'{"prompt": ""}',
        b'{"other": 1}',
        b'{"prompt": {"a": 1}}',
        b"\xfe",
    ]
    bad = {line: faults[i % len(faults)] for i, line in enumerate(rng.sample(range(1, 10_001), 50))}
    rows = [bad.get(line, {"prompt": f"task {line} {rng.random()}", "n": line}) for line in range(1, 10_001)]
    write("tasks.jsonl", [*rows[:5000], b"  ", *rows[5000:]])  # a blank line is no row, but counts as a line
    found = load(config(num_test=100))
    assert {entry["place"] for entry in found.left_out} == {f"tasks.jsonl:{n + (n > 5000)}" for n in bad}
    assert len(found.left_out) == sum(found.report.values()) == 50
    assert found.report["not JSON"] == sum(content == b"{cut" for content in bad.values())
    assert found.report["not UTF-8"] == sum(b"\xff" in content or b"\xfe" in content for content in bad.values())
    kept = [row for split in found.splits.values() for row in split]
    assert sorted(row.columns["n"] for row in kept) == [n for n in range(1, 10_001) if n not in bad]
    assert all(row.place == f"tasks.jsonl:{row.columns['n'] + (row.columns['n'] > 5000)}" for row in kept)
    assert load(config(num_test=100)) == found
    assert "left out: 50 rows (" in found.account()
    left_out.write_left_out(folder / "run", found.left_out)
    listed = [json.loads(line) for line in (folder / "run" / "left_out.jsonl").read_text().splitlines()]
    assert listed == found.left_out


def test_what_is_too_long_is_added_to_the_list_once(folder, caplog):
    entries = [left_out.entry(f"f:{i}", "longer than 4 tokens", "x" * 999) for i in range(2)]
    left_out.append_left_out(folder, entries[:1])
    left_out.append_left_out(folder, entries)
    left_out.append_left_out(folder, entries)
    listed = [json.loads(line) for line in (folder / "left_out.jsonl").read_text().splitlines()]
    assert listed == entries
    assert len(listed[0]["start"]) == 200
    left_out.write_left_out(folder, [])
    assert (folder / "left_out.jsonl").read_text() == ""
    (folder / "file").touch()
    left_out.append_left_out(folder / "file", entries)  # no folder
    assert "cannot be written" in caplog.text


ROWS = [*numbered(5), {"prompt": "é ∑", "answer": 7}, {"prompt": chat(("system", "s"), ("user", "u")), "answer": 8}]


@pytest.fixture
def tfds_folder(folder):
    import tensorflow_datasets as tfds

    class MyTasks(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Rows of text."""

        VERSION = tfds.core.Version("1.0.0")
        url_infos = None

        def _info(self):
            features = tfds.features.FeaturesDict({"prompt": tfds.features.Text(), "answer": np.int32})
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in ("train", "dev")}

        def _generate_examples(self, split):
            yield from enumerate(numbered(4, split))

    builder = MyTasks(data_dir=folder / "tfds", file_format="array_record")
    builder.download_and_prepare()
    return builder.data_dir


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".arrow", ".py"])
def test_rows_are_the_same_from_any_kind_of_file(suffix):
    text, chats = ROWS[:6], ROWS[6:] * 2
    if suffix == ".py":
        pathlib.Path("made_rows.py").write_text(
            f"def text():\n    return {text}\n\ndef chats():\n    yield from {chats}\n"
        )
        words = ("made_rows.py:text", "made_rows.py:chats")
    else:
        words = (write(f"text{suffix}", text), write(f"chats{suffix}", chats))
    found = load(config(words[0], test_tasks=(words[1],)))
    assert [{"prompt": r.prompt, **r.columns} for r in found.splits["train"]] == text
    (row,) = found.splits["test"]
    assert (row.messages, row.prompt, row.columns) == ((("system", "s"),), "u", {"answer": 8})
    assert row.place == f"{words[1]}:1"
    assert found.left_out[0]["place"] == f"{words[1]}:2"
    assert found.report == {"duplicate": 1}
    expected = [pathlib.Path("made_rows.py")] * 2 if suffix == ".py" else [pathlib.Path(word) for word in words]
    assert [path.name for path in found.files.values()] == [path.name for path in reversed(expected)]
    assert {r.source for r in found.splits["train"]} == {"text"}


def test_a_json_file_may_hold_lines():
    write("lines.jsonl", ROWS)
    pathlib.Path("lines.jsonl").rename("lines.json")
    assert len(load(config("lines.json")).splits["train"]) == len(ROWS) - 1


def test_encodings():
    text = "".join(f"{json.dumps(row, ensure_ascii=False)}\r\n" for row in ROWS)
    pathlib.Path("tasks.jsonl").write_bytes(text.encode("utf-8-sig"))
    assert sum(map(len, load(config()).splits.values())) == len(ROWS)
    pathlib.Path("tasks.jsonl").write_bytes(text.encode("utf-16"))
    assert "it has no usable row" in fault()


def test_tfds(tfds_folder, monkeypatch):
    found = load(config(f"tfds:{tfds_folder}", test_tasks=(f"tfds:{tfds_folder}@dev",)))
    assert [{"prompt": r.prompt, **r.columns} for r in found.splits["train"]] == numbered(4, "train")
    assert prompts(found.splits["test"]) == prompts_of(numbered(4, "dev"))
    assert found.splits["test"][2].place == f"tfds:{tfds_folder}@dev:3"
    assert found.splits["test"][2].source == "my_tasks"
    assert pathlib.Path(tfds_folder) in found.files.values()
    assert "has no split 'tset', but 'dev', 'train'; name one" in fault(f"tfds:{tfds_folder}@tset")
    assert fault("tfds:no_such_set").startswith(
        "domain.tasks = 'tfds:no_such_set': TFDS cannot give it (DatasetNotFound"
    )
    monkeypatch.setattr(
        "tensorflow_datasets.core.utils.file_utils._REGISTERED_DATA_DIRS", {pathlib.Path("tfds").absolute()}
    )
    named = load(config("tfds:my_tasks", validation_tasks=("tfds:my_tasks",)))  # each stands for its setting's split
    assert sorted(prompts(named.splits["train"]) + prompts(named.splits["test"])) == prompts_of(numbered(4, "train"))
    assert prompts(named.splits["validation"]) == prompts_of(numbered(4, "dev"))


def prompts_of(rows):
    return [row["prompt"] for row in rows]


# Folders and data sets of the hub

LAYOUTS = [
    ("train.jsonl", "test.jsonl", "validation.jsonl"),
    ("data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "data/test-00000-of-00001.jsonl"),
    ("train/a.jsonl", "train/b.jsonl", "dev/a.jsonl", "eval/a.jsonl"),
    ("my_train_file.jsonl", "my-test.jsonl", "val.1.jsonl"),
    ("a.jsonl", "b.jsonl"),
    ("a/b.jsonl", "a/c.jsonl"),
    ("contest.jsonl", "trained.jsonl"),  # no keywords
    ("train/test.jsonl", "test/train.jsonl"),
    ("main/train.jsonl", "main/test.jsonl", "other/train.jsonl", "other/test.jsonl"),
]


@pytest.mark.parametrize("names", LAYOUTS)
def test_files_are_given_to_splits_as_by_the_hubs_library(folder, names):
    for name in names:
        write(f"set/{name}", numbered(1, name))
    data_files = pytest.importorskip("datasets.data_files")
    patterns = data_files.get_data_patterns(str(folder / "set"))
    expected = data_files.DataFilesDict.from_patterns(patterns, str(folder / "set"))
    for split in expected:
        paths = sorted(pathlib.Path(path).relative_to(folder / "set").as_posix() for path in expected[split])
        assert sources.choose(names, {}, "", str(split), "set") == paths


CARD = """---
configs:
- config_name: socratic
  data_files:
  - split: train
    path: socratic/train-*
- config_name: main
  default: true
  data_files:
  - split: train
    path: ["main/train-*", "extra.jsonl"]
  - split: aime24
    path: "main/**/test-*"
- config_name: flat
  data_files: "*.jsonl"
---
# A card
"""


@pytest.mark.parametrize(
    ("selection", "split"),
    [
        ("", "train"),
        ("main/train", "train"),
        ("main/aime24", "train"),
        ("main", "train"),
        ("socratic", "train"),
        ("flat", "test"),
        ("aime24", "train"),
        ("socratic/train", "test"),
    ],
)
def test_the_card_of_a_data_set_names_its_configs(folder, selection, split):
    names = ["main/train-0.jsonl", "main/a/test-1.jsonl", "socratic/train-0.jsonl", "extra.jsonl", "other/test.jsonl"]
    for name in names:
        write(f"set/{name}", numbered(2, name))
    (folder / "set/README.md").write_text(CARD)
    named, _, part = selection.partition("/")
    named, part = ("main", named) if named == "aime24" else (named or "main", part or "train")
    datasets = pytest.importorskip("datasets")
    expected = datasets.load_dataset_builder(str(folder / "set"), named).config.data_files[part]
    found = sources.find(f"set@{selection}" if selection else "set", split)
    assert sorted(map(str, found.files.values())) == sorted(
        str(pathlib.Path(path).relative_to(folder)) for path in expected
    )


def test_a_saved_data_set_is_a_folder(folder):
    datasets = pytest.importorskip("datasets")
    both = {split: datasets.Dataset.from_list(numbered(3, split)) for split in ("train", "test")}
    datasets.DatasetDict(both).save_to_disk("saved")
    found = load(config("saved", test_tasks=("saved",)))
    assert {split: prompts(rows) for split, rows in found.splits.items()} == {
        split: prompts_of(numbered(3, split)) for split in both
    }
    assert found.splits["train"][0].place == "saved/train/data-00000-of-00001.arrow:1"
    assert set(found.files) == {f"saved/{split}/data-00000-of-00001.arrow" for split in both}


def test_a_folder_stands_for_the_split_of_its_setting():
    for split in ("train", "test", "dev"):
        write(f"set/{split}.jsonl", numbered(3, split))
    write("set/.hidden.jsonl", numbered(3, "hidden"))
    write("set/dataset_info.json", [])
    found = load(config("set", test_tasks=("set",), validation_tasks=("set",)))
    assert [prompts(found.splits[split])[0] for split in ("train", "validation", "test")] == [
        "train 0",
        "dev 0",
        "test 0",
    ]
    assert {row.source for rows in found.splits.values() for row in rows} == {"set"}
    assert list(sources.find("set@test", "train").files) == ["set/test.jsonl"]
    write("mixed/a.jsonl", numbered(2))
    write("mixed/test.jsonl", numbered(2, "test"))
    assert list(sources.find("mixed", "train").files) == ["mixed/a.jsonl"]
    assert "has no split 'tets', but 'test', 'train', 'validation'; did you mean 'test'?" in fault("set@tets")
    assert "has no folder 'mian'; did you mean 'main'?" in fault(write_main(), "set@mian/train")


def write_main():
    write("set/main/train.jsonl", numbered(3))
    return "set@main/train"


COMMIT = "c0ffee" + 34 * "0"


@pytest.fixture
def hub(folder, monkeypatch):
    """A hub that serves files of the folder "hub" at one commit, and a cache that it fills; returns what was asked of it."""
    asked, root = [], folder / "hub"

    def info(self, repo, revision=None):
        asked.append((repo, revision))
        siblings = [type("Sibling", (), {"rfilename": p.relative_to(root).as_posix()}) for p in root.rglob("*.*")]
        return type("Info", (), {"sha": COMMIT, "siblings": siblings})

    def fetch(repo, file, repo_type, revision):
        assert (repo_type, revision) == ("dataset", COMMIT)
        asked.append((repo, file))
        return str(root / file)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    return asked


def test_hub_data_sets(folder, hub):
    for config_name, split in itertools.product(("main", "socratic"), ("train", "test")):
        write(f"hub/{config_name}/{split}-0.parquet", numbered(3, f"{config_name} {split}"))
    (folder / "hub/README.md").write_text("---\nlicense: mit\n---\n")
    found = load(config("org/my.set@main", test_tasks=("org/my.set@socratic/test#v2",)))
    assert prompts(found.splits["train"])[0] == "main train 0"
    assert prompts(found.splits["test"])[0] == "socratic test 0"
    assert found.splits["test"][1].place == "org/my.set/socratic/test-0.parquet:2"
    assert {row.source for rows in found.splits.values() for row in rows} == {"my.set"}
    assert ("org/my.set", None) in hub
    assert ("org/my.set", "v2") in hub
    assert [item[1] for item in hub if item[1] and "parquet" in item[1]] == [
        "socratic/test-0.parquet",
        "main/train-0.parquet",
    ]
    assert list(found.files) == ["org/my.set/socratic/test-0.parquet", "org/my.set/main/train-0.parquet"]


def test_without_a_network_the_hubs_cache_serves(folder, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder / "cache"))
    message = fault("org/set")
    assert "no file or folder org/set here" in message
    assert "hf download --repo-type dataset org/set" in message
    (folder / "cache/datasets--org--set/refs").mkdir(parents=True)
    (folder / "cache/datasets--org--set/refs/main").write_text(COMMIT)
    write(f"cache/datasets--org--set/snapshots/{COMMIT}/train.jsonl", numbered(3))
    assert load(config("org/set")).splits["train"][0].place.startswith("org/set/train.jsonl:")


# Functions


def test_functions_are_told_the_split():
    pathlib.Path("told.py").write_text(
        "def rows(split, count=2):\n    return [{'prompt': f'{split} {i}'} for i in range(count)]\n"
        "def both():\n    return {'train': [{'prompt': 'a'}], 'test': [{'prompt': 'b'}]}\n"
    )
    words = ("told.py:rows", "told.py:both")
    found = load(config(*words, test_tasks=words, validation_tasks=words[:1]))
    assert prompts(found.splits["train"]) == ["train 0", "train 1", "a"]
    assert prompts(found.splits["test"]) == ["test 0", "test 1", "b"]
    assert prompts(found.splits["validation"]) == ["validation 0", "validation 1"]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("def other(): pass", "has no function 'rows', but other"),
        ("def row(): pass", "did you mean 'row'?"),
        ("def rows(path): pass", "needs path; give defaults"),
        ("def rows(): return 7", "returns 7; it should return or yield rows"),
        ("def rows(): return 'text'", "returns 'text'; it should return or yield rows"),
        ("def rows():\n    yield {'prompt': 'a'}\n    raise KeyError('x')", "bad_rows.py, line 3, raises KeyError"),
        ("import sys\ndef rows(): sys.exit(3)", "bad_rows.py, line 2, raises SystemExit"),
        ("def rows(): return []", "it has no usable row (it is empty)"),
        ("def rows(): return ['a', 'b']", "it has no usable row (2 times not an object)"),
        ("import nowhere_to_be_found", "bad_rows.py, line 1, raises ModuleNotFoundError"),
    ],
)
def test_faulty_functions(code, expected):
    pathlib.Path("bad_rows.py").write_text(code)
    message = fault("bad_rows.py:rows")
    assert expected in message
    assert message.startswith("domain.tasks = 'bad_rows.py:rows': ")


# Splits


def held(found, split="test"):
    return {row.prompt for row in found.splits[split]}


def test_what_is_held_out_depends_on_the_seed_and_the_content():
    rows = numbered(200)
    write("a.jsonl", rows[:150])
    write("b.jsonl", rows[150:])
    write("tasks.jsonl", random.Random(0).sample(rows, 200))
    first = load(config("a.jsonl", "b.jsonl", num_test=20, num_validation=10))
    assert {split: len(rows) for split, rows in first.splits.items()} == {"train": 170, "validation": 10, "test": 20}
    assert set.union(*(held(first, split) for split in first.splits)) == set(prompts_of(rows))
    for other in (
        config("tasks.jsonl", num_test=20, num_validation=10),
        config("b.jsonl", "a.jsonl", num_test=20, num_validation=10, weights=(1.0, 3.0), system="s"),
    ):
        assert held(load(other)) == held(first)
        assert held(load(other), "validation") == held(first, "validation")
    assert held(load(config(num_test=20))) == held(first)
    assert held(load(config(num_test=30))) > held(first)
    # one that loses no row to test stays
    assert held(load(config(num_test=1, num_validation=10)), "validation") & held(first, "validation")
    assert held(load(config(num_test=20, split_seed=1))) != held(first)
    for i in range(30):  # a row that is added takes the place of one at most
        write("more.jsonl", [*rows, {"prompt": f"one more {i}"}])
        more = load(config("more.jsonl", num_test=20, num_validation=10))
        for split in ("test", "validation"):
            assert len(held(first, split) - held(more, split)) <= 1


def test_every_row_is_as_likely_to_be_held_out():
    write("tasks.jsonl", numbered(20))
    times = collections.Counter()
    for seed in range(300):
        times.update(held(load(config(num_test=5, split_seed=seed))))
    assert sum(times.values()) == 1500
    assert 45 < min(times.values()) <= max(times.values()) < 105  # 75 expected, standard deviation 7.5


def test_splits_by_column():
    labels = ["train"] * 6 + ["test"] * 2 + ["Validation", "dev", None]
    write("tasks.jsonl", [row | {"part": label} for row, label in zip(numbered(11), labels, strict=True)])
    found = load(config(split_column="part"))
    assert [prompts(found.splits[split]) for split in ("train", "validation", "test")] == [
        prompts_of(numbered(11))[start:stop] for start, stop in ((0, 6), (8, 10), (6, 8))
    ]
    assert found.report == {"no split": 1}
    message = fault(split_column="part", num_validation=2)
    assert "says validation in 2 rows, and domain.num_validation = 2" in message
    write("tasks.jsonl", numbered(3, part="train"))
    assert "says test in no row that is usable; name domain.test_tasks" in fault(split_column="part")
    write("tasks.jsonl", [*numbered(3, part="train"), *numbered(2, "x", part="tset")])
    message = fault(split_column="part")
    assert "says 'tset' at tasks.jsonl:4; it should say one of train, validation, test; did you mean 'test'?" in message
    assert "\n" not in message
    write("tasks.jsonl", [row | {"part": str(row["answer"])} for row in numbered(9)])
    assert "says '0' at tasks.jsonl:1, and 8 other words; it should" in fault(split_column="part")


# Duplicates and leaks


def test_leaks_and_duplicates_against_brute_force():
    rng = random.Random(1)

    def prompt():
        words = [rng.choice(("a", "B", "b", "É", "é", "d")) for _ in range(rng.choice((1, 2, 2, 3)))]
        return rng.choice(("", " ")) + rng.choice((" ", "\n ", "\t")).join(words)

    splits = {
        split: [{"prompt": prompt(), "k": rng.randrange(2)} for _ in range(25)] for split in ("train", "dev", "test")
    }
    # each has rows of its own
    given = {split: rows + numbered(2, f"{split} only", k=0) for split, rows in splits.items()}
    words = {split: write(f"{split}.jsonl", rows) for split, rows in given.items()}
    for key_columns in ((), ("k",)):
        found = load(
            config(
                words["train"], test_tasks=(words["test"],), validation_tasks=(words["dev"],), key_columns=key_columns
            )
        )

        def same(one, other, fold, key_columns=key_columns):
            texts = [row["prompt"].split() for row in (one, other)]
            texts = [[w.casefold() for w in words] for words in texts] if fold else texts
            return texts[0] == texts[1] and all(one[name] == other[name] for name in key_columns)

        kept, expected = {}, {}
        for split in ("test", "dev", "train"):
            kept[split] = []
            for line, row in enumerate(given[split], 1):
                if any(same(row, other, False) for other in given[split][: line - 1]):
                    expected[f"{split}.jsonl:{line}"] = "duplicate"
                elif before := [o for o in ("test", "dev") if o in kept and o != split and any(
                    same(row, other, True) for other in kept[o]
                )]:  # fmt: skip
                    name = {"dev": "validation"}
                    expected[f"{split}.jsonl:{line}"] = (
                        f"in {name.get(split, split)} and in {name.get(before[0], before[0])}"
                    )
                else:
                    kept[split].append(row)
        assert {entry["place"]: entry["reason"] for entry in found.left_out} == expected
        for split, name in (("train", "train"), ("dev", "validation"), ("test", "test")):
            assert prompts(found.splits[name]) == prompts_of(kept[split])
        reasons = collections.Counter(expected.values())
        assert found.report == reasons
        assert len(reasons) == 4  # all of them occur
        assert all(entry["twin"] for entry in found.left_out)


def test_held_out_rows_have_no_twin_in_train():
    turns = [chat(("system", s), ("user", f"{task} {i}")) for s in "ab" for task in ("task", "TASK") for i in range(30)]
    write("tasks.jsonl", [{"prompt": prompt} for prompt in turns])
    found = load(config(num_test=10, num_validation=7))
    folded = {split: {row.prompt.lower() for row in rows} for split, rows in found.splits.items()}
    assert not folded["train"] & (folded["test"] | folded["validation"])
    assert not folded["validation"] & folded["test"]
    assert len(found.splits["test"]) == 10
    assert found.report.keys() <= {
        "in train and in test",
        "in train and in validation",
    }  # other turns are no duplicates


# Several sources


def test_shares_are_within_one_of_exact():
    rng = random.Random(2)
    for _ in range(200):
        weights, total = [rng.uniform(0.01, 5) for _ in range(rng.randrange(1, 6))], rng.randrange(0, 1000)
        counts = shares(weights, total)
        assert sum(counts) == total
        assert all(abs(n - w / sum(weights) * total) < 1 for n, w in zip(counts, weights, strict=True))


def test_weights_repeat_and_thin_rows():
    write("x/train.jsonl", numbered(11, "few"))
    write("y/train.jsonl", numbered(90, "many"))
    plain = load(config("x/train.jsonl", "y/train.jsonl"))
    found = load(config("x/train.jsonl", "y/train.jsonl", weights=(3.0, 1.0)))
    total = len(plain.splits["train"])
    sources_of = collections.Counter(row.source for row in found.splits["train"])
    assert sources_of == {"x/train": 75, "y/train": 25}
    assert total == 100
    times = collections.Counter(prompts(found.splits["train"]))
    few = sum(row.source == "x/train" for row in plain.splits["train"])
    assert {n for prompt, n in times.items() if "few" in prompt} == {75 // few, 75 // few + 1}
    assert {n for prompt, n in times.items() if "many" in prompt} == {1}
    assert held(found) == held(plain)


def test_names_tell_sources_apart():
    for name in ("a/b/train.jsonl", "a/c/train.jsonl", "d/c/train.jsonl", "single.jsonl"):
        write(name, numbered(2, name))
    words = ("a/b/train.jsonl", "a/c/train.jsonl", "d/c/train.jsonl", "single.jsonl")
    found = [sources.find(word, "train") for word in words]
    assert sources.name_all(found) == ["b/train", "a/c/train", "d/c/train", "single"]


# Faults


def test_all_faults_are_told_at_once():
    write("a.jsonl", [{"question": "q", "prompts": "p"}] * 3)
    write("notes.csv", [])
    pathlib.Path("cut.parquet").write_bytes(b"PAR1 cut")
    assert "an address is no source; download it" in fault("https://host/tasks.jsonl")
    assert "domain.tasks = '~no-such-user/a.jsonl': " in fault("~no-such-user/a.jsonl")
    assert "File name too long" in fault("a" * 300)
    message = fault("a.jsnl", "a.jsonl", "notes.csv", "cut.parquet", test_tasks=("nowhere.jsonl",))
    assert message.startswith("5 faults of the tasks:\n")
    assert "domain.test_tasks = 'nowhere.jsonl': there is no file or folder " in message
    assert "a.jsnl; did you mean 'a.jsonl'?" in message
    assert (
        "no row has the column domain.prompt_column = 'prompt'; there are question, prompts; did you mean 'prompts'?"
        in message
    )
    assert "a file of rows ends in .jsonl, .json, .parquet, .arrow, not in '.csv'" in message
    assert "cut.parquet is damaged" in message


def test_splits_without_rows_are_faults():
    write("tasks.jsonl", numbered(5))
    assert "domain.num_test = 5 leaves nothing to train on of the 5 rows; lower it" in fault(num_test=5)
    assert "domain.num_validation = 4 leaves nothing to train on of the 4 rows" in fault(num_validation=4)
    message = fault(test_tasks=("tasks.jsonl",))
    assert message == "the split train has no row; left out: 5 in train and in test; give it others"
    write("tasks.jsonl", [b"", b"  "])
    assert fault() == "domain.tasks = 'tasks.jsonl': it has no usable row (it is empty); mend it or leave it out"
    write("tasks.jsonl", numbered(5))
    write("tests.jsonl", numbered(4))
    write("more.jsonl", numbered(5, "more"))
    message = fault("tasks.jsonl", "more.jsonl", test_tasks=("tests.jsonl",), weights=(1e-6, 1.0))
    assert "1e-06 for tasks cannot be had, since 1 of its rows" in message


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"tasks": ()}, "domain.tasks = () names no rows to train on"),
        ({"weights": (1.0, 2.0)}, "domain.weights = (1.0, 2.0) has 2 for the 1 sources"),
        ({"weights": (0.0,)}, "domain.weights = (0.0,) is not above 0"),
        ({"tasks": ("a", "a")}, "domain.tasks names 'a' 2 times"),
        ({"split_column": "s", "test_tasks": ("b",)}, "domain.split_column = 's' says which rows are tested on"),
        ({"num_test": 0}, "domain.num_test = 0 leaves no rows to test on"),
        ({"num_test": 0, "test_tasks": ("b",)}, ""),
        ({"num_validation": 3, "validation_tasks": ("b",)}, "domain.num_validation = 3 rows"),
    ],
)
def test_contradictions_of_settings(fields, expected):
    found = settings.faults(TaskConfig(**{"tasks": ("a",), "reward": ("b.py:score",), **fields}), "domain.")
    assert len(found) == bool(expected)
    assert expected in "".join(found)


def test_splits_that_there_may_be():
    assert TaskConfig().splits == ("train", "test")
    for fields in ({"num_validation": 1}, {"validation_tasks": ("a",)}, {"split_column": "s"}):
        assert TaskConfig(**fields).splits == ("train", "validation", "test")


def test_rows_need_no_jax():
    code = "import sys, exit_jax.domains.task.rows; print('jax' in sys.modules or 'pyarrow' in sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=pathlib.Path(__file__).parents[2]
    )
    assert ran.stdout.strip() == "False", ran.stderr
