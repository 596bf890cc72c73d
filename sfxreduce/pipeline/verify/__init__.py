"""Whether an output holds what its manifest, its ledger and its source say."""
