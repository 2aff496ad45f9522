"""Artifact store: artifacts by content, in a folder or a bucket."""
