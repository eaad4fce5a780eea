//! Makes what the system model needs, and keeps it in a cache.
