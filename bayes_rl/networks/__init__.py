"""Encoders and actor-critic networks."""
