"""Which lines are kept. Sources: kernel and driver source text, as printed."""

from __future__ import annotations

import pytest

from node_agent.kernel_log import keep

KEPT = """
NVRM: Xid (PCI:0000:41:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.
NVRM: Xid (PCI:0000:41:00 GPU-I:03 GPU-CI:00): 94, pid=7, name=python, Contained: SM (0x1).
NVRM: GPU at PCI:0000:41:00: GPU-6d8d3a7b-0000-0000-0000-000000000000
NVRM: GPU Board Serial Number: 1325000000000
fallen off the GPU bus and is not responding to commands
nvidia-nvswitch3: SXid (PCI:0000:8a:00.0): 22013, Non-fatal, Link 60 Minion Link DLREQ interrupt
nvidia-nvlink: Unregistered Nvlink Core
nvidia-modeset: ERROR: GPU:0: Error while waiting for GPU progress
nvidia 0000:41:00.0: AER: can't recover (no error_detected callback)
nvidia_peermem nv_get_p2p_free_callback:127 ERROR detected invalid context, skipping further processing
nvswitch driver is not loaded
Fabric Manager exited
pcieport 0000:00:01.0: AER: Uncorrectable (Fatal) error message received from 0000:01:00.0
pcieport 0000:00:01.0: pciehp: Slot(1): Link Down
pcieport 0000:40:01.1: DPC: containment event, status:0x1f01 source:0x0000
pcieport 0000:00:03.1: PCIe Bus Error: severity=Corrected, type=Data Link Layer
aer_layer=Transaction Layer, aer_agent=Requester ID
vfio-pci 0000:41:00.0: Unable to change power state from D3cold to D0, device inaccessible
{1}[Hardware Error]: Hardware error from APEI Generic Hardware Error Source: 1
GHES: Fatal hardware error
BERT: Error records from previous boot: CPER
arm-smmu-v3 arm-smmu-v3.12.auto: event 0x10 received:
DMAR: [DMA Read NO_PASID] Request device [41:00.0] fault addr 0x0
AMD-Vi: Event logged [IO_PAGE_FAULT device=41:00.0 domain=0x0000]
EDAC MC0: 1 CE memory read error on CPU_SrcID#0_MC#0_Chan#1_DIMM#0
mce: [Hardware Error]: Machine check events logged
Memory failure: 0x1a2b3c: recovery action for dirty LRU page: Recovered
MCE: Killing python:1234 due to hardware memory corruption fault at 7f00 (poison)
BUG: Bad page state in process python  pfn:1a2b3c
mlx5_core 0000:5c:00.0: mlx5_pcie_event:299:(pid 268269): Detected insufficient power on the PCIe slot (27W).
mlx5_core 0000:5c:00.0: poll_health:801:(pid 0): device's health compromised - reached miss count
infiniband mlx5_0: reported port down
bnxt_en 0000:81:00.0 eth0: TX timeout detected, starting reset task!
NETDEV WATCHDOG: eth0 (mlx5_core): transmit queue 3 timed out
nvme nvme0: I/O 12 QID 3 timeout, aborting
blk_update_request: I/O error, dev sda, sector 2048
Buffer I/O error on dev nvme0n1p1, logical block 0, lost async page write
EXT4-fs error (device nvme0n1p1): ext4_find_entry:1612: inode #2: comm ls
EXT4-fs (sda1): Remounting filesystem read-only
XFS (dm-0): Corruption of in-memory data detected. Shutting down filesystem
nfs: server 10.0.0.1 not responding, still trying
LustreError: 11-0: MGC10.0.0.1@o2ib: operation failed
Out of memory: Killed process 1234 (python) total-vm:1000kB
python invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=1000
Memory cgroup out of memory: Killed process 4321 (python)
python: page allocation failure: order:4, mode:0xcc0(GFP_KERNEL)
INFO: task python:620917 blocked for more than 120 seconds.
task:cache_mgr_event state:D stack:    0 pid:620917 ppid:620571 flags:0x00000002
watchdog: BUG: soft lockup - CPU#0 stuck for 27s! [cuda-EvtHandlr:2255424]
rcu: INFO: rcu_preempt self-detected stall on CPU
NMI watchdog: Watchdog detected hard LOCKUP on cpu 3
amdgpu 0000:03:00.0: amdgpu: ring gfx_0.0.0 timeout, signaled seq=1, emitted seq=3
[drm:amdgpu_job_timedout [amdgpu]] *ERROR* ring sdma0 timeout
nouveau 0000:01:00.0: gr: TRAP ch 2
python[1234]: segfault at 7f79 ip 00007f7c sp 00007f7c error 4 in libnccl.so.2[7f7c7ac0]
traps: python[99] general protection fault ip:7f in libcuda.so.1[7f]
CPU3: Core temperature above threshold, cpu clock throttled (total events = 1)
thermal thermal_zone0: critical temperature reached, shutting down
Kernel panic - not syncing: Fatal exception
Oops: general protection fault, probably for non-canonical address
BUG: unable to handle page fault for address: ffffdead
kernel BUG at mm/slub.c:305!
WARNING: CPU: 3 PID: 99 at kernel/sched/core.c:1
Uhhuh. NMI received for unknown reason 3d on CPU 0.
CPU: 0 PID: 1 Comm: swapper Tainted: P           OE
Panic#1 Part1
power supply redundancy lost
""".strip().splitlines()

PASSED_OVER = """
usb 1-1: new high-speed USB device number 2 using xhci_hcd
systemd[1]: Started Session 12 of user root.
audit: type=1400 audit(1700000000.000:12): apparmor="ALLOWED"
IPv6: ADDRCONF(NETDEV_CHANGE): cali1234: link becomes ready
cni0: port 3(veth12ab) entered forwarding state
docker0: port 1(veth0) entered blocking state
BIOS-e820: [mem 0x0000000000000000-0x000000000009fbff] usable
pci 0000:00:1f.0: [8086:a1c1] type 00 class 0x060100
APIC: Switch to symmetric I/O mode setup
Write protecting the kernel read-only data: 32768k
loop0: detected capacity change from 0 to 8
EXT4-fs (sda1): mounted filesystem with ordered data mode
TCP: request_sock_TCP: Possible SYN flooding on port 80. Sending cookies.
""".strip().splitlines()


@pytest.mark.parametrize("line", KEPT)
def test_a_line_about_hardware_or_lost_work_is_kept(line: str) -> None:
    assert keep(line.lower())


@pytest.mark.parametrize("line", PASSED_OVER)
def test_a_line_of_daily_life_is_passed_over(line: str) -> None:
    assert not keep(line.lower())
