//! The headers of a tunnel, baggage, forwarded and traceparent.
#![cfg_attr(fuzzing, no_main)]

mesh_fuzz::target!(hbone_headers);
