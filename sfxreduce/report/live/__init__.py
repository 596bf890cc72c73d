"""Pages that a browser shows while something goes on: a run that is filtered, events to look at."""
