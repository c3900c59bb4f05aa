"""What the text of an XID says, code by code: units, flags, states and actions that change a verdict.

Each reader takes the driver's words after pid and name and returns attributes as `kinds.py` lists them; a text it does not know
gives none. Sources: the driver's format strings, and NVIDIA's catalog for 74 and 144-150.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from aggregator.model import Scalar
from aggregator.rules import nvlink5
from aggregator.rules.grammar.reading import present

Attributes = dict[str, Scalar]

_CHANNEL = re.compile(r"\b(?:Ch(?:annel)?|channel)(?: ID)?:? (?:0x)?([0-9a-fA-F]{2,8})\b")
_SM = re.compile(r"GPC (\d+)(?:, TPC (\d+))?(?:, SM (\d+))?")
_EXCEPTION = re.compile(r"\): ([A-Za-z][^\n]{0,80})$")
_MMU = re.compile(r"MMU Fault: ENGINE (\S+)(?: (\S+))? faulted @ (0x[0-9a-fA-F_]+)")
_FAULT_TYPE = re.compile(r"\b(FAULT_\w+)(?: (ACCESS_TYPE_\w+))?")
_ADDRESS = re.compile(r"\((0x[0-9a-fA-F]+)\)")
_PARTITION = re.compile(r"\bpartition (\d+)")
_UNIT = re.compile(r"(?:Unc|C)ontained:? ([A-Za-z][\w /-]{0,40}?) ?[(.,]")
_RESET_FLAG = re.compile(r"(?<![-\w])RST: (Yes|No)")
_DRAIN_FLAG = re.compile(r"D-RST: (Yes|No)")
_RPC = re.compile(r"Expected function (\d+)(?: \((\w+)\))?")
_RPC_TIMEOUT = re.compile(r"after (\d+)s")
_INSTANCE = re.compile(r"\bGPU(\d{1,3}) GSP")
_COUNTED_UNIT = re.compile(r"\b([A-Z]{2,8}):(-?\d+)")
_RECOVERY = re.compile(r"from (?:0x[0-9a-fA-F]+ )?\(([^()]*)\) to (?:0x[0-9a-fA-F]+ )?\(([^()]*)\)?")
_NVLINK = re.compile(r"on link (-?\d+) ?\(([^()]*)\)?")
_NVLINK5 = re.compile(
    r"(?P<unit>[A-Z][\w/]*(?: Degraded)?)\s+(?P<fatal>Non-?fatal|Fatal|Link Fatal)?\s*XC\s?(?P<xc>\d+)\s+i\s?(?P<i>\d+)"
    r"\s+Link\s+(?P<link>-?\d+)\s*[([](?P<words>[0-9a-fA-Fx, ]*)",
    re.I,
)

# Words of a body and the codes whose body they are: a line may contradict itself.
_BODIES: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("Graphics SM Warp Exception", (13,)),
    ("Graphics SM Global Exception", (13,)),
    ("Graphics Exception", (13,)),
    ("MMU Fault:", (31, 108, 137)),
    ("NVLink: fatal error", (74,)),
    ("of waiting for RPC response", (119, 120)),
    ("has fallen off the bus", (79,)),
    ("Row Remapper:", (63, 64)),
    ("Dynamic Page Retirement:", (63, 64)),
    ("GPU recovery action changed", (154,)),
    ("CTX SWITCH TIMEOUT", (109,)),
)


def read_text(code: int, text: str) -> Attributes:
    """Attributes of the text of XID `code`."""
    attributes: Attributes = {}
    channel = _CHANNEL.search(text) if "Ch" in text or "channel" in text else None
    if channel:
        attributes["channel"] = channel[1].lower()
    for words, codes in _BODIES:
        if words in text and code not in codes:
            attributes["body_suggests"] = codes[0]
            break
    reader = _READERS.get(code)
    if reader is not None:
        attributes |= reader(text)
    elif "body_suggests" not in attributes:
        attributes |= _remap(text) if "Remapper" in text else {}
    if 144 <= code <= 150:
        attributes |= _nvlink5(code, text)
    return attributes


def _graphics(text: str) -> Attributes:
    place, exception = _SM.search(text), _EXCEPTION.search(text)
    gpc, tpc, sm = (int(part) if part else None for part in place.groups()) if place else (None, None, None)
    return present(gpc=gpc, tpc=tpc, sm=sm, exception=exception[1] if exception else None)


def _mmu_fault(text: str) -> Attributes:
    where = _MMU.search(text) if "faulted @" in text else None
    fault = _FAULT_TYPE.search(text) if "FAULT_" in text else None
    engine, client, address = where.groups() if where else (None, None, None)
    fault_type, access = fault.groups() if fault else (None, None)
    return present(engine=engine, client=client, address=address, fault_type=fault_type, access=access)


def _memory(text: str) -> str | None:
    lowered = text.lower()
    if any(
        word in lowered
        for word in ("sram", "l1", "l2", "ltc", "register file", "sm ", "texture", "instruction cache", "mmu")
    ):
        return "sram"
    return "dram" if any(word in lowered for word in ("framebuffer", "dram", "fbpa", "hbm", "frame buffer")) else None


def _ecc(text: str) -> Attributes:
    partition, memory = _PARTITION.search(text), _memory(text)
    return present(partition=int(partition[1]) if partition else None, memory=memory)


def _interrupt_storm(text: str) -> Attributes:
    attributes = _ecc(text)
    if "partition" in attributes:
        attributes["memory"] = "dram"
    return attributes


def _containment(text: str) -> Attributes:
    unit, reset, drain = _UNIT.search(text), _RESET_FLAG.search(text), _DRAIN_FLAG.search(text)
    return present(
        unit=unit[1] if unit else None,
        memory=_memory(text),
        gpu_reset_needed=reset[1] == "Yes" if reset else None,
        drain_reset_needed=drain[1] == "Yes" if drain else None,
    )


_REMAP_FAILURES = (
    ("table is full", "table_full"),
    ("reserved rows", "bank_full"),
    ("a reserved row", "reserved_row"),
    ("nternal", "internal_error"),
    ("spare", "no_spare"),
)


def _remap(text: str) -> Attributes:
    """63, 64 and their successors: what waits, what failed, and what makes it take effect."""
    lowered = text.lower()
    address = _ADDRESS.search(text)
    attributes = present(address=address[1] if address else None, activate=_activation(lowered))
    page = "page" in lowered
    if "already pending" in lowered:
        return attributes | {"remap": "page_recorded" if page else "pending", "remap_reason": "already_pending"}
    reason = next((name for words, name in _REMAP_FAILURES if words in lowered), None)
    if reason is not None:
        return attributes | {"remap": "page_failed" if page else "failed", "remap_reason": reason}
    if "marked for remapping" in lowered or "new page" in lowered or "retired page" in lowered:
        return attributes | {"remap": "page_recorded" if page else "recorded"}
    return attributes


def _remap_failure(text: str) -> Attributes:
    """64 without words that say otherwise is what its code says: a failure."""
    attributes = _remap(text)
    return attributes if "remap" in attributes else attributes | {"remap": "page_failed" if "age" in text else "failed"}


def _activation(lowered: str) -> str | None:
    if "reset" in lowered and "gpu" in lowered:
        return "gpu_reset"
    if "node reboot" in lowered:
        return "node_reboot"
    return "driver_reload" if "reboot" in lowered or "reload" in lowered else None


def _repair(text: str) -> Attributes:
    failed = any(word in text.lower() for word in ("unable", "fail", "no more spare", "no spare"))
    return {"repair": "failed" if failed else "armed"} | present(activate=_activation(text.lower()))


def _gsp_timeout(text: str) -> Attributes:
    function, waited, instance = _RPC.search(text), _RPC_TIMEOUT.search(text), _INSTANCE.search(text)
    return present(
        rpc_function=int(function[1]) if function else None,
        rpc_name=function[2] if function else None,
        timeout_seconds=int(waited[1]) if waited else None,
        instance=int(instance[1]) if instance else None,
    )


def _escaped_ecc(text: str) -> Attributes:
    """140 counts errors per unit; a negative count is a printing artefact and means nothing."""
    units = [name for name, count in _COUNTED_UNIT.findall(text) if 0 < int(count) < 2**31]
    return present(unit=",".join(units))


def _engine_timeout(text: str) -> Attributes:
    engine = re.search(r"errorString ([A-Z][A-Z _]{2,40})", text)
    return present(engine=engine[1].strip() if engine else None)


def recovery_action(printed: str) -> str:
    """The driver's recovery action by meaning: its wording differs between versions. `unknown` keeps what is new."""
    words = printed.lower()
    table = (
        (("imex",), "recover_imex"),
        (("drain", "reset"), "drain_and_reset"),
        (("drain",), "drain_p2p"),
        (("system", "reboot"), "system_reboot"),
        (("reboot",), "node_reboot"),
        (("bus", "reset"), "bus_reset"),
        (("flr",), "gpu_reset"),
        (("reset",), "gpu_reset"),
        (("none",), "none"),
    )
    return next((action for parts, action in table if all(part in words for part in parts)), "unknown")


