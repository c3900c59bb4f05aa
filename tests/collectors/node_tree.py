"""A node's sysfs and procfs as real directories and files, healthy until a test breaks something."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

GPUS = ("0000:3b:00.0", "0000:5e:00.0")
PORTS = {"0000:3b:00.0": "0000:3a:00.0", "0000:5e:00.0": "0000:5d:00.0"}
AER = {
    "aer_dev_correctable": ("RxErr", "BadTLP", "TOTAL_ERR_COR"),
    "aer_dev_nonfatal": ("CmpltTO", "TOTAL_ERR_NONFATAL"),
    "aer_dev_fatal": ("SDES", "TOTAL_ERR_FATAL"),
}


def write(path: Path, text: str) -> None:
    """Replace a file's text, or whatever was there, in one step: a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    draft = path.with_name(path.name + ".draft")
    draft.write_text(text + "\n")
    draft.replace(path)


def block(path: Path) -> None:
    """Make reading a file wait for ever."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def release(path: Path, text: str) -> None:
    """Let the reader that waits go on, and later ones find an ordinary file."""
    writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK)  # ENXIO if nobody waits
    os.write(writer, text.encode())
    os.close(writer)
    write(path, text)


def is_waited_for(path: Path) -> bool:
    """Whether a thread hangs in reading a blocked file."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


class NodeTree:
    """Two GPUs below a port each, one adapter, one memory controller, three processes."""

    def __init__(self, root: Path) -> None:
        self.sys, self.proc = root / "sys", root / "proc"
        for gpu in GPUS:
            self.add_pci(PORTS[gpu], f"pci0000:00/{PORTS[gpu]}", vendor="0x8086", kind="0x060400", driver="pcieport")
            self.add_pci(gpu, f"pci0000:00/{PORTS[gpu]}/{gpu}", vendor="0x10de", kind="0x030200", driver="nvidia")
        self.add_pci(
            "0000:86:00.0", "pci0000:00/0000:86:00.0", vendor="0x10de", kind="0x068000", driver="nvidia-nvswitch"
        )
        self.add_adapter("mlx5_0", "0000:18:00.0")
        controller = self.sys / "devices/system/edac/mc/mc0"
        for name, text in (
            ("ce_count", "0"),
            ("ue_count", "0"),
            ("dimm0/dimm_ce_count", "0"),
            ("dimm0/dimm_ue_count", "0"),
        ):
            write(controller / name, text)
        write(controller / "dimm0/dimm_label", "CPU0_DIMM_A1")
        self.controller = controller
        write(self.sys / "module/nvidia/version", "550.54.15")
        write(self.proc / "sys/kernel/osrelease", "6.8.0")
        self.add_task(1, "systemd")
        self.add_task(7, "kworker/0:1 (a b) c", state="I")
        self.add_task(4242, "python3")

    def add_pci(self, address: str, place: str, *, vendor: str, kind: str, driver: str) -> None:
        path = self.sys / "devices" / place
        attributes = {
            "vendor": vendor,
            "class": kind,
            "power/runtime_status": "active",
            "power_state": "D0",
            "current_link_width": "16",
            "max_link_width": "16",
            "current_link_speed": "16.0 GT/s PCIe",
            "max_link_speed": "32.0 GT/s PCIe",
        }
        for name, text in attributes.items():
            write(path / name, text)
        for name in AER:
            self._count(path / name, name, 0)
        self.bind(path, driver)
        entry = self.sys / "bus/pci/devices" / address
        entry.parent.mkdir(parents=True, exist_ok=True)
        entry.symlink_to(os.path.relpath(path, entry.parent))

    def bind(self, path: Path, driver: str) -> None:
        (path / "driver").unlink(missing_ok=True)
        if driver:
            (path / "driver").symlink_to(f"../../../../bus/pci/drivers/{driver}")

    def device(self, address: str) -> Path:
        return (self.sys / "bus/pci/devices" / address).resolve()

    def remove(self, address: str) -> None:
        (self.sys / "bus/pci/devices" / address).unlink()

    def count_aer(self, address: str, name: str, count: int) -> None:
        self._count(self.device(address) / name, name, count)

    def _count(self, path: Path, name: str, count: int) -> None:
        write(path, "\n".join(f"{error} {count}" for error in AER[name]))

    def add_adapter(self, name: str, address: str) -> None:
        self.add_pci(address, f"pci0000:00/{address}", vendor="0x15b3", kind="0x020700", driver="mlx5_core")
        adapter = self.device(address) / "infiniband" / name
        for attribute, text in (("state", "4: ACTIVE"), ("phys_state", "5: LinkUp"), ("rate", "400 Gb/sec (4X NDR)")):
            write(adapter / "ports/1" / attribute, text)
        for counter in ("symbol_error", "link_downed", "port_rcv_errors"):
            write(adapter / "ports/1/counters" / counter, "0")
        (adapter / "device").symlink_to("../..")
        entry = self.sys / "class/infiniband" / name
        entry.parent.mkdir(parents=True, exist_ok=True)
        entry.symlink_to(os.path.relpath(adapter, entry.parent))

    def port(self, name: str = "mlx5_0") -> Path:
        return self.sys / "class/infiniband" / name / "ports/1"

    def add_task(
        self,
        pid: int,
        name: str,
        *,
        tid: int | None = None,
        state: str = "S",
        cpu: int = 5,
        wchan: str = "0",
        stack: str = "",
    ) -> Path:
        """A thread; with a tid of its own it joins the process, which must exist."""
        tid = tid or pid
        threads = 1 if tid == pid else 2
        process = self.proc / str(pid)
        for directory in (
            {process / "task" / str(tid), process / "task" / str(pid), process} if tid != pid else {process}
        ):
            own = directory.name == str(tid) or tid == pid
            write(directory / "stat", _stat(int(directory.name), name, state if own else "S", threads, cpu))
        thread = process / "task" / str(tid)
        write(thread / "wchan", wchan)
        write(thread / "stack", stack)
        if tid == pid:
            write(thread / "stat", _stat(pid, name, state, 1, cpu))
        return thread

    def end_process(self, pid: int) -> None:
        (self.proc / str(pid)).rename(self.proc / f"dead-{pid}")


def _stat(pid: int, name: str, state: str, threads: int, cpu: int) -> str:
    after_state = [
        "1",
        "1",
        "1",
        "0",
        "-1",
        "4194560",
        "100",
        "0",
        "0",
        "0",
        str(cpu),
        "0",
        "0",
        "0",
        "20",
        "0",
        str(threads),
        "0",
    ]
    return f"{pid} ({name}) {state} {' '.join(after_state)} 8899 1000 200 18446744073709551615 1 1"
