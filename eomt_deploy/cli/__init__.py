"""The command line: one file per verb."""

from eomt_deploy.cli.app import main

__all__ = ["main"]
