"""The same work on other libraries. What runs under a peer's own Python imports nothing of `reverb_async`.

`comparison` and `environment` run in the harness; `dm_reverb_server`, `dm_reverb_client` and `cpprb_buffer` are
programs for the peer's interpreter.
"""
