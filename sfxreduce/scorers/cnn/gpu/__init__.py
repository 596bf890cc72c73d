"""Streaming events through an accelerator: transfer, batches, overlap, compilation."""
