"""The learner's side of the course: the puzzles' metadata, the checks a notebook calls, and the command line."""
