"""GPUs that are not the NVIDIA driver's: amdgpu, nouveau, i915, xe, habanalabs. Their trouble is never an XID."""

from __future__ import annotations

import re
from collections.abc import Iterator

from aggregator.rules.grammar.reading import FULL_PCI, Grammar, Line, Reading, normalise_pci, present

_DRIVER = re.compile(
    r"(?:\[drm(?::\w{1,80})?(?: \[(?P<module>\w{1,20})\])?\] )?(?P<driver>amdgpu|radeon|nouveau|i915|xe|habanalabs)?"
    rf":? ?(?P<bdf>{FULL_PCI})?:? ?(?P<text>.{{1,600}})",
    re.S,
)
_AMD_EVENTS = (
    ("ras", re.compile(r"uncorrectable hardware errors|\bRAS\b|poison|ECC|bad page|hardware error", re.I)),
    ("reset", re.compile(r"GPU reset", re.I)),
    ("ring_timeout", re.compile(r"ring \S{1,20}(?: .{0,20})?timeout|job timed ?out|amdgpu_job_timedout", re.I)),
    ("page_fault", re.compile(r"page fault|VM_L2_PROTECTION_FAULT|GCVM_L2|no-retry|retry fault", re.I)),
    ("fallen_off_bus", re.compile(r"device lost from bus|fallen off the bus|0xffffffff", re.I)),
    ("other", re.compile(r"\*ERROR\*|failed|fatal|timeout|error", re.I)),
)
_TROUBLE = re.compile(r"fault|error|fail|lockup|TRAP|timeout|timed out|hang|wedged|reset|unrecoverable|ECC", re.I)
_OTHER_BEGINS = re.compile(r"(?:i915|xe|habanalabs|radeon)\b|\[drm\] GPU HANG", re.I)


def read_other_gpu(line: Line) -> Iterator[Reading]:
    """Trouble that another GPU's driver reports."""
    found = _DRIVER.match(line.text)
    if found is None:
        return
    driver = (found["driver"] or found["module"] or "").lower()
    text, bdf = found["text"], normalise_pci(found["bdf"]) if found["bdf"] else None
    if "PCIe Bus Error" in text or text.startswith("AER:"):
        return
    if driver == "amdgpu" or "amdgpu" in line.text[:60]:
        event = next((name for name, pattern in _AMD_EVENTS if pattern.search(line.text)), None)
        if event is not None:
            yield Reading("amdgpu_fault", present(bdf=bdf, event=event, text=line.text))
    elif driver == "nouveau":
        if _TROUBLE.search(text):
            yield Reading("nouveau_fault", present(bdf=bdf, text=line.text))
    elif (driver or _OTHER_BEGINS.match(line.text)) and _TROUBLE.search(text):
        yield Reading("other_gpu_fault", present(driver=driver or "i915", bdf=bdf, text=line.text))


GRAMMAR = Grammar("other_gpus", ("amdgpu", "nouveau ", "i915", "habanalabs", "gpu hang"), read_other_gpu)
