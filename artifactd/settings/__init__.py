"""TOML to frozen, validated values, and the embedded defaults."""
