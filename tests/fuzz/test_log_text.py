"""Hostile text: no crash, no line that costs more than its length, no XID out of nothing."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator.model import Evidence, EvidenceKey
from aggregator.rules import read, read_log
from aggregator.rules.words import WORDS
from tests.fuzz import EXAMPLES

MEGABYTE = 1 << 20
FRAGMENTS = (
    *sorted({word for word, _ in WORDS}),
    *(
        "NVRM: Xid (PCI:0000:01:00): 79, ",
        "pid='",
        "name=",
        ", ",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        '"',
        "'",
        "<4>",
        "[  1.5] ",
    ),
    *(
        "GPU 00000000:19:00.0",
        "    Key : Active",
        "SXid (PCI:0000:05:00.0): 20034, ",
        "Link 3",
        "Data {",
        "0x",
        "\x1b[31m",
    ),
    *(
        "NETIR Fatal XC0 i0 Link -1 (0x",
        "> > > ",
        "```",
        "4,1,2,-;",
        '{"MESSAGE":',
        "2025-01-01T00:00:00",
        " kernel: ",
        "\\x0a",
    ),
    *(
        "on link 14(0x0, ",
        "GPC 1, TPC 2",
        "DCGM_FI_DEV_GPU_TEMP{",
        "message repeated 3 times: [ ",
        "|   0  H100  On | ",
    ),
)
text = st.one_of(
    st.text(max_size=300),
    st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=12)), max_size=14).map("".join),
)


@settings(max_examples=EXAMPLES)
@given(st.lists(text, max_size=12))
def test_no_text_breaks_the_reader(lines: list[str]) -> None:
    """Whatever is fed comes back as signals or as nothing."""
    for signal in read_log("\n".join(lines).split("\n")):
        assert signal.line
        assert signal.count >= 1


@settings(max_examples=EXAMPLES)
@given(text, st.integers(0, 200))
def test_no_record_breaks_the_reading_of_evidence(record: str, facility: int) -> None:
    """A kernel record may hold any text; userspace's never gives hardware trust."""
    evidence = Evidence(EvidenceKey("n", "kmsg", "b", 1), "kernel_line", 1, text=record, facility=facility)
    signals = read(evidence)
    assert facility == 0 or all(signal.trust == "tenant" for signal in signals)


@settings(max_examples=EXAMPLES)
@given(st.text(alphabet=st.characters(exclude_characters="N"), max_size=200))
def test_no_xid_without_the_driver_s_prefix(line: str) -> None:
    """An `xid` needs the driver's own words."""
    assert all(signal.kind != "xid" for signal in read_log([line, f"Xid (PCI:0000:01:00): 79, {line}"]))


ADVERSARIAL = {
    "one long word": "nvrm: xid" + "A" * MEGABYTE,
    "an endless head": "NVRM: Xid (" + "0" * MEGABYTE,
    "an endless code": "NVRM: Xid (PCI:0000:01:00): " + "7" * MEGABYTE,
    "an endless name": "NVRM: Xid (PCI:0000:01:00): 13, pid=1, name=" + "a, " * (MEGABYTE // 3),
    "open parentheses": "NVRM: Xid (PCI:0000:01:00): 74, NVLink: on link 1(" + "0x1, " * (MEGABYTE // 5),
    "tool tags": "[a] (b) c: " * (MEGABYTE // 11) + '"NVRM: Xid (PCI:0000:01:00): 79, x"',
    "capitals before a quotation": "A" * 190 + '! "NVRM: Xid (PCI:0000:01:00): 79, x' + "A" * MEGABYTE,
    "quote marks": "> " * (MEGABYTE // 2) + "NVRM: Xid",
    "escape sequences": "\x1b[31m" * (MEGABYTE // 5) + "NVRM: Xid",
    "open escape sequences": "NVRM: \x1b[" + "1;" * (MEGABYTE // 2),
    "blanks": " " * MEGABYTE + "NVRM: Xid",
    "blanks in a report": "GPU 00000000:19:00.0\n" + "Key" + " " * MEGABYTE + ": Active",
    "nested JSON": '{"message":[' * (MEGABYTE // 12),
    "open JSON": '{"MESSAGE":"NVRM: Xid ' + "\\" * MEGABYTE,
    "dcgm labels": "DCGM_FI_DEV_XID_ERRORS{" + 'a="b",' * (MEGABYTE // 6),
    "hex words": "NVRM: Xid (PCI:0:0): 1 " + "0:" * (MEGABYTE // 2),
    "addresses": "nvidia 0000:01:00.0: AER: " + "0000:01:00.0 " * (MEGABYTE // 13),
    "fabric": "NVRM: fabric nvlink " * (MEGABYTE // 20),
    "links": "NVRM: link train training failed to train " * (MEGABYTE // 42),
    "tasks": "INFO: task " + ":1" * (MEGABYTE // 2) + " blocked for more than",
    "crashes": "a" * MEGABYTE + "[1]: segfault at",
    "crash without an end": "python[1]: segfault at " + "in " * (MEGABYTE // 3),
    "throttled": "slowdown temperature limit " * (MEGABYTE // 27),
    "adapters": "mlx5_core " + "port link down error " * (MEGABYTE // 21),
    "RFC 5424": "<4>1 2025-01-01T00:00:00Z h kernel - - " + "[a]" * (MEGABYTE // 3),
    "logfmt": 'time=1 msg="' + "\\" * MEGABYTE + " xid nvidia",
    "tabular": "|   0  " + "H100 " * (MEGABYTE // 5) + "| nvidia-smi",
}


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_a_megabyte_on_one_line_costs_no_more_than_its_length(name: str) -> None:
    """Every pattern is bounded: the worst line is read in well under a second of processor time."""
    started = time.process_time()
    read_log(ADVERSARIAL[name].split("\n"))
    evidence = Evidence(EvidenceKey("n", "kmsg", "b", 1), "kernel_line", 1, text=ADVERSARIAL[name][:65_536])
    read(evidence)
    assert time.process_time() - started < 2.0
