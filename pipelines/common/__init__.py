"""Ground floor: errors, settings, redaction and number formats. Imports no other package."""
