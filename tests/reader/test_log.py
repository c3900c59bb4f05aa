"""A log as a whole: names, repeats, bounds, and what the words that guard the grammars must hold."""

from __future__ import annotations

import pytest

from aggregator.rules import LogReader, read_log
from aggregator.rules.gathered import MAX_SIGNALS
from aggregator.rules.words import STEMS, WORDS

UUID = "GPU-509665ad-b600-ac93-3616-d754b23d636d"


def _read(text: str) -> LogReader:
    reader = LogReader()
    reader.feed(text)
    reader.finish()
    return reader


@pytest.mark.parametrize(("word", "_"), WORDS)
def test_every_word_holds_a_stem(word: str, _: object) -> None:
    """Else its lines would be passed over before the word is looked for."""
    assert any(stem in word for stem in STEMS)
    assert word == word.lower()


def test_lines_are_counted_with_and_without_a_meaning() -> None:
    """`lines_read` and `lines_matched` tell how much of an input was understood."""
    reader = _read("one\ntwo\nNVRM: Xid (PCI:0000:01:00): 8, x\nfour\n\nNVRM: Xid (PCI:0000:01:00): 9, y")
    assert (reader.lines_read, reader.lines_matched) == (6, 2)
    assert [signal.line for signal in reader.signals()] == [3, 6]


def test_a_block_reads_like_its_lines() -> None:
    """Feeding many lines at once changes nothing but the time it takes."""
    lines = [
        "GPU 00000000:19:00.0",
        "    HW Slowdown    : Active",
        "noise",
        "NVRM: Xid (PCI:0000:01:00): 1",
        "1, x",
        "end",
    ]
    block = _read("\n".join(lines) + "\n")
    assert read_log(lines) == block.signals()
    assert block.lines_read == len(lines)


def test_several_inputs_are_told_apart_by_name() -> None:
    """Line numbers repeat; ids must not."""
    reader = LogReader(name="a.log")
    reader.feed("NVRM: Xid (PCI:0000:01:00): 8, x")
    assert reader.signals()[0].id == "a.log:L1"


@pytest.mark.parametrize(
    ("line", "attribute", "value"),
    [
        (
            "NVRM: loading NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024",
            "driver_version",
            "550.54.15",
        ),
        (
            "| NVIDIA-SMI 550.54.15              Driver Version: 550.54.15      CUDA Version: 12.4     |",
            "driver_version",
            "550.54.15",
        ),
        (f"GPU 0: NVIDIA H100 80GB HBM3 (UUID: {UUID})", "gpu_model", "NVIDIA H100 80GB HBM3"),
    ],
)
def test_the_text_tells_driver_and_model(line: str, attribute: str, value: str) -> None:
    """What rules depend on need not be asked from the operator."""
    reader = _read(line)
    found = reader.driver_version if attribute == "driver_version" else reader.gpu_model
    assert found == value


@pytest.mark.parametrize(
    ("naming", "naming_line"),
    [
        ("serial", f"NVRM: GPU at PCI:0000:3b:00: {UUID}\nNVRM: GPU Board Serial Number: 1653023000123"),
        ("minor", f'DCGM_FI_DEV_GPU_TEMP{{gpu="3",UUID="{UUID}",pci_bus_id="00000000:3B:00.0",device="nvidia3"}} 40'),
        ("report", f"GPU 00000000:3B:00.0\n    GPU UUID         : {UUID}\n    Minor Number     : 3\nend of report"),
    ],
)
def test_an_address_gets_its_uuid_from_anywhere_in_the_text(naming: str, naming_line: str) -> None:
    """Before or after: a name learned once holds for every line."""
    event = "NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus."
    for text in (f"{event}\n{naming_line}", f"{naming_line}\n{event}"):
        signals = [signal for signal in _read(text).signals() if signal.kind == "xid"]
        assert [(signal.pci, signal.gpu_uuid) for signal in signals] == [("0000:3b:00.0", UUID)]


def test_names_of_one_node_are_not_used_for_another() -> None:
    """Every node has a GPU at the same address."""
    text = (
        f"Jul  9 10:42:47 node-a kernel: NVRM: GPU at PCI:0000:3b:00: {UUID}\n"
        "Jul  9 10:42:48 node-b kernel: NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus."
    )
    assert _read(text).signals()[0].gpu_uuid is None


def test_memory_is_bounded_and_nothing_is_lost_in_count() -> None:
    """A log with more distinct lines than are kept counts the rest in the last of their kind and GPU."""
    reader = LogReader()
    total = MAX_SIGNALS + 500
    for number in range(total):
        reader.feed(f"[{number * 100}.0] NVRM: Xid (PCI:0000:3b:00): 31, pid={number}, name=x, Ch {number:08x}")
    signals = reader.signals()
    assert len(signals) == MAX_SIGNALS
    assert sum(signal.count for signal in signals) == total
    assert reader.signals_dropped == 0
