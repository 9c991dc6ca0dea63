"""Hostile inputs: seeded fuzzers for everything that eomt-deploy reads, and hostile circumstances.

`python -m tests.hostile --count 200000` runs the fuzzers for long; `pytest tests/hostile` runs some
hundred inputs of each, and the tests of the native kernels, of processes and of full disks.
"""
