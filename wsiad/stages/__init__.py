"""Stages: one function a verb; config in, artefact out."""
