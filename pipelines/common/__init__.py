"""Ground floor of the pipelines: errors, settings, redaction and number formats."""
