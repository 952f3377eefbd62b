"""The config layer: schema, composition and checks."""
