"""Where assessments go: one file per output. An output fails alone and says so."""
