"""Keep the hits of serial femtosecond crystallography runs."""
