"""The store in this process's memory: the protocol in plain Python, for tests and for reading."""
