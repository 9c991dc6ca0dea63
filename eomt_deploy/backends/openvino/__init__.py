"""OpenVINO on CPUs: engine, and conversion to its own format."""
