"""The shipped network: it judges a small patch around every pixel that stands out."""
