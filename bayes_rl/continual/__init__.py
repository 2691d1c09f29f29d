"""Consolidation of finished tasks."""
