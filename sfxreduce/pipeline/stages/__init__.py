"""The stages of `sfxreduce filter`, one file each."""
