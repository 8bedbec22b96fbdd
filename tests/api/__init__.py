"""The spec over real sockets, against the whole daemon in the process of the tests."""
