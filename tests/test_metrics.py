"""Figures of a run: rows that survive damage, and event files that TensorBoard's own schema reads."""

import json
import math
import struct

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from exit_jax.workdir.events import EventWriter, crc32c
from exit_jax.workdir.metrics import MetricsWriter, Pace, read_jsonl, trained_iterations


def event_class():
    """Return TensorFlow's Event, as far as scalars need it, made by Google's own library for protocol buffers."""
    kind = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="event.proto", package="t", syntax="proto3")

    def message(name, **fields):
        content = file.message_type.add(name=name)
        for field, (number, code, *rest) in fields.items():
            label = kind.LABEL_REPEATED if rest[1:] else kind.LABEL_OPTIONAL
            one = content.field.add(name=field, number=number, type=code, label=label)
            if rest:
                one.type_name = f".t.{rest[0]}"

    message("Value", tag=(1, kind.TYPE_STRING), simple_value=(2, kind.TYPE_FLOAT))
    message("Summary", value=(1, kind.TYPE_MESSAGE, "Value", True))
    message("SessionLog", status=(1, kind.TYPE_INT32))
    message(
        "Event",
        wall_time=(1, kind.TYPE_DOUBLE),
        step=(2, kind.TYPE_INT64),
        file_version=(3, kind.TYPE_STRING),
        summary=(5, kind.TYPE_MESSAGE, "Summary"),
        session_log=(7, kind.TYPE_MESSAGE, "SessionLog"),
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Event"))


def read_events(path):
    """Return the events of a file of TFRecords, all checksums compared."""
    content, at, events, make = path.read_bytes(), 0, [], event_class()
    masked = lambda part: ((crc32c(part) >> 15 | crc32c(part) << 17) + 0xA282EAD8) & 0xFFFFFFFF
    while at < len(content):
        (size,) = struct.unpack_from("<Q", content, at)
        body = content[at + 12 : at + 12 + size]
        assert struct.unpack_from("<I", content, at + 8)[0] == masked(content[at : at + 8])
        assert struct.unpack_from("<I", content, at + 12 + size)[0] == masked(body)
        events.append(make.FromString(body))
        at += 16 + size
    return events


def test_checksums_are_castagnolis():
    """From RFC 3720, B.4, and the usual check value."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(bytes([0xFF] * 32)) == 0x62A8AB43


def test_event_files_hold_what_was_written(tmp_path):
    for first in (1, 301):  # a run that was resumed writes a file of its own
        writer = EventWriter(tmp_path, purge_step=first)
        writer.write(first, {"loss": 0.1, "quality/bäse": -2.5})
        writer.write(first + 1, {"loss": 1e-30})
        writer.close()
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    assert all("tfevents" in file.name for file in files)
    version, started, one, two = read_events(files[1])
    assert version.file_version == "brain.Event:2"
    assert (started.step, started.session_log.status) == (301, 1), "TensorBoard drops older events from this step on"
    assert one.step == 301
    assert [(value.tag, value.simple_value) for value in one.summary.value] == [
        ("loss", pytest.approx(0.1)),
        ("quality/bäse", -2.5),
    ]
    assert two.summary.value[0].simple_value == pytest.approx(1e-30)
    assert two.wall_time > 1.7e9


def test_a_writer_leaves_rows_and_events(tmp_path):
    writer = MetricsWriter(tmp_path, "train", 0)
    last = writer.write(1, {"loss": np.array([1.0, 2.0]), "nothing": np.array([math.nan, math.nan])}, {"rate": 3.0})
    writer.close()
    assert last == {"step": 2, "loss": 2.0, "nothing": None, "rate": 3.0}
    (file,) = (tmp_path / "tensorboard/train").iterdir()
    found = [{value.tag: value.simple_value for value in event.summary.value} for event in read_events(file)[2:]]
    assert found == [{"loss": 1.0, "rate": 3.0}, {"loss": 2.0, "rate": 3.0}]


GOOD = [json.dumps({"step": step, "loss": 0.5}) + "\n" for step in (1, 2, 3, 4, 5)]


@pytest.mark.parametrize(
    "bad",
    [b'{"step": 2, "lo\n', b"\x00\x00\x00\n", b"[2]\n", b'{"loss": 1}\n', b'{"step": "2"}\n', b"\xff\xfe{\n", b"3\n"],
)
def test_a_damaged_line_costs_itself_alone(bad, tmp_path, caplog):
    (tmp_path / "train.jsonl").write_bytes(GOOD[0].encode() + bad + "".join(GOOD[2:]).encode())
    MetricsWriter(tmp_path, "train", 4).close()
    assert "train.jsonl, line 2 is damaged" in caplog.text
    assert (tmp_path / "train.jsonl").read_text() == "".join([GOOD[0], *GOOD[2:4]]), "and step 5 was cut off"


def test_a_line_that_a_crash_cut_short_is_nothing_to_warn_of(tmp_path, caplog):
    (tmp_path / "train.jsonl").write_text(GOOD[0] + "\n" + GOOD[1][:9])
    assert [row["step"] for row in read_jsonl(tmp_path / "train.jsonl")] == [1]
    assert not caplog.text


def test_how_far_a_run_is_trained(tmp_path):
    assert trained_iterations(tmp_path) == 0
    (tmp_path / "train.jsonl").write_text("".join(GOOD))
    assert trained_iterations(tmp_path) == 5, "its checkpoints were removed"
    (tmp_path / "checkpoints/4").mkdir(parents=True)
    (tmp_path / "checkpoints/5.orbax-checkpoint-tmp").mkdir()
    assert trained_iterations(tmp_path) == 4


def test_a_full_disk_is_an_error_that_names_the_folder(tmp_path):
    writer = MetricsWriter(tmp_path, "train", 0)
    writer._file = open("/dev/full", "a")
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}'"):
        writer.write(1, {"loss": np.ones(1)}, {})
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}'"):
        writer.close()


def test_a_run_that_gets_slower_says_so_once(caplog):
    def go(secs):
        pace = Pace("train")
        for step, one in enumerate(secs, 1):
            pace.look(step, {"time/secs_per_step": one, "time/tokens_per_sec": 300 / one})

    steady = [60.0, *[1.0] * 20]  # the first call compiles
    go([*steady, *[1.9] * 50])
    go([*steady, *[1.0, 9.0, 1.0] * 20])  # some that compile for another width
    go([60.0] * 2 + [1.0] * 18)
    assert not caplog.text
    go([*steady, *[3.0] * 100])
    (record,) = caplog.records
    assert (
        "the last 20 calls up to step 41 took 3 s a step, the first 20 1 s; tokens a second: 100, then 300"
        in record.getMessage()
    )
