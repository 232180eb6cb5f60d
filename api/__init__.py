"""The HTTP API as a Ray Serve application: routes, wire types, error table."""
