"""Inputs of every kind, whole or damaged: what is readable is diagnosed, what is not is named, and nothing is "ok" unread."""

from __future__ import annotations

import bz2
import fcntl
import gzip
import json
import lzma
import os
import pty
import random
import select
import socket
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from aggregator import cli
from tests.diagnose.running import FALLEN, LOG, MAIN, diagnose

PLAIN = LOG.encode()


def _cut(packed: bytes, off: int = 4_000) -> bytes:
    return packed[:-off]


def _wrong_sum(packed: bytes) -> bytes:
    return packed[:-8] + bytes([packed[-8] ^ 1]) + packed[-7:]


def _long(first: bytes = PLAIN) -> bytes:
    """A log that packs badly, its fault in front."""
    noise = random.Random(4)
    return first + b"".join(b"[ %d.0] noise %x\n" % (number, noise.getrandbits(128)) for number in range(5_000))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(gzip.compress(PLAIN), "", id="gzip"),
        pytest.param(gzip.compress(PLAIN[:40]) + gzip.compress(PLAIN[40:]), "", id="gzip in two members"),
        pytest.param(gzip.compress(PLAIN) + b"\0" * 512, "", id="gzip padded with zeros"),
        pytest.param(gzip.compress(PLAIN) + b"tail", "followed by something else", id="gzip and something else"),
        pytest.param(_wrong_sum(gzip.compress(PLAIN)), "wrong checksum; it was read", id="gzip with a wrong checksum"),
        pytest.param(
            _wrong_sum(gzip.compress(b"noise\n")) + gzip.compress(PLAIN), "wrong checksum", id="wrong sum, next member"
        ),
        pytest.param(gzip.compress(PLAIN)[:-3], "ends early; it was read", id="gzip without the end of its checksum"),
        pytest.param(lzma.compress(PLAIN), "", id="xz"),
        pytest.param(lzma.compress(PLAIN[:40]) + lzma.compress(PLAIN[40:]), "", id="xz in two streams"),
        pytest.param(bz2.compress(PLAIN), "", id="bzip2"),
        pytest.param(_cut(gzip.compress(_long())), "the gzip data ends early; the lines before", id="gzip cut off"),
        pytest.param(_cut(lzma.compress(_long())), "the xz data ends early; the lines before", id="xz cut off"),
        pytest.param(_cut(bz2.compress(_long(), 1)), "the bzip2 data ends early; the lines before", id="bzip2 cut off"),
        pytest.param(LOG.encode("utf-16"), "", id="UTF-16 as PowerShell writes it"),
        pytest.param(LOG.encode("utf-16-le"), "", id="UTF-16 without its mark"),
        pytest.param(b"\xfe\xff" + LOG.encode("utf-16-be"), "", id="UTF-16 of the other byte order"),
        pytest.param(b"[ 1.0] usb\r\n" * 50 + LOG.encode("utf-16"), "", id="UTF-16 appended to 8-bit text"),
        pytest.param("noise\r\n".encode("utf-16") + PLAIN, "", id="8-bit text appended to UTF-16"),
        pytest.param(b"\xff\xfe" + PLAIN, "", id="UTF-16's mark before 8-bit text"),
        pytest.param(b"\xff\xfe" + FALLEN.encode(), "", id="UTF-16's mark before one line alone"),
        pytest.param(b"\xef\xbb\xbf" + PLAIN, "", id="UTF-8 with its mark"),
        pytest.param(b"caf\xe9 \xff\xfe\n" + PLAIN, "", id="not UTF-8 in places"),
        pytest.param(b"\x00\x01\x02\n" + PLAIN, "binary", id="binary around it"),
        pytest.param(b"\x00" * 5_000 + PLAIN, "binary", id="zeros that a crash left in a log"),
        pytest.param(LOG.replace("\n", "\r\n").encode(), "", id="CRLF"),
        pytest.param(PLAIN.rstrip(b"\n"), "", id="no line end at the end"),
        pytest.param(b"x" * 3_000_000 + b"\n" + PLAIN, "", id="a line of three megabytes in front"),
    ],
)
def test_whatever_is_readable_is_diagnosed(
    content: bytes, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Encodings, compression and damage do not hide a fault; one notice says what is odd."""
    path = tmp_path / "log"
    path.write_bytes(content)
    code, found, err = diagnose(capsys, str(path))
    assert (code, found["severity"]) == (0, "critical")
    assert words in err
    assert len(err.splitlines()) == bool(words)


def test_every_line_before_the_damage_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bad data in the middle of a gzip member: the fault stands in the last whole line before it."""
    lines = _long(b"")
    packed = bytearray(gzip.compress(lines + PLAIN + _long(b"")))
    sound = len(gzip.compress(lines + PLAIN))
    packed[sound + 400 : sound + 4_000] = b"\xff" * 3_600
    path = tmp_path / "log.gz"
    path.write_bytes(packed)
    code, found, err = diagnose(capsys, str(path))
    assert (code, found["severity"]) == (0, "critical")
    assert 5_003 <= found["lines_read"] < 5_100
    assert "the gzip data is damaged" in err


def test_half_a_line_at_the_end_of_broken_data_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An XID 79 cut after its first digit must not become an XID 7."""
    path = tmp_path / "log.gz"
    for size in range(20, len(gzip.compress(_long(PLAIN)[:200]))):
        path.write_bytes(gzip.compress(_long(PLAIN)[:200])[:size])
        _, found, _ = diagnose(capsys, str(path))
        assert not found or {signal["code"] for signal in found["signals"]} <= {79}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(b"\x28\xb5\x2f\xfd" + b"\0" * 40, "zstd -dc {} | gcm-sentinel diagnose -", id="zstd"),
        pytest.param(b"\x04\x22\x4d\x18" + b"\0" * 40, "lz4 -dc {} | gcm-sentinel diagnose -", id="lz4"),
        pytest.param(b"PK\x03\x04" + b"\0" * 40, "unzip -p {} | gcm-sentinel diagnose -", id="zip"),
        pytest.param(gzip.compress(PLAIN)[:12], "nothing of it could be read", id="gzip cut off at once"),
        pytest.param(b"\x1f\x8b\x08\xff" + b"x" * 40, "unknown header", id="a gzip header that means nothing"),
        pytest.param(_wrong_sum(lzma.compress(PLAIN)), "nothing of it could be read", id="xz damaged at once"),
        pytest.param(bz2.compress(PLAIN)[:20], "nothing of it could be read", id="bzip2 cut off at once"),
    ],
)
def test_what_cannot_be_unpacked_is_never_ok(
    content: bytes, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 2 and a line that says what to do; other inputs are still diagnosed."""
    bad, good = tmp_path / "log.packed", tmp_path / "good"
    bad.write_bytes(content)
    good.write_text(LOG)
    code, found, err = diagnose(capsys, str(bad))
    assert (code, found) == (2, None)
    assert words.format(bad) in err
    assert len(err.splitlines()) == 1
    code, found, _ = diagnose(capsys, str(bad), str(good))
    assert (code, found["severity"], found["lines_read"]) == (2, "critical", 3)


@pytest.mark.parametrize("content", [b"", b"\n\n", gzip.compress(b"", mtime=0)])
def test_empty_input_is_one_valid_object(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON is always valid on exit 0; that there was nothing is said on stderr."""
    path = tmp_path / "empty"
    path.write_bytes(content)
    code, found, err = diagnose(capsys, str(path))
    assert (code, found["severity"], found["lines_read"]) == (0, "ok", content.count(b"\n\n") * 2)
    assert ("is empty" in err) == (content != b"\n\n")


@pytest.mark.parametrize("name", ["missing", "directory", "socket", "name\x1b[31m\nwith controls"])
def test_what_cannot_be_opened_is_named_with_exit_2(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that names the file and says why; the inputs that can be read are still diagnosed."""
    (tmp_path / "directory").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        bad, good = tmp_path / name, tmp_path / "good"
        good.write_text(LOG)
        code, found, err = diagnose(capsys, str(bad))
        assert (code, found) == (2, None)
        assert name.partition("\x1b")[0] in err
        assert len(err.splitlines()) == 1
        assert "\x1b" not in err
        code, found, err = diagnose(capsys, str(bad), str(good))
        assert (code, found["severity"]) == (2, "critical")


def test_a_file_that_may_not_be_read_is_named_with_exit_2(tmp_path: Path) -> None:
    """As an operator without root runs it; the other input is still read."""
    secret, open_to_all = tmp_path / "secret", tmp_path / "open"
    for path in (secret, open_to_all):
        path.write_text(LOG)
    secret.chmod(0)
    root = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]  # else root reads everything
    command = [*(root if os.geteuid() == 0 else []), sys.executable, "-c", MAIN, "diagnose", "--format", "json"]
    for others, wanted in (([], None), ([str(open_to_all)], "critical")):
        done = subprocess.run([*command, str(secret), *others], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2
        assert done.stderr == f"gcm-sentinel diagnose: {secret}: Permission denied\n"
        assert (json.loads(done.stdout)["severity"] if done.stdout else None) == wanted


def test_what_opens_and_cannot_be_read_is_named_with_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    """The memory of a process opens like a file."""
    code, found, err = diagnose(capsys, "/proc/self/mem")
    assert (code, found, err) == (2, None, "gcm-sentinel diagnose: /proc/self/mem: Input/output error\n")


def test_no_fault_is_not_said_of_what_was_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Silence of one input must not pass for health of all."""
    healthy = tmp_path / "healthy"
    healthy.write_text("[ 1.0] usb 1-1: new device\n")
    assert cli.main(["diagnose", str(healthy), str(tmp_path / "missing")]) == 2
    assert "1 of the inputs could not be read." in capsys.readouterr().out


@pytest.mark.skipif(not os.access("/dev/kmsg", os.R_OK), reason="no kernel log to read here")
def test_the_kernel_s_log_is_read_as_far_as_it_goes() -> None:
    """A device without an end, which a plain read would wait on for ever."""
    done = subprocess.run(
        [sys.executable, "-c", MAIN, "diagnose", "--format", "json", "/dev/kmsg"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0 or "Operation not permitted" in done.stderr
    assert not done.stdout or json.loads(done.stdout)["lines_read"] >= 0


def test_a_line_without_an_end_is_cut_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Memory is bounded; what is passed over is said, and what follows is read."""
    path = tmp_path / "log"
    path.write_bytes(b"x" * (9 << 20) + b"\n" + PLAIN)
    code, found, err = diagnose(capsys, str(path))
    assert (code, found["severity"], found["lines_read"]) == (0, "critical", 4)
    assert "its rest was passed over" in err


def test_a_pipe_with_a_name_is_read_to_its_end(tmp_path: Path) -> None:
    """What `<(command)` gives a program."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    command = [sys.executable, "-c", MAIN, "diagnose", "--format", "json", str(pipe)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reading:
        pipe.write_text(LOG)
        out, _ = reading.communicate(timeout=60)
    assert json.loads(out)["severity"] == "critical"


@pytest.mark.parametrize("columns", [20, 60, 200])
def test_the_progress_bar_stays_on_one_line(columns: int, tmp_path: Path) -> None:
    """However narrow the terminal and however odd the name; and it is gone at the end."""
    path = tmp_path / ("a long name \x1b[31m " + "x" * 100)
    path.write_text("[ 1.0] usb 1-1: new device\n" * 1_500_000)
    ours, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    command = [sys.executable, "-c", MAIN, "diagnose", "--format", "json", str(path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=terminal):
        os.close(terminal)
        shown = b""
        while select.select([ours], [], [], 30)[0]:
            try:
                shown += os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
    os.close(ours)
    drawn = shown.decode().split("\r\x1b[K")
    assert len(drawn) > 2
    assert max(map(len, drawn)) < columns
    assert drawn[-1] == ""
    assert not any("\x1b" in line for line in drawn)
