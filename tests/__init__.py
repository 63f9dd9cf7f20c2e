"""The tests mirror the tree; ``conformance/`` runs on every broker, ``acceptance/`` runs processes, ``rig/`` finds servers."""
