"""NVLink5 errors are decoded by NVIDIA's table, for the driver's layout where it is known and for both where not."""

from __future__ import annotations

import pytest

from aggregator.rules import nvlink5


@pytest.mark.parametrize(
    ("xid", "unit", "intr_info", "status", "driver", "wanted"),
    [
        pytest.param(149, "NETIR_LINK_EVT", 0x021425C6, 0, None, ("v1", "RESET_GPU", 33), id="old layout"),
        pytest.param(149, "NETIR_LINK_EVT", 0x02000011, 0, None, ("v2", "RESET_GPU", 32), id="new layout"),
        pytest.param(149, "NETIR_LINK_EVT", 0x02000011, 0, 575, ("v2", "RESET_GPU", 32), id="new layout, new driver"),
        pytest.param(149, "NETIR_LINK_EVT", 0x02000011, 0, 570, ("none", None, 32), id="new layout, old driver"),
        pytest.param(145, "RLW_RXPIPE", 0x0409A0C2, 0x8, None, ("v1", "IGNORE", None), id="may be ignored"),
        pytest.param(145, "RLW_RXPIPE", 0x000000C2, 0x1, 570, ("v1", "IGNORE", None), id="RXPIPE, first action"),
        pytest.param(145, "RLW_RXPIPE", 0x000004C2, 0x1, 570, ("v1", "RESET_GPU", None), id="RXPIPE, second action"),
        pytest.param(146, "TLW_RX", 0x143, 0x4, 570, ("ambiguous", "RESET_GPU", None), id="two pipes share a pattern"),
        pytest.param(
            146, "TLW_RX/TLW_RX_PIPE1", 0x143, 0x4, 570, ("v1", "RESET_GPU", None), id="the printed unit decides"
        ),
        pytest.param(150, "MSE_WATCHDOG", 0, 0, None, ("v1,v2", "RESET_GPU", None), id="both layouts agree"),
        pytest.param(144, "SAW_MVB", 0x3FF, 0x1, None, ("none", None, None), id="not in the table"),
        pytest.param(143, "SAW_MVB", 0x21, 0x1, None, ("none", None, None), id="no NVLink5 code"),
    ],
)
def test_the_table_is_looked_up_by_unit_pattern_and_status(
    xid: int, unit: str, intr_info: int, status: int, driver: int | None, wanted: tuple[str, str | None, int | None]
) -> None:
    """Layout, immediate action and link-down reason."""
    found = nvlink5.decode(xid, unit, intr_info, status, driver)
    assert (found["decode"], found.get("immediate"), found.get("link_down_reason")) == wanted


def test_rows_that_disagree_are_all_named() -> None:
    """An ambiguous error names every unit it could be."""
    assert nvlink5.decode(146, "TLW_RX", 0x143, 0x4, 570)["subcode"] == "TLW_RX/TLW_RX_PIPE0|TLW_RX/TLW_RX_PIPE1"
