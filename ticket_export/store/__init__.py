"""The content-addressed store: keys, manifests, locks and atomic publication."""
