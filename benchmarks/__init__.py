"""Measurements that the README and the docs point to; see README.md here."""
