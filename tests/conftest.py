"""What holds for every test: generated examples are the same in every run, and none fails for being slow on a busy machine."""

from hypothesis import settings

settings.register_profile("reproducible", derandomize=True, deadline=None, database=None)
settings.load_profile("reproducible")
