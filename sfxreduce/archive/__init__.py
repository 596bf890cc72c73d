"""Archive before tape: what may leave the disk, and the proof of it. Nothing here deletes data."""
