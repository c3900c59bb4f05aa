"""The model's nouns ↔ JSON in the database: one generic place, so that a field added to a noun needs nothing here.

Pydantic validates what comes back: the file may have been written by another version.
"""

from __future__ import annotations

from pydantic import TypeAdapter

from aggregator.model import Assessment, Incident, Investigation

_incident = TypeAdapter(Incident)
_assessment = TypeAdapter(Assessment)
_investigation = TypeAdapter(Investigation)

dump_incident = _incident.dump_json
load_incident = _incident.validate_json
dump_assessment = _assessment.dump_json
load_assessment = _assessment.validate_json
dump_investigation = _investigation.dump_json
load_investigation = _investigation.validate_json
