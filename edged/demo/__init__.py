"""The embedded demo: a small model of its own and the broker that `edged demo` starts."""
