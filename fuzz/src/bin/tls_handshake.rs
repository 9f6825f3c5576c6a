//! Handshakes, which anybody may begin.
#![cfg_attr(fuzzing, no_main)]

mesh_fuzz::target!(tls_handshake);
