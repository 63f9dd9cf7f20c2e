"""The protocol on paper: small models of its concerns, each searched through to its last state."""
