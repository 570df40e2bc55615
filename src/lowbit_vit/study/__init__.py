"""Level 6: a study's cells, each in a fresh process, spread over the machine by Ray Tune."""
