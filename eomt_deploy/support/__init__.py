"""The support matrix: which families, tasks and precisions work with which backend, on trial."""
