"""Stages: the builders of each kind of artifact."""
