"""Measurements beside a peer, both in one run on one machine."""
