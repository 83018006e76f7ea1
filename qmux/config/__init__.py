"""Configuration: TOML files to typed values, every problem with file, line, key and what to do."""
