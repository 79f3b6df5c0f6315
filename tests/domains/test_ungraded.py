"""Test the log of what hung or crashed: what is written is found again, and nothing about its file takes a run down."""

from exit_jax.domains.ungraded import UngradedLog

KEY, OTHER = b"\x01\xff", b"\x02"


def test_lines_are_as_they_always_were(tmp_path):
    path = tmp_path / "new" / "log.jsonl"
    log = UngradedLog(path)
    assert not path.exists()
    log.add(KEY, reason="time limit", gold="é", num_chars=3)
    log.write(reason="it raised")
    assert path.read_bytes() == (
        b'{"hash": "01ff", "reason": "time limit", "gold": "\\u00e9", "num_chars": 3}\n{"reason": "it raised"}\n'
    )
    assert (KEY in log, OTHER in log) == (True, False)


def test_a_log_is_read_without_the_lines_that_are_none(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"hash": "01ff"}\nnone\n[1]\n{"hash": 5}\n{"hash": "zz"}\n{"reason": ""}\n\xff\n{"hash": "0')
    log = UngradedLog(path)
    assert (KEY in log, OTHER in log) == (True, False)
    log.add(OTHER)
    assert path.read_bytes().endswith(b'\n{"hash": "0\n{"hash": "02"}\n'), "the line that was cut off is ended"
    again = UngradedLog(path)
    assert (KEY in again, OTHER in again) == (True, True)


def test_without_a_file_keys_are_held(tmp_path, caplog):
    log = UngradedLog(None)
    log.add(KEY, reason="")
    assert KEY in log
    path = tmp_path / "log.jsonl"
    log = UngradedLog(path)
    path.mkdir()  # as good as a full disk
    log.add(KEY, reason="")
    assert KEY in log
    assert f"cannot write to {path}" in caplog.text
