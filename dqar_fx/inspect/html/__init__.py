"""A report as a page: one file that a browser opens, without a network."""

from .page import write_html

__all__ = ["write_html"]
