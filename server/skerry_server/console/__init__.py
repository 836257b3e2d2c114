"""The web console: one page, rendered once, and a small ES-module application beside it. No build step, no CDN."""

from skerry_server.console.pages import mount

__all__ = ["mount"]
