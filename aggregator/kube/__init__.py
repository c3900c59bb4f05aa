"""The only Kubernetes client: everything that is asked of an API server, or told to it, goes through here."""
