"""The folder of records under what can go wrong: killed writers, two at once, a full disk, files that are no records."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest

from planner.errors import InvalidOutputError, InvalidRecordError
from planner.records import Store
from tests.records.sample import NOON, WRITER, sample

READER = "import sys; from planner.records import Store; f = Store(sys.argv[1]).read(); print('read:', len(f.records), len(f.damaged))"


def later(seconds: int):
    """The sample, some seconds later: another record."""
    return sample(now=NOON + timedelta(seconds=seconds))


def writer(folder: Path, first: int, count: int, repository: Path, **options) -> subprocess.Popen[str]:
    """Another process that writes records."""
    command = [sys.executable, "-c", WRITER, str(folder), str(first), str(count)]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options)


def test_what_is_added_is_read(tmp_path):
    """Oldest first, whatever the order of writing; the same one twice is one file."""
    store = Store(tmp_path / "new" / "records")
    paths = [store.add(record) for record in (later(5), later(1), later(5))]
    found = store.read()

    assert [record.time[-3:-1] for record in found.records] == ["01", "05"]
    assert (paths[0], found.damaged) == (paths[2], ())
    assert sorted(path.name for path in store.folder.iterdir()) == sorted({path.name for path in paths})


def test_no_folder_is_no_records(tmp_path):
    """Before the first record nothing is there, and reading makes nothing."""
    assert Store(tmp_path / "none").read().records == ()
    assert not (tmp_path / "none").exists()


def test_the_folder_is_in_the_users_data(tmp_path, monkeypatch):
    """QPLAN_HOME/records."""
    monkeypatch.setenv("QPLAN_HOME", str(tmp_path))

    assert Store().folder == tmp_path / "records"


def test_two_writers_at_once_lose_nothing(tmp_path, repository):
    """Two processes write thirty records each into one folder: sixty are there, all whole."""
    writers = [writer(tmp_path, first, 30, repository) for first in (0, 1000)]
    told = {name for process in writers for name in process.communicate(timeout=120)[0].split()}
    found = Store(tmp_path).read()

    assert [process.returncode for process in writers] == [0, 0]
    assert (len(found.records), found.damaged) == (60, ())
    assert told == {path.name for path in tmp_path.iterdir()}


def test_a_killed_writer_leaves_whole_files(tmp_path, repository):
    """kill -9 at any moment, six times: every record that was told is there, every file is a record, and the next writer goes on."""
    told: set[str] = set()
    draw = random.Random(7)  # noqa: S311 - moments, not a secret
    for turn in range(6):
        process = writer(tmp_path, 10_000 * turn, 10_000, repository)
        told.add(process.stdout.readline().strip())
        time.sleep(draw.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        rest = process.communicate(timeout=60)[0]
        told |= set(rest[: rest.rfind("\n") + 1].split())
    found = Store(tmp_path).read()

    assert found.damaged == ()
    assert told <= {f"{record.id}.json" for record in found.records}
    assert Store(tmp_path).add(later(99)).is_file()


def test_parts_of_killed_writers_are_removed_once_they_are_old(tmp_path):
    """A part of an hour ago goes with the next record; one of now may be another writer's."""
    store = Store(tmp_path)
    old, new = tmp_path / ".a.json.1.part", tmp_path / ".b.json.2.part"
    for part in (old, new):
        part.write_text("{")
    os.utime(old, (time.time() - 7200,) * 2)
    store.add(sample())

    assert (old.exists(), new.exists()) == (False, True)
    assert len(store.read().records) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_disk_that_takes_no_more_is_an_error_that_loses_nothing(tmp_path, repository):
    """The system refuses the write half way (a real refusal, by a limit): said in a sentence, records before whole, no part left."""
    store = Store(tmp_path)
    store.add(later(1))

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))

    process = writer(tmp_path, 500, 1, repository, preexec_fn=limited)
    _, error = process.communicate(timeout=60)
    found = store.read()

    assert process.returncode == 1
    assert "could not be written" in error and "File too large; the ones before are as they were" in error
    assert ([record.time[-3:-1] for record in found.records], found.damaged) == (["01"], ())
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs util-linux")
def test_a_full_disk_is_an_error_that_loses_nothing(tmp_path, repository):
    """On a file system of a few pages that is full: No space left on device, and what was there is whole."""
    script = f"""
        mount -t tmpfs -o size=16k,nr_inodes=64 none {tmp_path} || exit 77
        "{sys.executable}" -c "$WRITER" {tmp_path} 0 20
        echo left: "$(find {tmp_path} -type f | wc -l)" parts: "$(find {tmp_path} -name '*.part' | wc -l)"
        "{sys.executable}" -c "$READER" {tmp_path}
    """
    environment = {**os.environ, "PYTHONPATH": str(repository), "WRITER": WRITER, "READER": READER}
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, check=False, env=environment)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("this system mounts nothing for a user")
    kept = sum(line.endswith(".json") for line in done.stdout.splitlines())

    assert 0 < kept < 20
    assert f"left: {kept} parts: 0" in done.stdout
    assert f"read: {kept} 0" in done.stdout
    assert "No space left on device" in done.stderr


