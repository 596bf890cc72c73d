"""From scores to keep, undecided or reject, with the promise behind the threshold."""
