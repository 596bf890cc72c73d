"""What gives an event its score. Only this package and `sfxreduce.train` use torch."""
