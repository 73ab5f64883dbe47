"""How every edit is taken back: journal, vault, drift, fingerprint."""
