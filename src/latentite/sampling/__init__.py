"""Runs of a generator: window by window, into folders that are resumed, checked and merged."""
