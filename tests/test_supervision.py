"""Children that end in every way there is, and what is left of them: nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from planner.errors import UnavailableError
from planner.supervision import Ending, supervise

ATTEND = "from planner.supervision import attend; channel, job = attend()\n"


def run(program: str, job: dict[str, Any] | None = None, **options: Any) -> Ending:
    """A child of a few lines."""
    return supervise([sys.executable, "-c", ATTEND + program], job or {}, **{"timeout_s": 30, **options})


def gone(pid: int, seconds: float = 5.0) -> bool:
    """Whether a process has ended, or does so soon; one that nobody waits for yet has ended too."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def test_messages_come_in_order_and_apart_from_output() -> None:
    """What the child prints is not what it says; half a line, a large one and many are whole messages."""
    heard: list[dict[str, Any]] = []
    program = "print('noise {')\nfor i in range(200): channel.send({'i': i, 'text': 'x' * (100000 if i == 7 else 10), **job})"
    ending = run(program, {"asked": "ü"}, on_message=heard.append)

    assert ending.how == "finished"
    assert list(range(200)) == [m["i"] for m in heard]
    assert heard == list(ending.messages)
    assert {"ü"} == {m["asked"] for m in heard}
    assert "noise" in ending.stderr


@pytest.mark.parametrize(
    ("program", "how", "code", "number"),
    [
        ("import sys; sys.exit(3)", "failed", 3, None),
        ("raise ValueError('what went wrong')", "failed", 1, None),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed", None, signal.SIGKILL),
        ("import os; os.abort()", "killed", None, signal.SIGABRT),
    ],
)
def test_how_it_ended(program: str, how: str, code: int | None, number: int | None) -> None:
    """Exit codes and signals are told apart, and what was said before is there."""
    ending = run("channel.send({'last': 'words'})\n" + program)

    assert (how, code, number) == (ending.how, ending.exit_code, ending.signal)
    assert ending.messages == ({"last": "words"},)
    assert ending.sentence
    if "went wrong" in program:
        assert "what went wrong" in ending.stderr


def test_a_hung_child_and_its_children_are_ended() -> None:
    """A child that ignores SIGTERM and holds a grandchild is gone when its time is over, and so is that."""
    program = (
        "import os, signal, subprocess, sys, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "grand = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "channel.send({'pids': [os.getpid(), grand.pid]})\nwhile True: time.sleep(1)"
    )
    began = time.monotonic()
    ending = run(program, timeout_s=1.5)

    assert ending.how == "timed_out"
    assert time.monotonic() - began < 10
    assert all(gone(pid) for pid in ending.messages[0]["pids"])


def test_a_child_that_closes_its_pipes_still_has_a_time_limit() -> None:
    """Nothing to read is not the end."""
    ending = run("import os, time\nfor fd in range(1, 100):\n  try: os.close(fd)\n  except OSError: pass\ntime.sleep(600)", timeout_s=1.5)

    assert ending.how == "timed_out"


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell what a process holds")
def test_a_child_that_takes_too_much_ram_is_ended() -> None:
    """At its ceiling, not at its time limit."""
    program = "import time\nheld = bytearray(400 << 20)\nfor i in range(0, len(held), 4096): held[i] = 1\ntime.sleep(600)"
    ending = run(program, rss_limit_bytes=200 << 20)

    assert ending.how == "over_memory"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_parent_takes_all_with_it(number: int) -> None:
    """Child and grandchild are gone when their parent is killed, though the child hangs with its signals blocked."""
    child = (
        ATTEND + "import os, signal, subprocess, sys, time\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
        "grand = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "channel.send({'pids': [os.getpid(), grand.pid]})\nwhile True: time.sleep(1)"
    )
    parent = (
        "import sys\nfrom planner.supervision import supervise\n"
        f"supervise([sys.executable, '-c', {child!r}], {{}}, timeout_s=600, on_message=lambda m: print(*m['pids'], flush=True))"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    process.send_signal(number)
    process.wait()
    process.stdout.close()

    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)


def test_ctrl_c_ends_the_child() -> None:
    """KeyboardInterrupt passes through, and nothing is left."""
    pids: list[int] = []

    def heard(message: dict[str, Any]) -> None:
        pids.append(message["pid"])
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run("import os, time\nchannel.send({'pid': os.getpid()})\ntime.sleep(600)", on_message=heard)
    assert gone(pids[0])


def test_a_callback_that_fails_ends_the_child() -> None:
    """Its error is raised, and nothing is left."""
    pids: list[int] = []

    def heard(message: dict[str, Any]) -> None:
        pids.append(message["pid"])
        raise LookupError("no room for this")

    with pytest.raises(LookupError, match="no room"):
        run("import os, time\nchannel.send({'pid': os.getpid()})\ntime.sleep(600)", on_message=heard)
    assert gone(pids[0])


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    """An error of ours, not of the system's."""
    with pytest.raises(UnavailableError, match="did not start"):
        supervise([str(tmp_path / "nothing")], {}, timeout_s=1)


def test_a_child_without_a_parent_says_what_it_is_for() -> None:
    """Started by hand, it points to the command."""
    done = subprocess.run([sys.executable, "-c", ATTEND], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "qplan verify" in done.stderr


def test_no_pipe_is_left_open() -> None:
    """Five children later, this process has as many descriptors as before."""
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("the system does not list descriptors")
    run("pass")
    before = len(list(folder.iterdir()))
    for _ in range(5):
        run("pass")

    assert before == len(list(folder.iterdir()))
