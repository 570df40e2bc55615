"""What holds for every test: property tests draw the same examples in each run, and no test has to be quick."""

from hypothesis import settings

settings.register_profile("lowbit-vit", deadline=None, derandomize=True)
settings.load_profile("lowbit-vit")
