"""A server for models: Open Inference Protocol, a simple ``POST /segment``, and a page."""
