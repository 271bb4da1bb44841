"""Safelight: a self-hosted FLUX image server that answers while the picture develops."""

__version__ = "0.1.0"