def _recovery(text: str) -> Attributes:
    change = _RECOVERY.search(text)
    if change is None:
        return {"recovery_action": "unknown", "truncated": True}
    before, after = change.groups()
    return {
        "recovery_action": recovery_action(after),
        "recovery_action_before": recovery_action(before),
        "recovery_text": after,
    }


def _nvlink_registers(text: str) -> Attributes:
    found = _NVLINK.search(text)
    if found is None:
        return {}
    registers = [part.strip() for part in found[2].split(",") if part.strip()]
    bits = [f"{number}:{bit}" for number, register in enumerate(registers[:16], start=1) for bit in _set_bits(register)]
    return present(link=int(found[1]), registers=",".join(registers[:16]), register_bits=",".join(bits))


def _set_bits(register: str) -> list[int]:
    try:
        value = int(register[:18], 16)
    except ValueError:
        return []
    return [bit for bit in range(64) if value >> bit & 1]


def _nvlink5(code: int, text: str) -> Attributes:
    found = _NVLINK5.match(text)
    if found is None:
        return {}
    words = re.findall(r"[0-9a-fA-Fx]+", found["words"])
    fatal = (found["fatal"] or "").lower()
    attributes = present(
        unit=found["unit"].upper(),
        fatal=None if not fatal else not fatal.startswith("non"),
        link=int(found["link"]),
        intr_info=words[0] if words else None,
        error_status=words[1] if len(words) > 1 else None,
    )
    return attributes | _decoded(code, found["unit"], words)


def _decoded(code: int, unit: str, words: list[str]) -> Attributes:
    try:
        intr_info, status = int(words[0], 16), int(words[1], 16)
    except (ValueError, IndexError):
        return {"decode": "none"}
    return nvlink5.decode(code, unit, intr_info, status)


_READERS: dict[int, Callable[[str], Attributes]] = {
    13: _graphics,
    31: _mmu_fault,
    48: _ecc,
    63: _remap,
    64: _remap_failure,
    74: _nvlink_registers,
    92: _interrupt_storm,
    94: _containment,
    95: _containment,
    109: _engine_timeout,
    119: _gsp_timeout,
    120: _gsp_timeout,
    140: _escaped_ecc,
    154: _recovery,
    156: _repair,
    157: _repair,
    160: _repair,
    161: _repair,
    171: lambda _: {"memory": "dram"},
    172: lambda _: {"memory": "sram"},
}