def test_a_folder_that_may_not_be_made_is_an_error(tmp_path):
    """A file stands where the folder should be: said, with what to do."""
    (tmp_path / "home").write_text("")

    with pytest.raises(InvalidOutputError, match="could not be written") as refused:
        Store(tmp_path / "home" / "records").add(sample())

    assert "QPLAN_HOME" in refused.value.hint


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b"null", b"{}", b"[" * 100_000, b"9" * 5000, b" " * (1 << 20) + b"{}", b'{"schema_version": 1}'],
)
def test_corrupted_files_are_put_aside_and_named(tmp_path, content):
    """Nothing is deleted, nothing else is touched, and the second look finds nothing damaged any more."""
    store = Store(tmp_path)
    store.add(sample())
    (tmp_path / "bad.json").write_bytes(content)
    first, second = store.read(), store.read()

    assert (len(first.records), [(d.name, d.moved_to) for d in first.damaged]) == (1, [("bad.json", "damaged/bad.json")])
    assert (len(second.records), second.damaged) == (1, ())
    assert (tmp_path / "damaged" / "bad.json").read_bytes() == content


def test_damaged_files_of_one_name_are_all_kept(tmp_path):
    """A second bad file of the same name does not replace the first."""
    store = Store(tmp_path)
    for content in ("one", "two"):
        (tmp_path / "bad.json").write_text(content)
        store.read()

    assert {path.read_text() for path in (tmp_path / "damaged").iterdir()} == {"one", "two"}


def test_records_of_a_newer_version_stay_where_they_are(tmp_path):
    """They are not damaged: another qplan of this user reads them."""
    document = {**sample().model_dump(), "schema_version": 2}
    (tmp_path / "new.json").write_text(json.dumps(document))
    found = Store(tmp_path).read()

    assert (found.records, found.damaged[0].moved_to) == ((), None)
    assert (tmp_path / "new.json").exists()


def test_a_file_that_another_process_puts_aside_meanwhile_is_no_news(tmp_path, monkeypatch):
    """It stood in the folder when it was listed, and is gone when it is read: nothing to say."""
    store = Store(tmp_path)
    path = store.add(sample())
    monkeypatch.setattr(Path, "read_bytes", lambda self: (self.unlink(), open(self, "rb"))[1])  # noqa: PTH123, SIM115 - really gone
    found = store.read()

    assert (found.records, found.damaged, path.exists()) == ((), (), False)


def test_looking_moves_nothing_where_asked(tmp_path):
    """An estimate only looks."""
    (tmp_path / "bad.json").write_text("{")

    assert Store(tmp_path).read(aside=False).damaged[0].moved_to is None
    assert (tmp_path / "bad.json").exists()


def test_what_is_exported_can_be_imported_once(tmp_path):
    """Everything goes to another folder, and a second import adds nothing; nor does a record that both had."""
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    for seconds in range(3):
        here.add(later(seconds))
    there.add(later(0))
    text = here.export().encode()

    assert (there.take(text), there.take(text)) == ((2, 1), (0, 3))
    assert there.read() == here.read()
    assert there.take(json.dumps(later(9).model_dump()).encode()) == (1, 0)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no JSON"),
        (b"[1]", "no record and no list"),
        (b'{"records": []}', "schema_version is None"),
        (b'{"schema_version": 1, "records": {}}', "schema_version"),
        (b'{"schema_version": 1, "records": [{"schema_version": 1}]}', "record 0: time is missing.*nothing was imported"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, content, says):
    """What is wrong is said, and nothing is written."""
    with pytest.raises(InvalidRecordError, match=says):
        Store(tmp_path / "records").take(content)

    assert not (tmp_path / "records").exists()


def test_one_wrong_record_refuses_all(tmp_path):
    """All or nothing."""
    document = {"schema_version": 1, "records": [sample().model_dump(), {**later(1).model_dump(), "time": "never"}]}

    with pytest.raises(InvalidRecordError, match="record 1: time is 'never'"):
        Store(tmp_path / "records").take(json.dumps(document).encode())

    assert Store(tmp_path / "records").read().records == ()
