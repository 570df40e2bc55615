"""A small profile with its data and its backbone."""

from small_profile import profile, workspace

__all__ = ["profile", "workspace"]
