"""`query_alertmanager`: alerts that stand now about the nodes in scope, and about what names no node at all.

Alertmanager believes whoever reaches it, and rules may be tenants': an alert counts as the cluster's word only without its prose,
and only where it is no tenant's namespace that it speaks of.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aggregator.investigator.sources import Answer, Scope, Tool, Unavailable
from aggregator.investigator.sources.asking import NODE_NAME, node_in_scope, page, parameters, refusing
from aggregator.investigator.sources.http import Endpoint, TooLarge
from aggregator.investigator.sources.labels import (
    ADDRESS_LABELS,
    NODE_LABELS,
    SYSTEM_NAMESPACES,
    NodeNames,
    is_tenant_label,
)
from aggregator.investigator.sources.prometheus import Addresses, no_addresses, node_names
from aggregator.model import Trust

MAX_ALERTS = 30
MAX_TEXT = 300
MAX_BYTES = 16 * 2**20

_WORD = re.compile(r"[A-Za-z0-9_.:/@%+-]{1,200}")  # what identifies something; prose has spaces

_ABOUT = """\
Returns the alerts that stand now in Alertmanager: name, labels, since when, state. With node_name: about that node, \
matched whole (gpu-1 is not gpu-10). Without: about every node in scope, and those that name no node (racks, power, \
network, whole cluster). Silenced and inhibited alerts only on request; at most 30, the oldest first, with totals. \
text=true adds alerts' summaries and descriptions, and alerts about tenants' namespaces: these are words that prove \
nothing by themselves. No alert is no proof of health."""
_PARAMETERS = parameters(
    {
        "node_name": {**NODE_NAME, "default": ""},
        "silenced": {"type": "boolean", "default": False, "description": "silenced and inhibited ones too"},
        "text": {
            "type": "boolean",
            "default": False,
            "description": "with summaries, descriptions and tenants' alerts",
        },
    }
)


@dataclass(frozen=True)
class Alertmanager:
    """An Alertmanager, by its v2 API."""

    endpoint: Endpoint
    addresses: Addresses = no_addresses
    system_namespaces: tuple[str, ...] = SYSTEM_NAMESPACES
    name: str = "alertmanager"

    @property
    def tools(self) -> Sequence[Tool]:
        return (Tool("query_alertmanager", _ABOUT, _PARAMETERS, refusing(self.query), live=True),)

    async def unavailable(self) -> str:
        try:
            reply = await self.endpoint.get("/api/v2/status")
        except (Unavailable, TooLarge) as error:
            return str(error)
        return "" if reply.status == 200 else f"{self.endpoint.shown} answers with status {reply.status}"

    async def query(self, scope: Scope, arguments: Mapping[str, Any]) -> Answer:
        """The tool."""
        asked, text = arguments.get("node_name", ""), bool(arguments.get("text", False))
        wanted = [node_in_scope(scope, asked)] if asked else scope.nodes[:50]
        names = await node_names(scope, wanted, self.addresses)
        found = [
            alert for alert in await self._alerts(arguments.get("silenced", False)) if _is_about(alert, names, asked)
        ]
        allowed = [alert for alert in found if alert["labels"].get("namespace", "") not in scope.denied_namespaces]
        told = allowed if text else [alert for alert in allowed if self._is_clusters(alert)]
        told.sort(key=lambda alert: str(alert.get("startsAt", "")))
        shown, counts = page(told, MAX_ALERTS)
        value = {
            "nodes": list(names.nodes),
            "alerts": [_shown(alert, names, text=text) for alert in shown],
            **counts,
            "only_with_text": len(allowed) - len(told),
        }
        return Answer(value, Trust.TENANT if text else Trust.CLUSTER)

    async def _alerts(self, silenced: bool) -> list[Mapping[str, Any]]:
        endpoint = Endpoint(self.endpoint.url, self.endpoint.credentials, MAX_BYTES)
        asked = "true" if silenced else "false"
        try:
            reply = await endpoint.get(
                "/api/v2/alerts",
                {"active": "true", "silenced": asked, "inhibited": asked, "unprocessed": "true"},
            )
            alerts = reply.json()
            if reply.status == 200 and all(isinstance(alert["labels"], dict) for alert in alerts):
                return list(alerts)
        except TooLarge as error:
            raise Unavailable(f"{self.endpoint.shown} has {error} of alerts") from error
        except (ValueError, KeyError, TypeError) as error:
            raise Unavailable(f"{self.endpoint.shown} answers with status {reply.status} and no alerts") from error
        raise Unavailable(f"{self.endpoint.shown} answers with status {reply.status} and no alerts")

    def _is_clusters(self, alert: Mapping[str, Any]) -> bool:
        labels = alert["labels"]
        namespace = labels.get("namespace", "")
        named = _WORD.fullmatch(labels.get("alertname", "")) is not None
        return named and (not namespace or namespace in self.system_namespaces)


def _is_about(alert: Mapping[str, Any], names: NodeNames, asked: str) -> bool:
    """About one of these nodes; and where none was asked for, also about no node at all."""
    node = names.node_of(alert["labels"])
    return bool(node) or (node == "" and not asked)


def _shown(alert: Mapping[str, Any], names: NodeNames, *, text: bool) -> dict[str, Any]:
    status = alert.get("status") or {}
    labels = alert["labels"]
    kept = {name: value[:MAX_TEXT] for name, value in labels.items() if text or _is_plain(name, value)}
    shown = {
        "node": names.node_of(labels) or None,
        "labels": dict(sorted(kept.items())),
        "since": alert.get("startsAt"),
        "state": status.get("state"),
    }
    if status.get("silencedBy") or status.get("inhibitedBy"):
        shown |= {"silenced": bool(status.get("silencedBy")), "inhibited": bool(status.get("inhibitedBy"))}
    if text:
        shown["text"] = {
            name: value[:MAX_TEXT] for name, value in sorted((alert.get("annotations") or {}).items())[:10]
        }
    return shown


def _is_plain(name: str, value: str) -> bool:
    known = name in (*NODE_LABELS, *ADDRESS_LABELS) or (not is_tenant_label(name) and _WORD.fullmatch(name) is not None)
    return known and _WORD.fullmatch(value) is not None
