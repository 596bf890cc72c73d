"""peakfinder8's count of Bragg peaks as the score of an event."""
