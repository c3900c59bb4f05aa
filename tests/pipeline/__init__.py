"""From committed evidence to published assessments."""
