"""The page at `/`: plain modules that browsers load as they are, and what they need from others."""
