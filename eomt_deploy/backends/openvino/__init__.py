"""OpenVINO on CPUs: the engine, and the conversion to OpenVINO's own format."""
