"""A model of a study as a folder that is used where there is no study."""
