"""Conformance suites, faults and crash points, for blobstore itself and for third parties."""
