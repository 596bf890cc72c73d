"""Files and stores: the only place where runs and outputs are opened or written."""
