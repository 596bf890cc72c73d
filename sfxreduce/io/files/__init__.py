"""Files on a disk that can fail: durable writes, renames, journals, safe reads."""
