"""The version of the library; read by the build and by `onward --version`."""

__version__ = "0.1.0"
