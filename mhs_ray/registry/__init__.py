"""The OCI registry: its process, its tokens, the checks of pushed images and their promotion."""
